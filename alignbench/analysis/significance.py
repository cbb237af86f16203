"""Tests of a win rate and of a mean difference, and their adjustment for how many there are. None of them draws: the
same numbers give the same p, so no mark hangs on a key."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.random_effects import UnitMean
from alignbench.choices import Family

Array = NDArray[np.float64]

PRECISION = 1e-12  # of the sign-flip test: no smaller p is given
GRID = 2520  # parts of a win that outcomes are rounded to where prompts have differing numbers of pairs
FEWEST_DIFFERING = 10  # prompts, where others tie, below which the interval of a difference is not to be told


def sign_flip(by_unit: Array, parts: int) -> float:
    """Exact two-sided p value of the sign-flip test that the mean of `by_unit` [units], multiples of 1 / parts, is 0.

    Under the hypothesis each unit's value is as likely as its negative. The distribution of the sum over all 2^n signs
    comes from its characteristic function Π cos(v θ), at as many angles as the sum has values.
    """
    whole = np.rint(by_unit * parts).astype(np.int64)
    sizes = np.abs(whole[whole != 0])
    if not len(sizes):
        return 1.0
    sizes //= (divisor := int(np.gcd.reduce(sizes)))
    seen = abs(int(whole.sum())) // divisor
    total = int(sizes.sum())
    values, counts = np.unique(sizes, return_counts=True)
    length = 1 << (2 * total + 1).bit_length()
    log, negative = _cosines(length)
    places = values[:, None] * np.arange(length // 2 + 1)[None] % length
    with np.errstate(divide="ignore"):
        characteristic = np.exp(counts @ log[places])
    characteristic *= 1 - 2 * ((counts @ negative[places]) % 2)
    mass = np.fft.irfft(characteristic, length)
    p = 2 * float(mass[seen : total + 1].sum()) if seen else 1.0
    return min(1.0, max(p, PRECISION, 2.0 ** (1 - len(sizes))))


@functools.lru_cache(maxsize=32)
def _cosines(length: int) -> tuple[Array, NDArray[np.int64]]:
    """log |cos| of all multiples of 2π / length, and where the cosine is negative."""
    cosine = np.cos(2 * np.pi * np.arange(length) / length)
    if length % 4 == 0:
        cosine[[length // 4, 3 * length // 4]] = 0  # rounding leaves 6e-17
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.abs(cosine)), -1e6), (cosine < 0).astype(np.int64)


def win_p(by_unit: Array, parts: int, spread: UnitMean) -> float:
    """That wins and losses are alike: the sign-flip test of (win − ½) by unit; with several training seeds also
    Student's test with prompts and seeds random, whichever is larger."""
    flipped = sign_flip(by_unit - 0.5, parts)
    if not spread.seeds_random:
        return flipped
    return max(flipped, _student(abs(spread.mean - 0.5), spread.error, spread.df))


def parts_of(pairs_by_unit: NDArray[np.int64]) -> int:
    """The grid on which the mean outcomes of units with so many pairs lie, as `sign_flip` takes it."""
    found = math.lcm(*map(int, np.unique(pairs_by_unit))) * 2
    return found if found <= GRID else GRID


def difference_p(by_unit: Array, spread: UnitMean) -> float:
    """That the mean difference is 0: Student's test at the standard error and degrees of freedom of `spread`, and the
    same with the skewness of the mean taken out (Hall 1992), whichever is larger; never below what the signs of so
    many units could give."""
    differing = int((by_unit != 0).sum())
    if differing == 0:
        return 1.0
    least = max(PRECISION, 2.0 ** (1 - differing))
    if spread.variance <= 0:
        return least
    statistic = spread.mean / spread.error
    corrected = statistic + spread.skewness / 3 * statistic**2 + spread.skewness**2 / 27 * statistic**3
    corrected += spread.skewness / 6
    return max(least, *(_student(abs(value), 1.0, spread.df) for value in (statistic, corrected)))


def difference_interval(by_unit: Array, spread: UnitMean, level: float) -> tuple[float, float]:
    """Student's interval of the mean difference, on each side the wider of it and the one with the skewness taken out
    (Hall 1992, eq. 2.7). NaN where it is not to be told: one unit, nothing that varies, or all but a few tied."""
    from scipy.special import stdtrit

    differing = int((by_unit != 0).sum())
    few = differing < min(FEWEST_DIFFERING, len(by_unit))
    if spread.df <= 0 or spread.variance <= 0 or few:
        return math.nan, math.nan
    quantile = float(stdtrit(spread.df, (1 + level) / 2))

    def without_skewness(x: float) -> float:
        skew = spread.skewness
        return x if abs(skew) < 1e-9 else 3 / skew * (float(np.cbrt(1 + skew * (x - skew / 6))) - 1)

    above, below = max(quantile, without_skewness(quantile)), min(-quantile, without_skewness(-quantile))
    return spread.mean - spread.error * above, spread.mean - spread.error * below


def _student(distance: float, error: float, df: float) -> float:
    """Two-sided p of a distance from the hypothesis; 0 where nothing varies, which the caller bounds."""
    from scipy.special import stdtr

    if df <= 0:
        return 1.0
    if error <= 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * stdtr(df, -distance / error))


def adjusted(p: Sequence[float], scorers: Sequence[str], family: Family) -> tuple[list[float], list[int]]:
    """Holm's adjustment within each family, and how many tests each p was adjusted for. A family holds the rows of one
    scorer, or of all, or each row is its own."""
    families: dict[object, list[int]] = {}
    for i, scorer in enumerate(scorers):
        families.setdefault({"scorer": scorer, "table": "", "none": i}[family], []).append(i)
    values, sizes = [1.0] * len(p), [1] * len(p)
    for members in families.values():
        for i, value in zip(members, holm(np.array([p[i] for i in members])), strict=True):
            values[i], sizes[i] = float(value), len(members)
    return values, sizes


def holm(p: Array) -> Array:
    """Holm's adjustment of the p values of one family."""
    from statsmodels.stats.multitest import multipletests

    gc.freeze()  # it collects garbage, which takes seconds where a million rows are held
    try:
        return np.asarray(multipletests(p, method="holm")[1]) if len(p) else p
    finally:
        gc.unfreeze()
