"""Tables of win rates against a baseline, of all duels, and of strengths, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from alignbench.analysis.calibration import said
from alignbench.analysis.comparison import Duel, Group, Versus
from alignbench.analysis.formats import Mark, Table, number, p_value, percent, signed
from alignbench.analysis.picture_tables import how
from alignbench.analysis.ranks import Ranks
from alignbench.choices import Family

Cell = Callable[[Versus], str]

FAMILIES: dict[Family, str] = {
    "scorer": "over the rows of one scorer",
    "table": "over the rows of all scorers",
    "none": "not at all",
}


def versus_table(group: Group, scorer: str) -> Table:
    """Every method against the baseline. Columns that say nothing in any row are left out."""
    items = [v for v in group.versus if v.scorer == scorer]
    columns: list[tuple[str, Cell]] = [("mean", lambda v: number(v.mean))]
    if not all(v.whole for v in items):
        columns += [("prompts", lambda v: str(v.rate.prompts)), ("baseline's mean", lambda v: number(v.baseline_mean))]
    columns += [
        ("win rate %", lambda v: percent(v.rate.rate)),
        ("95 % interval", lambda v: f"{percent(v.rate.low)} to {percent(v.rate.high)}"),
        ("p", lambda v: p_value(v.rate_test.p)),
        ("p adj.", lambda v: p_value(v.rate_test.adjusted)),
        ("ties %", lambda v: percent(v.rate.ties)),
        ("difference", lambda v: f"{v.difference:+.4g}"),
        ("its 95 % interval", lambda v: span(v.difference_low, v.difference_high)),
        ("its p", lambda v: p_value(v.difference_test.p)),
        ("its p adj.", lambda v: p_value(v.difference_test.adjusted)),
        ("effect", lambda v: signed(v.effect)),
        ("seeds %", _seeds),
        *_asked_for(items),
    ]
    if suspects := {item.method: how(item) for item in group.hacked if item.reward == scorer}:
        columns.append(("looks hacked", lambda v: suspects.get(v.method, "")))
    if any(v.failed for v in items):
        columns += [("failed", lambda v: str(v.failed)), ("if they lost, won %", _if_failed)]
    baseline = {"mean": number(group.means[scorer][group.baseline or ""]), "win rate %": "–"}
    rows = [[str(group.baseline), *(baseline.get(name, "") for name, _ in columns)]]
    rows += [[v.method, *(cell(v) for _, cell in columns)] for v in items]
    header = ["method", *(name for name, _ in columns)]
    marks: dict[tuple[int, int], Mark] = {}
    for i, item in enumerate(items, start=1):
        for name, test in (("win rate %", item.rate_test), ("difference", item.difference_test)):
            if test.mark is not None:
                marks[i, header.index(name)] = test.mark
    return Table(f"{scorer}: against {group.baseline}{_about(items)}", header, rows, marks)


def _about(items: Sequence[Versus]) -> str:
    """What is drawn at random, and the size of the family."""
    if not items:
        return ""
    if items[0].random.startswith("images"):
        return f" on this prompt (random: its images; m = {items[0].family})"
    seeds = ", seeds where there are several" if any(v.random == "prompts and seeds" for v in items) else ""
    return f" ({max(v.rate.prompts for v in items)} prompts; random: prompts{seeds}; m = {items[0].family})"


def _asked_for(items: Sequence[Versus]) -> list[tuple[str, Cell]]:
    """Columns of --margin and --control."""
    columns: list[tuple[str, Cell]] = []
    if any(v.equivalence for v in items):
        columns.append((f"margin {items[0].margin:g}", lambda v: v.equivalence or ""))
    if any(v.controlled for v in items):
        name = next(v.controlled.covariate for v in items if v.controlled)
        columns.append((f"win rate % at equal {name}", lambda v: percent(v.controlled.rate) if v.controlled else ""))
        columns.append(("that 95 % interval", _controlled_span))
    return columns


def _controlled_span(item: Versus) -> str:
    c = item.controlled
    return "" if c is None else "–" if math.isnan(c.low) else f"{percent(c.low)} to {percent(c.high)}"


def _seeds(item: Versus) -> str:
    """Each training seed's own win rate."""
    return "this run" if item.this_run else " ".join(percent(rate) for seed, rate in item.seeds if seed is not None)


def _if_failed(item: Versus) -> str:
    return "" if item.if_failed is None else " to ".join(map(percent, item.if_failed))


def span(low: float, high: float) -> str:
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:+.4g} to {high:+.4g}"


