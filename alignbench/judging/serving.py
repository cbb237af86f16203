"""Serving a scorer of this environment to others, as `alignbench.remote.server` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from alignbench import plugins
from alignbench.devices import device_of
from alignbench.errors import AlignbenchError, InputError, RunError
from alignbench.images import read_pixels
from alignbench.interface import Prompt, Reward
from alignbench.judging.options import ServeOptions
from alignbench.pictures import PictureError
from alignbench.remote.server import HOST, HOSTS, Refused, ScorerServer, make_server, size_of
from alignbench.scoring.shared import SharedPictures
from alignbench.scoring.values import score_images
from alignbench.sourced import identity_of

AT_ONCE = 2**24  # pixels that are decoded at a time, unless one picture has more


def serve(name: str, options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve a scorer until interrupted; `ready` is told the URL. Raises InputError for a port that cannot be had."""
    reward = plugins.reward_of(name, options.scoring)
    hosts = (*HOSTS, *options.allowed_hosts)
    server = server_of(plugins.label(name), reward, options.port, device_of(options.device), hosts)
    ready(f"http://{HOST}:{server.port}")
    server.serve()


def server_of(name: str, reward: Reward, port: int, device: str = "cpu", hosts: Sequence[str] = HOSTS) -> ScorerServer:
    """The server, bound to its port and not yet running."""

    def score(contents: Sequence[bytes], texts: Sequence[str]) -> list[float | None]:
        prompts = [Prompt(str(i), text) for i, text in enumerate(texts)]
        values: list[float | None] = [None] * len(texts)
        try:
            for places in alike([size_of(content) for content in contents]):
                pictures, own = SharedPictures([reward], device), [prompts[i] for i in places]
                for i in places:
                    pictures.add(pixels := decoded(contents[i]))
                if reason := reward.unsupported(own, (3, *pixels.shape[:2])):
                    raise Refused(reason)
                for i, (value, failed) in zip(places, score_images(name, reward, pictures, own), strict=True):
                    values[i] = value if failed is None else None
        except RunError:
            raise
        except AlignbenchError as error:
            raise Refused(str(error)) from error
        return values

    try:
        return make_server(identity_of(reward.info()), score, port, hosts)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port} cannot be used ({error}); choose another, or 0 for a free one.") from None


def alike(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """The places of pictures of one size, as many as are decoded at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    for (width, height), places in groups.items():
        n = max(1, AT_ONCE // (width * height))
        yield from (places[i : i + n] for i in range(0, len(places), n))


def decoded(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG file, whose size was looked at, as 8-bit pixels. Raises Refused for what cannot be decoded."""
    try:
        return read_pixels(content, formats=("PNG",))
    except PictureError as error:
        raise Refused(f"an image is no PNG that can be read ({error}).") from None
