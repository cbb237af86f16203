"""Every method against the baseline, and every two methods against each other, with tests adjusted within families."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignbench.analysis.comparison import SIGNIFICANT, Duel, Random, Test, Versus
from alignbench.analysis.control import Controlled, controlled
from alignbench.analysis.equivalence import equivalence
from alignbench.analysis.formats import Mark
from alignbench.analysis.load import Scores
from alignbench.analysis.pairing import Meeting, Placed, meet, with_failures
from alignbench.analysis.ranks import Shares
from alignbench.analysis.significance import adjusted
from alignbench.analysis.statistics import outcomes
from alignbench.choices import Breakdown, Family


@dataclass(frozen=True)
class Asked:
    """What a comparison was asked for."""

    baseline: str
    by: Breakdown | None
    scorers: tuple[str, ...]
    published: bool
    family: Family
    duels: bool
    margins: Mapping[str, float]
    control: str | None


@dataclass(frozen=True)
class _Contest:
    """Two methods on one scorer, with what would be if every failed score had gone one way and the other."""

    one: Placed
    other: Placed
    scorer: str
    column: Scores
    met: Meeting
    if_lost: Meeting | None  # None where no score failed
    if_won: Meeting | None

    @property
    def this_run(self) -> bool:
        """Whether one of them was trained, with one seed alone."""
        return any(p.method.first.trains and len(p.method.runs) == 1 for p in (self.one, self.other))

    @property
    def random(self) -> Random:
        seeds = self.met.outcome_mean.seeds_random
        if self.met.one_prompt:
            return "images and seeds" if seeds else "images"
        return "prompts and seeds" if seeds else "prompts"

    @property
    def failed(self) -> int:
        """Pairs in which a score failed."""
        rows = self.column.failed
        return int((rows[list(self.one.rows)][:, None] | rows[list(self.other.rows)][None]).sum())


def _contests(pairs: Sequence[tuple[Placed, Placed]], scores: Mapping[str, Scores]) -> list[_Contest]:
    """All that have a pair on a scorer."""
    found = []
    for one, other in pairs:
        for name, column in scores.items():
            if (met := meet(column, one.rows, other.rows)) is None:
                continue
            bounds: list[Meeting | None] = [None, None]
            if column.failed[[*one.rows, *other.rows]].any():
                bounds = [with_failures(column, one.rows, other.rows, lost) for lost in (True, False)]
            found.append(_Contest(one, other, name, column, met, *bounds))
    return found


def _tested(contests: Sequence[_Contest], of: str, family: Family) -> tuple[list[Test], list[int]]:
    """The tests of one quantity, `rate` or `difference`, of all contests, and the sizes of their families."""
    scorers = [contest.scorer for contest in contests]
    centres = [_towards_better(contest.met, of, contest.column.sign) for contest in contests]
    seen = [_p(contest.met, of) for contest in contests]
    at_bound = []
    for contest, centre, p in zip(contests, centres, seen, strict=True):
        bound = contest.if_lost if centre > 0 else contest.if_won
        turned = bound is not None and _towards_better(bound, of, contest.column.sign) * centre <= 0
        at_bound.append(p if bound is None else 1.0 if turned else max(p, _p(bound, of)))
    values, sizes = adjusted(seen, scorers, family)
    kept, _ = adjusted(at_bound, scorers, family)
    tests = []
    for contest, centre, p, value, bounded in zip(contests, centres, seen, values, kept, strict=True):
        marked = max(value, bounded) < SIGNIFICANT and centre != 0 and not contest.this_run
        mark: Mark | None = ("better" if centre > 0 else "worse") if marked else None
        tests.append(Test(p, value, mark))
    return tests, sizes


def _p(met: Meeting, of: str) -> float:
    return met.rate_p() if of == "rate" else met.difference_p()


def _towards_better(met: Meeting, of: str, sign: float) -> float:
    """Above 0 where the first method is better."""
    return met.outcome_mean.mean - 0.5 if of == "rate" else sign * met.difference_mean.mean


def against(
    reference: Placed,
    placed: Sequence[Placed],
    scores: Mapping[str, Scores],
    asked: Asked,
    covariate: Scores | None,
) -> list[Versus]:
    """Every other method against the reference on every scorer."""
    contests = _contests([(p, reference) for p in placed if p is not reference], scores)
    rate_tests, sizes = _tested(contests, "rate", asked.family)
    difference_tests, _ = _tested(contests, "difference", asked.family)
    found = []
    for contest, rate_test, difference_test, size in zip(contests, rate_tests, difference_tests, sizes, strict=True):
        one, met, column = contest.one, contest.met, contest.column
        low, high = met.difference_interval()
        margin = asked.margins.get(contest.scorer)
        own = [(seed, meet(column, [i], reference.rows)) for i, seed in zip(one.rows, one.method.seeds, strict=True)]
        compared = int(met.present.sum())
        found.append(
            Versus(
                method=one.label,
                scorer=contest.scorer,
                rate=met.rate(),
                rate_test=rate_test,
                seeds=[(seed, m.outcome_mean.mean) for seed, m in own if m is not None],
                mean=met.mean_of(met.mine),
                baseline_mean=met.mean_of(met.theirs),
                difference=met.difference_mean.mean,
                difference_low=low,
                difference_high=high,
                difference_test=difference_test,
                effect=_effect(met, column.sign),
                random=contest.random,
                this_run=contest.this_run,
                family=size,
                failed=contest.failed,
                if_failed=_bounds(contest),
                whole=compared == int((~np.isnan(column.values[list(reference.rows)])).any(0).sum()),
                higher_is_better=column.sign > 0,
                margin=margin,
                equivalence=None if margin is None else equivalence(low, high, margin, column.sign > 0),
                controlled=_controlled(contest, covariate, asked.control),
            )
        )
    return found


def _controlled(contest: _Contest, covariate: Scores | None, name: str | None) -> Controlled | None:
    if name is None or name == contest.scorer:
        return None
    beside = None if covariate is None else meet(covariate, contest.one.rows, contest.other.rows)
    return controlled(contest.met, beside, name)


def _effect(met: Meeting, sign: float) -> float:
    """The standardised mean difference of paired prompts (Cohen's d_z), NaN where they do not vary."""
    spread = met.difference_mean.spread
    return sign * met.difference_mean.mean / spread if spread > 0 else math.nan


def _bounds(contest: _Contest) -> tuple[float, float] | None:
    if contest.if_lost is None or contest.if_won is None:
        return None
    return contest.if_lost.outcome_mean.mean, contest.if_won.outcome_mean.mean


def duels(placed: Sequence[Placed], scores: Mapping[str, Scores], family: Family) -> list[Duel]:
    """Every two methods, the later one in the list against the earlier."""
    contests = _contests([(p, other) for k, p in enumerate(placed) for other in placed[:k]], scores)
    tests, sizes = _tested(contests, "rate", family)
    return [
        Duel(
            c.one.label, c.other.label, c.scorer, c.met.rate(), test, random=c.random, this_run=c.this_run, family=size
        )
        for c, test, size in zip(contests, tests, sizes, strict=True)
    ]


def shares(column: Scores, placed: Sequence[Placed], prompts: int) -> Shares:
    """What every two methods won from each other, by prompt; runs of a method weigh alike."""
    owner = np.array([k for k, p in enumerate(placed) for _ in p.rows], dtype=np.int64)
    runs, count = len(owner), len(placed)
    by_prompt = np.zeros((prompts, count, count), dtype=np.float32)
    pairs = np.zeros((prompts, count, count), dtype=np.float32)
    by_run, met = np.zeros((runs, count)), np.zeros((runs, count))
    starts = np.flatnonzero(np.r_[True, np.diff(column.prompts) > 0])
    where = column.prompts[starts]
    for i in range(runs):
        missing = np.isnan(column.values[i] - column.values)  # [runs, pairs]
        won = outcomes(column.sign * column.values[i], column.sign * column.values, column.epsilon)
        won[missing] = 0
        sums, sizes = np.add.reduceat(won, starts, 1), np.add.reduceat(~missing, starts, 1, dtype=float)
        mean = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)  # [runs, prompts that occur]
        for j in range(runs):
            if owner[j] != owner[i]:
                by_prompt[where, owner[i], owner[j]] += mean[j]
                pairs[where, owner[i], owner[j]] += sizes[j] > 0
                by_run[i, owner[j]] += mean[j].sum()
                met[i, owner[j]] += (sizes[j] > 0).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return Shares(by_prompt / pairs, by_run / met, owner)
