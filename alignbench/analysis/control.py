"""The win rate at an equal value of a covariate, such as a style: what length control is for chat models.

With d_i the difference of the covariate between the two pictures of pair i, in its standard deviations over these
pairs, and o_i the outcome (1, ½, 0),

    P(win) = σ(a + b d)                  rate at equal covariate = σ(a)                                           (1)

fitted by maximum quasi-likelihood (Papke and Wooldridge 1996; as Dubois et al. 2024, arXiv:2404.04475, do for
length). The interval is that of a, with the scores of (1) summed by prompt and by training seed, as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from alignbench.analysis.load import Array
from alignbench.analysis.pairing import Meeting
from alignbench.analysis.random_effects import unit_mean
from alignbench.analysis.statistics import LEVEL

STEPS = 50  # of Newton's method, at most
FEWEST = 10  # pairs that are won, and lost, below which nothing is fitted


@dataclass(frozen=True)
class Controlled:
    """A win rate at an equal value of a covariate; NaN where it is not to be told, and `about` says why."""

    covariate: str
    rate: float
    low: float
    high: float
    raw: float  # the win rate of the same pairs
    shift: float  # mean difference of the covariate, in its units
    slope: float  # change of the log odds with one standard deviation of the difference
    about: str = ""


def controlled(met: Meeting, covariate: Meeting | None, name: str, level: float = LEVEL) -> Controlled:
    """The rate of `met` at equal covariate; `covariate` is the meeting of the same runs on it."""
    from scipy.special import stdtrit

    nothing = Controlled(name, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    if covariate is None or covariate.won.shape != met.won.shape:
        return replace(nothing, about=f"not every run was scored by {name}")
    shift = covariate.mine - covariate.theirs
    both = ~(np.isnan(met.won) | np.isnan(shift))
    if not both.any():
        return replace(nothing, about=f"no pair has a score of {name}")
    outcome, d = met.won[both], shift[both]
    nothing = replace(nothing, raw=float(outcome.mean()), shift=float(d.mean()))
    if min((outcome == 1).sum(), (outcome == 0).sum()) < FEWEST:
        return replace(nothing, about=f"fewer than {FEWEST} pairs are won, or lost")
    scale = float(d.std())
    if scale <= 1e-12:
        return replace(nothing, about=f"{name} differs alike in all pairs")
    design = np.stack([np.ones(len(d)), d / scale], 1)
    fitted = _fitted(design, outcome)
    if fitted is None:
        return replace(nothing, about=f"{name} tells every win from every loss")
    (a, b), bread = fitted
    score = np.full(met.won.shape, np.nan)
    score[both] = design @ bread[0] * (outcome - _sigmoid(design @ np.array([a, b]))) * len(d)  # its mean is a's error
    spread = unit_mean(replace(met, won=np.where(both, met.won, np.nan)).by_unit(score))
    if spread.df <= 0:
        return replace(nothing, about="one pair")
    half = float(stdtrit(spread.df, (1 + level) / 2)) * spread.error
    rate, low, high = (float(_sigmoid(np.array(x))) for x in (a, a - half, a + half))
    return replace(nothing, rate=rate, low=low, high=high, slope=float(b))


def _fitted(design: Array, outcome: Array) -> tuple[Array, Array] | None:
    """The coefficients of (1) and the inverse of their information; None where they run away."""
    theta = np.zeros(2)
    for _ in range(STEPS):
        chance = _sigmoid(design @ theta)
        information = (design * (chance * (1 - chance))[:, None]).T @ design
        if np.linalg.cond(information) > 1e10:
            return None
        step = np.linalg.solve(information, design.T @ (outcome - chance))
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            return (
                (theta, np.asarray(np.linalg.inv(information), dtype=np.float64)) if np.abs(theta).max() < 15 else None
            )
    return None


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))
