"""One Gaussian with a linear reward: the easy problem, where the optimum is the same Gaussian, shifted.

Source      Standard; p* = N(m + λ S h, S), so R = hᵀm + λ hᵀS h and KL = ½ λ² hᵀS h.
Optimum     Plug-in guidance, which takes the reward of the denoised point for the value of the noisy one, is exact
            here, and a policy has to learn one shift. A method that misses this optimum is wrong, or wants another one.
Proxy       r̂ = r − x + y/2: its slope points along y alone.
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

__all__ = ["Gaussian"]


class Gaussian:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    known: ClassVar[dict[str, Known]] = {
        "linear": Known(0.500000, 2.250000, 0.875000, 1.375000),
        "linear_proxy": Known(-1.000000, 0.000000, 0.500000, -0.500000),
    }

    def prompts(self, split: str) -> Sequence[Prompt]:
        return problem().prompts(split)


@functools.cache
def problem() -> ExactProblem:
    mixture = Mixture(
        torch.ones(1), torch.tensor([[1.0, -1.0]]), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    )
    rewards = {
        "linear": Quadratic.linear(torch.tensor([1.0, 0.5])),
        "linear_proxy": Quadratic.linear(torch.tensor([0.0, 1.0])),
    }
    return ExactProblem("gaussian", mixture, rewards)
