"""PickScore v1: which image people would pick for their prompt, learned from half a million such choices.

Paper       Kirstain et al. 2023, "Pick-a-Pic", https://arxiv.org/abs/2305.01569.
Measures    exp(τ) cos(f(x), g(c)): unit features and logit scale τ of a ViT-H/14 CLIP, fine-tuned on Pick-a-Pic.
Range       About 16 to 25. The softmax over the images of one prompt is the probability that each is picked.
Weights     yuvalkirstain/PickScore_v1 on the hub, read by transformers. The code is MIT, the weights carry no licence.
Text        77 tokens of transformers' CLIP tokenizer, as in the authors' code; what is longer is cut off.
Elsewhere   flow_grpo and DiffusionNFT report this divided by 26, Diffusion-DPO's selector the cosine alone.
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
from alignbench.scoring.clip import VIT_H_14, ClipArchitecture, hugging_face_features
from alignbench.scoring.features import Features, cosine
from alignbench.scoring.preprocessing import Crop, unsuitable_shape
from alignbench.scoring.weights import Checkpoint, DType, describe, locate

__all__ = ["PickScore"]

WEIGHTS = hub_file(
    "yuvalkirstain/PickScore_v1",
    "pytorch_model.bin",
    sha256="3f0cf1c6e533f478534404cb3ca6938103becbfe4312c6affc077c274a757972",
    size=None,  # 3.94 GB, the hub says
)
CROP = Crop("down")  # as transformers' image processor crops


@dataclass(frozen=True)
class PickScore:
    weights: Path | None = None  # a file of one's own; None finds or downloads the published one
    allow_unverified: bool = False
    dtype: DType = "float32"
    architecture: ClipArchitecture = VIT_H_14

    differentiable: ClassVar[bool] = True
    files: ClassVar[tuple[File, ...]] = (WEIGHTS,)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return self.features.encoder.scale * cosine(self.features.images(images, CROP), texts).float()

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        texts = self.features.texts(prompts, images.device)
        return self.features.encoder.scale * cosine(self.features.images_with_grad(images, CROP), texts)

    def info(self) -> RewardInfo:
        return describe(
            name="pickscore",
            checkpoints=(self.checkpoint,),
            preprocessing=CROP.describe(),
            dtype=self.dtype,
            range_="real, about 16 to 25",
            libraries="transformers pillow",
        )

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        return self.features.truncated(prompts)

    @functools.cached_property
    def features(self) -> Features:
        """The network, shared by all that read the same weights."""
        return hugging_face_features(self.architecture, self.checkpoint, self.dtype)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        return locate(WEIGHTS, self.weights, self.allow_unverified)
