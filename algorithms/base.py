"""The unaligned model, sampled as it is: what every other algorithm is compared with.

Objective   None.
Departures  None.
Optimum     Not aimed at: its regret is that of doing nothing. With --kernel exact it is p_ref itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignbench import PipelineSampler, Problem, Sampler

__all__ = ["Base"]


@dataclass(frozen=True, kw_only=True)
class Base:
    trains: ClassVar[bool] = False
    reads_reward: ClassVar[bool] = False

    def align(self, problem: Problem) -> Sampler:
        return PipelineSampler(problem.pipeline, problem.sampling)

    def unsupported(self, problem: Problem) -> str | None:
        return None
