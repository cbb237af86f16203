"""LAION's aesthetic predictors: how people would rate a picture, told from its unit features by a small head.

A predictor's file is its header and what it declares: the published head, its layers, the range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.downloads import File
from alignbench.interface import Prompt, RewardInfo
from alignbench.scoring.clip import VIT_L_14, ClipArchitecture, open_clip_features
from alignbench.scoring.features import Features
from alignbench.scoring.heads import applied, read_head
from alignbench.scoring.preprocessing import Crop, unsuitable_shape
from alignbench.scoring.shared import SharedPictures
from alignbench.scoring.weights import DType, WeightFile, describe, locate


@dataclass(frozen=True)
class AestheticScorer:
    """h(f(x)) with the unit features of OpenAI's ViT-L/14; the prompt is not read."""

    weights: Path | None = None  # a head of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = VIT_L_14

    differentiable: ClassVar[bool] = True
    fit: ClassVar[Crop] = Crop("half-even")  # as torchvision crops
    id: ClassVar[str]  # in a result file, with its version
    range: ClassVar[str]
    files: ClassVar[tuple[File, File]]  # the published weights of the tower and of the head
    layers: ClassVar[type[nn.Module]]  # of the head: LinearMap or LinearChain

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return self.of_pictures(SharedPictures.of(images, self), prompts)

    @torch.no_grad()
    def of_pictures(self, pictures: SharedPictures, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return applied(self.head, self.features.images(pictures, self.fit)).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return applied(self.head, self.features.images_with_grad(images, self.fit))

    def info(self) -> RewardInfo:
        return describe(self.id, self.weight_files, self.fit, self.dtype, self.range, "open_clip_torch")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    @functools.cached_property
    def features(self) -> Features:
        """The tower, shared with CLIP's score and the other head."""
        return open_clip_features(self.architecture, self.weight_files[0], self.dtype)

    @functools.cached_property
    def head(self) -> nn.Module:
        layers: Callable[[], nn.Module] = self.layers  # mypy does not take a class for hashable
        return read_head(layers, self.weight_files[1])

    @functools.cached_property
    def weight_files(self) -> tuple[WeightFile, WeightFile]:
        """Of the tower and of the head."""
        tower, head = self.files
        return locate(tower, None, self.allow_unverified), locate(head, self.weights, self.allow_unverified)
