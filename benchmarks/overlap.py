"""Four overlapping Gaussians of different shapes, with a strongly curved reward or a linear one.

Source      Made for this suite: the published toys are too easy for guidance by plugging in the denoised point.
Optimum     quadratic: the reward bends within every mode, where a plug-in gradient pushes too far (by I + λ V_t A).
            linear: nothing bends, but which mode a noisy point belongs to decides, which a plug-in gradient overlooks.
            The two rewards so tell the two failures of approximate guidance apart.
Proxy       quadratic_proxy: centred elsewhere (+ 1.5 x); linear_proxy: its slope turned and a third longer.
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

__all__ = ["Overlap"]


class Overlap:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    known: ClassVar[dict[str, Known]] = {
        "quadratic": Known(-8.820000, -0.744744, 0.982036, -1.726780),
        "quadratic_proxy": Known(-9.045000, 1.184249, 1.166903, 0.017346),
        "linear": Known(-0.255000, 1.859357, 1.001322, 0.858034),
        "linear_proxy": Known(-0.170000, 2.390876, 1.028740, 1.362136),
    }

    def prompts(self, split: str) -> Sequence[Prompt]:
        return problem().prompts(split)


@functools.cache
def problem() -> ExactProblem:
    means = torch.tensor([[-1.5, 0.0], [0.5, 1.5], [1.5, -0.5], [0.0, -1.5]])
    covariances = torch.tensor(
        [[[0.8, 0.3], [0.3, 0.5]], [[0.6, -0.4], [-0.4, 0.9]], [[0.4, 0.0], [0.0, 1.2]], [[1.0, 0.2], [0.2, 0.3]]],
        dtype=torch.float64,
    )
    mixture = Mixture(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), means, covariances)
    curved = Quadratic.around(torch.tensor([[4.0, 1.5], [1.5, 1.5]]), torch.tensor([1.0, 0.5]))
    rewards = {
        "quadratic": curved,
        "quadratic_proxy": Quadratic(curved.curvature, curved.slope + torch.tensor([1.5, 0.0]), curved.constant),
        "linear": Quadratic.linear(torch.tensor([0.9, -0.6], dtype=torch.float64)),
        "linear_proxy": Quadratic.linear(torch.tensor([1.4, 0.2], dtype=torch.float64)),
    }
    return ExactProblem("overlap", mixture, rewards)
