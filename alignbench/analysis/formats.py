"""A table in each of the formats: columns of a terminal, Markdown, CSV, LaTeX; and numbers as tables show them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignbench.choices import Format

MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|"})
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "·": "$\\cdot$", "–": "--"}
)


@dataclass(frozen=True)
class Table:
    """Strings in rows. The first column is text, the others are numbers; `strong` rows are set in bold."""

    title: str
    header: list[str]
    rows: list[list[str]]
    strong: frozenset[int] = frozenset()


def percent(x: float) -> str:
    return "–" if math.isnan(x) else f"{100 * x:.1f}"


def number(x: float) -> str:
    """Four significant digits, thousands as k, M or G."""
    if math.isnan(x):
        return "–"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (9999.5, "k")):
        if abs(x) >= limit:
            return f"{x / (1e3 if suffix == 'k' else limit):.4g}{suffix}"
    return f"{x:.4g}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def written(table: Table, form: Format) -> str:
    """The table in a format that is read by people."""
    flat = Table(
        line(table.title), [line(c) for c in table.header], [[line(c) for c in r] for r in table.rows], table.strong
    )
    return {"table": plain, "markdown": _markdown, "latex": _latex}[form](flat)


def line(text: str) -> str:
    """Text without line breaks: names and reasons come from outside."""
    return " ".join(text.splitlines())


def _marked(table: Table) -> list[list[str]]:
    """Rows with a star on the win rate of strong ones."""
    return [
        [cell + "*" if i in table.strong and j == 2 else cell for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]


def plain(table: Table) -> str:
    """Plain columns; the same on a terminal and in a file."""
    rows = [table.header, *_marked(table)]
    widths = [max(len(row[j]) for row in rows) for j in range(len(table.header))]
    lines = [
        "  ".join(
            cell.ljust(w) if j == 0 else cell.rjust(w) for j, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([table.title, lines[0], "─" * len(lines[0]), *lines[1:]]).rstrip() + "\n"


def _markdown(table: Table) -> str:
    def row_of(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.translate(MARKDOWN) for cell in cells) + " |"

    rows = [
        [f"**{cell}**" if i in table.strong and j in (0, 2) else cell for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([f"**{table.title}**", "", row_of(table.header), row_of(rule), *map(row_of, rows)]) + "\n"


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return text.translate(LATEX)

    lines = [f"% {table.title}", f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(escape, table.header)) + " \\\\", "\\midrule"]
    for i, row in enumerate(table.rows):
        cells = [
            f"\\textbf{{{escape(c)}}}" if i in table.strong and j in (0, 2) else escape(c) for j, c in enumerate(row)
        ]
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def csv_block(evaluation: str, table: Table) -> str:
    """One block per table, with the evaluation's fingerprint and the table's title in front of every row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["evaluation", "table", *table.header])
    for row in table.rows:
        writer.writerow([evaluation, table.title, *row])
    return buffer.getvalue()
