"""LAION's aesthetic predictor, version 1: how people would rate an image, whatever its prompt.

Source      https://github.com/LAION-AI/aesthetic-predictor, 2022; the head's weights are MIT.
Measures    w · f(x) + b with the unit features of OpenAI's ViT-L/14, trained on ratings of SAC's pictures.
Range       About 2 to 8; unit features cannot leave b ± ‖w‖, -24.9 to 32.0.
Weights     sa_0_4_vit_l_14_linear.pth of that repository, and the tower of clip_l14.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench import Prompt, RewardInfo
from alignbench.downloads import File
from alignbench.scoring.clip import OPENAI_VIT_L_14, VIT_L_14, ClipArchitecture, open_clip_features
from alignbench.scoring.features import Features
from alignbench.scoring.heads import LinearMap, applied, read_head
from alignbench.scoring.preprocessing import Crop, unsuitable_shape
from alignbench.scoring.weights import Checkpoint, DType, describe, locate

__all__ = ["AestheticV1"]

HEAD = File(
    name="sa_0_4_vit_l_14_linear.pth",
    url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth",
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    size=4_071,
)
CROP = Crop("half-even")


@dataclass(frozen=True)
class AestheticV1:
    weights: Path | None = None  # a head of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = VIT_L_14

    differentiable: ClassVar[bool] = True
    files: ClassVar[tuple[File, ...]] = (OPENAI_VIT_L_14, HEAD)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return applied(self.head, self.features.images(images, CROP)).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return applied(self.head, self.features.images_with_grad(images, CROP))

    def info(self) -> RewardInfo:
        return describe(
            name="aesthetic_v1",
            checkpoints=self.checkpoints,
            preprocessing=CROP.describe(),
            dtype=self.dtype,
            range_="-24.9 to 32.0, about 2 to 8",
            libraries="open_clip_torch pillow",
        )

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    @functools.cached_property
    def features(self) -> Features:
        """The tower, shared with CLIP's score and the other head."""
        return open_clip_features(self.architecture, self.checkpoints[0], self.dtype)

    @functools.cached_property
    def head(self) -> nn.Module:
        return read_head(LinearMap, self.checkpoints[1])

    @functools.cached_property
    def checkpoints(self) -> tuple[Checkpoint, Checkpoint]:
        """Of the tower and of the head."""
        unverified = self.allow_unverified
        return locate(OPENAI_VIT_L_14, None, unverified), locate(HEAD, self.weights, unverified)
