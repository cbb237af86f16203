"""The rewards of the exact testbed: each goes by one name among the rewards of the problem that the prompts carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.interface import Prompt, RewardInfo
from alignbench.testbed import exact_problem


@dataclass(frozen=True)
class ExactReward:
    """r(x) of the prompts' problem, for points x in float64. A reward's file is its header and the name."""

    differentiable: ClassVar[bool] = True
    name: ClassVar[str]

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return exact_problem.evaluate(self.name, images, prompts)

    def with_grad(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return exact_problem.evaluate(self.name, images, prompts)

    def info(self) -> RewardInfo:
        return exact_problem.info(self.name)

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return exact_problem.unsuitable(self.name, prompts, image_shape)
