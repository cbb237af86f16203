"""What a method costs, in the same units for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from alignbench.analysis.load import Method


@dataclass(frozen=True)
class CostRow:
    """What a method costs; trained methods are averaged over seeds."""

    method: str
    runs: int
    alignment_denoiser: float  # forward and backward evaluations
    alignment_reward: float
    alignment_seconds: float
    image_denoiser: float
    image_reward: float
    image_seconds: float
    memory_bytes: float


def cost_of(method: Method) -> CostRow:
    """The mean cost of a method's runs; NaN where no run has one."""
    costs = [run.result.cost for run in method.runs if run.result.cost is not None]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values))) if costs else float("nan")

    def used(counts: dict[str, int] | dict[str, float], resource: str) -> float:
        return float(counts[f"{resource}_forward"] + counts[f"{resource}_backward"])

    return CostRow(
        method=method.label,
        runs=len(method.runs),
        alignment_denoiser=mean(used(c.alignment, "denoiser") for c in costs),
        alignment_reward=mean(used(c.alignment, "reward") for c in costs),
        alignment_seconds=mean(c.alignment_seconds for c in costs),
        image_denoiser=mean(used(c.per_image, "denoiser") for c in costs),
        image_reward=mean(used(c.per_image, "reward") for c in costs),
        image_seconds=mean(c.per_image_seconds for c in costs),
        memory_bytes=mean(c.peak_memory_bytes for c in costs),
    )
