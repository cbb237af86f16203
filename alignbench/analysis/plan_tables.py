"""Plans as tables, with how to read them below, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from alignbench.analysis.comparison import SIGNIFICANT
from alignbench.analysis.formats import Table, csv_block, noted, percent, titled, written
from alignbench.analysis.plan import Planned, Plans, Row, Wanted
from alignbench.analysis.planning import BASELINE_SEEDS, FARTHEST, PROMPTS, SEEDS, Plan, Size
from alignbench.choices import Format
from alignbench.printed import WHOLE, Screen

AXES = {PROMPTS: "prompts", SEEDS: "seeds", BASELINE_SEEDS: "baseline seeds"}
SURE = 0.95  # of the interval of a standard deviation


def render(found: Plans, form: Format, screen: Screen = WHOLE) -> str:
    """All plans as text in one of the formats; a table of plain text as wide as the screen."""
    if form == "json":
        return json.dumps(as_values(found), indent=1, allow_nan=False) + "\n"
    parts = []
    for group in found.groups:
        tables = [_table(group, scorer, found.wanted) for scorer in dict.fromkeys(row.scorer for row in group.rows)]
        if form == "csv":
            parts += [csv_block(group.evaluation.fingerprint, table) for table in tables]
            continue
        e = group.evaluation
        about = f"{e.model['name']} on {e.prompts}/{e.split}, noise seed {e.eval_seed}, evaluation {e.fingerprint}"
        parts.append(titled(about, form, screen))
        parts += [written(table, form, screen) for table in tables]
        parts.append(noted(_reading(group, found.wanted), form, screen))
    if form != "csv":
        parts.append(noted(found.notes, form, screen))
    return "\n".join(part for part in parts if part)


def notes(found: Plans) -> list[str]:
    """What stands beside the tables. In CSV it has no place."""
    return [text for group in found.groups for text in _reading(group, found.wanted)] + found.notes


def _table(group: Planned, scorer: str, wanted: Wanted) -> Table:
    rows = [row for row in group.rows if row.scorer == scorer]
    trained = any(row.rate.parts.size.baseline_seeds > 1 for row in rows)
    header = ["method", "sd prompts", "sd images", "sd seeds", *([f"sd seeds of {group.baseline}"] * trained)]
    header += ["sd prompt × seed", *(["now: win rate ±", "now: mean ±"] * wanted.sized), "size", "win rate ±", "mean ±"]
    header += ["2× prompts ±", "2× images ±", "2× seeds ±", "these prompts ±", "these seeds ±", "add first"]
    cells = []
    for row in rows:
        rate, parts = row.rate, row.rate.parts
        cells.append(
            [
                row.method,
                percent(parts.spread(PROMPTS)),
                percent(parts.spread_of_images),
                "not known" if row.method in row.once else percent(parts.spread(SEEDS)),
                *([percent(parts.spread(BASELINE_SEEDS))] * trained),
                percent(parts.spread(PROMPTS, SEEDS)),
                *([_points(rate.now), _units(row.difference.now)] if wanted.sized else []),
                _size(rate.size),
                _points(rate.smallest),
                _units(row.difference.smallest),
                *(_points(rate.doubled.get(of, math.nan)) for of in ("prompts", "images", "seeds")),
                *(_points(rate.fixed.get(of, math.nan)) for of in ("prompts", "seeds")),
                row.first or "–",
            ]
        )
    told = [j for j in range(len(header)) if any(row[j] != "–" for row in cells)]
    return Table(
        f"{scorer}: the smallest difference from {group.baseline} that can be shown",
        [header[j] for j in told],
        [[row[j] for j in told] for row in cells],
    )


def _points(x: float) -> str:
    return "none" if x > FARTHEST else percent(x)


def _units(x: float) -> str:
    return "–" if math.isnan(x) else "none" if math.isinf(x) else f"{x:.2g}"


def _size(size: Size) -> str:
    seeds = [f"{count:g}" for count in size.levels[1:] if count > 1]
    return " × ".join([f"{size.prompts:g}", f"{size.images:.3g}", *(["/".join(seeds)] if seeds else [])])


def _reading(group: Planned, wanted: Wanted) -> list[str]:
    """How to read the tables, and what is not known."""
    return [*_what(group, wanted), *_unknown(group)]


def _what(group: Planned, wanted: Wanted) -> Iterator[str]:
    families = sorted({row.family for row in group.rows})
    several = " or ".join(map(str, families))
    shared = "" if families == [1] else f" / {several} (Bonferroni for {several} tests)"
    yield (
        f"±: the smallest difference, in points of the win rate or in the scorer's units, that a two-sided test at "
        f"{SIGNIFICANT:g}{shared} shows with {100 * wanted.power:g} % probability. size: prompts × images of each × "
        "training seeds. none: there is no such difference."
    )
    yield (
        "2×: the same with twice as many. These prompts, these seeds: what no number of the others gets below. "
        "Add first: what lowers the win rate's most when doubled."
    )
    yield (
        "sd: standard deviations in points of a single win, as they would be at a win rate of 50 %; an estimate below "
        "0 is 0. Prompts, their images and training seeds are taken for drawn at random, the noise of an image for the "
        "same under every seed, all parts for independent."
    )


def _unknown(group: Planned) -> Iterator[str]:
    if any(row.rate.parts.of_images is None for row in group.rows):
        yield "images: not told apart from prompts that have one each; more prompts help no less than more images."
    if once := dict.fromkeys(label for row in group.rows for label in row.once):
        yield (
            f"seeds: not known from one run ({', '.join(once)}). What is planned is about this run alone; only a "
            "second seed makes it about the method."
        )
    counts = [n for row in group.rows for n in row.rate.parts.size.levels[1:] if n > 1]
    if counts:
        from scipy.special import chdtri

        few = min(counts)
        low, high = (math.sqrt((few - 1) / float(chdtri(few - 1, tail))) for tail in ((1 - SURE) / 2, (1 + SURE) / 2))
        yield (
            f"seeds: {few:g} of them tell their standard deviation roughly; it may be {low:.1f} to {high:.1f} times as "
            f"large ({100 * SURE:g} % interval)."
        )


def as_values(found: Plans) -> dict[str, Any]:
    """As JSON; null is what is not known, or not to be shown by any difference."""
    wanted = found.wanted
    return {
        "power": wanted.power,
        "groups": [
            {
                "fingerprint": group.evaluation.fingerprint,
                "evaluation": group.evaluation.model_dump(),
                "baseline": group.baseline,
                "methods": [_row(row) for row in group.rows],
                "notes": _reading(group, wanted),
            }
            for group in found.groups
        ],
        "notes": found.notes,
    }


def _row(row: Row) -> dict[str, Any]:
    plans = {"win_rate": row.rate, "difference": row.difference}
    return {
        "method": row.method,
        "scorer": row.scorer,
        "family": row.family,
        "level": SIGNIFICANT / row.family,
        "trained_once": list(row.once),
        "now": _known(row.rate.parts.size._asdict()),
        "planned": _known(row.rate.size._asdict()),
        "add_first": row.first,
        **{name: _of_plan(plan) for name, plan in plans.items()},
    }


def _of_plan(plan: Plan) -> dict[str, Any]:
    parts = plan.parts
    sources = {"": parts.of_prompts, " × images": parts.of_images or {}}
    return {
        "sd": {
            " × ".join(AXES[axis] for axis in factors) + also: _finite(math.sqrt(variance))
            for also, source in sources.items()
            for factors, variance in source.items()
        },
        "smallest_now": _finite(plan.now),
        "smallest": _finite(plan.smallest),
        "doubled": _known(plan.doubled),
        "limit_of": _known(plan.fixed),
        "add_first": plan.first,
    }


def _known(values: Any) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
