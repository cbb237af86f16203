"""CLIP score with OpenAI's ViT-L/14: how well an image goes with its prompt.

Paper       Radford et al. 2021, https://arxiv.org/abs/2103.00020.
Measures    cos(f(x), g(c)): unit features, without scale and without clamping at zero.
Range       About 0.15 to 0.35. Elsewhere: torchmetrics reports max(100 cos, 0), Hessel et al. 2021 2.5 max(cos, 0).
Weights     timm/vit_large_patch14_clip_224.openai on the hub, OpenAI's weights in open_clip's layout; MIT.
Activation  QuickGELU, which these weights were trained with; with GELU the features are wrong.
Text        77 tokens of open_clip's tokenizer; what is longer is cut off.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo
from alignbench.downloads import File
from alignbench.scoring.clip import OPENAI_VIT_L_14, VIT_L_14, ClipArchitecture, open_clip_features
from alignbench.scoring.features import Features, cosine
from alignbench.scoring.preprocessing import Crop, unsuitable_shape
from alignbench.scoring.weights import Checkpoint, DType, describe, locate

__all__ = ["ClipL14"]

CROP = Crop("half-even")  # as torchvision crops


@dataclass(frozen=True)
class ClipL14:
    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = VIT_L_14

    differentiable: ClassVar[bool] = True
    files: ClassVar[tuple[File, ...]] = (OPENAI_VIT_L_14,)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images(images, CROP), texts).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images_with_grad(images, CROP), texts)

    def info(self) -> RewardInfo:
        return describe(
            name="clip_l14",
            checkpoints=(self.checkpoint,),
            preprocessing=CROP.describe(),
            dtype=self.dtype,
            range_="-1 to 1, about 0.15 to 0.35",
            libraries="open_clip_torch pillow",
        )

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        return self.features.truncated(prompts)

    @functools.cached_property
    def features(self) -> Features:
        """The network, shared by all that read the same weights."""
        return open_clip_features(self.architecture, self.checkpoint, self.dtype)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        return locate(OPENAI_VIT_L_14, self.weights, self.allow_unverified)
