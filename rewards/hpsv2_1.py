"""Human Preference Score v2.1: which image people prefer for a prompt, learned from HPDv2's rankings.

Paper       Wu et al. 2023, "Human Preference Score v2", https://arxiv.org/abs/2306.09341.
Measures    cos(f(x), g(c)): unit features of a ViT-H/14 CLIP that was fine-tuned on HPDv2; no logit scale.
Range       About 0.2 to 0.35. The authors' tables hold a hundred times this.
Weights     xswu/HPSv2 on the hub, HPS_v2.1_compressed.pt, read by open_clip; Apache-2.0.
Text        77 tokens of open_clip's tokenizer; what is longer is cut off.
Pictures    Padded to a square instead of cropped. The authors' code resizes with or without antialiasing, as its
            torchvision does; with it by default here, and the result says which.
Departures  RGBA, grey and palette pictures are scored, and pictures 224 pixels long that are not square, on which the
            authors' code fails.
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
from alignbench.scoring.preprocessing import Pad, unsuitable_shape
from alignbench.scoring.weights import Checkpoint, DType, describe, locate

__all__ = ["HPSv2_1"]

WEIGHTS = hub_file(
    "xswu/HPSv2",
    "HPS_v2.1_compressed.pt",
    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    size=1_972_490_005,
)


@dataclass(frozen=True)
class HPSv2_1:
    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    antialias: bool = True
    architecture: ClipArchitecture = VIT_H_14

    differentiable: ClassVar[bool] = True
    files: ClassVar[tuple[File, ...]] = (WEIGHTS,)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images(images, Pad(self.antialias)), texts).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return cosine(self.features.images_with_grad(images, Pad(self.antialias)), texts)

    def info(self) -> RewardInfo:
        return describe(
            name="hpsv2.1",
            checkpoints=(self.checkpoint,),
            preprocessing=Pad(self.antialias).describe(),
            dtype=self.dtype,
            range_="-1 to 1, about 0.2 to 0.35",
            libraries="open_clip_torch",
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
