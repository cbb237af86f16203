"""Strength in a pool of methods by Bradley and Terry: P(i beats j) = 1 / (1 + exp(θ_j − θ_i)).

A strength depends on who else is in the pool, and a single number per method cannot say everything about all pairs:
`Fit` says how far it is off. Every pair of methods weighs as many prompts as it shares, however many seeds there are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.statistics import LEVEL
from alignbench.keys import Key, resample_counts

Array = NDArray[np.float64]

DRAWS = 1000  # of the bootstrap of places
MISFIT = 1.96  # standard errors of a pair's own rate from which the model is said to miss it


class Fit(NamedTuple):
    """How well strengths tell the win rates that were seen."""

    pairs: int  # of methods that met
    missed: int  # whose implied rate is not within two standard errors of the one seen
    worst: tuple[int, int]  # the methods that are told worst
    seen: float
    implied: float


class Ranks(NamedTuple):
    """Strengths relative to the first method (log odds) and places from 1, with intervals. An end is infinite where no
    chain of wins or ties leads from one of the two to the other; NaN stands for a method that met no other."""

    strength: Array
    low: Array
    high: Array
    place: Array
    place_low: Array
    place_high: Array
    fit: Fit


@dataclass(frozen=True)
class Shares:
    """What methods won from each other: shares of a prompt's pairs (ties half), NaN where two did not meet."""

    by_prompt: NDArray[np.float32]  # [prompts, methods, methods]
    by_run: Array  # [runs, methods]: mean over prompts and the other's runs
    owner: NDArray[np.int64]  # [runs]: the method of each run

    @property
    def rates(self) -> Array:
        """[methods, methods] mean over prompts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of two that never met
            return np.asarray(np.nanmean(self.by_prompt, 0, dtype=np.float64))

    def of(self, methods: Sequence[int] | NDArray[np.int64]) -> Shares:
        """Those of some methods."""
        chosen = np.asarray(methods)
        runs = np.isin(self.owner, chosen)
        owner = np.searchsorted(chosen, self.owner[runs])
        return Shares(self.by_prompt[:, chosen][:, :, chosen], self.by_run[runs][:, chosen], owner)


def ranks(shares: Shares, key: Key, level: float = LEVEL) -> Ranks | None:
    """Of the methods that met any other; None where the first met none, or not all are linked to each other."""
    met = np.flatnonzero(~np.isnan(shares.rates).all(1))
    if len(met) < 2 or met[0] != 0:
        return None
    found = _of_linked(shares.of(met), key, level)
    if found is None:
        return None

    def of_all(part: Array) -> Array:
        whole = np.full(len(shares.rates), np.nan)
        whole[met] = part
        return whole

    first, second = found.fit.worst
    return Ranks(
        of_all(found.strength), of_all(found.low), of_all(found.high),
        of_all(found.place), of_all(found.place_low), of_all(found.place_high),
        found.fit._replace(worst=(int(met[first]), int(met[second]))),
    )  # fmt: skip


def _of_linked(shares: Shares, key: Key, level: float) -> Ranks | None:
    from scipy.special import stdtrit

    rates, known = shares.rates, ~np.isnan(shares.by_prompt)
    methods = len(rates)
    first, second = np.triu_indices(methods, 1)
    weight = known.sum(0)[first, second].astype(float)  # prompts
    first, second, weight = first[weight > 0], second[weight > 0], weight[weight > 0]
    if not _linked(methods, first, second):
        return None
    design = np.zeros((len(first), methods))
    design[np.arange(len(first)), first] = 1
    design[np.arange(len(first)), second] = -1
    design = design[:, 1:]  # the first method is the reference
    theta, chance, bread = _fitted(design, weight, rates[first, second])

    deviation = np.nan_to_num(shares.by_prompt[:, first, second] - chance)
    of_prompts = deviation @ design @ bread  # what each prompt moves θ by
    of_runs = _moved_by_runs(shares, first, second, weight, design, bread)
    parts = [(of_prompts, len(of_prompts)), *((moved, len(moved)) for moved in of_runs)]
    variances = [(moved**2).sum(0) * n / max(1, n - 1) for moved, n in parts]
    total = np.sum(variances, 0)
    freedom = sum(v**2 / max(1, n - 1) for v, (_, n) in zip(variances, parts, strict=True))
    df = np.divide(total**2, freedom, out=np.full(methods - 1, math.inf), where=freedom > 0)
    half = stdtrit(np.minimum(df, 1e6), (1 + level) / 2) * np.sqrt(total)
    low, high = _opened(theta, half, bread, rates, level)
    places = _places(_moved(theta, parts, key), level)
    spread = _prompt_variance(shares.by_prompt[:, first, second]) + _seed_variance(shares, first, second)
    place = 1 + (np.r_[0, theta][None] > np.r_[0, theta][:, None] + 1e-9).sum(1)
    fit = _fit(first, second, rates[first, second], chance, np.sqrt(spread))
    return Ranks(np.r_[0.0, theta], np.r_[0.0, low], np.r_[0.0, high], place.astype(float), *places, fit)


def _fitted(design: Array, weight: Array, seen: Array) -> tuple[Array, Array, Array]:
    """θ without the first, the rates it implies, and the inverse information; half a win is added on either side."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM  # `statsmodels.api` takes longer to import
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    counts = np.stack([weight * seen + 0.5, weight * (1 - seen) + 0.5], 1)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):  # no degrees of freedom left
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        fitted = GLM(counts, design, family=Binomial()).fit()
    chance = np.asarray(fitted.fittedvalues)
    bread = np.linalg.inv((design * (counts.sum(1) * chance * (1 - chance))[:, None]).T @ design)
    return np.asarray(fitted.params), chance, bread


