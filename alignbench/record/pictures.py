"""The pictures of a cell on disk, and the slots they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.files import replace_file, sha256_of_files
from alignbench.images import read_image, to_bytes
from alignbench.pictures import is_whole


@dataclass(frozen=True)
class Slot:
    """One image to make: a prompt's place in the evaluation and the number of the image."""

    place: int
    sample: int


def slots(prompts: int, images_per_prompt: int) -> list[Slot]:
    """All images of a cell, the first of every prompt first."""
    return [Slot(place, sample) for sample in range(images_per_prompt) for place in range(prompts)]


class ImageStore:
    """A cell's images on disk: 8-bit PNG for pictures, float32 arrays for points. Scoring reads them from here, so
    that a score is always about the file that is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, slot: Slot, picture: bool) -> Path:
        return self.folder / f"{slot.place:05d}-{slot.sample}.{'png' if picture else 'npy'}"

    def write(self, chunk: Sequence[Slot], images: Float[Tensor, b * image]) -> None:
        from PIL import Image

        for slot, image in zip(chunk, images, strict=True):
            picture = image.dim() == 3
            with replace_file(self.path(slot, picture), sync=False) as temporary:
                if picture:
                    Image.fromarray(to_bytes(image[None])[0].numpy()).save(temporary, format="PNG")
                else:
                    with open(temporary, "wb") as handle:
                        np.save(handle, image.cpu().numpy(), allow_pickle=False)

    def read(self, chunk: Sequence[Slot]) -> Float[Tensor, b * image]:
        """The stored images, in [0, 1]. Raises OSError or ValueError where one is missing or damaged."""
        images = []
        for slot in chunk:
            path = self.path(slot, picture=True)
            if path.exists():
                images.append(read_image(path, formats=("PNG",)))
            else:
                images.append(torch.from_numpy(np.load(self.path(slot, picture=False), allow_pickle=False)))
        return torch.stack(images)

    def digest(self, wanted: Sequence[Slot]) -> str:
        """SHA-256 over the files of these images in order. Raises OSError where one is missing."""
        pictures = ((self.path(slot, picture=True), slot) for slot in wanted)
        return sha256_of_files(path if path.exists() else self.path(slot, picture=False) for path, slot in pictures)

    def holds(self, chunk: Sequence[Slot]) -> bool:
        """Whether every image of a chunk is there and whole: they are not synced, so a power cut may tear them."""
        return all(self._is_whole(slot) for slot in chunk)

    def _is_whole(self, slot: Slot) -> bool:
        picture, points = self.path(slot, picture=True), self.path(slot, picture=False)
        if picture.is_file():
            return is_whole(picture)
        try:
            np.load(points, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return True
