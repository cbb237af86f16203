"""The quadratic reward of an exact testbed problem: its optimum and frontier are known in closed form.

Measures    r(x) = −½ xᵀA x + hᵀx + c with A ≠ 0, with the problem's A, h and c (benchmarks/*.py).
Range       Real numbers, in nats at β = 1.
Needs       Prompts of the testbed, which carry the problem, and their points. Differentiable everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo
from alignbench.testbed import exact_problem as problem

__all__ = ["Quadratic"]


@dataclass(frozen=True)
class Quadratic:
    differentiable: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return problem.evaluate("quadratic", images, prompts)

    def with_grad(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return problem.evaluate("quadratic", images, prompts)

    def info(self) -> RewardInfo:
        return problem.info("quadratic")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return problem.unsuitable("quadratic", prompts, image_shape)
