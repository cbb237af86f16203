"""The quadratic reward of an exact testbed problem: its optimum and frontier are known in closed form.

Measures    r(x) = −½ xᵀA x + hᵀx + c with A ≠ 0, with the problem's A, h and c (benchmarks/*.py).
Range       Real numbers, in nats at β = 1.
Needs       Prompts of the testbed, which carry the problem, and their points. Differentiable everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import ExactReward

__all__ = ["Quadratic"]


@dataclass(frozen=True)
class Quadratic(ExactReward):
    name = "quadratic"
