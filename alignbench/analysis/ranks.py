"""Strength in a pool of methods by Bradley and Terry: P(i beats j) = 1 / (1 + exp(θ_j − θ_i)).

A strength depends on who else is in the pool, and a single number per method cannot say everything about all pairs:
`Fit` says how far it is off. Every pair of methods weighs as many prompts as it shares, however many seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.statistics import LEVEL
from alignbench.keys import Key, resample_parts

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

DRAWS = 1000  # of the bootstrap of places
NEWTON_STEPS = 100
NARROWEST = 1e-6  # half an interval; what is narrower is rounding
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

    by_prompt: NDArray[np.float32]  # [prompts, methods, methods]; images where there is one prompt alone
    by_run: Array  # [runs, methods]: mean over prompts and the other's runs
    owner: Indices  # [runs]: the method of each run
    rates: Array  # [methods, methods]: mean over prompts

    def of(self, methods: Sequence[int] | Indices) -> Shares:
        """Those of some methods."""
        chosen = np.asarray(methods)
        runs = np.isin(self.owner, chosen)
        owner = np.searchsorted(chosen, self.owner[runs])
        every = np.ix_(chosen, chosen)
        return Shares(self.by_prompt[:, chosen][:, :, chosen], self.by_run[runs][:, chosen], owner, self.rates[every])


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

    rates = shares.rates
    weight = (~np.isnan(shares.by_prompt)).sum(0).astype(float)  # [methods, methods]: prompts they share
    if not _reached(weight > 0).all():
        return None
    theta, bread = _fitted(weight, rates)
    chance = _chance(theta)
    of_prompts = np.nansum(shares.by_prompt - chance, 2)[:, 1:] @ bread
    of_runs = _moved_by_runs(shares, weight, bread)
    parts = [(of_prompts, len(of_prompts)), *((moved, len(moved)) for moved in of_runs)]
    variances = [(moved**2).sum(0) * n / max(1, n - 1) for moved, n in parts]  # of θ, by what is random
    total = np.sum(variances, 0)
    freedom = sum(v**2 / max(1, n - 1) for v, (_, n) in zip(variances, parts, strict=True))
    df = np.divide(total**2, freedom, out=np.full(len(total), math.inf), where=freedom > 0)
    half = stdtrit(np.minimum(df, 1e6), (1 + level) / 2) * np.sqrt(total)
    if len(of_prompts) == 1:
        half = np.full_like(half, math.inf)  # one tells nothing of others
    low, high = _opened(theta[1:], half, bread, rates, level)
    places = _places(_moved(theta[1:], parts, key), level)
    if len(of_prompts) == 1:
        places = np.ones(len(theta)), np.full(len(theta), float(len(theta)))
    spread = _prompt_variance(shares.by_prompt) + _seed_variance(shares)
    fit = _fit(weight, rates, chance, np.sqrt(spread))
    return Ranks(theta, np.r_[0.0, low], np.r_[0.0, high], _place(theta[None])[0], *places, fit)


def _chance(theta: Array) -> Array:
    """[methods, methods] rates that strengths imply."""
    from scipy.special import expit

    return np.asarray(expit(theta[:, None] - theta), dtype=np.float64)


def _fitted(weight: Array, rates: Array) -> tuple[Array, Array]:
    """The most likely θ, with half a win added on either side of every two that met, and the inverse information of all
    but the first. Newton's method; no step moves a strength by more than 1."""
    met = weight > 0
    won = np.where(met, weight * np.nan_to_num(rates) + 0.5, 0.0)
    count = np.where(met, weight + 1, 0.0)
    theta = np.zeros(len(weight))
    for _ in range(NEWTON_STEPS):
        chance = _chance(theta)
        information = count * chance * (1 - chance)
        information = np.diag(information.sum(1)) - information
        step = np.linalg.solve(information[1:, 1:], (won - count * chance).sum(1)[1:])
        theta[1:] += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-12:
            break
    return theta, np.asarray(np.linalg.inv(information[1:, 1:]), dtype=np.float64)


