"""The pictures of a cell on disk, what is kept of each, and the slots they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from alignbench.files import replace_file, sha256_of_files
from alignbench.images import read_image, read_pixels, to_bytes
from alignbench.pictures import PictureError, is_whole, pixels_sha256
from alignbench.printed import visible
from alignbench.record import picture_statistics

LONGEST_TEXT = 4000  # characters of an entry of a picture's metadata


@dataclass(frozen=True)
class Slot:
    """One image to make: a prompt's place in the evaluation and the number of the image."""

    place: int
    sample: int


def slots(prompts: int, images_per_prompt: int) -> list[Slot]:
    """All images of a cell, the first of every prompt first."""
    return [Slot(place, sample) for sample in range(images_per_prompt) for place in range(prompts)]


@dataclass(frozen=True)
class PictureFacts:
    """What a result keeps of a picture: SHA-256 of its pixels, and its statistics."""

    sha256: str
    statistics: dict[str, float]

    @staticmethod
    def of(image: Float[Tensor, "3 h w"]) -> PictureFacts:
        """Of a picture in [0, 1], as it is stored."""
        pixels = to_bytes(image[None])[0].numpy()
        return PictureFacts(pixels_digest(pixels), picture_statistics.of_picture(pixels))


class ImageStore:
    """A cell's images on disk: 8-bit PNG for pictures, float32 arrays for points. Scoring reads them from here, so
    that a score is always about the file that is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, slot: Slot, picture: bool) -> Path:
        return self.folder / f"{slot.place:05d}-{slot.sample}.{'png' if picture else 'npy'}"

    def write(
        self,
        chunk: Sequence[Slot],
        images: Float[Tensor, b * image],
        texts: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Keep images; `texts` are entries of each picture's metadata, such as its prompt."""
        for slot, image, text in zip(chunk, images, texts or [{}] * len(chunk), strict=True):
            picture = image.dim() == 3
            with replace_file(self.path(slot, picture), sync=False) as temporary:
                if picture:
                    shown = _picture(to_bytes(image[None])[0].numpy())
                    shown.save(temporary, format="PNG", pnginfo=_metadata(text))
                else:
                    with open(temporary, "wb") as handle:
                        np.save(handle, image.cpu().numpy(), allow_pickle=False)

    def pixels(self, slot: Slot) -> UInt8[np.ndarray, "h w 3"]:
        """A stored picture as 8-bit pixels. Raises PictureError where it is missing or damaged."""
        path = self.path(slot, picture=True)
        try:
            return read_pixels(path, formats=("PNG",))
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from None

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

    def are(self, chunk: Sequence[Slot], kept: Sequence[PictureFacts]) -> bool:
        """Whether the stored pictures of a chunk show what was kept of them."""
        try:
            images = [read_image(self.path(slot, picture=True), formats=("PNG",)) for slot in chunk]
        except PictureError:
            return False
        return [PictureFacts.of(image).sha256 for image in images] == [one.sha256 for one in kept]

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


def pixels_digest(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """SHA-256 of what a picture shows, as `pixels_sha256` takes it."""
    return pixels_sha256(_picture(pixels))


def _picture(pixels: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(pixels)


def _metadata(entries: Mapping[str, str]) -> PngInfo | None:
    """Entries of a PNG in UTF-8, which any text fits: without hidden characters, cut at their longest."""
    if not entries:
        return None
    found = PngInfo()
    for name, text in entries.items():
        found.add_itxt(name, visible(text)[:LONGEST_TEXT])
    return found
