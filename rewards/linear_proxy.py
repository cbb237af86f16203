"""The mis-specified `linear` reward of the exact testbed: to optimise, while `linear` is what counts.

Measures    r̂ = r + δ, where δ is the problem's own error in the same family; r: r(x) = hᵀx + c.
Range       Real numbers, in nats at β = 1.
Needs       Prompts of the testbed, which carry the problem, and their points. Differentiable everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import ExactReward

__all__ = ["LinearProxy"]


@dataclass(frozen=True)
class LinearProxy(ExactReward):
    name = "linear_proxy"
