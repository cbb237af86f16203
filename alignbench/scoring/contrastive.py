"""CLIP-like scorers: how well the unit features of a picture go with those of its text.

A scorer's file is its header and what it declares: the weights, who reads them, how pictures are fitted, the range.
Everything that follows from that stands here once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.downloads import File
from alignbench.interface import Prompt, RewardInfo
from alignbench.scoring.clip import ClipArchitecture, hugging_face_features, open_clip_features
from alignbench.scoring.features import Features, cosine
from alignbench.scoring.preprocessing import Crop, Pad, Preprocessing, unsuitable_shape
from alignbench.scoring.shared import SharedPictures
from alignbench.scoring.weights import DType, WeightFile, describe, locate

READERS = {"open_clip_torch": open_clip_features, "transformers": hugging_face_features}


@dataclass(frozen=True)
class ContrastiveScorer:
    """cos(f(x), g(c)) of unit features of a picture and its text, from a CLIP that crops pictures to their middle."""

    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = field(kw_only=True)  # each scorer names its own

    differentiable: ClassVar[bool] = True
    id: ClassVar[str]  # in a result file, with its version
    range: ClassVar[str]
    files: ClassVar[tuple[File, ...]]  # the published weights
    library: ClassVar[Literal["open_clip_torch", "transformers"]]  # whose layout they are in
    crop: ClassVar[Crop]
    scaled: ClassVar[bool] = False  # by exp(τ), the learned logit scale

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return self.of_pictures(SharedPictures.of(images, self), prompts)

    @torch.no_grad()
    def of_pictures(self, pictures: SharedPictures, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, pictures.device)
        return self.scale * cosine(self.features.images(pictures, self.fit), texts).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return self.scale * cosine(self.features.images_with_grad(images, self.fit), texts)

    def info(self) -> RewardInfo:
        return describe(self.id, [self.weight_file], self.fit, self.dtype, self.range, self.library)

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        return self.features.truncated(prompts)

    @property
    def fit(self) -> Preprocessing:
        """How pictures come to what the network reads."""
        return self.crop

    @property
    def scale(self) -> float:
        return self.features.encoder.scale if self.scaled else 1.0

    @functools.cached_property
    def features(self) -> Features:
        """The network, shared by all that read the same weights."""
        return READERS[self.library](self.architecture, self.weight_file, self.dtype)

    @functools.cached_property
    def weight_file(self) -> WeightFile:
        return locate(self.files[0], self.weights, self.allow_unverified)


@dataclass(frozen=True)
class PaddedContrastiveScorer(ContrastiveScorer):
    """The same, from a CLIP whose pictures are padded to a square: HPSv2."""

    antialias: bool = True

    @property
    def fit(self) -> Preprocessing:
        return Pad(self.antialias)
