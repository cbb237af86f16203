"""A learned reward of the shapes world: what a small network makes of a simulated human's noisy choices.

Measures    s(x, c), trained on choices between generated pictures by −log σ(s(preferred) − s(other)); the human's
            utility has two axes, faithfulness and style (alignbench/shapes/style.py). Its pair accuracy on held-out
            captions stands in alignbench/shapes/weights/MODEL_CARD.md.
Range       Real numbers; only differences between pictures of one caption mean something, as log odds.
Weights     alignbench/shapes/weights/preference.safetensors, made by `python -m alignbench.shapes.train`; Apache-2.0.
            Others, learned from other pairs, come from `alignbench train-reward` and are used by their path.
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

from alignbench import InputError, Prompt, RewardInfo, sha256_of
from alignbench.shapes.scene import SIDE, unsuitable

if TYPE_CHECKING:
    from alignbench.shapes.preference import PreferenceNet

__all__ = ["ShapesPreference"]


@dataclass(frozen=True)
class ShapesPreference:
    weights: Path | None = None  # of another training; None is the shipped ones

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weights is not None:  # so that weights that do not fit are refused before anything is made
            _ = self.network

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return self.with_grad(images, prompts)

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        from alignbench.shapes.preference import words_of

        if tuple(images.shape[1:]) != (3, SIDE, SIDE):
            raise InputError(
                f"shapes_preference scores pictures of 3 x {SIDE} x {SIDE}, got {tuple(images.shape[1:])}."
            )
        words = words_of([p.text for p in prompts]).to(images.device)
        scores: Tensor = self.network.to(images.device)(images, words)
        return scores

    def info(self) -> RewardInfo:
        own = f" {self.sha256[:12]}" if self.weights is not None else ""
        return RewardInfo(
            id=f"shapes_preference-1{own}",
            files={self._path.name: self.sha256},
            preprocessing="none",
            range="real, differences matter",
        )

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable([prompt.text for prompt in prompts], image_shape)

    @functools.cached_property
    def network(self) -> PreferenceNet:
        """The network, frozen and shared by all that read the same weights."""
        return _load(self._path, self.sha256)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file when it was first needed: what a result says was used stays what was used."""
        return sha256_of(self._path)

    @property
    def _path(self) -> Path:
        if self.weights is not None:
            return self.weights
        return Path(str(resources.files("alignbench.shapes") / "weights" / "preference.safetensors"))


@functools.cache
def _load(path: Path, sha256: str) -> PreferenceNet:
    """The network of a file with this content. Raises InputError where the tensors are others."""
    from alignbench.shapes.preference import load

    try:
        return load(path)
    except RuntimeError as error:  # torch lists every tensor, one a line
        first = (str(error).splitlines() or [""])[1:2]
        raise InputError(
            f"reward {str(path)!r} holds other tensors than the network of shapes_preference has "
            f"({''.join(first).strip()[:120]}); expected weights that `alignbench train-reward` wrote."
        ) from None
