"""ImageReward v1.0: how people would rate an image for its prompt, learned from experts' rankings.

Paper       Xu et al. 2023, "ImageReward", https://arxiv.org/abs/2304.05977.
Measures    (h(x, c) - μ) / σ: five linear layers on the first token's state of BLIP's text encoder, which reads the
            prompt and attends to the picture; μ and σ are the published mean and deviation of h.
Range       About -2.5 to 2; mean 0 and deviation 1 over the authors' pictures.
Weights     THUDM/ImageReward on the hub, ImageReward.pt, and BERT's list of words; read by transformers; Apache-2.0.
Text        35 tokens, lower case; what is longer is cut off, as in the authors' code.
Departures  Pictures that are not RGB are converted before they are resized, not after.
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

from alignbench import Crop, File, Prompt, RewardInfo, hub_file
from alignbench.scoring.blip import BLIP_LARGE, BlipArchitecture, BlipScorer, blip_scorer
from alignbench.scoring.features import parts_of
from alignbench.scoring.preprocessing import unsuitable_shape
from alignbench.scoring.shared import SharedPictures, ahead
from alignbench.scoring.weights import DType, WeightFile, describe, locate

__all__ = ["ImageReward"]

WEIGHTS = hub_file(
    "THUDM/ImageReward",
    "ImageReward.pt",
    sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
    size=1_786_880_927,
)
WORDS = hub_file(
    "google-bert/bert-base-uncased",
    "vocab.txt",
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    size=231_508,
)
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072


@dataclass(frozen=True)
class ImageReward:
    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: BlipArchitecture = BLIP_LARGE

    differentiable: ClassVar[bool] = True
    fit: ClassVar[Crop] = Crop("half-even")
    files: ClassVar[tuple[File, ...]] = (WEIGHTS, WORDS)

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return self.of_pictures(SharedPictures.of(images, self), prompts)

    @torch.no_grad()
    def of_pictures(self, pictures: SharedPictures, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        parts = parts_of(range(len(pictures)), pictures.device)
        values = [
            self.scorer(pixels, [prompts[place] for place in part])
            for part, pixels in zip(parts, ahead(lambda part: pictures.pixels(self.fit, part), parts), strict=True)
        ]
        return ((torch.cat(values) - MEAN) / DEVIATION).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return (self.scorer(self.fit.smooth(images), prompts) - MEAN) / DEVIATION

    def info(self) -> RewardInfo:
        return describe("imagereward", self.weight_files, self.fit, self.dtype, "real, about -2.5 to 2", "transformers")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        return self.scorer.truncated(prompts)

    @functools.cached_property
    def scorer(self) -> BlipScorer:
        """The network, shared by all that read the same weights."""
        return blip_scorer(self.architecture, *self.weight_files, self.dtype)

    @functools.cached_property
    def weight_files(self) -> tuple[WeightFile, WeightFile]:
        """Of the network and of the words."""
        unverified = self.allow_unverified
        return locate(WEIGHTS, self.weights, unverified), locate(WORDS, None, unverified)
