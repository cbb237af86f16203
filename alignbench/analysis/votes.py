"""Votes of people as columns of a comparison.

A vote counts for the cells whose pictures it is of, which the log names by what they are and by SHA-256 of their
pictures: votes on pictures that have changed are refused. Repeats and checks count for nobody. The same picture of two
methods is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignbench.analysis.comparison import SIGNIFICANT, Test
from alignbench.analysis.formats import Mark
from alignbench.analysis.load import Run
from alignbench.analysis.pairing import Placed
from alignbench.analysis.ranks import Ranks
from alignbench.analysis.significance import adjusted, parts_of, win_p
from alignbench.analysis.statistics import WinRate
from alignbench.analysis.vote_entries import Entry, Votes, check_pictures, counted
from alignbench.analysis.vote_ranks import vote_ranks
from alignbench.analysis.vote_raters import Raters, worth_of
from alignbench.analysis.vote_statistics import (
    FEWEST_RATERS,
    Needed,
    needed,
    rates,
    vote_mean,
)
from alignbench.choices import Family
from alignbench.errors import InputError
from alignbench.printed import how_many
from alignbench.record.votes import (
    Log,
    cell_id,
    person,
    suspects,
)

MAJORITY = 3  # votes on a pair from which on most of them decide it, as of five in the Diffusion-DPO paper


class Majority(NamedTuple):
    """Pairs with three votes or more: which method most of them were for."""

    won: int
    tied: int  # as many for one as for the other, or most for neither
    lost: int


class Counts(NamedTuple):
    """How raters chose between one picture and those of other methods."""

    won: int
    tied: int
    lost: int


@dataclass(frozen=True)
class VoteVersus:
    """One method against another by votes."""

    method: str
    against: str
    rate: WinRate  # with the interval of these raters
    people: WinRate | None  # with that of people, from five raters on
    test: Test  # of people where there are raters enough, else of these raters and without a mark
    votes: int  # of raters
    raters: int
    identical: int  # pairs with one picture
    skipped: int
    majority: Majority | None
    trusted: WinRate | None  # without raters who failed checks; None where nobody did
    needed: Needed
    this_run: bool  # a method was trained with one seed, so that it is about that run alone
    family: int

    @property
    def shown(self) -> WinRate:
        """The interval that the claim is about."""
        return self.people or self.rate


@dataclass(frozen=True)
class VoteColumn:
    """Votes on one question."""

    name: str
    question: str
    rule: str
    versus: Sequence[VoteVersus]  # against the baseline
    duels: Sequence[VoteVersus]  # every two methods that met
    worth: Raters
    ranks: Ranks | None  # strengths over the first method, of these raters
    pictures: Mapping[tuple[Path, str, int], Counts]  # by result, prompt and number of the image


def vote_columns(
    logs: Sequence[tuple[Path, Log]],
    runs: Sequence[Run],
    placed: Sequence[Placed],
    reference: Placed | None,
    family: Family,
) -> tuple[list[VoteColumn], list[str]]:
    """The columns of votes on these runs, and notes. Raises InputError for votes on pictures that have changed."""
    known = {cell_id(run.result): i for i, run in enumerate(runs)}
    rows = [{c: known[cell.id] for c, cell in enumerate(log.header.cells) if cell.id in known} for _, log in logs]
    for (path, log), own in zip(logs, rows, strict=True):
        if len(own) < 2:
            raise InputError(f"{path}: its votes are on other cells than these files hold; name the ones voted on.")
        check_pictures(path, log, runs, own)
    names = list(dict.fromkeys(q.name for _, log in logs for q in log.header.questions))
    columns, notes = [], list[str]()
    for name in names:
        entries = [
            e for k, ((_, log), own) in enumerate(zip(logs, rows, strict=True)) for e in counted(log, own, name, k)
        ]
        if not entries:
            continue
        entries, again = _once(entries)
        if again:
            notes.append(
                f"votes on {name}: {how_many(again, 'vote')} of a rater on a pair that stands in another log too "
                f"{'counts' if again == 1 else 'count'} for nobody; the first one does."
            )
        failed = {person(rater, k) for k, (_, log) in enumerate(logs) for rater in suspects(log)}
        title = "votes" if names == ["overall"] else f"votes: {name}"
        pairs = [(p, other) for k, p in enumerate(placed) for other in placed[:k]]
        against = [(p, reference) for p in placed if reference is not None and p is not reference]
        own_logs = [log for _, log in logs if any(q.name == name for q in log.header.questions)]
        question = next(q.text for q in own_logs[0].header.questions if q.name == name)
        columns.append(
            VoteColumn(
                title,
                question,
                own_logs[0].header.rule,
                _tested(against, entries, failed, family, title),
                _tested(pairs, entries, failed, family, title),
                worth_of(own_logs, name, entries),
                vote_ranks(entries, placed),
                _counts(entries, runs),
            )
        )
    for (path, log), own in zip(logs, rows, strict=True):
        if not log.votes and not log.identical:
            notes.append(f"{path}: nobody has voted yet.")
        if own and (absent := [cell.result for c, cell in enumerate(log.header.cells) if c not in own]):
            notes.append(f"{path}: its votes on {', '.join(absent)} are left out; that is not compared here.")
    return columns, notes


def _once(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """What every rater, or nobody, says of a pair first; and how many votes of raters are left out."""
    found, left_out = dict[tuple[object, ...], Entry](), 0
    for number, entry in enumerate(entries):
        skipped = number if np.isnan(entry.won) else None  # says nothing
        place = (entry.rater, *sorted((entry.one, entry.other)), entry.prompt, entry.sample, skipped)
        left_out += place in found and bool(entry.rater)
        found.setdefault(place, entry)
    return list(found.values()), left_out


def _counts(entries: Sequence[Entry], runs: Sequence[Run]) -> dict[tuple[Path, str, int], Counts]:
    """Of every picture that somebody chose about."""
    found: dict[tuple[Path, str, int], list[float]] = {}
    for e in entries:
        if e.rater and not np.isnan(e.won):
            for row, won in ((e.one, e.won), (e.other, 1 - e.won)):
                found.setdefault((runs[row].path, e.prompt, e.sample), []).append(won)
    return {place: Counts(*(won.count(x) for x in (1.0, 0.5, 0.0))) for place, won in found.items()}


def _between(one: Placed, other: Placed, entries: Sequence[Entry]) -> list[Entry]:
    """Of two methods alone, turned to the first one's side."""
    turned = (e if e.one in one.rows else e._replace(one=e.other, other=e.one, won=1 - e.won) for e in entries)
    return [e for e in turned if e.one in one.rows and e.other in other.rows]


