"""JPEG incompressibility: pictures that make large files score high.

Paper       DDPO, Black et al. 2023, https://arxiv.org/abs/2305.13301, section 5.1.
Measures    The size, in kB (1000 bytes), of the image saved as JPEG with quality 95 and 4:2:0 subsampling.
Range       Positive, in kB. Depends on the encoder: the versions of Pillow and libjpeg-turbo stand in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported
from alignbench.images import jpeg_info, jpeg_kilobytes

__all__ = ["JpegIncompressibility"]


@dataclass(frozen=True)
class JpegIncompressibility:
    differentiable: ClassVar[bool] = False

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return jpeg_kilobytes(images)

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported("reward 'jpeg_incompressibility' has no gradient: it counts bytes.")

    def info(self) -> RewardInfo:
        return jpeg_info("jpeg_incompressibility", "positive, kB")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None