def _moved_by_runs(shares: Shares, weight: Array, bread: Array) -> list[Array]:
    """For each method with several runs, what each run moves θ by: [runs, methods − 1]."""
    found = []
    for method in range(len(weight)):
        runs = np.flatnonzero(shares.owner == method)
        if len(runs) > 1:
            pull = -np.nan_to_num(shares.by_run[runs] - shares.rates[method]) * weight[method]
            pull[:, method] = -pull.sum(1)
            found.append(pull[:, 1:] @ bread / len(runs))
    return found


def _prompt_variance(by_prompt: NDArray[np.float32]) -> Array:
    """Of the rate of every two methods, what prompts make; infinite where they share no two."""
    found = np.zeros(by_prompt.shape[1:])
    for method in range(len(found)):
        own = by_prompt[:, method].astype(np.float64)
        count = np.maximum((~np.isnan(own)).sum(0), 1)
        off = np.nan_to_num(own - np.nansum(own, 0) / count)
        found[method] = np.where(count > 1, (off**2).sum(0) / np.maximum(1, count - 1) / count, math.inf)
    return found


def _seed_variance(shares: Shares) -> Array:
    """Of the rate of every two methods, what the runs of both make."""
    of_method = np.zeros_like(shares.rates)
    for method in range(len(shares.rates)):
        runs = np.flatnonzero(shares.owner == method)
        if len(runs) > 1:
            of_method[method] = np.nan_to_num(np.var(shares.by_run[runs], 0, ddof=1) / len(runs))
    return of_method + of_method.T


def _opened(theta: Array, half: Array, bread: Array, rates: Array, level: float) -> tuple[Array, Array]:
    """Ends of the intervals. Where no chain of wins or ties leads from the reference to a method, or back, the end on
    that side is infinite, and the other one is the model's own: such wins do not vary, so prompts do not tell it. Nor
    do they where all prompts of a method say the same."""
    from scipy.special import ndtri

    won = np.nan_to_num(rates) > 0
    above, below = ~_reached(won)[1:], ~_reached(won.T)[1:]
    wider = np.maximum(half, float(ndtri((1 + level) / 2)) * np.sqrt(np.diag(bread)))
    half = np.where(above | below | (half < NARROWEST), wider, half)
    return np.where(below, -math.inf, theta - half), np.where(above, math.inf, theta + half)


def _reached(leads: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where one comes to from the first method, if [i, j] says whether i leads to j."""
    found = np.arange(len(leads)) == 0
    while (more := found | leads[found].any(0)).sum() > found.sum():
        found = more
    return np.asarray(found)


def _moved(theta: Array, parts: Sequence[tuple[Array, int]], key: Key) -> Array:
    """[draws, methods] strengths under resampled prompts and runs, to first order. Few runs, drawn with replacement,
    would vary too little: they are scaled by √(n / (n − 1))."""
    rng = key("places").generator()
    drawn = np.tile(theta, (DRAWS, 1))
    for moved, n in parts:
        sums = [(counts - 1) @ moved for counts in resample_parts(rng, n, DRAWS)]
        drawn += np.concatenate(sums) * math.sqrt(n / max(1, n - 1))
    return np.concatenate([np.zeros((DRAWS, 1)), drawn], 1)


def _places(drawn: Array, level: float) -> tuple[Array, Array]:
    """First and last place of each method among the draws, but for the outermost."""
    place = _place(drawn)
    tails = ((1 - level) / 2, (1 + level) / 2)
    first, last = np.quantile(place, tails[0], 0, method="lower"), np.quantile(place, tails[1], 0, method="higher")
    return first.astype(float), last.astype(float)


def _place(strength: Array) -> Array:
    """Of each method, from 1, in each row of strengths; those that rounding tells apart share theirs."""
    ordered = np.sort(strength, 1)
    stronger = [
        len(row) - np.searchsorted(row, own + 1e-9, "right") for row, own in zip(ordered, strength, strict=True)
    ]
    return 1.0 + np.array(stronger)


def _fit(weight: Array, rates: Array, chance: Array, error: Array) -> Fit:
    first, second = np.triu(weight, 1).nonzero()
    seen, implied = rates[first, second], chance[first, second]
    off = np.abs(seen - implied)
    worst = int(off.argmax())
    pulled = 0.5 / (weight + 1)  # by the half win on either side
    missed = int((off > (MISFIT * error + pulled)[first, second] + 1e-9).sum())
    return Fit(len(seen), missed, (int(first[worst]), int(second[worst])), float(seen[worst]), float(implied[worst]))