def _tested(
    pairs: Sequence[tuple[Placed, Placed]],
    entries: Sequence[Entry],
    failed: set[str],
    family: Family,
    name: str,
) -> list[VoteVersus]:
    found = []
    for one, other in pairs:
        own = _between(one, other, entries)
        if any(not np.isnan(e.won) for e in own):
            found.append((one, other, own))
    ps = [_p(Votes([e for e in own if not np.isnan(e.won)])) for _, _, own in found]
    values, sizes = adjusted(ps, [name] * len(ps), family)
    return [
        _versus(one, other, own, failed, (p, value, size))
        for (one, other, own), p, value, size in zip(found, ps, values, sizes, strict=True)
    ]


def _p(votes: Votes) -> float:
    """That wins and losses are alike: by prompts, and, from five raters on, by raters too."""
    won, prompts, raters = votes.won, votes.prompts, votes.raters
    counts = np.bincount(prompts)
    factors = [f for f in votes.seeds if len(np.unique(f)) > 1]
    of_people = len(np.unique(raters[raters >= 0])) >= FEWEST_RATERS
    factors = [raters, *factors] if of_people else factors
    return win_p(
        np.bincount(prompts, won) / counts,
        parts_of(counts[:, None, None]),
        vote_mean(won, prompts, factors, few=of_people),
    )


def _versus(
    one: Placed, other: Placed, own: list[Entry], failed: set[str], tested: tuple[float, float, int]
) -> VoteVersus:
    votes = Votes([e for e in own if not np.isnan(e.won)])
    rate, people = rates(votes.won, votes.prompts, votes.raters, votes.seeds)
    believed = Votes([e for e in votes.entries if e.rater not in failed])
    trusted = None
    if 0 < len(believed.entries) < len(votes.entries):
        trusted = rates(believed.won, believed.prompts, believed.raters, believed.seeds)[0]
    this_run = any(p.method.first.trains and len(p.method.runs) == 1 for p in (one, other))
    p, value, size = tested
    mark: Mark | None = None
    if value < SIGNIFICANT and people is not None and not this_run and rate.rate != 0.5:
        mark = "better" if rate.rate > 0.5 else "worse"
    asked = [e for e in votes.entries if e.rater]
    return VoteVersus(
        method=one.label,
        against=other.label,
        rate=rate,
        people=people,
        test=Test(p, value, mark),
        votes=len(asked),
        raters=len({e.rater for e in asked}),
        identical=len(votes.entries) - len(asked),
        skipped=len(own) - len(votes.entries),
        majority=_majority(votes),
        trusted=trusted,
        needed=needed(votes.won, votes.prompts, votes.raters),
        this_run=this_run,
        family=size,
    )


def _majority(votes: Votes) -> Majority | None:
    """Of pairs with enough votes."""
    units: dict[object, list[float]] = {}
    for e in votes.entries:
        if e.rater:
            units.setdefault((e.one, e.other, e.prompt, e.sample), []).append(e.won)
    enough = [won for won in units.values() if len(won) >= MAJORITY]
    if not enough:
        return None
    won = sum(w.count(1.0) > len(w) / 2 for w in enough)
    lost = sum(w.count(0.0) > len(w) / 2 for w in enough)
    return Majority(won, len(enough) - won - lost, lost)
