"""The learned reward with its sign turned: best-of-n under it keeps the worst of n, a contrast to vote on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported, plugins

__all__ = ["Disliked"]


@dataclass(frozen=True)
class Disliked:
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_liked", plugins.load("rewards", "shapes_preference")())

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return -torch.as_tensor(self._liked(images, prompts))

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported("it chooses pictures, and is no reward to train for.")

    def info(self) -> RewardInfo:
        return RewardInfo(id="disliked-1", preprocessing="none", range="real, differences matter")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return str(found) if (found := self._liked.unsupported(prompts, image_shape)) else None
