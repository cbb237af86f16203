"""Win rates, paired differences and ranks, with intervals that know that a prompt's images belong together.

The unit is the prompt. Two methods meet on the same prompt with the same noise; an image pair is won (1), tied (0.5)
or lost (0). scipy and statsmodels are imported on use.

Vectorised by hand where a library would loop over comparisons: fifty files with five scorers make 250 of them, and one
matrix product of resampling weights with all differences takes the place of 250 calls to `scipy.stats.bootstrap` and
`permutation_test` (tests compare the two).
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.keys import Key, resample_counts

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000  # of the bootstrap
FLIPS = 10_000  # of the sign-flip test: the smallest p is 1e-4
CHUNK = 1000  # resamples held in memory at once
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


def outcomes(mine: Array, theirs: Array, epsilon: float = 0.0) -> Array:
    """1 where mine is higher by more than epsilon, 0 where it is lower by more than epsilon, else 0.5."""
    difference = mine - theirs
    return np.where(np.abs(difference) <= epsilon, 0.5, (difference > 0).astype(float))


def cluster_sums(values: Array, clusters: NDArray[np.int64]) -> tuple[Array, Array]:
    """Sum and number of the values of each cluster, for clusters that occur."""
    sizes = np.bincount(clusters).astype(float)
    sums = np.bincount(clusters, weights=values)
    return sums[sizes > 0].astype(float), sizes[sizes > 0].astype(float)


def win_rate(results: Array, prompts: NDArray[np.int64], level: float = LEVEL) -> WinRate:
    """The share of wins with a Wilson interval at the effective sample size.

    n pairs of C prompts are worth n / (deff · tie) independent decisions: deff = 1 + (m − 1) ρ is the design effect
    of m pairs a prompt whose outcomes correlate by ρ (analysis-of-variance estimate), and ties make outcomes vary
    less than decisions do. Where almost every pair is won, ρ rests on the few prompts with a loss and is often found
    too small, so three quarters of a prompt with ρ = 0.6 are added to them (without: 90 % coverage for 30 prompts,
    strong prompt effects and a true rate of 0.95; with: 94 to 97 % in all settings of its test).
    """
    from scipy.special import ndtri  # scipy.stats takes ten times as long to import

    sums, sizes = cluster_sums(results, prompts)
    n, count = len(results), len(sums)
    rate = float(results.mean())
    ties = float((results == 0.5).mean())
    effect = 1.0
    if n > count > 1:
        with_win, with_loss = (sums > 0).sum(), (sums < sizes).sum()
        seen = float(min(with_win, with_loss))
        correlation = (_correlation(results, prompts) * seen + PRIOR_CORRELATION * PRIOR_PROMPTS) / (
            seen + PRIOR_PROMPTS
        )
        typical = float((sizes**2).sum() / n)
        effect = 1 + (typical - 1) * min(1.0, max(0.0, correlation))
    binomial = rate * (1 - rate)
    spread = float(((results - rate) ** 2).sum())
    tie = (spread + binomial) / ((n + 1) * binomial) if binomial > 0 else 1.0
    effective = n / (effect * tie)
    low, high = wilson(rate, effective, float(ndtri((1 + level) / 2)))
    return WinRate(rate, low, high, ties, n, count, effective)


def wilson(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a rate observed in n trials."""
    squared = quantile**2 / n
    centre = (rate + squared / 2) / (1 + squared)
    half = quantile * math.sqrt(rate * (1 - rate) / n + squared / (4 * n)) / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)


def _correlation(values: Array, clusters: NDArray[np.int64]) -> float:
    """Intra-cluster correlation by one-way analysis of variance; 1 where nothing varies."""
    sums, sizes = cluster_sums(values, clusters)
    n, count = len(values), len(sums)
    means = sums / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum() / (count - 1))
    total_within = float((values**2).sum() - (sizes * means**2).sum())
    within = max(0.0, total_within) / (n - count)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    scale = between + (size - 1) * within
    return (between - within) / scale if scale > 1e-12 else 1.0


