"""Win rates, with intervals that know that a prompt's images belong together and that training seeds differ.

The unit is the prompt. Two methods meet on the same prompt with the same noise; an image pair is won (1), tied (0.5)
or lost (0). scipy is imported on use.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.random_effects import UnitMean

Array = NDArray[np.float64]
Units = NDArray[np.int64]

LEVEL = 0.95
RESAMPLES = 2000  # of a bootstrap
HALVINGS = 50  # of a search for an interval's end
PRIOR_CORRELATION, PRIOR_PROMPTS = 0.6, 0.75  # of outcomes within a prompt, and what it weighs; see `win_rate`


class WinRate(NamedTuple):
    """A share of wins (ties count half) with its interval."""

    rate: float
    low: float
    high: float
    ties: float  # share of pairs that tie
    pairs: int
    prompts: int
    effective: float  # independent pairs that would tell as much


class UnitShares(NamedTuple):
    """What units say, each of which weighs alike."""

    rate: UnitMean
    wins: float  # share of pairs that are won
    losses: float


def outcomes(mine: Array, theirs: Array, epsilon: float = 0.0) -> Array:
    """1 where mine is higher by more than epsilon, 0 where it is lower by more than epsilon, else 0.5."""
    difference = mine - theirs
    return np.where(np.abs(difference) <= epsilon, 0.5, (difference > 0).astype(float))


def cluster_sums(values: Array, clusters: Units) -> tuple[Array, Array]:
    """Sum and number of the values of each cluster, for clusters that occur."""
    sizes = np.bincount(clusters).astype(float)
    sums = np.bincount(clusters, weights=values)
    return sums[sizes > 0].astype(float), sizes[sizes > 0].astype(float)


def win_rate(results: Array, prompts: Units, of_units: UnitShares | None = None, level: float = LEVEL) -> WinRate:
    """The share of wins with Tango's score interval at the effective sample size.

    `results` are outcomes in any order, `prompts` the prompt of each. A design effect of 1 + (m − 1) ρ makes m pairs of
    one prompt, whose outcomes correlate by ρ (analysis-of-variance estimate), worth m / (1 + (m − 1) ρ) independent
    ones. Where almost every pair is won, ρ rests on the few prompts with a loss and is often found too small, so three
    quarters of a prompt with ρ = 0.6 are added to them (without: 90 % coverage for 30 prompts, strong prompt effects
    and a true rate of 0.95; with: 94 to 97 % in all settings of its test).

    Without `of_units` every pair weighs alike; with it, every prompt. What several seeds add to the variance joins that
    of the effective pairs, times the square of Student's quantile over the normal one, as in `random_effects`. Pairs
    themselves keep the normal quantile: a score interval does not estimate their variance.
    """
    from scipy.special import ndtri, stdtrit  # scipy.stats takes ten times as long to import

    sums, sizes = cluster_sums(results, prompts)
    n, count = len(results), len(sums)
    share = sizes / n if of_units is None else np.full(count, 1 / count)  # what each prompt weighs
    clustered = n > count and (count > 1 or of_units is not None)  # without, the pairs of one prompt are what is drawn
    correlation = _correlation_within(results, prompts, sums, sizes) if clustered else 0.0
    effective = 1 / float((share**2 * (1 + (sizes - 1) * correlation) / sizes).sum())
    quantile = float(ndtri((1 + level) / 2))
    if of_units is None:
        rate, wins, losses = (float(x.mean()) for x in (results, results == 1, results == 0))
    else:
        spread, wins, losses = of_units
        rate = spread.mean
        if spread.of_seeds > 0:
            times = float(stdtrit(spread.df_seeds, (1 + level) / 2)) / quantile
            of_pair = (wins + losses - (wins - losses) ** 2) / 4  # variance of one pair's outcome
            effective = 1 / (1 / effective + spread.of_seeds * times**2 / of_pair)
    low, high = score_interval(wins * effective, losses * effective, effective, quantile)
    return WinRate(rate, low, high, max(0.0, 1 - wins - losses), n, count, effective)


def score_interval(wins: float, losses: float, n: float, quantile: float) -> tuple[float, float]:
    """Of P(win) + P(tie) / 2, from n independent pairs: Tango's score interval of P(win) − P(loss) (1998, Statistics in
    Medicine 17, eq. 9 to 11), on the scale of a rate. Without ties it is Wilson's."""

    def statistic(difference: float) -> float:
        b = (2 * n - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        loss = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # the most likely P(loss) at this difference
        variance = n * (2 * loss + difference * (1 - difference))
        return (wins - losses - n * difference) / math.sqrt(max(variance, 1e-300))

    def search(inside: float, outside: float) -> float:
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(statistic(middle)) <= quantile else (inside, middle)
        return inside

    seen = (wins - losses) / n
    return (1 + search(seen, -1.0)) / 2, (1 + search(seen, 1.0)) / 2


def _correlation_within(results: Array, prompts: Units, sums: Array, sizes: Array) -> float:
    """What the outcomes of one prompt are taken to correlate by, in [0, 1]; see `win_rate`."""
    with_win, with_loss = (sums > 0).sum(), (sums < sizes).sum()
    seen = float(min(with_win, with_loss))
    found = _correlation(results, prompts) * seen + PRIOR_CORRELATION * PRIOR_PROMPTS
    return min(1.0, max(0.0, found / (seen + PRIOR_PROMPTS)))


def _correlation(values: Array, clusters: Units) -> float:
    """Intra-cluster correlation by one-way analysis of variance; 1 where nothing varies, and of a single cluster."""
    sums, sizes = cluster_sums(values, clusters)
    n, count = len(values), len(sums)
    if count == 1:
        return 1.0
    means = sums / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum() / (count - 1))
    total_within = float((values**2).sum() - (sizes * means**2).sum())
    within = max(0.0, total_within) / (n - count)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    scale = between + (size - 1) * within
    return (between - within) / scale if scale > 1e-12 else 1.0
