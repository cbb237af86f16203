"""Tables of votes: win rates, what the raters are worth, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignbench.analysis.comparison import Group
from alignbench.analysis.formats import Mark, Table, number, p_value, percent
from alignbench.analysis.statistics import WinRate
from alignbench.analysis.vote_statistics import FEWEST_RATERS
from alignbench.analysis.votes import VoteColumn, VoteVersus

FEW = 6  # rows up to which each is told how many votes it takes


def vote_tables(group: Group) -> list[Table]:
    """Of every question: against the baseline, all duels where there is none or they are asked for, and the raters."""
    tables = []
    for column in group.votes:
        if column.versus:
            tables.append(_versus_table(column, column.versus, f"against {group.baseline}"))
        if column.duels and (group.duels or not column.versus):
            tables.append(_versus_table(column, column.duels, "every two methods that met"))
    if group.votes:
        tables.append(_raters_table(group.votes))
    return tables


def _versus_table(column: VoteColumn, items: Sequence[VoteVersus], about: str) -> Table:
    """Columns that say nothing in any row are left out."""
    several = len({item.against for item in items}) > 1 or "every two" in about
    header = ["method", *(["against"] if several else []), "win rate %", "these raters: 95 % interval"]
    header += ["people: 95 % interval", "p", "p adj.", "ties %", "votes", "raters"]
    optional = [
        ("one picture", any(v.identical for v in items), lambda v: str(v.identical)),
        ("skipped", any(v.skipped for v in items), lambda v: str(v.skipped)),
        ("by majority, won–tied–lost", any(v.majority for v in items), _majority),
        ("without failed checks, %", any(v.trusted for v in items), lambda v: _with_span(v.trusted)),
        ("seeds", any(v.this_run for v in items), lambda v: "this run" if v.this_run else ""),
    ]
    header += [name for name, wanted, _ in optional if wanted]
    rows = []
    marks: dict[tuple[int, int], Mark] = {}
    for i, v in enumerate(items):
        rows.append(
            [
                v.method,
                *([v.against] if several else []),
                percent(v.rate.rate),
                _span(v.rate),
                _span(v.people),
                p_value(v.test.p),
                p_value(v.test.adjusted),
                percent(v.rate.ties),
                str(v.votes),
                str(v.raters),
                *(cell(v) for _, wanted, cell in optional if wanted),
            ]
        )
        if v.test.mark is not None:
            marks[i, header.index("win rate %")] = v.test.mark
    title = f"{column.name}: {about} ({column.question} Random: {_random(items)}; m = {items[0].family})"
    return Table(title, header, rows, marks)


def _random(items: Sequence[VoteVersus]) -> str:
    some = [v for v in items if v.people]
    return "prompts" if not some else "prompts, and raters" + ("" if len(some) == len(items) else " where there are 5")


def _span(rate: WinRate | None) -> str:
    return "–" if rate is None else f"{percent(rate.low)} to {percent(rate.high)}"


def _with_span(rate: WinRate | None) -> str:
    return "" if rate is None else f"{percent(rate.rate)} ({_span(rate)})"


def _majority(item: VoteVersus) -> str:
    return "" if item.majority is None else "–".join(map(str, item.majority))


def _raters_table(columns: Sequence[VoteColumn]) -> Table:
    header = [
        "question", "votes", "raters", "skipped", "judged twice", "agree %", "α", "95 % interval", "with oneself %",
        "left %", "95 % interval", "checks passed", "seconds",
    ]  # fmt: skip
    rows = []
    for column in columns:
        w, alpha = column.worth, column.worth.alpha
        rows.append(
            [
                column.name,
                str(w.votes),
                str(w.raters),
                str(w.skipped),
                str(alpha.units),
                percent(alpha.raw),
                "–" if math.isnan(alpha.alpha) else f"{alpha.alpha:.2f}",
                "–" if math.isnan(alpha.low) else f"{alpha.low:.2f} to {alpha.high:.2f}",
                "–" if w.myself is None else f"{percent(w.myself.rate)} of {w.myself.pairs}",
                "–" if w.left is None else percent(w.left.rate),
                _span(w.left),
                f"{w.passed} of {w.checks}",
                number(w.seconds),
            ]
        )
    return Table("What the raters are worth (α: Krippendorff's, over won, tied and lost)", header, rows)


def vote_reading(group: Group) -> list[str]:
    """How to read these tables, and what would make them sharper."""
    lines: list[str] = []
    if not group.votes:
        return lines
    lines.append(
        "Votes: ties count half, repeats and checks for nobody, one picture of two methods is a tie, skipped pairs are "
        f"missing. The interval of people has raters random as well as prompts; below {FEWEST_RATERS} raters it is "
        "not to be told, and what is claimed is about these raters alone, without a mark. So are strengths."
    )
    for column in group.votes:
        worth = column.worth
        if worth.failed:
            lines.append(f"{column.name}: {', '.join(worth.failed)} failed checks; {column.rule}.")
        if worth.left is not None and not worth.left.low <= 0.5 <= worth.left.high:
            side = "left" if worth.left.rate > 0.5 else "right"
            lines.append(
                f"{column.name}: the {side} picture was chosen more often than chance does. Sides were drawn at "
                "random, so no method gains by it; it makes wins and losses more alike."
            )
        found = column.versus or column.duels
        lines += [f"{column.name}: {_needed_of_all(found)}."] if len(found) > FEW else []
        for v in found if len(found) <= FEW else ():
            both = f"{column.name}: {v.method} against {v.against}"
            lines.append(
                f"{both} within ±5 points takes {_needed(v)}."
                if v.needed.votes
                else f"{both}: every pair ties, so it is not to be told how many votes ±5 points take."
            )
    return lines


def _needed_of_all(items: Sequence[VoteVersus]) -> str:
    """Of many methods in one line: of how many rates each number is, and how many are left out."""
    told = [v for v in items if v.needed.votes]
    if not told:
        return "every pair ties, so it is not to be told how many votes ±5 points take"
    several = [v for v in told if v.people]
    raters = [v.needed.raters for v in several if v.needed.raters is not None]
    few = f"{FEWEST_RATERS} raters at least, better twenty"
    of_people = [f"about {_range(raters)} raters with as many votes on it each as now"] if raters else []
    if raters and len(raters) < len(told):
        of_people[0] += f" (of {len(raters)} rates)"
    if len(several) < len(told):
        alone = f" (of the {len(told) - len(several)} with fewer)" if several else ""
        of_people.append(f"{few}{alone}")
    counted = f"each of these {len(told)} rates"
    if tied := len(items) - len(told):
        counted = f"each of {len(told)} of these {len(items)} rates ({tied} of ties alone left out)"
    said = (
        f"{counted} within ±5 points takes about {_range([v.needed.votes for v in told])} votes of these raters, each "
        "on another prompt"
    )
    return f"{said}; of people, {', '.join(of_people)}" if of_people else said


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _needed(item: VoteVersus) -> str:
    n = item.needed
    said = f"about {n.votes} votes of these raters, each on another prompt"
    if item.people is None:
        return f"{said}; of people, {FEWEST_RATERS} raters at least, better twenty"
    if n.raters is None:
        return said
    return f"{said}; of people, about {n.raters} raters with as many votes each as now ({item.votes // item.raters})"
