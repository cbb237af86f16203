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
from numpy.typing import NDArray

from alignbench.analysis.comparison import SIGNIFICANT, Test
from alignbench.analysis.formats import Mark
from alignbench.analysis.load import Run
from alignbench.analysis.pairing import Placed
from alignbench.analysis.significance import adjusted, parts_of, win_p
from alignbench.analysis.statistics import WinRate, win_rate
from alignbench.analysis.vote_statistics import (
    FEWEST_RATERS,
    NOBODY,
    Alpha,
    Needed,
    alpha_of,
    needed,
    rates,
    vote_mean,
)
from alignbench.choices import Family
from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.keys import Key
from alignbench.record.votes import (
    Identical,
    Log,
    Served,
    Shown,
    cell_id,
    checks_of,
    digests,
    picture_of,
    read_log,
    suspects,
)

MAJORITY = 3  # votes on a pair from which on most of them decide it, as of five in the Diffusion-DPO paper
Numbers = NDArray[np.int64]


class Majority(NamedTuple):
    """Pairs with three votes or more: which method most of them were for."""

    won: int
    tied: int  # as many for one as for the other, or most for neither
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
class Raters:
    """What the votes on one question are worth."""

    votes: int
    raters: int
    skipped: int
    alpha: Alpha
    myself: WinRate | None  # how often a repeat got the same answer
    left: WinRate | None  # share of left among left and right
    failed: Sequence[str]  # raters who fail the checks by the rule of the log
    checks: int
    passed: int
    seconds: float  # the median a vote took


@dataclass(frozen=True)
class VoteColumn:
    """Votes on one question."""

    name: str
    question: str
    rule: str
    versus: Sequence[VoteVersus]  # against the baseline
    duels: Sequence[VoteVersus]  # every two methods that met
    worth: Raters


class Entry(NamedTuple):
    """What one rater, or nobody, says of two cells on a prompt."""

    one: int  # row of a run
    other: int
    won: float  # of the first; NaN: skipped
    prompt: str
    sample: int
    rater: str  # "" where nobody was asked
    log: int


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
        _check_pictures(path, log, runs, own)
    names = list(dict.fromkeys(q.name for _, log in logs for q in log.header.questions))
    columns, notes = [], list[str]()
    for name in names:
        entries = [
            e for k, ((_, log), own) in enumerate(zip(logs, rows, strict=True)) for e in _entries(log, own, name, k)
        ]
        if not entries:
            continue
        failed = {(k, rater) for k, (_, log) in enumerate(logs) for rater in suspects(log)}
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
                _worth(own_logs, name, entries),
            )
        )
    for (path, log), own in zip(logs, rows, strict=True):
        if own and (absent := [cell.result for c, cell in enumerate(log.header.cells) if c not in own]):
            notes.append(f"{path}: its votes on {', '.join(absent)} are left out; that is not compared here.")
    return columns, notes


def entries_of(path: Path, log: Log, runs: Sequence[Run], name: str) -> list[Entry]:
    """What counts of a log on one question, skipped pairs too. Raises InputError for votes on other pictures."""
    known = {cell_id(run.result): i for i, run in enumerate(runs)}
    rows = {c: known[cell.id] for c, cell in enumerate(log.header.cells) if cell.id in known}
    _check_pictures(path, log, runs, rows)
    return _entries(log, rows, name, 0)


def read_logs(paths: Sequence[Path]) -> list[tuple[Path, Log]]:
    return [(path, read_log(path)) for path in paths]


