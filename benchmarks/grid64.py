"""The grid in a random plane of 64 dimensions, 62 of which are noise that no reward depends on.

Source      The first published toy (benchmarks/grid.py) ⊗ N(0, I), turned by a random rotation.
Optimum     That of the grid, with the same numbers; outside the plane nothing may change. The nuisance check finds what
            a plane cannot show: latents pushed off their shell, norms that grow with the reward.
Proxy       That of the grid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch

from alignbench import Key, Prompt
from alignbench.testbed.exact_problem import ExactProblem, Known
from alignbench.testbed.toys import grid

__all__ = ["Grid64"]


class Grid64:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    known: ClassVar[dict[str, Known]] = {
        "quadratic": Known(-11.076333, -0.290720, 1.148966, -1.439687),
        "quadratic_proxy": Known(-11.076333, 0.406275, 1.451267, -1.044992),
    }

    def prompts(self, split: str) -> Sequence[Prompt]:
        return problem().prompts(split)


@functools.cache
def problem() -> ExactProblem:
    # The orthogonal factor of a normal matrix, its signs fixed, is uniform over rotations and reflections.
    q, r = torch.linalg.qr(Key("testbed", "grid64").normal(64, 64).double())
    return grid().embedded("grid64", q * r.diagonal().sign())
