"""The unaligned model, sampled as it is: what every other algorithm is compared with.

Objective   None.
Departures  None.
Optimum     Of the exact testbed: not aimed at; its regret is that of doing nothing. With --kernel exact it is p_ref
            itself. Fifty DDIM steps are within 0.03 nats of it in two dimensions, where the rest is discretisation, and
            0.33 nats off over the 62 nuisance axes of grid64: their variance comes out a few per cent too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from alignbench import Problem, Sampler
from alignbench.diffusion.rollout import PipelineSampler

__all__ = ["Base"]


@dataclass(frozen=True, kw_only=True)
class Base:
    trains: ClassVar[bool] = False

    def align(self, problem: Problem) -> Sampler:
        return PipelineSampler(problem.pipeline, problem.sampling)

    def unsupported(self, problem: Problem) -> str | None:
        return None

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> Base:
        return self
