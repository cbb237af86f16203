"""Eight Gaussians on a ring, rewarded for a small x and a y near one: the second published toy.

Source      Kim et al. 2025 (DAS), https://arxiv.org/abs/2501.05803: radius 4, covariance 0.3 I, equal weights;
            r = −x² − (y − 1)²/10.
Optimum     Four fifths in the top mode, the rest at the bottom: the two are far apart, and which of them a method finds
            shows whether it explores.
Proxy       r̂ = r + 2x: the right-hand modes look better than they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch

from alignbench import Prompt
from alignbench.testbed.exact_problem import ExactProblem, Known
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Quadratic

__all__ = ["Ring"]


class Ring:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    known: ClassVar[dict[str, Known]] = {
        "quadratic": Known(-9.230000, -1.340043, 1.627761, -2.967804),
        "quadratic_proxy": Known(-9.230000, -0.807480, 1.441639, -2.249119),
    }

    def prompts(self, split: str) -> Sequence[Prompt]:
        return problem().prompts(split)


@functools.cache
def problem() -> ExactProblem:
    angle = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    means = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    mixture = Mixture(torch.full((8,), 1 / 8), means, (0.3 * torch.eye(2, dtype=torch.float64)).expand(8, 2, 2))
    true = Quadratic.around(torch.diag(torch.tensor([2.0, 0.2], dtype=torch.float64)), torch.tensor([0.0, 1.0]))
    proxy = Quadratic(true.curvature, true.slope + torch.tensor([2.0, 0.0]), true.constant)
    return ExactProblem("ring", mixture, {"quadratic": true, "quadratic_proxy": proxy})