class Differences(NamedTuple):
    """Mean differences of several comparisons, their intervals and permutation p values, in the order given."""

    mean: Array
    low: Array
    high: Array
    p: Array


def paired_differences(by_prompt: Array, key: Key, level: float = LEVEL) -> Differences:
    """Mean over prompts of per-prompt mean differences: percentile bootstrap over prompts, sign-flip p value.

    `by_prompt` is [prompts, comparisons]. The same resamples serve all comparisons.
    """
    n, comparisons = by_prompt.shape
    mean = by_prompt.mean(0)
    rng = key("bootstrap").generator()
    resampled = np.concatenate(
        [resample_counts(rng, n, size) @ by_prompt / n for size in _sizes(RESAMPLES)], dtype=np.float64
    )
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    rng = key("flip").generator()
    extreme = np.zeros(comparisons)
    tolerance = 1e-12 * np.abs(by_prompt).max(0, initial=0)
    for size in _sizes(FLIPS):
        signs = rng.integers(0, 2, size=(size, n), dtype=np.int8).astype(np.float32) * 2 - 1
        flipped = signs.astype(np.float64) @ by_prompt / n
        extreme += (np.abs(flipped) >= np.abs(mean) - tolerance).sum(0)
    return Differences(mean, low, high, (1 + extreme) / (1 + FLIPS))


def _sizes(total: int) -> list[int]:
    return [min(CHUNK, total - i) for i in range(0, total, CHUNK)]


def holm(p: Array) -> Array:
    """Holm's adjustment of the p values of one family."""
    from statsmodels.stats.multitest import multipletests

    gc.freeze()  # it collects garbage, which takes seconds where a million rows are held
    try:
        return np.asarray(multipletests(p, method="holm")[1]) if len(p) else p
    finally:
        gc.unfreeze()


class Ranks(NamedTuple):
    """Bradley-Terry strengths relative to the first method (log odds), with intervals; None where not identifiable."""

    strength: Array
    low: Array
    high: Array


def bradley_terry(wins: NDArray[np.floating[Any]], level: float = LEVEL) -> Ranks | None:
    """Strengths θ with P(i beats j) = 1 / (1 + exp(θ_j − θ_i)), from win counts [prompts, methods, methods].

    Fitted by statsmodels as a logistic model of the pooled counts, with half a win added in each direction of every
    observed pair; the covariance is clustered on prompts. Returns None unless every method is linked to every other by
    methods that met.
    """
    from scipy.special import ndtri
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM  # `statsmodels.api` takes longer to import
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    prompts, methods = wins.shape[0], wins.shape[1]
    pooled = wins.sum(0)
    first, second = np.triu_indices(methods, 1)
    met = (pooled[first, second] + pooled[second, first]) > 0
    first, second = first[met], second[met]
    if not _connected(methods, first, second):
        return None
    design = np.zeros((len(first), methods))
    design[np.arange(len(first)), first] = 1
    design[np.arange(len(first)), second] = -1
    design = design[:, 1:]  # the first method is the reference
    counts = np.stack([pooled[first, second] + 0.5, pooled[second, first] + 0.5], 1)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):  # no degrees of freedom left
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        fitted = GLM(counts, design, family=Binomial()).fit()
    theta = np.asarray(fitted.params)
    chance = np.asarray(fitted.fittedvalues)
    bread = np.linalg.inv((design * (counts.sum(1) * chance * (1 - chance))[:, None]).T @ design)
    won, lost = wins[:, first, second], wins[:, second, first]
    scores = (won - (won + lost) * chance) @ design  # [prompts, methods - 1]
    covariance = bread @ (scores.T @ scores) @ bread * prompts / max(1, prompts - 1)
    half = ndtri((1 + level) / 2) * np.sqrt(np.diag(covariance).clip(min=0))  # rounding may leave -1e-33
    return Ranks(*(np.concatenate([[0.0], x]) for x in (theta, theta - half, theta + half)))


def _connected(
    methods: int, first: Sequence[int] | NDArray[np.int64], second: Sequence[int] | NDArray[np.int64]
) -> bool:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(methods, methods))
    return int(connected_components(graph, directed=False)[0]) == 1
