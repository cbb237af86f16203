"""The mean of a quantity over prompts and training seeds, both drawn at random, and how far it may be off.

Prompts are crossed with the seeds of a method, and, where the baseline is trained as well, with its seeds. With one
observation in every cell, mean squares MS_S of the analysis of variance, over all sets S of factors that have several
levels and N cells, the variance of the mean is

    V = Σ_S (−1)^(|S|+1) MS_S / N                                   for two factors (MS_p + MS_s − MS_ps) / N       (1)

(Searle, Casella and McCulloch, Variance Components, 1992, ch. 4; with three factors it is the inclusion and exclusion
of Cameron, Gelbach and Miller 2011). It has two parts: V_p = MS_p / N of the units, and V_s of the seeds, which is what
(1) adds to that and never below 0. In a 95 % interval each counts with Student's quantile at its own degrees of freedom
(Howe 1974, JASA 69, for the sum of two means):

    half width² = t_p² V_p + t_s² V_s = t_f² V                                                                      (2)

So three seeds that differ cost the quantile of two degrees of freedom, and seeds that do not differ cost nothing. The
degrees of freedom f of the whole are those that make (2) so. Those of Satterthwaite are too many where a few seeds
differ, and cover one to two points less. results/statistics has the coverage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FILLINGS = 2000  # at most, until the cells that are missing no longer change
NOISE = 1e-12  # of the numbers that something was computed from: what varies less is rounding, and taken not to vary
ALIKE = 1e-9  # of the variance of units: seeds that add less are alike
UPPER = 0.975  # the quantile of a 95 % interval


class UnitMean(NamedTuple):
    """A mean over units (prompts; images where there is one prompt) and training seeds."""

    mean: float  # over what is there: over the cells of each unit, then over units
    of_units: float  # variance of the mean that units make; with one seed that is all
    of_seeds: float  # and what training seeds add to it
    df: float  # degrees of freedom of the whole, (2); 0 where there is one unit
    df_seeds: float  # and of what seeds add
    skewness: float  # of the mean's distribution
    spread: float  # standard deviation of the units' own means
    seeds_random: bool  # whether there are several seeds on a side

    @property
    def variance(self) -> float:
        """Of the mean, with all that is random."""
        return self.of_units + self.of_seeds

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.variance)


def unit_mean(cells: Array, scale: float | None = None) -> UnitMean:
    """Of cells [units, seeds of one, seeds of the other]; NaN where a cell is missing, at least one of a unit there.
    `scale` is the size of the numbers that they were computed from; without it, that of the cells.

    For the variance, a missing cell is filled with what units and seeds make it without interaction (Yates 1933) and
    taken off the degrees of freedom of the interaction.
    """
    noise = NOISE * (float(np.nanmax(np.abs(cells))) if scale is None else scale)
    filled, missing = filled_in(cells)
    parts = {  # what each set of factors makes of the variance, and its degrees of freedom
        factors: (square / cells.size if square / cells.size > noise * noise else 0.0, df)
        for factors, (square, df) in mean_squares(filled, missing).items()
    }
    of_units, df_units = parts.get((0,), (0.0, 0.0))
    of_seeds, df_seeds = _of_seeds(parts)
    df = degrees_of_freedom((of_units, df_units), (of_seeds, df_seeds))
    by_unit = np.nanmean(cells, (1, 2))
    spread = float(by_unit.std(ddof=1)) if len(by_unit) > 1 else 0.0
    spread = spread if spread > noise else 0.0
    skewness = _skewness(by_unit) * (of_units / (of_units + of_seeds)) ** 1.5 if of_units > 0 and spread > 0 else 0.0
    seeds_random = any(size > 1 for size in cells.shape[1:])
    return UnitMean(float(by_unit.mean()), of_units, of_seeds, df, df_seeds, skewness, spread, seeds_random)


def _of_seeds(parts: Mapping[tuple[int, ...], tuple[float, float]]) -> tuple[float, float]:
    """What seeds add in (1), of its terms and their degrees of freedom; where both sides have several, it has those of
    the sum of the two mean squares (Satterthwaite 1946)."""
    single = [parts[factor] for factor in ((1,), (2,)) if factor in parts]
    of_units, _ = parts.get((0,), (0.0, 0.0))
    added = sum((-1) ** (len(factors) + 1) * part for factors, (part, _) in parts.items()) - of_units
    total = sum(part for part, _ in single)
    if total <= 0 or added <= ALIKE * of_units:
        return 0.0, 0.0
    return added, 1 / sum((part / total) ** 2 / df for part, df in single)


def degrees_of_freedom(*parts: tuple[float, float]) -> float:
    """Of the sum of variances with degrees of freedom each: (2)."""
    from scipy.special import stdtridf, stdtrit

    there = [(variance, df) for variance, df in parts if variance > 0]
    if len(there) < 2:
        return there[0][1] if there else max(df for _, df in parts)
    total = sum(variance for variance, _ in there)
    square = sum(variance / total * float(stdtrit(df, UPPER)) ** 2 for variance, df in there)
    return float(stdtridf(UPPER, math.sqrt(square)))


def mean_squares(cells: Array, missing: int = 0) -> dict[tuple[int, ...], tuple[float, float]]:
    """Mean square and degrees of freedom of every set of factors with several levels, named by their axes."""
    factors = [axis for axis, size in enumerate(cells.shape) if size > 1]
    sets = [chosen for k in range(1, len(factors) + 1) for chosen in itertools.combinations(factors, k)]
    effects: dict[tuple[int, ...], Array] = {(): cells.mean(keepdims=True)}
    found = {}
    for chosen in sets:
        others = tuple(axis for axis in range(cells.ndim) if axis not in chosen)
        effect = cells.mean(others, keepdims=True)
        for smaller in effects:
            if set(smaller) < set(chosen):
                effect = effect - effects[smaller]
        effects[chosen] = effect
        df = math.prod(cells.shape[axis] - 1 for axis in chosen)
        if len(chosen) == len(factors) > 1:
            df = max(1, df - missing)
        found[chosen] = (float((effect**2).sum()) * cells.size / effect.size / df, float(df))
    return found


def filled_in(cells: Array) -> tuple[Array, int]:
    """Cells without holes, and how many there were."""
    holes = np.isnan(cells)
    if not holes.any():
        return cells, 0
    filled = np.where(holes, np.nanmean(cells, (1, 2), keepdims=True), cells)
    for _ in range(FILLINGS):
        grand = filled.mean()
        axes = range(cells.ndim)
        sums = sum(filled.mean(tuple(a for a in axes if a != axis), keepdims=True) for axis in axes)
        fitted = np.broadcast_to(sums - (cells.ndim - 1) * grand, cells.shape)
        change = float(np.abs(filled - fitted)[holes].max())
        filled = np.where(holes, fitted, filled)
        if change <= 1e-13 * max(1.0, float(np.abs(filled).max())):
            break
    return filled, int(holes.sum())


def _skewness(by_unit: Array) -> float:
    """Of the mean over units, which vary; the seeds' own is not to be told."""
    centred = by_unit - by_unit.mean()
    return float(((centred / math.sqrt(float((centred**2).mean()))) ** 3).mean()) / math.sqrt(len(by_unit))
