"""Two methods on one scorer: what is paired, and what it says, with all that is random about it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.load import Array, Method, Scores
from alignbench.analysis.random_effects import NOISE, UnitMean, unit_mean
from alignbench.analysis.significance import difference_interval, difference_p, parts_of, win_p
from alignbench.analysis.statistics import LEVEL, UnitShares, WinRate, outcomes, win_rate

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """A method and the rows of its runs in the score arrays."""

    method: Method
    rows: range

    @property
    def label(self) -> str:
        return self.method.label


def in_rows(methods: Sequence[Method]) -> list[Placed]:
    """Methods with the rows of their runs, one method after the other."""
    placed: list[Placed] = []
    for method in methods:
        start = placed[-1].rows.stop if placed else 0
        placed.append(Placed(method, range(start, start + len(method.runs))))
    return placed


@dataclass(frozen=True)
class Meeting:
    """The pairs of two methods on one scorer."""

    mine: Array  # scores, NaN where there is none: [seeds of one, 1, pairs]
    theirs: Array  # [1, seeds of the other, pairs]
    won: Array  # [seeds of one, seeds of the other, pairs]: 1 won, ½ tied, 0 lost; NaN where either has no score
    prompts: Indices  # [pairs]

    @functools.cached_property
    def units(self) -> Indices:
        """What is drawn at random: the prompt of each pair, or, where there is one prompt alone, the image."""
        there = self.prompts[self.present]
        return self.prompts if len(there) and (there != there[0]).any() else np.arange(len(self.prompts))

    @property
    def one_prompt(self) -> bool:
        return self.units is not self.prompts

    @functools.cached_property
    def present(self) -> NDArray[np.bool_]:
        """Which pairs any two seeds have."""
        return np.asarray(~np.isnan(self.won).all((0, 1)))

    @functools.cached_property
    def _starts(self) -> Indices:
        """Where each unit begins among the pairs that are present, which stand in the order of their units."""
        units = self.units[self.present]
        return np.flatnonzero(np.r_[True, units[1:] != units[:-1]])

    def _sums(self, values: NDArray[np.generic]) -> Array:
        """Of each unit that any two seeds have: [units, seeds of one, seeds of the other]."""
        sums = np.add.reduceat(values[:, :, self.present], self._starts, 2, dtype=np.float64)
        return np.moveaxis(sums, 2, 0)

    @functools.cached_property
    def pairs(self) -> Array:
        """How many pairs a unit has with two seeds: [units, seeds of one, seeds of the other]."""
        return self._sums(~np.isnan(self.won))

    def by_unit(self, values: Array) -> Array:
        """Mean over the pairs of each unit, which have a value each; NaN where there is none of two seeds."""
        with np.errstate(invalid="ignore"):
            return self._sums(np.where(np.isnan(self.won), 0.0, values)) / self.pairs

    @functools.cached_property
    def outcome(self) -> Array:
        """Mean outcome by unit and seeds."""
        return self.by_unit(self.won)

    @functools.cached_property
    def difference(self) -> Array:
        """Mean difference of the scores by unit and seeds, in the scorer's units."""
        return self.by_unit(self.mine - self.theirs)

    @functools.cached_property
    def outcome_mean(self) -> UnitMean:
        return unit_mean(self.outcome)

    @functools.cached_property
    def difference_mean(self) -> UnitMean:
        return unit_mean(self.difference, self._scale)

    @functools.cached_property
    def _scale(self) -> float:
        """The largest score."""
        return float(max(np.nanmax(np.abs(self.mine)), np.nanmax(np.abs(self.theirs))))

    @functools.cached_property
    def _differences(self) -> Array:
        """Mean difference by unit; 0 where it is rounding."""
        means = np.nanmean(self.difference, (1, 2))
        return np.where(np.abs(means) > NOISE * self._scale, means, 0.0)

    def where(self, inside: NDArray[np.bool_]) -> Meeting | None:
        """The same on some pairs; None where it has none of them."""
        if not (self.present & inside).any():
            return None
        return _of_present(self.mine, self.theirs, np.where(inside, self.won, np.nan), self.prompts)

    def rate(self) -> WinRate:
        """The win rate with its interval."""
        known = ~np.isnan(self.won)
        units = np.broadcast_to(self.units, self.won.shape)[known]
        wins, losses = (self.mean_of((self.won == outcome).astype(float)) for outcome in (1, 0))
        return win_rate(self.won[known], units, UnitShares(self.outcome_mean, wins, losses))

    def rate_p(self) -> float:
        """Of the hypothesis that wins and losses are alike."""
        return win_p(np.nanmean(self.outcome, (1, 2)), parts_of(self.pairs.astype(np.int64)), self.outcome_mean)

    def difference_p(self) -> float:
        """Of the hypothesis that the mean difference is 0."""
        return difference_p(self._differences, self.difference_mean)

    def difference_interval(self, level: float = LEVEL) -> tuple[float, float]:
        return difference_interval(self._differences, self.difference_mean, level)

    def mean_of(self, values: Array) -> float:
        """Of scores, over the pairs that are compared; every prompt weighs alike."""
        return float(np.nanmean(self.by_unit(values), (1, 2)).mean())


def meet(column: Scores, mine: Iterable[int], theirs: Iterable[int]) -> Meeting | None:
    """The runs in these rows against those in the others; None where no pair has both scores."""
    return _meeting(column, column.values[list(mine)], column.values[list(theirs)])


def _meeting(
    column: Scores, one: Array, other: Array, decided: NDArray[np.bool_] | None = None, outcome: float = 0.5
) -> Meeting | None:
    """Of scores [seeds, pairs] on either side. The pairs that are decided have this outcome."""
    missing = np.isnan(one)[:, None] | np.isnan(other)
    if missing.all():
        return None
    won = np.where(missing, np.nan, outcomes(column.sign * one[:, None], column.sign * other, column.epsilon))
    if decided is not None:
        won = np.where(decided & ~missing, outcome, won)
    return _of_present(one[:, None], other[None], won, column.prompts)


def _of_present(mine: Array, theirs: Array, won: Array, prompts: Indices) -> Meeting:
    """Without the seeds that share no pair with any of the other side: they say nothing."""
    missing = np.isnan(won)
    some, others = ~missing.all((1, 2)), ~missing.all((0, 2))
    return Meeting(mine[some], theirs[:, others], won[some][:, others], prompts)


def with_failures(column: Scores, mine: Sequence[int], theirs: Sequence[int], lost: bool) -> Meeting | None:
    """The same with the pairs in which a score failed: all of them lost, or all of them won. For the difference, what
    failed is the worst score of all that are compared there where it would be the method's, the best where the other's,
    or the other way round."""
    sign = column.sign if lost else -column.sign
    worst, best = np.nanmin(sign * column.values) * sign, np.nanmax(sign * column.values) * sign
    one, other = (
        np.where(column.failed[list(rows)], instead, column.values[list(rows)])
        for rows, instead in ((mine, worst), (theirs, best))
    )
    failed = column.failed[list(mine)][:, None] | column.failed[list(theirs)][None]
    return _meeting(column, one, other, failed, 0.0 if lost else 1.0)
