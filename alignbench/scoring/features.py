"""Unit features of a CLIP, each computed once in a process: of texts, and of images for every head that reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.devices import chunked
from alignbench.interface import Prompt
from alignbench.scoring.preprocessing import Preprocessing
from alignbench.scoring.shared import SharedPictures, ahead

K = TypeVar("K")

IMAGES, TEXTS = 4096, 65_536  # features that a process remembers: scorers meet the same image soon, or never
BATCH = 32  # images or texts encoded at once
ON_CPU = 8  # images, where a larger batch needs more memory and is no faster


@runtime_checkable
class Encoder(Protocol):
    """A CLIP's two towers, whichever library they come from."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def scale(self) -> float:
        """exp of the learned logit scale."""

    @property
    def context(self) -> int:
        """Tokens that fit, with those at start and end."""

    def encode_images(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]: ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]: ...

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before any is cut off, with those at start and end."""


class Features:
    """The unit features of an encoder, float32 (float64 where the encoder is)."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._images: Recent[tuple[Preprocessing, bytes]] = Recent(IMAGES)
        self._texts: Recent[str] = Recent(TEXTS)

    @torch.no_grad()
    def images(self, pictures: SharedPictures, fit: Preprocessing) -> Float[Tensor, "b d"]:
        """The reporting path: the 8-bit picture, preprocessed as the official code does."""
        self.encoder.network.to(pictures.device)

        def compute(places: list[int]) -> Tensor:
            parts = ahead(lambda part: pictures.pixels(fit, part), parts_of(places, pictures.device))
            return torch.cat([unit(self.encoder.encode_images(pixels)) for pixels in parts])

        return self._images.get([(fit, digest) for digest in pictures.digests], compute).to(pictures.device)

    def images_with_grad(self, images: Float[Tensor, "b 3 h w"], fit: Preprocessing) -> Float[Tensor, "b d"]:
        """The differentiable path, computed anew each time."""
        self.encoder.network.to(images.device)
        return unit(self.encoder.encode_images(fit.smooth(images)))

    @torch.no_grad()
    def texts(self, prompts: Sequence[Prompt], device: torch.device) -> Float[Tensor, "b d"]:
        """Features of the prompts' texts; without gradient in either path."""
        texts = [prompt.text for prompt in prompts]
        self.encoder.network.to(device)

        def compute(places: list[int]) -> Tensor:
            parts = chunked(places, BATCH)
            return torch.cat([unit(self.encoder.encode_texts([texts[i] for i in part])) for part in parts])

        return self._texts.get(texts, compute).to(device)

    def truncated(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Which prompts are longer than the encoder reads."""
        lengths = self.encoder.lengths([prompt.text for prompt in prompts])
        return [length > self.encoder.context for length in lengths]


class Recent(Generic[K]):
    """The rows that were asked for most recently, kept on the CPU."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: OrderedDict[K, Tensor] = OrderedDict()

    def get(self, keys: Sequence[K], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """A row per key; `compute` is asked for those not kept, by the place where each first stands."""
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        known = {key: self._rows.pop(key) for key in first if key in self._rows}
        missing = sorted(place for key, place in first.items() if key not in known)
        if missing:
            rows = compute(missing).detach().cpu()
            known |= {keys[place]: row.clone() for place, row in zip(missing, rows, strict=True)}
        self._rows.update(known)
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)
        return torch.stack([known[key] for key in keys])


def parts_of(places: Sequence[int], device: torch.device) -> list[Sequence[int]]:
    """The places of images, as many as are encoded at once."""
    return chunked(places, ON_CPU if device.type == "cpu" else BATCH)


def unit(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Features of length 1."""
    return nn.functional.normalize(wide(features), dim=-1)


def wide(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Features in at least float32, whatever the encoder computes in: what follows is always exact to that."""
    return features if features.dtype == torch.float64 else features.float()


def cosine(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Inner products of unit features, row by row."""
    return (images * texts).sum(-1)