def _check_pictures(path: Path, log: Log, runs: Sequence[Run], rows: Mapping[int, int]) -> None:
    """Raise InputError where a cell, or a picture of it that was voted on, is another than when votes were cast."""
    for number, row in rows.items():
        run, cell = runs[row], log.header.cells[number]
        kept = run.result.kept.pictures if run.result.kept else None
        if kept is None:
            digests(run.path, run.result)  # they have to be there
        if kept is not None and kept != cell.pictures:
            raise InputError(
                f"{path}: its votes are on other pictures of {run.path}, which was made again since; vote anew."
            )
    seen: dict[tuple[int, int, int], str] = {}
    pairs: list[Served | Identical] = [*log.served.values(), *log.identical]
    for pair in pairs:
        for one in (pair.left, pair.right):
            if one.cell in rows and seen.setdefault((one.cell, one.place, one.sample), one.sha256) != one.sha256:
                raise InputError(
                    f"{path}: one picture of {runs[rows[one.cell]].path} has two sums; the log was edited."
                )
    for (number, place, sample), sha256 in seen.items():
        file = picture_of(runs[rows[number]].path, place, sample)
        try:
            same = sha256_of(file) == sha256
        except OSError:  # not beside the result, which says by itself which pictures it is of
            continue
        if not same:
            raise InputError(f"{path}: {file} is another picture than was voted on; bring it back, or vote anew.")


def _entries(log: Log, rows: Mapping[int, int], name: str, k: int) -> list[Entry]:
    """What counts of a log on one question."""
    numbers = [i for i, question in enumerate(log.header.questions) if question.name == name]
    if not numbers:
        return []
    found = [
        _entry(cast.pair, rows, {"left": 1.0, "right": 0.0, "tie": 0.5, "skip": np.nan}[cast.vote.choice], k)
        for cast in log.cast
        if cast.pair.question == numbers[0] and not cast.pair.check
    ]
    found += [_entry(line, rows, 0.5, k) for line in log.identical]
    return [entry for entry in found if entry is not None]


def _entry(pair: Served | Identical, rows: Mapping[int, int], won: float, k: int) -> Entry | None:
    if pair.left.cell not in rows or pair.right.cell not in rows:
        return None
    rater = pair.rater if isinstance(pair, Served) else ""
    return Entry(rows[pair.left.cell], rows[pair.right.cell], won, pair.prompt, pair.left.sample, rater, k)


@dataclass(frozen=True)
class _Votes:
    """The votes on two methods, from the first one's side."""

    entries: list[Entry]

    def numbers(self, values: Sequence[object]) -> Numbers:
        order = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return np.array([order[value] for value in values], dtype=np.int64)

    @property
    def won(self) -> NDArray[np.float64]:
        return np.array([e.won for e in self.entries])

    @property
    def prompts(self) -> Numbers:
        """What is drawn at random: prompts, or, of one prompt alone, its images."""
        prompts = [e.prompt for e in self.entries]
        return self.numbers(prompts if len(set(prompts)) > 1 else [e.sample for e in self.entries])

    @property
    def raters(self) -> Numbers:
        numbers = self.numbers([e.rater for e in self.entries])
        return np.where([not e.rater for e in self.entries], NOBODY, numbers)

    @property
    def seeds(self) -> list[Numbers]:
        return [self.numbers([e.one for e in self.entries]), self.numbers([e.other for e in self.entries])]

    @property
    def units(self) -> Numbers:
        return self.numbers([(e.one, e.other, e.prompt, e.sample) for e in self.entries])


def _between(one: Placed, other: Placed, entries: Sequence[Entry]) -> list[Entry]:
    """Of two methods alone, turned to the first one's side."""
    turned = (e if e.one in one.rows else e._replace(one=e.other, other=e.one, won=1 - e.won) for e in entries)
    return [e for e in turned if e.one in one.rows and e.other in other.rows]


def _tested(
    pairs: Sequence[tuple[Placed, Placed]],
    entries: Sequence[Entry],
    failed: set[tuple[int, str]],
    family: Family,
    name: str,
) -> list[VoteVersus]:
    found = []
    for one, other in pairs:
        own = _between(one, other, entries)
        if any(not np.isnan(e.won) for e in own):
            found.append((one, other, own))
    ps = [_p(_Votes([e for e in own if not np.isnan(e.won)])) for _, _, own in found]
    values, sizes = adjusted(ps, [name] * len(ps), family)
    return [
        _versus(one, other, own, failed, (p, value, size))
        for (one, other, own), p, value, size in zip(found, ps, values, sizes, strict=True)
    ]