def duels_table(group: Group, scorer: str) -> Table:
    """Every two methods, by which of them is ahead."""
    items = [_ahead(duel) for duel in group.duels if duel.scorer == scorer]
    rows = [
        [
            duel.method,
            duel.against,
            percent(rate),
            f"{percent(low)} to {percent(high)}",
            p_value(duel.rate_test.p),
            p_value(duel.rate_test.adjusted),
            "this run" if duel.this_run else "",
        ]
        for duel, rate, low, high in items
    ]
    header = ["method", "against", "win rate %", "95 % interval", "p", "p adj.", "seeds"]
    marks: dict[tuple[int, int], Mark] = {
        (i, 2): "better" for i, (duel, *_) in enumerate(items) if duel.rate_test.mark is not None
    }
    size = f" (m = {items[0][0].family})" if items else ""
    return Table(f"{scorer}: every two methods{size}", header, rows, marks)


def _ahead(duel: Duel) -> tuple[Duel, float, float, float]:
    """The duel with the method first that wins more often, and its rate and interval."""
    r = duel.rate
    if r.rate >= 0.5:
        return duel, r.rate, r.low, r.high
    return replace(duel, method=duel.against, against=duel.method), 1 - r.rate, 1 - r.high, 1 - r.low


def _all_ranks(group: Group) -> dict[str, Ranks | None]:
    """By scorer, and by question that people voted on."""
    return {**{name: group.ranks[name] for name in group.scorers}, **{c.name: c.ranks for c in group.votes}}


def ranks_table(group: Group) -> Table:
    """Places and strengths, two columns for each scorer and each question that people voted on."""
    every, rows = _all_ranks(group), []
    for i, method in enumerate(group.methods):
        row = [method]
        for found in every.values():
            if found is None:
                row += ["not identifiable", ""]
            elif math.isnan(found.strength[i]):
                row += ["–", ""]
            else:
                row.append(f"{found.place[i]:.0f} ({found.place_low[i]:.0f} to {found.place_high[i]:.0f})")
                interval = f" ({_end(found.low[i])} to {_end(found.high[i])})" if i else ""
                row.append(f"{found.strength[i]:+.2f}{interval}")
        rows.append(row)
    title = f"Strength in this pool (Bradley-Terry, log odds over {group.methods[0]}; 95 % intervals)"
    header = ["method"]
    for name in every:
        header += [f"{name}: place", "strength"]
    return Table(title, header, rows)


def _end(x: float) -> str:
    return f"{'-' if x < 0 else '+'}∞" if math.isinf(x) else f"{x:+.2f}"


def reading(group: Group) -> list[str]:
    """How to read these tables."""
    lines = []
    if group.versus:
        lines += [
            "Ties count half. Every prompt weighs alike; means and the difference are over the pairs that both methods "
            "have.",
            "Win rate: Tango's score interval (Wilson's where nothing ties) at the effective number of pairs, exact "
            "sign-flip test by prompt. Difference: Student's interval and test, widened by its skewness (Hall); the "
            "effect is the mean over the standard deviation of prompts. With several seeds prompts and seeds are both "
            "random, each with Student's quantile.",
            f"p adj.: Holm {FAMILIES[group.family]}, m of them, each column by itself. ▲ better and ▼ worse than "
            f"{group.baseline}, below 0.05 after it; each stands on the number beside it.",
        ]
    if foot := said(len(v.seeds) for v in group.versus if v.random.endswith("and seeds")):
        lines.append(foot)
    if any(v.this_run for v in group.versus):
        lines.append("this run: trained with one seed. Its interval and p are of that run, and it gets no mark.")
    if any(math.isnan(v.difference_low) for v in group.versus):
        lines.append("–: the interval of a difference is not to be told from so few prompts that do not tie.")
    for scorer in group.scorers:
        lines += _controlled(group, scorer)
    for scorer, ranks in _all_ranks(group).items():
        if ranks is not None and ranks.fit.pairs > 1:
            first, second = (group.methods[i] for i in ranks.fit.worst)
            lines.append(
                f"{scorer}: strengths tell {ranks.fit.pairs - ranks.fit.missed} of {ranks.fit.pairs} pairs to within "
                f"two standard errors; worst {first} against {second}, {percent(ranks.fit.implied)} % told and "
                f"{percent(ranks.fit.seen)} % seen."
            )
    if any(math.isinf(x) for r in _all_ranks(group).values() if r for x in (*r.low, *r.high)):
        lines.append("∞: no chain of wins or ties leads back, so nothing bounds the strength on that side.")
    return lines


def _controlled(group: Group, scorer: str) -> list[str]:
    lines = []
    for item in (v for v in group.versus if v.scorer == scorer):
        c = item.controlled
        if c is not None and c.about:
            lines.append(f"{scorer}: no rate of {item.method} at equal {c.covariate}: {c.about}.")
        elif c is not None and item.control_disagrees:
            lines.append(
                f"{scorer}: {item.method} wins {percent(c.raw)} % of all pairs and {percent(c.rate)} % at equal "
                f"{c.covariate}: part of the win rate is {c.covariate}."
            )
    return lines
