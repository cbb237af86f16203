"""The mis-specified `linear` reward of the exact testbed: to optimise, while `linear` is what counts.

Measures    r̂ = r + δ, where δ is the problem's own error in the same family; r: r(x) = hᵀx + c.
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

__all__ = ["LinearProxy"]


@dataclass(frozen=True)
class LinearProxy:
    differentiable: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return problem.evaluate("linear_proxy", images, prompts)

    def with_grad(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return problem.evaluate("linear_proxy", images, prompts)

    def info(self) -> RewardInfo:
        return problem.info("linear_proxy")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return problem.unsuitable("linear_proxy", prompts, image_shape)
