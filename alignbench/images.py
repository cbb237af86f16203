"""Pictures as tensors: from files (`alignbench.pictures`), fitted to a model, as 8-bit pixels, and as JPEG sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from alignbench.interface import RewardInfo
from alignbench.pictures import FORMATS, LARGEST, Notes, Picture, PictureError, read

JPEG_QUALITY = 95


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b h w 3"]:
    """Images in [0, 1], values outside cut off, as 8-bit pixels on the CPU. One after the other, so that what is in
    between stays in the processor's cache."""
    b, _, height, width = images.shape
    pixels = torch.empty((b, height, width, 3), dtype=torch.uint8, device=images.device)
    for place, image in zip(pixels, images.detach(), strict=True):
        place.copy_(image.clamp(0, 1).mul_(255).round_().permute(1, 2, 0))
    return pixels.cpu()


def as_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """A picture in memory as RGB in [0, 1]. One from a file comes through `read_image`."""
    return as_floats(np.array(image if image.mode == "RGB" else image.convert("RGB")))


def as_floats(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """8-bit pixels in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def read_image(
    source: bytes | Path, notes: Notes | None = None, place: str = "", formats: Sequence[str] = FORMATS
) -> Float[Tensor, "3 h w"]:
    """A picture from a file or its bytes, in [0, 1], as `pictures.read` has it. What that took is added to `notes`.
    Raises PictureError."""
    return as_floats(read_pixels(source, notes, place, formats))


def read_pixels(
    source: bytes | Path, notes: Notes | None = None, place: str = "", formats: Sequence[str] = FORMATS
) -> UInt8[np.ndarray, "h w 3"]:
    """The same as 8-bit pixels."""
    return np.array(_noted(read(source, formats), notes, place))


def _noted(picture: Picture, notes: Notes | None, place: str) -> Image.Image:
    if notes is not None:
        notes.add(picture.notes, place)
    return picture.image


def jpeg_kilobytes(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Size of each image as JPEG (quality 95, 4:2:0) in units of 1000 bytes."""
    sizes = []
    for pixels in to_bytes(images).numpy():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes)


def jpeg_info(name: str, range_: str) -> RewardInfo:
    """The identity of a reward that measures JPEG sizes."""
    import PIL
    from PIL import features

    versions = {"pillow": PIL.__version__, "libjpeg_turbo": str(features.version("libjpeg_turbo"))}
    return RewardInfo(id=name, preprocessing="8 bit, JPEG quality 95, 4:2:0", range=range_, versions=versions)


Offset = tuple[float, float] | None  # of a crop: which share of the places down and across; None is the centre


def fitted(
    content: bytes, size: tuple[int, int], offset: Offset, notes: Notes | None = None, place: str = ""
) -> Float[Tensor, "3 h w"]:
    """An encoded image, as `read_image` reads it, resized until it covers `size` and cut to it. Raises PictureError."""
    image = _noted(read(content), notes, place)
    scaled = _covering(image.size, size)
    if scaled[0] * scaled[1] > LARGEST:
        raise PictureError(f"{image.width} x {image.height} pixels; resized, it would have more than {LARGEST}")
    whole = image.resize(scaled, Image.Resampling.BILINEAR)
    down, across = offset or (None, None)
    top, left = _place(whole.height - size[0], down), _place(whole.width - size[1], across)
    return as_tensor(whole.crop((left, top, left + size[1], top + size[0])))


def _covering(found: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of this width and height, made as small as still covers height and width `size`."""
    width, height = found
    if width * size[0] <= height * size[1]:
        return size[1], max(size[0], size[1] * height // width)
    return max(size[1], size[0] * width // height), size[0]


def _place(free: int, share: float | None) -> int:
    """Where a crop begins among free pixels: in their middle, rounded as torchvision does, or at a share of them."""
    return round(free / 2) if share is None else min(free, int(share * (free + 1)))
