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