def _moved_by_runs(
    shares: Shares, first: Array, second: Array, weight: Array, design: Array, bread: Array
) -> list[Array]:
    """For each method with several runs, what each run moves θ by: [runs, methods − 1]."""
    found = []
    for method in range(len(shares.rates)):
        runs = np.flatnonzero(shares.owner == method)
        own = np.flatnonzero((first == method) | (second == method))
        if len(runs) < 2:
            continue
        others = np.where(first[own] == method, second[own], first[own])
        sign = np.where(first[own] == method, 1.0, -1.0)
        off = np.nan_to_num(shares.by_run[runs][:, others] - shares.rates[method, others])
        found.append((off * sign * weight[own]) @ design[own] @ bread / len(runs))
    return found


def _prompt_variance(by_prompt: NDArray[np.float32]) -> Array:
    """Of the rate of each pair [prompts, pairs], what prompts make."""
    count = (~np.isnan(by_prompt)).sum(0)
    off = by_prompt - np.nanmean(by_prompt, 0)
    return np.asarray(np.nansum(off**2, 0) / np.maximum(1, count - 1) / count, dtype=np.float64)


def _seed_variance(shares: Shares, first: Array, second: Array) -> Array:
    """Of the rate of each pair, what the runs of its two methods make."""
    of_method = np.zeros_like(shares.rates)
    for method in range(len(shares.rates)):
        runs = np.flatnonzero(shares.owner == method)
        if len(runs) > 1:
            of_method[method] = np.nan_to_num(np.var(shares.by_run[runs], 0, ddof=1) / len(runs))
    return np.asarray(of_method[first, second] + of_method[second, first])


def _opened(theta: Array, half: Array, bread: Array, rates: Array, level: float) -> tuple[Array, Array]:
    """Ends of the intervals. Where no chain of wins or ties leads from the reference to a method, or back, the end on
    that side is infinite, and the other one is the model's own: such wins do not vary, so prompts do not tell it."""
    from scipy.sparse.csgraph import shortest_path
    from scipy.special import ndtri

    won = np.nan_to_num(rates) > 0
    reached = np.isfinite(
        shortest_path(np.ascontiguousarray(won, dtype=float), unweighted=True)
    )  # [i, j]: a chain from i down to j
    above, below = ~reached[0, 1:], ~reached[1:, 0]
    wider = np.maximum(half, float(ndtri((1 + level) / 2)) * np.sqrt(np.diag(bread)))
    half = np.where(above | below, wider, half)
    return np.where(below, -math.inf, theta - half), np.where(above, math.inf, theta + half)


def _moved(theta: Array, parts: Sequence[tuple[Array, int]], key: Key) -> Array:
    """[draws, methods] strengths under resampled prompts and runs, to first order. Few runs, drawn with replacement,
    would vary too little: they are scaled by √(n / (n − 1))."""
    rng = key("places").generator()
    drawn = np.tile(theta, (DRAWS, 1))
    for moved, n in parts:
        drawn += (resample_counts(rng, n, DRAWS) - 1) @ moved * math.sqrt(n / max(1, n - 1))
    return np.concatenate([np.zeros((DRAWS, 1)), drawn], 1)


def _places(drawn: Array, level: float) -> tuple[Array, Array]:
    """First and last place of each method among the draws, but for the outermost."""
    place = 1 + (drawn[:, None, :] > drawn[:, :, None] + 1e-9).sum(2)
    tails = ((1 - level) / 2, (1 + level) / 2)
    first, last = np.quantile(place, tails[0], 0, method="lower"), np.quantile(place, tails[1], 0, method="higher")
    return first.astype(float), last.astype(float)


def _fit(first: Array, second: Array, seen: Array, implied: Array, error: Array) -> Fit:
    off = np.abs(seen - implied)
    worst = int(off.argmax())
    missed = int((off > MISFIT * np.maximum(error, 1e-9)).sum())
    return Fit(len(seen), missed, (int(first[worst]), int(second[worst])), float(seen[worst]), float(implied[worst]))


def _linked(methods: int, first: Array, second: Array) -> bool:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(methods, methods))
    return int(connected_components(graph, directed=False)[0]) == 1
