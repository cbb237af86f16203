"""What the raters are worth: agreement with each other and with themselves, sides, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignbench.analysis.statistics import WinRate, win_rate
from alignbench.analysis.vote_entries import Entry, Votes
from alignbench.analysis.vote_statistics import Alpha, alpha_of
from alignbench.keys import Key
from alignbench.record.votes import OURS, Log, Shown, checks_of, person, suspects


@dataclass(frozen=True)
class Raters:
    """What the votes on one question are worth."""

    votes: int
    raters: int
    skipped: int
    alpha: Alpha
    myself: WinRate | None  # how often a repeat got the same answer
    left: WinRate | None  # share of left among left and right, where sides were drawn at random
    failed: Sequence[str]  # raters who fail the checks by the rule of the log
    checks: int
    passed: int
    seconds: float  # the median a vote took


def worth_of(logs: Sequence[Log], name: str, entries: Sequence[Entry]) -> Raters:
    """Agreement of raters with each other and with themselves, sides, checks and time."""
    asked = [e for e in entries if e.rater and not np.isnan(e.won)]
    turned = [e if e.one < e.other else e._replace(one=e.other, other=e.one, won=1 - e.won) for e in asked]
    votes = Votes(turned)
    checks = [passed for log in logs for own in checks_of(log, name).values() for passed in own]
    casts = [
        (k, log, c)
        for k, log in enumerate(logs)
        for c in log.cast
        if log.header.questions[c.pair.question].name == name
    ]
    sides = [
        (person(c.pair.rater, k), c)
        for k, log, c in casts
        if log.header.source == OURS and c.vote.choice in ("left", "right") and c.pair.check in ("", "repeat")
    ]
    left = None
    if sides:
        chosen = np.array([float(c.vote.choice == "left") for _, c in sides])
        left = win_rate(chosen, votes.numbers([rater for rater, _ in sides]))
    times = [c.vote.milliseconds / 1000 for *_, c in casts if c.vote.choice != "skip"]
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
    for k, log in enumerate(logs):
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
                raters.append(person(pair.rater, k))
            before.setdefault(place, said)
    if not agreed:
        return None
    return win_rate(np.array(agreed), Votes([]).numbers(raters))


def _slot(picture: Shown) -> str:
    return f"{picture.cell} {picture.place} {picture.sample}"
