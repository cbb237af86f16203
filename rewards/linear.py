"""The linear reward of an exact testbed problem: its optimum and frontier are known in closed form.

Measures    r(x) = hᵀx + c, with the problem's h and c (benchmarks/*.py).
Range       Real numbers, in nats at β = 1.
Needs       Prompts of the testbed, which carry the problem, and their points. Differentiable everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import ExactReward

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(ExactReward):
    name = "linear"
