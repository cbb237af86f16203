"""The mean of a quantity over prompts and training seeds, both drawn at random, and how far it may be off.

Prompts are crossed with the seeds of a method, and, where the baseline is trained as well, with its seeds. With one
observation in every cell, mean squares MS_S of the analysis of variance, over all sets S of factors that have several
levels, N cells and f_S degrees of freedom, the variance of the mean is

    V = Σ_S (−1)^(|S|+1) MS_S / N                                   for two factors (MS_p + MS_s − MS_ps) / N       (1)
    degrees of freedom = V² / Σ_S (MS_S / N)² / f_S                 Satterthwaite (1946)                            (2)

(Searle, Casella and McCulloch, Variance Components, 1992, ch. 4; with three factors it is the inclusion and exclusion
of Cameron, Gelbach and Miller 2011). V is never smaller than what any single factor alone would give.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FILLINGS = 50  # at most, until the cells that are missing no longer change


class UnitMean(NamedTuple):
    """A mean over units (prompts; images where there is one prompt) and training seeds."""

    mean: float
    variance: float  # of the mean, with all that is random
    of_units: float  # of it, what units alone make; with one seed that is all
    df: float  # degrees of freedom of the variance; 0 where there is one unit
    skewness: float  # of the mean's distribution
    spread: float  # standard deviation of the units' own means
    seeds_random: bool  # whether there are several seeds on a side

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.variance)


def unit_mean(cells: Array) -> UnitMean:
    """Of cells [units, seeds of one, seeds of the other]; NaN where a cell is missing, at least one of a unit there.

    A missing cell is filled with what units and seeds make it without interaction (Yates 1933) and taken off the
    degrees of freedom of the interaction.
    """
    filled, missing = filled_in(cells)
    squares = mean_squares(filled, missing)
    by_unit = filled.mean((1, 2))
    mean = float(by_unit.mean())
    of_units = squares[0,][0] / filled.size if (0,) in squares else 0.0
    variance = sum((-1) ** (len(factors) + 1) * square for factors, (square, _) in squares.items()) / filled.size
    single = {square / filled.size: df for factors, (square, df) in squares.items() if len(factors) == 1}
    least = max(single, default=0.0)
    if variance <= least:
        variance, df = least, single.get(least, 0.0)
    else:
        df = 1 / sum((square / filled.size / variance) ** 2 / df for square, df in squares.values())
    return UnitMean(
        mean, variance, of_units, df, _skewness(by_unit, of_units, variance), float(by_unit.std(ddof=1))
        if len(by_unit) > 1 else 0.0, any(size > 1 for size in filled.shape[1:]),
    )  # fmt: skip


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
        if change <= 1e-10 * max(1.0, float(np.abs(filled).max())):
            break
    return filled, int(holes.sum())


def _skewness(by_unit: Array, of_units: float, variance: float) -> float:
    """Third cumulant of the mean over units, in standard errors of the whole; the seeds' own is not to be told."""
    centred = by_unit - by_unit.mean()
    square = float((centred**2).mean())
    if square <= 0 or variance <= 0:
        return 0.0
    own = float(((centred / math.sqrt(square)) ** 3).mean()) / math.sqrt(len(by_unit))
    return own * (of_units / variance) ** 1.5
