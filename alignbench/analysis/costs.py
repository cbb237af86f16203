"""What a method costs, in the same units for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from alignbench.analysis.load import Method
from alignbench.record.result import Result


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


QUANTITIES = [field.name for field in fields(CostRow) if field.name not in ("method", "runs")]


def cost_of_run(result: Result) -> dict[str, float]:
    """The quantities of a CostRow for one run; NaN where it has no cost."""
    cost = result.cost
    if cost is None:
        return dict.fromkeys(QUANTITIES, math.nan)

    def used(counts: dict[str, int] | dict[str, float], resource: str) -> float:
        return float(counts[f"{resource}_forward"] + counts[f"{resource}_backward"])

    return {
        "alignment_denoiser": used(cost.alignment, "denoiser"),
        "alignment_reward": used(cost.alignment, "reward"),
        "alignment_seconds": cost.alignment_seconds,
        "image_denoiser": used(cost.per_image, "denoiser"),
        "image_reward": used(cost.per_image, "reward"),
        "image_seconds": cost.per_image_seconds,
        "memory_bytes": float(cost.peak_memory_bytes),
    }


def cost_of(method: Method) -> CostRow:
    """The mean cost of a method's runs; NaN where no run has one."""
    costs = [cost_of_run(run.result) for run in method.runs if run.result.cost is not None]
    means = {name: float(np.mean([cost[name] for cost in costs])) if costs else math.nan for name in QUANTITIES}
    return CostRow(method.label, len(method.runs), **means)