def _p(votes: _Votes) -> float:
    """That wins and losses are alike: by prompts, and, from five raters on, by raters too."""
    won, prompts, raters = votes.won, votes.prompts, votes.raters
    counts = np.bincount(prompts)
    factors = [f for f in votes.seeds if len(np.unique(f)) > 1]
    if len(np.unique(raters[raters >= 0])) >= FEWEST_RATERS:
        factors = [raters, *factors]
    return win_p(np.bincount(prompts, won) / counts, parts_of(counts[:, None, None]), vote_mean(won, prompts, factors))


def _versus(
    one: Placed, other: Placed, own: list[Entry], failed: set[tuple[int, str]], tested: tuple[float, float, int]
) -> VoteVersus:
    votes = _Votes([e for e in own if not np.isnan(e.won)])
    rate, people = rates(votes.won, votes.prompts, votes.raters, votes.seeds)
    believed = _Votes([e for e in votes.entries if (e.log, e.rater) not in failed])
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


def _majority(votes: _Votes) -> Majority | None:
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


def _worth(logs: Sequence[Log], name: str, entries: Sequence[Entry]) -> Raters:
    """Agreement of raters with each other and with themselves, sides, checks and time."""
    asked = [e for e in entries if e.rater and not np.isnan(e.won)]
    turned = [e if e.one < e.other else e._replace(one=e.other, other=e.one, won=1 - e.won) for e in asked]
    votes = _Votes(turned)
    checks = [passed for log in logs for own in checks_of(log, name).values() for passed in own]
    casts = [c for log in logs for c in log.cast if log.header.questions[c.pair.question].name == name]
    sides = [c for c in casts if c.vote.choice in ("left", "right") and c.pair.check in ("", "repeat")]
    left = None
    if sides:
        chosen = np.array([float(c.vote.choice == "left") for c in sides])
        left = win_rate(chosen, votes.numbers([c.pair.rater for c in sides]))
    times = [c.vote.milliseconds / 1000 for c in casts if c.vote.choice != "skip"]
    return Raters(
        votes=len(asked),
        raters=len({e.rater for e in asked}),
        skipped=sum(bool(e.rater) and bool(np.isnan(e.won)) for e in entries),
        alpha=alpha_of(votes.units, np.rint(2 * votes.won).astype(np.int64), Key("votes", name)),
        myself=_myself(logs, name),
        left=left,
        failed=sorted({rater for log in logs for rater in suspects(log)}),
        checks=len(checks),
        passed=sum(checks),
        seconds=float(np.median(times)) if times else float("nan"),
    )


def _myself(logs: Sequence[Log], name: str) -> WinRate | None:
    """How often a rater says of a repeat, sides swapped, what they said before."""
    agreed, raters = list[float](), list[str]()
    for log in logs:
        before: dict[tuple[object, ...], str] = {}
        own = [c for c in log.cast if log.header.questions[c.pair.question].name == name]
        for cast in sorted(own, key=lambda c: c.pair.item):
            choice, pair = cast.vote.choice, cast.pair
            if choice == "skip" or pair.check not in ("", "repeat"):
                continue
            said = _slot(pair.left if choice == "left" else pair.right) if choice != "tie" else "tie"
            place = (pair.rater, pair.prompt, *sorted((_slot(pair.left), _slot(pair.right))))
            if pair.check == "repeat" and place in before:
                agreed.append(float(before[place] == said))
                raters.append(pair.rater)
            before.setdefault(place, said)
    if not agreed:
        return None
    return win_rate(np.array(agreed), _Votes([]).numbers(raters))


def _slot(picture: Shown) -> str:
    return f"{picture.cell} {picture.place} {picture.sample}"
