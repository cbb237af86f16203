"""What votes say of two methods, with prompts and raters drawn at random; and how far raters agree.

Votes are few per prompt and rater, so the variance of a rate comes from sums of residuals over clusters (Cameron,
Gelbach and Miller 2011): with e the residuals of the mean, weighted so that every prompt weighs alike, G_S the clusters
of a set S of factors,

    V_S = G_S / (G_S − 1) Σ_clusters (Σ e)²        V = Σ_S (−1)^(|S|+1) V_S                                       (1)

and never less than what one factor alone gives, with Student's quantile of as many degrees of freedom as raters, less
one.
Agreement is Krippendorff's α for nominal values: with n_uc raters of unit u who say c, m_u of them, n_c and n in all,

    α = 1 − (n − 1) Σ_u Σ_{c≠k} n_uc n_uk / (m_u − 1) / Σ_{c≠k} n_c n_k                                            (2)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.random_effects import ALIKE, UnitMean, degrees_of_freedom
from alignbench.analysis.statistics import LEVEL, RESAMPLES, UnitShares, WinRate, cluster_sums, win_rate
from alignbench.keys import Key, resample_counts

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

FEWEST_RATERS = 5  # from which on an interval is of people, not of these raters alone
MARGIN = 0.05  # half an interval that is asked for
NOBODY = -1  # the rater of a tie that nobody was asked about: both pictures are one


class Alpha(NamedTuple):
    """Krippendorff's α with its interval; NaN where nobody judged what another had judged, or all say the same."""

    alpha: float
    low: float
    high: float
    raw: float  # share of pairs of votes that agree
    units: int  # judged by two raters or more


class Needed(NamedTuple):
    """What a rate within ±5 points takes."""

    votes: int  # of these raters, each on another prompt
    raters: int | None  # of people, each as many votes as now; None where the raters' own variance is not to be told


def vote_mean(won: Array, prompts: Numbers, factors: Sequence[Numbers], few: bool = False) -> UnitMean:
    """The mean outcome with what prompts and each further factor make random, by (1). Negative numbers of a factor are
    no cluster: they stand each for itself.

    With `few` clusters of the further factors, all of the variance counts with their Student's quantile, not only what
    they seem to add: five raters who happen to agree say little about how far others would.
    """
    from scipy.special import stdtrit

    units, sizes = np.unique(prompts, return_inverse=True, return_counts=True)[1:]
    count = len(sizes)
    by_unit = np.bincount(units, won) / sizes
    mean = float(by_unit.mean())
    residuals = (won - mean) / sizes[units] / count
    alone = np.arange(len(won))
    columns = [units, *(np.where(f < 0, -1 - alone, f) for f in factors)]
    added, single = 0.0, list[tuple[float, float]]()
    of_units = 0.0
    for k in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, k):
            clusters = np.unique(np.stack(chosen), axis=1, return_inverse=True)[1].ravel()
            sums = np.bincount(clusters, residuals)
            real = len(np.unique(chosen[0][chosen[0] >= 0])) if k == 1 else len(sums)
            part = float((sums**2).sum()) * (real / (real - 1) if real > 1 else 1.0)
            if k == 1 and chosen[0] is units:
                of_units = part
                continue
            added += (-1) ** (k + 1) * part
            if k == 1:
                single.append((part, real - 1.0))
    total = sum(part for part, _ in single)
    df_added = 1 / sum((part / total) ** 2 / df for part, df in single) if total > 0 else 0.0
    if few and total > 0:
        own, theirs = (float(stdtrit(df, (1 + LEVEL) / 2)) for df in (max(1.0, count - 1.0), df_added))
        added = max(added, total - of_units, 0.0) + of_units * (1 - min(1.0, own / theirs) ** 2)
    added = added if added > ALIKE * of_units and total > 0 else 0.0
    df = degrees_of_freedom((of_units, count - 1.0), (added, df_added if added > 0 else 0.0))
    spread = float(by_unit.std(ddof=1)) if count > 1 else 0.0
    return UnitMean(mean, of_units, added, df, df_added if added > 0 else 0.0, 0.0, spread, seeds_random=bool(factors))


def rates(won: Array, prompts: Numbers, raters: Numbers, seeds: Sequence[Numbers]) -> tuple[WinRate, WinRate | None]:
    """The win rate with the interval of these raters, and with that of people where there are raters enough."""
    own = [factor for factor in seeds if len(np.unique(factor)) > 1]
    wins, losses = (unit_mean_of((won == outcome).astype(float), prompts) for outcome in (1, 0))
    these = win_rate(won, prompts, UnitShares(vote_mean(won, prompts, own), wins, losses))
    if len(np.unique(raters[raters >= 0])) < FEWEST_RATERS:
        return these, None
    return these, win_rate(won, prompts, UnitShares(vote_mean(won, prompts, [raters, *own], few=True), wins, losses))


def unit_mean_of(values: Array, units: Numbers) -> float:
    """The mean over units of the means of each."""
    sums, sizes = cluster_sums(values, units)
    return float((sums / sizes).mean())


def alpha_of(units: Numbers, values: Numbers, key: Key) -> Alpha:
    """Of values 0, 1 and 2 (lost, tied, won) that raters gave to units, by (2), with a bootstrap over units."""
    places = np.unique(units, return_inverse=True)[1]
    counts = np.zeros((int(places.max()) + 1 if len(places) else 0, 3))
    np.add.at(counts, (places, values), 1)
    counts = counts[counts.sum(1) > 1]
    if not len(counts):
        return Alpha(math.nan, math.nan, math.nan, math.nan, 0)
    m = counts.sum(1)
    apart = m**2 - (counts**2).sum(1)  # ordered pairs of votes that differ
    parts = np.column_stack([apart / (m - 1), counts])
    rng = key.generator()
    drawn = np.concatenate([resample_counts(rng, len(parts), 500) @ parts for _ in range(RESAMPLES // 500)])
    found = _alphas(drawn)
    known = found[~np.isnan(found)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (math.nan, math.nan)
    raw = 1 - float(apart.sum() / (m * (m - 1)).sum())
    return Alpha(float(_alphas(parts.sum(0)[None])[0]), float(low), float(high), raw, len(counts))


def _alphas(sums: Array) -> Array:
    """α of rows of disagreement within units, and of how often each value was given."""
    n = sums[:, 1:].sum(1)
    expected = n**2 - (sums[:, 1:] ** 2).sum(1)
    return np.divide(expected - (n - 1) * sums[:, 0], expected, out=np.full(len(sums), math.nan), where=expected > 0)


def needed(won: Array, prompts: Numbers, raters: Numbers) -> Needed:
    """How many votes, and how many raters, make the interval ±5 points wide."""
    from scipy.special import ndtri, stdtrit

    ties = float((won == 0.5).mean())
    votes = math.ceil((1 - ties) / 4 * (float(ndtri((1 + LEVEL) / 2)) / MARGIN) ** 2)
    asked = raters >= 0
    count = len(np.unique(raters[asked]))
    if count < FEWEST_RATERS:
        return Needed(votes, None)
    these, both = vote_mean(won, prompts, []), vote_mean(won, prompts, [raters])
    own = both.of_seeds * count  # what one rater's taste adds
    other = these.variance * count  # what one rater's votes leave open
    for people in range(2, 100_000):
        if float(stdtrit(people - 1, (1 + LEVEL) / 2)) * math.sqrt((own + other) / people) <= MARGIN:
            return Needed(votes, people)
    return Needed(votes, None)
