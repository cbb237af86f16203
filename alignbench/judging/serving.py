"""Serving a scorer of this environment to others, as `alignbench.remote.server` says."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer

import torch
from torch import Tensor

from alignbench import plugins
from alignbench.devices import device_of
from alignbench.errors import AlignbenchError, InputError, RunError
from alignbench.images import LARGEST, as_tensor
from alignbench.interface import Prompt, Reward
from alignbench.judging.options import ServeOptions
from alignbench.remote.server import HOST, Refused, make_server
from alignbench.scoring.values import score_images
from alignbench.sourced import identity_of


def serve(name: str, options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve a scorer until interrupted; `ready` is told the URL. Raises InputError for a port that cannot be had."""
    reward = plugins.reward_of(name, options.scoring)
    with server_of(plugins.label(name), reward, options.port, device_of(options.device)) as server:
        ready(f"http://{HOST}:{server.server_port}")
        server.serve_forever()


def server_of(name: str, reward: Reward, port: int, device: str = "cpu") -> ThreadingHTTPServer:
    """The server, bound to its port and not yet running."""

    def score(contents: Sequence[bytes], texts: Sequence[str]) -> list[float | None]:
        prompts = [Prompt(str(i), text) for i, text in enumerate(texts)]
        try:
            groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
            for i, image in enumerate(map(decoded, contents)):
                groups.setdefault(tuple(image.shape), []).append((i, image))
            values: dict[int, float | None] = {}
            for shape, group in groups.items():
                own = [prompts[i] for i, _ in group]
                if reason := reward.unsupported(own, shape):
                    raise Refused(reason)
                images = torch.stack([image for _, image in group]).to(device)
                for (i, _), (value, failed) in zip(group, score_images(name, reward, images, own), strict=True):
                    values[i] = value if failed is None else None
        except RunError:
            raise
        except AlignbenchError as error:
            raise Refused(str(error)) from error
        return [values[i] for i in range(len(texts))]

    try:
        return make_server(identity_of(reward.info()), score, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port} cannot be used ({error}); choose another, or 0 for a free one.") from None


def decoded(content: bytes) -> Tensor:
    """A PNG file as RGB in [0, 1]. Raises Refused for anything else, and for one that would fill the memory."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > LARGEST:
                raise Refused(f"an image has {image.width} x {image.height} pixels, expected at most {LARGEST}.")
            return as_tensor(image)
    except Refused:
        raise
    except Exception as error:  # Pillow raises all kinds for broken files
        raise Refused(f"an image is no PNG that can be read ({type(error).__name__}).") from None
