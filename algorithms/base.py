"""The unaligned model, sampled as it is: what every other algorithm is compared with.

Objective   None.
Departures  None.
Optimum     Of the exact testbed: not aimed at; its regret is that of doing nothing. With --kernel exact it is p_ref
            itself. Fifty DDIM steps are off by discretisation: by 0.013 nats on gaussian, and on grid64 every nuisance
            axis comes out with a variance of 0.86 instead of 1, 0.006 nats an axis.
"""

from __future__ import annotations

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
