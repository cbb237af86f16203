"""A learned reward of the shapes world: what a small network makes of a simulated human's noisy choices.

Measures    s(x, c), trained on choices between generated pictures by −log σ(s(preferred) − s(other)); the human's
            utility has two axes, faithfulness and style (alignbench/shapes/style.py). Its pair accuracy on held-out
            captions stands in alignbench/shapes/weights/MODEL_CARD.md.
Range       Real numbers; only differences between pictures of one caption mean something, as log odds.
Weights     alignbench/shapes/weights/preference.safetensors, made by `python -m alignbench.shapes.train`; Apache-2.0.
Use         The proxy that algorithms optimise by default on the embedded model. Differentiable.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import InputError, Prompt, RewardInfo
from alignbench.files import sha256_of
from alignbench.shapes.scene import SIDE, unsuitable

if TYPE_CHECKING:
    from alignbench.shapes.preference import PreferenceNet

__all__ = ["ShapesPreference"]


@dataclass(frozen=True)
class ShapesPreference:
    differentiable: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return self.with_grad(images, prompts)

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        from alignbench.shapes.preference import words_of

        if tuple(images.shape[1:]) != (3, SIDE, SIDE):
            raise InputError(
                f"shapes_preference scores pictures of 3 x {SIDE} x {SIDE}, got {tuple(images.shape[1:])}."
            )
        scores: Tensor = _network().to(images.device)(images, words_of([p.text for p in prompts]).to(images.device))
        return scores

    def info(self) -> RewardInfo:
        path = weights()
        return RewardInfo(
            id="shapes_preference-1",
            files={path.name: sha256_of(path)},
            preprocessing="none",
            range="real, differences matter",
        )

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable([prompt.text for prompt in prompts], image_shape)


def weights() -> Path:
    """Where the trained network lies."""
    return Path(str(resources.files("alignbench.shapes") / "weights" / "preference.safetensors"))


@functools.cache
def _network() -> PreferenceNet:
    from alignbench.shapes.preference import load

    return load(weights())
