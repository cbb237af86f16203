"""Pictures as files: what two rewards and the image store share."""

from __future__ import annotations

import io

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from alignbench.interface import RewardInfo

JPEG_QUALITY = 95


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b h w 3"]:
    """Images in [0, 1], values outside cut off, as 8-bit pixels on the CPU."""
    return (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


def jpeg_kilobytes(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Size of each image as JPEG (quality 95, 4:2:0) in units of 1000 bytes."""
    from PIL import Image

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
