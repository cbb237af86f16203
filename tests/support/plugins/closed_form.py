"""Rewards of points in closed form, for tests of methods that follow or weigh them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignbench import Prompt, RewardInfo


@dataclass(frozen=True)
class Bowl:
    """scale (−x²/100 − y²) + offset of the first two coordinates: the reward of the grid."""

    differentiable: ClassVar[bool] = True
    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        weights = torch.tensor([0.01, 1.0], dtype=images.dtype)
        return self.offset - self.scale * (images[:, :2].square() * weights).sum(1)

    with_grad = __call__

    def info(self) -> RewardInfo:
        return RewardInfo(id="bowl")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None


@dataclass(frozen=True)
class Slope(Bowl):
    """The first coordinate."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.offset + self.scale * images[:, 0]

    with_grad = __call__


@dataclass(frozen=True)
class Constant(Bowl):
    """The same for every image, with a gradient of zero."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 0 * images.flatten(1).sum(1) + self.offset

    with_grad = __call__


@dataclass(frozen=True)
class NoGradient(Bowl):
    """The grid's reward, without a gradient."""

    differentiable: ClassVar[bool] = False

    def with_grad(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise AssertionError("asked for a gradient")
