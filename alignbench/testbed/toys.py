"""The toy that several parts share; each other problem stands in its own prompt set."""

from __future__ import annotations

import functools

import torch

from alignbench.testbed.exact_problem import ExactProblem
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Quadratic


@functools.cache
def grid() -> ExactProblem:
    """Nine modes of equal weight on a 3 x 3 grid, four apart, with covariance 0.3 I; r = −x²/100 − y² (Kim et al. 2025,
    https://arxiv.org/abs/2501.05803). The proxy adds x/4 + y."""
    axis = torch.tensor([-4.0, 0.0, 4.0])
    covariance = 0.3 * torch.eye(2, dtype=torch.float64)
    mixture = Mixture(
        torch.full((9,), 1 / 9, dtype=torch.float64), torch.cartesian_prod(axis, axis), covariance.expand(9, 2, 2)
    )
    curvature = torch.diag(torch.tensor([0.02, 2.0], dtype=torch.float64))
    rewards = {
        "quadratic": Quadratic.around(curvature, torch.zeros(2)),
        "quadratic_proxy": Quadratic(curvature, torch.tensor([0.25, 1.0])),
    }
    return ExactProblem("grid", mixture, rewards)
