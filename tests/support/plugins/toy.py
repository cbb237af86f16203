"""Plug-ins outside the package, as a user would write them in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignbench import Prompt, RewardInfo


@dataclass(frozen=True)
class FirstCoordinate:
    """The first coordinate of a point: higher to the right."""

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images[:, 0]

    def with_grad(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images[:, 0]

    def info(self) -> RewardInfo:
        return RewardInfo(id="first-coordinate-1", range="real")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None
