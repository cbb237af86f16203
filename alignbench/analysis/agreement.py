"""What scorers are worth as judges: how they agree with each other, and how little changes their mind.

Kendall's τ_b between two judges, over the pairs of pictures that share a prompt: with C pairs that both order alike, D
that they order oppositely, and T₁, T₂ pairs of which either says something,
    τ_b = (C − D) / √(T₁ T₂).
Only pictures of one prompt are compared: most scorers say how well a picture meets its own prompt, so that across
prompts they agree about which prompts are easy. Intervals are bootstraps over prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.statistics import LEVEL, RESAMPLES, WinRate, score_interval, win_rate
from alignbench.keys import Key, resample_counts

Array = NDArray[np.float64]
Places = NDArray[np.int64]


class Agreement(NamedTuple):
    """τ_b of two judges with its interval; NaN where one of them orders nothing."""

    tau: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Sensitivity:
    """What a change that ought not to matter does to a scorer."""

    change: str
    images: int
    shift: float  # mean |change of the score| over the standard deviation of the unchanged scores
    flipped: WinRate | None  # share of pair decisions that turn; from or to a tie counts half. None without pairs


def agreement(first: Array, second: Array, prompts: Places, key: Key, level: float = LEVEL) -> Agreement:
    """τ_b over pairs, with a bootstrap over prompts. Both judges say P(first picture preferred): 1, 0.5 or 0; NaN
    leaves a pair out."""
    from scipy.special import ndtri

    kept = ~(np.isnan(first) | np.isnan(second))
    a, b = np.sign(first[kept] - 0.5), np.sign(second[kept] - 0.5)
    units, places = np.unique(prompts[kept], return_inverse=True)
    if len(units) == 1:
        places = np.arange(len(places))  # on one prompt the pair is what is drawn at random
    if not (a.any() and b.any()):
        return Agreement(math.nan, math.nan, math.nan, len(a))
    sums = np.stack([np.bincount(places, weights=values) for values in (a * b, a * a, b * b)], 1)  # [prompts, 3]
    rng = key.generator()
    resampled = np.concatenate([resample_counts(rng, len(sums), 500) @ sums for _ in range(RESAMPLES // 500)])
    tau = float(_tau(sums.sum(0)[None])[0])
    low, high = np.nanquantile(_tau(resampled), [(1 - level) / 2, (1 + level) / 2])
    if low == high:  # every prompt says the same, as all that agree do; other prompts may not
        share, quantile = (1 + tau) / 2, float(ndtri((1 + level) / 2))
        low, high = (
            2 * end - 1 for end in score_interval(share * len(sums), (1 - share) * len(sums), len(sums), quantile)
        )
    return Agreement(tau, float(low), float(high), len(a))


def _tau(sums: Array) -> Array:
    """τ_b of rows of C − D, T₁ and T₂."""
    scale = np.sqrt(sums[:, 1] * sums[:, 2])
    return np.divide(sums[:, 0], scale, out=np.full(len(sums), math.nan), where=scale > 0)


def agreements(judged: Mapping[str, Array], prompts: Places, key: Key) -> dict[tuple[str, str], Agreement]:
    """Of every two judges, in their order. The same resamples serve all that judged the same pairs."""
    return {(a, b): agreement(judged[a], judged[b], prompts, key) for a, b in itertools.combinations(judged, 2)}


def sensitivity(
    change: str, before: Array, after: Array, decided: tuple[Array, Array], prompts: Places
) -> Sensitivity | None:
    """Scores [pairs, 2] and decisions (P(first preferred)) before and after a change; NaN where there is none. None
    where nothing was scored after it."""
    known = ~(np.isnan(before) | np.isnan(after))
    if not known.any():
        return None
    spread = float(np.nanstd(before, ddof=1)) if (~np.isnan(before)).sum() > 1 else 0.0
    moved = float(np.abs(after - before)[known].mean())
    shift = moved / spread if spread > 0 else (0.0 if moved == 0 else math.inf)
    turned = np.abs(decided[0] - decided[1])
    both = ~np.isnan(turned)
    flipped = win_rate(turned[both], prompts[both]) if both.any() else None
    return Sensitivity(change, int(known.sum()), shift, flipped)


def matrix(names: Sequence[str], found: Mapping[tuple[str, str], Agreement]) -> Array:
    """τ_b of every judge with every other, 1 on the diagonal."""
    values = np.eye(len(names))
    for (a, b), agreed in found.items():
        i, j = names.index(a), names.index(b)
        values[i, j] = values[j, i] = agreed.tau
    return values
