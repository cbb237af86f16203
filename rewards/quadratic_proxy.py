"""The mis-specified `quadratic` reward of the exact testbed: to optimise, while `quadratic` is what counts.

Measures    r̂ = r + δ, where δ is the problem's own error in the same family; r: r(x) = −½ xᵀA x + hᵀx + c with A ≠ 0.
Range       Real numbers, in nats at β = 1.
Needs       Prompts of the testbed, which carry the problem, and their points. Differentiable everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import ExactReward

__all__ = ["QuadraticProxy"]


@dataclass(frozen=True)
class QuadraticProxy(ExactReward):
    name = "quadratic_proxy"
