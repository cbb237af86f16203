"""Nine separate Gaussians on a 3 x 3 grid, rewarded for a small y: the first published toy of tilted sampling.

Source      Kim et al. 2025, "Test-time Alignment of Diffusion Models without Reward Over-optimization" (DAS),
            https://arxiv.org/abs/2501.05803: p_ref of equal weights, spacing 4 and covariance 0.3 I; r = −x²/100 − y².
Optimum     The middle row, almost evenly: a method has to move mass between modes. Its frontier is easy to reach for
            guided methods, because the modes lie apart and the reward bends little within them.
Proxy       r̂ = r + x/4 + y: leans to the right column, and within modes upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from alignbench import Prompt
from alignbench.testbed.exact_problem import Known
from alignbench.testbed.toys import grid

__all__ = ["Grid"]


class Grid:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    known: ClassVar[dict[str, Known]] = {
        "quadratic": Known(-11.076333, -0.290720, 1.148966, -1.439687),
        "quadratic_proxy": Known(-11.076333, 0.406275, 1.451267, -1.044992),
    }

    def prompts(self, split: str) -> Sequence[Prompt]:
        return grid().prompts(split)
