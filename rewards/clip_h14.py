"""CLIP score with LAION's ViT-H/14: how well an image goes with its prompt.

Paper       Radford et al. 2021, https://arxiv.org/abs/2103.00020; weights Schuhmann et al. 2022, https://arxiv.org/abs/2210.08402.
Measures    cos(f(x), g(c)): unit features, without scale and without clamping at zero.
Range       About 0.2 to 0.4. Elsewhere: torchmetrics reports max(100 cos, 0), Hessel et al. 2021 2.5 max(cos, 0).
Weights     laion/CLIP-ViT-H-14-laion2B-s32B-b79K on the hub, read by open_clip; MIT.
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
from alignbench.downloads import File, hub_file
from alignbench.scoring.clip import VIT_H_14, ClipArchitecture, open_clip_features
from alignbench.scoring.features import Features, cosine
from alignbench.scoring.preprocessing import Crop, unsuitable_shape
from alignbench.scoring.weights import Checkpoint, DType, describe, locate

__all__ = ["ClipH14"]

WEIGHTS = hub_file(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "open_clip_pytorch_model.bin",
    sha256="9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
    size=3_944_692_325,
)
CROP = Crop("half-even")  # as torchvision crops


@dataclass(frozen=True)
class ClipH14:
    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = VIT_H_14

    differentiable: ClassVar[bool] = True
    files: ClassVar[tuple[File, ...]] = (WEIGHTS,)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images(images, CROP), texts).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images_with_grad(images, CROP), texts)

    def info(self) -> RewardInfo:
        return describe(
            name="clip_h14",
            checkpoints=(self.checkpoint,),
            preprocessing=CROP.describe(),
            dtype=self.dtype,
            range_="-1 to 1, about 0.2 to 0.4",
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
        return locate(WEIGHTS, self.weights, self.allow_unverified)
