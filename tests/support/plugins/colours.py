"""Scorers whose scores a picture spells out, for tests of what is made of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported


@dataclass(frozen=True)
class Red:
    """The mean of the red channel in [0, 255]; NaN for pictures that are all blue. No picture for "forbidden"."""

    differentiable: ClassVar[bool] = False

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        red, _, blue = images.mean((2, 3)).T
        return torch.where(blue == 1, torch.nan, (red * 255).round())

    def with_grad(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise Unsupported("no gradient.")

    def info(self) -> RewardInfo:
        return RewardInfo(id="red-1")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return "it may not see this." if any("forbidden" in prompt.text for prompt in prompts) else None


@dataclass(frozen=True)
class Darkness(Red):
    """Lower is better, and up to 10 is a tie."""

    def info(self) -> RewardInfo:
        return RewardInfo(id="darkness-1", tie_epsilon=10.0, higher_is_better=False)


@dataclass(frozen=True)
class Height(Red):
    """The height of a picture; at most 40."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.full((len(images),), float(images.shape[2]))

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return "it is too high." if image_shape and image_shape[1] > 40 else None


@dataclass(frozen=True)
class Brightness:
    """The mean of all channels in [0, 1], with a gradient."""

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean((1, 2, 3))

    def with_grad(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean((1, 2, 3))

    def info(self) -> RewardInfo:
        return RewardInfo(id="brightness-1", range="[0, 1]")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None
