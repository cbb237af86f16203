"""A table in each of the formats: columns of a terminal, Markdown, CSV, LaTeX; and numbers as tables show them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from alignbench.choices import Format
from alignbench.printed import WHOLE, Screen, one_line, spelled, visible

# What begins a tag, an entity, code, a link, a picture, a formula or emphasis. A `<0.001`, a star at the end of a
# number and an underscore within a name begin none.
MARKDOWN = re.compile(
    r"[\\|`\[\]$~]|<(?=[A-Za-z/!?])|&(?=[#\w])|\*(?!$)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|(?<=\w)@(?=\w)"
)
ENTITIES = {"<": "&lt;", "&": "&amp;", ":": "&#58;", ".": "&#46;", "@": "&#64;"}
# What a spreadsheet would compute. Signed numbers, marked or not, and the intervals of them are what the tables hold.
FORMULA = re.compile(r"\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")  # the last four are as wide as Chinese letters
SIGNED = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?[kMG]?"
NUMBERS = re.compile(rf"{SIGNED}( to {SIGNED})?≈?|[-+]?(inf|nan)")
Mark = Literal["better", "worse"]
MARKS: Mapping[Mark, str] = {"better": "▲", "worse": "▼"}
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"[": "{[}", "]": "{]}", "<": "$<$", ">": "$>$", "·": "$\\cdot$", "–": "--", "∞": "$\\infty$", "≈": "$\\approx$"}
    | {"▲": "$\\bigtriangleup$", "▼": "$\\bigtriangledown$"}
)


@dataclass(frozen=True)
class Table:
    """Strings in rows. The first column is text, the others are numbers. Cells with a mark, by row and column, are
    better or worse than the baseline; better ones are set in bold, with the name of a row whose first mark says so."""

    title: str
    header: list[str]
    rows: list[list[str]]
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)

    def is_bold(self, row: int, column: int) -> bool:
        own = sorted((j, mark) for (i, j), mark in self.marks.items() if i == row)
        return self.marks.get((row, column)) == "better" or (column == 0 and bool(own) and own[0][1] == "better")


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


def signed(x: float) -> str:
    """Two digits behind the point, with a sign."""
    return "–" if math.isnan(x) else f"{x:+.2f}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def written(table: Table, form: Format, screen: Screen = WHOLE) -> str:
    """The table in a format that is read by people."""
    if form == "table":
        return plain(table, screen)
    return {"markdown": _markdown, "latex": _latex}[form](_flat(table))


def _flat(table: Table, encoding: str = "utf-8") -> Table:
    """The table with every text in one line, without what is hidden or the encoding lacks."""

    def flat(cells: Iterable[str]) -> list[str]:
        return [spelled(one_line(cell), encoding) for cell in cells]

    (title,) = flat([table.title])
    return Table(title, flat(table.header), [flat(row) for row in table.rows], table.marks)


def _marked(table: Table, encoding: str = "utf-8") -> list[list[str]]:
    """Rows with the marks behind their cells."""
    return [
        [
            cell + spelled(MARKS[table.marks[i, j]], encoding) if (i, j) in table.marks else cell
            for j, cell in enumerate(row)
        ]
        for i, row in enumerate(table.rows)
    ]


def plain(table: Table, screen: Screen = WHOLE) -> str:
    """Plain columns. Where a screen is too narrow for all of them, they stand below each other in groups, each with
    the first column again; where it is too narrow for that, every row is a list of its cells. No cell is broken but
    one that is wider than the screen."""
    flat = _flat(table, screen.encoding)
    rows = [flat.header, *_marked(flat, screen.encoding or "utf-8")]
    widths = [max(_wide(row[j]) for row in rows) for j in range(len(flat.header))]
    title = folded(flat.title, screen.width)
    groups = _groups(widths, screen.width)
    if groups is None:
        parts = [_listed(flat.header, row, screen) for row in rows[1:]]
    else:
        parts = ["\n".join(_columns(rows, widths, [0, *group], screen.encoding)) for group in groups]
    return "\n".join([title, *parts]).rstrip() + "\n"


def _groups(widths: Sequence[int], width: int | None) -> list[list[int]] | None:
    """Which columns behind the first stand side by side; None where some do not even fit beside the first."""
    groups: list[list[int]] = [[]]
    left = room = math.inf if width is None else width - widths[0]
    for j, own in enumerate(widths[1:], start=1):
        if own + 2 > room:
            return None
        if own + 2 > left:
            groups.append([])
            left = room
        groups[-1].append(j)
        left -= own + 2
    return groups if room >= 0 else None


def _columns(rows: Sequence[Sequence[str]], widths: Sequence[int], chosen: Sequence[int], encoding: str) -> list[str]:
    def row_of(row: Sequence[str]) -> str:
        padding = [" " * (widths[j] - _wide(row[j])) for j in chosen]
        cells = (p + row[j] if place else row[j] + p for place, (j, p) in enumerate(zip(chosen, padding, strict=True)))
        return "  ".join(cells)

    head, *others = map(row_of, rows)
    return [head, spelled("─", encoding) * _wide(head), *others]


def _listed(header: Sequence[str], row: Sequence[str], screen: Screen) -> str:
    """A row of a table that is too wide: its cells below each other, but for empty ones."""
    cells = [f"  {name}  {cell}" for name, cell in zip(header[1:], row[1:], strict=True) if cell]
    return "\n".join(folded(text, screen.width) for text in (row[0] or header[0], *cells))


def folded(text: str, width: int | None, whole_words: bool = False) -> str:
    """A line, broken between words where a screen is too narrow for it, and within words that are wider than that
    unless they are to stay whole, as paths that are copied."""
    if width is None or _wide(text) <= width:
        return text
    from rich.cells import chop_cells

    start = text[: len(text) - len(text.lstrip())][: width // 3]
    further = f"{start}    "
    lines, line = [], start
    for word in re.findall(r" *[^ ]+", text.strip()):
        if line.strip() and _wide(line + word) > width:
            lines.append(line)
            line = further
        line += word if line.strip() else word.strip()
        if not whole_words and _wide(line) > width:
            indent = further if lines else start
            *whole, rest = chop_cells(line.strip(), width - len(further))
            lines += [indent + part for part in whole]
            line = further + rest
    return "\n".join([*lines, line])


def remarks(texts: Iterable[str], screen: Screen = WHOLE) -> str:
    """What stands below a table, a line each."""
    return "".join(f"{folded(f'  {one_line(text)}', screen.width)}\n" for text in texts)


def titled(text: str, form: Format, screen: Screen = WHOLE) -> str:
    """A line above tables."""
    if form == "table":
        return f"{folded(one_line(text), screen.width)}\n"
    return f"## {markdown(text)}\n" if form == "markdown" else f"% {one_line(text)}\n"


def noted(texts: Iterable[str], form: Format, screen: Screen = WHOLE) -> str:
    """What stands below a table in a format that is read by people, a line each."""
    if form == "table":
        return remarks(texts, screen)
    return "".join(f"- {markdown(text)}\n" if form == "markdown" else f"% {one_line(text)}\n" for text in texts)


def _wide(text: str) -> int:
    """Columns of a terminal: letters of Chinese take two, marks above others none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _markdown(table: Table) -> str:
    def row_of(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    bold = [
        [f"**{markdown(cell)}**" if table.is_bold(i, j) else markdown(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(_marked(table))
    ]
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    header = row_of([markdown(cell) for cell in table.header])
    return "\n".join([f"**{markdown(table.title)}**", "", header, row_of(rule), *map(row_of, bold)]) + "\n"


def markdown(text: str) -> str:
    """Text as Markdown in which it is nothing but itself: no HTML, link, picture, code or formula."""
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), one_line(text))


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return text.translate(LATEX)

    lines = [f"% {table.title}", f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(escape, table.header)) + " \\\\", "\\midrule"]
    for i, row in enumerate(_marked(table)):
        cells = [f"\\textbf{{{escape(c)}}}" if table.is_bold(i, j) else escape(c) for j, c in enumerate(row)]
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def csv_block(evaluation: str, table: Table) -> str:
    """One block per table, with the evaluation's fingerprint and the table's title in front of every row, and what is
    marked in columns of its own."""
    marked = sorted({column for _, column in table.marks})
    header = ["evaluation", "table", *table.header, *(f"mark of {table.header[j]}" for j in marked)]
    rows = [
        [evaluation, table.title, *row, *(table.marks.get((i, j), "") for j in marked)]
        for i, row in enumerate(table.rows)
    ]
    return csv_text([header, *rows])


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV in which every text is data: an apostrophe stands before what a spreadsheet would compute."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return buffer.getvalue()


def _csv_cell(text: str) -> str:
    mark = "'" if FORMULA.match(text) and not NUMBERS.fullmatch(text) else ""
    return mark + visible(text)
