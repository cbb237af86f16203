"""Pictures as files: what two rewards and the image store share."""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from alignbench.interface import RewardInfo

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
    """A picture of any kind as RGB in [0, 1]; transparency is dropped, as Pillow's conversion does."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    return pixels.float().div_(255)


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


FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow would also start Ghostscript for an EPS
LARGEST = 2**26  # pixels of an image, as stored and as resized; more is a decompression bomb
Offset = tuple[float, float] | None  # of a crop: which share of the places down and across; None is the centre


def fitted(content: bytes, size: tuple[int, int], offset: Offset) -> Float[Tensor, "3 h w"]:
    """An encoded image, resized until it covers `size` and cut to it. Raises whatever the decoder raises."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{len(content)} bytes that are no {', '.join(FORMATS)}") from None
    with image:
        scaled = _covering(image.size, size)
        if max(image.width * image.height, scaled[0] * scaled[1]) > LARGEST:
            raise ValueError(f"{image.width} x {image.height} pixels; resized or not, at most {LARGEST} are decoded")
        whole = image.convert("RGB").resize(scaled, Image.Resampling.BILINEAR)
    down, across = offset or (None, None)
    top, left = _place(whole.height - size[0], down), _place(whole.width - size[1], across)
    pixels = np.array(whole.crop((left, top, left + size[1], top + size[0])))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _covering(found: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of this width and height, made as small as still covers height and width `size`."""
    width, height = found
    if width * size[0] <= height * size[1]:
        return size[1], max(size[0], size[1] * height // width)
    return max(size[1], size[0] * width // height), size[0]


def _place(free: int, share: float | None) -> int:
    """Where a crop begins among free pixels: in their middle, rounded as torchvision does, or at a share of them."""
    return round(free / 2) if share is None else min(free, int(share * (free + 1)))
