"""Strength in a pool of methods by Bradley and Terry: P(i beats j) = 1 / (1 + exp(θ_j − θ_i)).

A strength depends on who else is in the pool, and a single number per method cannot say everything about all pairs:
`Fit` says how far it is off. Every pair of methods weighs as many prompts as it shares, however many seeds there are.

A place counts as open wherever a difference of strengths may be zero (Mogstad, Romano, Shaikh and Wilhelm 2024,
"Inference for Ranks"). Resampled places would not do: where the few prompts that there are all say the same, every
draw of them gives the same place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.statistics import LEVEL

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

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


def ranks(shares: Shares, level: float = LEVEL) -> Ranks | None:
    """Of the methods that met any other; None where the first met none, or not all are linked to each other."""
    met = np.flatnonzero(~np.isnan(shares.rates).all(1))
    if len(met) < 2 or met[0] != 0:
        return None
    found = _of_linked(shares.of(met), level)
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


def _of_linked(shares: Shares, level: float) -> Ranks | None:
    rates = shares.rates
    weight = (~np.isnan(shares.by_prompt)).sum(0).astype(float)  # [methods, methods]: prompts they share
    if not _chains(weight > 0)[0].all():
        return None
    theta, bread = _fitted(weight, rates)
    chance = _chance(theta)
    of_prompts = np.nansum(shares.by_prompt - chance, 2) @ bread
    parts = [of_prompts, *_moved_by_runs(shares, weight, bread)]
    low, high = _differences(theta, parts, bread, rates, level)
    places = _places(*_differences(theta, parts, bread, rates, 1 - (1 - level) / (len(theta) - 1)))
    spread = _prompt_variance(shares.by_prompt) + _seed_variance(shares)
    fit = _fit(weight, rates, chance, np.sqrt(spread))
    return Ranks(theta, low[:, 0], high[:, 0], _place(theta), *places, fit)


def _chance(theta: Array) -> Array:
    """[methods, methods] rates that strengths imply."""
    from scipy.special import expit

    return np.asarray(expit(theta[:, None] - theta), dtype=np.float64)


def _fitted(weight: Array, rates: Array) -> tuple[Array, Array]:
    """The most likely θ, with half a win added on either side of every two that met, and the inverse information, in
    which the first, always 0, has zeros. Newton's method; no step moves a strength by more than 1."""
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
    bread = np.zeros_like(information)
    bread[1:, 1:] = np.linalg.inv(information[1:, 1:])
    return theta, bread


def _moved_by_runs(shares: Shares, weight: Array, bread: Array) -> list[Array]:
    """For each method with several runs, what each run moves θ by: [runs, methods]."""
    found = []
    for method in range(len(weight)):
        runs = np.flatnonzero(shares.owner == method)
        if len(runs) > 1:
            pull = -np.nan_to_num(shares.by_run[runs] - shares.rates[method]) * weight[method]
            pull[:, method] = -pull.sum(1)
            found.append(pull @ bread / len(runs))
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


def _differences(theta: Array, parts: Sequence[Array], bread: Array, rates: Array, level: float) -> tuple[Array, Array]:
    """[methods, methods] ends of the interval of how much stronger one is than another; `parts` say what each prompt,
    and each run of a method, moves θ by. Where no chain of wins or ties leads from the other to the one, or back, the
    end on that side is infinite, and the other one is the model's own: such wins do not vary, so prompts do not tell
    it. Nor do they where all prompts say the same."""
    from scipy.special import ndtri, stdtrit

    total, squares = np.zeros_like(bread), np.zeros_like(bread)
    for moved in parts:
        freedom = max(1, len(moved) - 1)
        variance = np.maximum(_apart(moved.T @ moved), 0) * len(moved) / freedom
        total += variance
        squares += variance**2 / freedom
    df = np.divide(total**2, squares, out=np.full_like(total, math.inf), where=squares > 0)
    half = stdtrit(np.minimum(df, 1e6), (1 + level) / 2) * np.sqrt(total)
    if len(parts[0]) == 1:
        half = np.full_like(half, math.inf)  # one prompt tells nothing of others
    below = ~_chains(np.nan_to_num(rates) > 0)
    above = below.T
    wider = np.maximum(half, float(ndtri((1 + level) / 2)) * np.sqrt(_apart(bread)))
    half = np.where(above | below | (half < NARROWEST), wider, half)
    np.fill_diagonal(half, 0.0)
    gap = theta[:, None] - theta
    return np.where(below, -math.inf, gap - half), np.where(above, math.inf, gap + half)


def _apart(products: Array) -> Array:
    """[methods, methods]: of the difference of every two what `products` are of each, variances and covariances."""
    own = np.diag(products)
    return np.asarray(own[:, None] + own - 2 * products, dtype=np.float64)


def _chains(leads: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a chain leads from each to each, if [i, j] says whether i leads to j."""
    found = leads | np.eye(len(leads), dtype=bool)
    for link in range(len(leads)):
        found |= found[:, link, None] & found[link]
    return found


def _places(low: Array, high: Array) -> tuple[Array, Array]:
    """First and last place of each method, from the differences of every two."""
    return 1.0 + (low > 0).sum(0), len(low) - (high < 0).sum(0).astype(float)


def _place(strength: Array) -> Array:
    """Of each method, from 1; those that rounding tells apart share theirs."""
    return 1.0 + (strength[:, None] > strength + 1e-9).sum(0)


def _fit(weight: Array, rates: Array, chance: Array, error: Array) -> Fit:
    first, second = np.triu(weight, 1).nonzero()
    seen, implied = rates[first, second], chance[first, second]
    off = np.abs(seen - implied)
    worst = int(off.argmax())
    pulled = 0.5 / (weight + 1)  # by the half win on either side
    missed = int((off > (MISFIT * error + pulled)[first, second] + 1e-9).sum())
    return Fit(len(seen), missed, (int(first[worst]), int(second[worst])), float(seen[worst]), float(implied[worst]))
