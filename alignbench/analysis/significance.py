"""Tests of a win rate and of a mean difference, and their adjustment for how many there are. None of them draws: the
same numbers give the same p, so no mark hangs on a key."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.random_effects import NOISE, UnitMean
from alignbench.choices import Family

Array = NDArray[np.float64]

PRECISION = 1e-12  # of the sign-flip test: no smaller p is given
GRID = 2520  # parts of a win that outcomes are rounded to where prompts have very different numbers of pairs,
SUMS = 2**18  # and what so many of a win of all prompts are at most
WRITTEN_OUT = 14  # units, at most, of which all signs are gone through rather than round
REACH = 9.0  # standard deviations that a sum is followed to; it goes further with a chance of 5e-18
EVEN = 1e-6  # of a part: from here on a value does not lie on the grid
FEWEST_DIFFERING = 10  # prompts, where others tie, below which the interval of a difference is not to be told


def sign_flip(by_unit: Array, parts: int) -> float:
    """Exact two-sided p value of the sign-flip test that the mean of `by_unit` [units], multiples of 1 / parts, is 0.

    Under the hypothesis each unit's value is as likely as its negative. The distribution of the sum over all 2^n signs
    comes from its characteristic function Π cos(v θ), at as many angles as the sum has values. Values that are no
    multiples are rounded to one, away from 0 where two are as near; of a few units, all signs are written out instead.
    """
    scaled = by_unit * parts
    whole = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5 + EVEN)
    moving = by_unit[np.abs(by_unit) > NOISE]
    if len(moving) <= WRITTEN_OUT and np.abs(scaled - whole).max() > EVEN:
        return _written_out(moving)
    sizes = np.abs(whole[whole != 0]).astype(np.int64)
    if not len(sizes):
        return 1.0
    sizes //= (divisor := int(np.gcd.reduce(sizes)))
    seen = abs(int(whole.sum())) // divisor
    least = max(PRECISION, 2.0 ** (1 - len(sizes)))
    spread = math.sqrt(float((sizes.astype(float) ** 2).sum()))
    if 2 * math.exp(-((seen / spread) ** 2) / 2) < PRECISION:  # Hoeffding's bound of p
        return least
    furthest = min(int(sizes.sum()), math.ceil(REACH * spread))
    mass = _chances(sizes, 1 << (2 * furthest).bit_length())
    p = 2 * float(mass[seen : furthest + 1].sum()) if seen else 1.0
    return min(1.0, max(p, least))


def _written_out(values: Array) -> float:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= abs(values.sum()) - NOISE).mean())


def _chances(sizes: NDArray[np.int64], length: int) -> Array:
    """Of every sum of ± sizes, from 0 upwards; `length` is a power of two, and sums beyond its half are unlikely."""
    log, negative = _cosines(length)
    angles = np.arange(length // 2 + 1)
    exponent, odd = np.zeros(len(angles)), np.zeros(len(angles), dtype=bool)
    for value, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        places = value * angles & length - 1
        exponent += count * log[places]
        if count % 2:
            odd ^= negative[places]
    return np.asarray(np.fft.irfft(np.where(odd, -1, 1) * np.exp(exponent), length), dtype=np.float64)


@functools.lru_cache(maxsize=32)
def _cosines(length: int) -> tuple[Array, NDArray[np.bool_]]:
    """log |cos| of all multiples of 2π / length, and where the cosine is negative."""
    cosine = np.cos(2 * np.pi * np.arange(length) / length)
    if length % 4 == 0:
        cosine[[length // 4, 3 * length // 4]] = 0  # rounding leaves 6e-17
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.abs(cosine)), -1e6), cosine < 0


def win_p(by_unit: Array, parts: int, spread: UnitMean) -> float:
    """That wins and losses are alike: the sign-flip test of (win − ½) by unit; with several training seeds also
    Student's test with prompts and seeds random, whichever is larger."""
    flipped = sign_flip(by_unit - 0.5, parts)
    if not spread.seeds_random:
        return flipped
    return max(flipped, _student(abs(spread.mean - 0.5), spread.error, spread.df))


def parts_of(pairs: NDArray[np.int64]) -> int:
    """The grid on which the mean outcomes of units lie that have so many pairs [units, seeds of one, seeds of the
    other], as `sign_flip` takes it. Where that of all units is finer than `GRID`, or than the sum of many units allows,
    it is that of the most frequent kinds of units, as fine as may be."""
    often: Counter[int] = Counter()
    kinds, counts = pairs[:1].reshape(1, -1), np.array([len(pairs)])
    if (pairs != pairs[0]).any():
        kinds, counts = np.unique(pairs.reshape(len(pairs), -1), axis=0, return_counts=True)
    for kind, count in zip(kinds, counts, strict=True):
        there = kind[kind > 0]
        often[2 * len(there) * math.lcm(*map(int, there))] += int(count)
    (parts, _), *others = sorted(often.items(), key=lambda item: (-item[1], item[0]))
    finest = min(GRID, SUMS // len(pairs))
    whole = math.lcm(parts, *(own for own, _ in others))
    if whole <= max(parts, finest):
        return whole
    for own, _ in others:
        if math.lcm(parts, own) <= finest:
            parts = math.lcm(parts, own)
    return parts * max(1, finest // parts)


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
    """Holm's adjustment of the p values of one family: the smallest times their number, the next times one less, and so
    on; none below the one before it (Holm 1979). statsmodels has it as well, and takes a second to import."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
