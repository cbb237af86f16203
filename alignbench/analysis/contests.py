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
from alignbench.analysis.load import Array, Scores
from alignbench.analysis.pairing import Indices, Meeting, Placed, meet, with_failures
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
    duels: bool | None  # None: of few methods
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
    failed: int  # pairs in which a score did
    if_lost: Meeting | None  # None where no score failed
    if_won: Meeting | None

    @property
    def this_run(self) -> bool:
        """Whether one of them was trained, and one seed of it alone has scores."""
        seeds = zip((self.one, self.other), self.met.won.shape[:2], strict=True)
        return any(p.method.first.trains and count == 1 for p, count in seeds)

    @property
    def random(self) -> Random:
        seeds = self.met.outcome_mean.seeds_random
        if self.met.one_prompt:
            return "images and seeds" if seeds else "images"
        return "prompts and seeds" if seeds else "prompts"


def _contests(pairs: Sequence[tuple[Placed, Placed]], scores: Mapping[str, Scores]) -> list[_Contest]:
    """All that have a pair on a scorer."""
    found = []
    for one, other in pairs:
        for name, column in scores.items():
            if (met := meet(column, one.rows, other.rows)) is None:
                continue
            bounds: list[Meeting | None] = [None, None]
            if failed := _failed(column, list(one.rows), list(other.rows)):
                bounds = [with_failures(column, one.rows, other.rows, lost) for lost in (True, False)]
            found.append(_Contest(one, other, name, column, met, failed, *bounds))
    return found


def _failed(column: Scores, one: list[int], other: list[int]) -> int:
    """Pairs in which a score failed."""
    failed = column.failed
    if not failed[[*one, *other]].any():
        return 0
    there = failed | ~np.isnan(column.values)
    return int(((failed[one][:, None] | failed[other]) & there[one][:, None] & there[other]).sum())


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


def shares(column: Scores, placed: Sequence[Placed]) -> Shares:
    """What every two methods won from each other, by prompt, or by image where there is one prompt alone; two runs of
    two methods weigh as much as any other two of theirs."""
    owner = np.array([k for k, p in enumerate(placed) for _ in p.rows], dtype=np.int64)
    first = np.array([p.rows.start for p in placed])  # run of each method
    scored = (~np.isnan(column.values)).any(0)
    values = column.sign * column.values[:, scored]
    units = column.prompts[scored] if len(set(column.prompts[scored].tolist())) > 1 else np.arange(values.shape[1])
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]]) if len(units) else np.zeros(0, dtype=np.int64)
    count = len(placed)
    by_prompt = np.full((len(starts), count, count), np.nan, dtype=np.float32)
    rates, by_run = np.full((count, count), np.nan), np.full((len(owner), count), np.nan)
    for k, p in enumerate(placed):
        means = np.stack([_run_shares(values, i, starts, column.epsilon) for i in p.rows])  # [own, all runs, units]
        met = ~np.isnan(means)
        sums, sizes = (np.add.reduceat(x, first, 1, dtype=float) for x in (np.where(met, means, 0), met))
        with np.errstate(invalid="ignore"):
            by_run[list(p.rows)] = sums.sum(2) / sizes.sum(2)
            shared = sums.sum(0) / sizes.sum(0)  # [methods, units]
            rates[k] = np.nansum(shared, 1) / (~np.isnan(shared)).sum(1)
        by_prompt[:, k] = shared.T
    for array, own in ((by_run, owner), (rates, np.arange(count))):
        array[np.arange(len(array)), own] = np.nan
    by_prompt[:, np.arange(count), np.arange(count)] = np.nan
    return Shares(by_prompt[~np.isnan(by_prompt).all((1, 2))], by_run, owner, rates)


def _run_shares(values: Array, run: int, starts: Indices, epsilon: float) -> Array:
    """Of the images of each unit, from all runs: [runs, units], NaN where it shares none with one."""
    won = outcomes(values[run], values, epsilon)
    missing = np.isnan(values[run] - values)
    won[missing] = 0
    with np.errstate(invalid="ignore"):
        return np.asarray(np.add.reduceat(won, starts, 1) / np.add.reduceat(~missing, starts, 1, dtype=float))
