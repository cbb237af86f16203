"""Votes of people on the page: strips beside those of scorers, the verdict's sentences, counts under pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignbench.analysis.comparison import Group
from alignbench.analysis.formats import percent
from alignbench.analysis.statistics import WinRate
from alignbench.analysis.verdict import listed
from alignbench.analysis.vote_statistics import FEWEST_RATERS
from alignbench.analysis.votes import VoteColumn, VoteVersus
from alignbench.page.statements import Statement
from alignbench.printed import how_many


def of_votes(group: Group) -> list[Statement]:
    """A statement on each question that people were asked: who is preferred, of how many raters, how far they agree."""
    return [
        Statement(
            column.name, _lines(column, items), f"{column.worth.votes} votes, {how_many(column.worth.raters, 'rater')}"
        )
        for column in group.votes
        if (items := column.versus or column.duels)
    ]


def _lines(column: VoteColumn, items: Sequence[VoteVersus]) -> list[str]:
    decided = {mark: [item for item in items if item.test.mark == mark] for mark in ("better", "worse")}
    few = [item for item in items if item.people is None]
    open_ = [item for item in items if item.test.mark is None and item.people is not None]
    lines = []
    if better := sorted(decided["better"], key=lambda item: -item.rate.rate):
        lines.append(f"Preferred by people: {'; '.join(map(_shown, better))}.")
    if worse := sorted(decided["worse"], key=lambda item: item.rate.rate):
        lines.append(f"Less liked by people: {'; '.join(map(_shown, worse))}.")
    if open_:
        lines.append(f"Undecided: {'; '.join(map(_shown, open_))}.")
    if few:
        lines.append(
            f"Of these raters alone, since fewer than {FEWEST_RATERS} compared them: {'; '.join(map(_shown, few))}."
        )
    trusted = [f"{item.method} {_rate(item.trusted)}" for item in items if item.trusted is not None]
    if trusted:
        count = how_many(len(column.worth.failed), "rater")
        lines.append(f"Without {count} who failed checks: {listed(trusted)}.")
    alpha = column.worth.alpha
    if alpha.units and not math.isnan(alpha.alpha):
        lines.append(
            f"Raters agree on {percent(alpha.raw)} % of {alpha.units} pairs that several judged "
            f"(α {alpha.alpha:.2f}, {alpha.low:.2f} to {alpha.high:.2f})."
        )
    else:
        lines.append("How far raters agree is not known.")
    return lines


def _shown(item: VoteVersus) -> str:
    alone = " on this run alone" if item.this_run else ""
    return (
        f"{item.method} over {item.against}, {_rate(item.shown)} of {item.votes} votes by "
        f"{how_many(item.raters, 'rater')}{alone}"
    )


def _rate(rate: WinRate | None) -> str:
    return "" if rate is None else f"{percent(rate.rate)} % ({percent(rate.low)} to {percent(rate.high)})"
