"""What the simulation of the inference found, against what is claimed, as results/statistics/README.md shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from places import ROOT

FILE = ROOT / "results" / "statistics" / "coverage.json"
CLAIMS = {
    "rate coverage": (93.0, 97.0),
    "difference coverage": (93.0, 97.0),
    "rate false marks": (0.0, 6.0),
    "difference false marks": (0.0, 6.0),
}
NAMES = {
    "rate coverage": "win rate",
    "difference coverage": "difference",
    "rate false marks": "win rate, marks",
    "difference false marks": "difference, marks",
}
SEEDS = [(1, 0.0), *((k, sd) for k in (3, 5) for sd in (0.0, 0.02, 0.04, 0.06))]
Figures = Mapping[str, Any]
Row = tuple[int, int, str, float]  # prompts, images, kind, share won


def figures() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["settings"]
    return found


def outside(setting: Figures, what: str) -> bool:
    """Whether a figure misses its claim by more than two standard errors of the simulation."""
    value, (low, high) = setting.get(what), CLAIMS[what]
    if value is None:
        return False
    of = setting["replicates"] * (setting["difference told"] / 100 if what == "difference coverage" else 1)
    return value < low - two_errors(low, of) or value > high + two_errors(high, of)


def two_errors(percent: float, of: float) -> float:
    return 2 * math.sqrt(max(0.0, percent * (100 - percent)) / of)


def rows(found: Sequence[Figures]) -> Iterator[tuple[str, Row, list[Figures]]]:
    """Of each claim, the settings that differ in their seeds alone, in the order of `SEEDS`."""
    for what in CLAIMS:
        by: dict[Row, dict[tuple[int, float], Figures]] = {}
        for setting in found:
            if setting.get(what) is not None:
                row = (setting["prompts"], setting["images"], setting["kind"], setting["won"])
                by.setdefault(row, {})[setting["seeds"], setting["sd"]] = setting
        for row, of_seeds in by.items():
            yield what, row, [of_seeds.get(seeds, {}) for seeds in SEEDS]


def exceptions(found: Sequence[Figures]) -> dict[tuple[str, Row], list[str]]:
    """Rows with a figure outside its claim: all figures of the row, those outside in bold."""
    listed = {}
    for what, row, of_seeds in rows(found):
        if any(outside(setting, what) for setting in of_seeds):
            listed[what, row] = [
                "–" if what not in s else f"**{s[what]:.1f}**" if outside(s, what) else f"{s[what]:.1f}"
                for s in of_seeds
            ]
    return listed


def cell(setting: Figures, what: str) -> str:
    if setting.get(what) is None:
        return "–"
    return f"**{setting[what]:.1f}**" if outside(setting, what) else f"{setting[what]:.1f}"


def exceptions_table() -> str:
    head = ["of the", "prompts", "pairs", "1 seed", *(f"{k} seeds, {100 * sd:g}" for k, sd in SEEDS[1:])]
    lines = [head, ["---"] * 3 + ["--:"] * len(SEEDS)]
    for (what, (prompts, images, kind, won)), cells in exceptions(figures()).items():
        pairs = kind if kind.startswith("skewness") else f"{kind}, {100 * won:g} % won"
        lines.append([NAMES[what], f"{prompts} × {images}", pairs, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def extremes(what: str, seeds: int) -> tuple[float, float]:
    values = [s[what] for s in figures() if s["seeds"] == seeds and s.get(what) is not None]
    return min(values), max(values)


def summary_table() -> str:
    lines = [
        "| seeds | interval of a win rate holds it | of a difference | false marks of a win rate | of a difference |",
        "| --: | --: | --: | --: | --: |",
    ]
    for seeds in (1, 3, 5):
        cells = [f"{low:.1f} to {high:.1f} %" for low, high in (extremes(what, seeds) for what in CLAIMS)]
        lines.append(f"| {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
