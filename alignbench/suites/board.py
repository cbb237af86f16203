"""The table of a suite's cells while they run: a live one on a terminal, a line for each new state elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alignbench.printed import drawing, one_line, spelled
from alignbench.suites.child import last_line
from alignbench.suites.plan import STATES, Row

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PLAIN_SECONDS = 60.0  # between two lines on what runs, where there is no terminal
DRAWN_SECONDS = 0.5  # between two looks at the logs, where there is one
RESERVED = 6  # lines of a terminal that are not the table's


class Board:
    """What becomes of the rows, on stderr."""

    def __init__(self, rows: Sequence[Row], quiet: bool = False) -> None:
        self._rows, self._quiet = rows, quiet
        self._live: Live | None = None
        self._terminal = not quiet and sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> Board:
        if self._terminal:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=drawing(sys.stderr))
            self._live = Live(table(self._rows, console.height), console=console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(table(self._rows, self._live.console.height), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(one_line(text), highlight=False, markup=False)
        elif not self._quiet:
            print(spelled(one_line(text), sys.stderr.encoding), file=sys.stderr, flush=True)

    def told(self, row: Row) -> None:
        """A row's state is new."""
        if self._live is not None:
            self._last = 0.0
        else:
            self.say(f"[{row.number}/{len(self._rows)}] {row.text}: {what(row)}")

    def looked(self) -> None:
        """Time has passed."""
        now = time.monotonic()
        if now - self._last < (PLAIN_SECONDS if self._live is None else DRAWN_SECONDS):
            return
        self._last = now
        if self._live is not None:
            self._live.update(table(self._rows, self._live.console.height), refresh=True)
            return
        running = [row for row in self._rows if row.state == "running" and row.job is not None]
        how_far = "; ".join(f"{row.text} ({last_line(row.job.log)})" for row in running if row.job is not None)
        self.say(f"{counts(self._rows)}{'; ' if how_far else ''}{how_far}")


def what(row: Row) -> str:
    """A row's state with its reason, how long it took, and where its result is."""
    reason = f" ({row.reason})" if row.reason else ""
    if row.state == "running":
        return f"running{f', try {row.tries}' if row.tries > 1 else ''}"
    if row.state == "failed":
        return f"failed: {row.reason}"
    if row.state == "done":
        return f"{'already complete' if row.was_there else f'done in {row.seconds:.0f} s'}  {row.path}"
    return f"{row.state}{reason}" + (f"  {row.path}" if row.state == "unsupported" else "")


def counts(rows: Sequence[Row]) -> str:
    """How many rows are in each state."""
    found = [(state, sum(row.state == state for row in rows)) for state in STATES]
    cells = "1 cell" if len(rows) == 1 else f"{len(rows)} cells"
    return f"{cells}: " + ", ".join(f"{count} {state}" for state, count in found if count)


def table(rows: Sequence[Row], height: int) -> Table:
    """The rows that fit a terminal of so many lines: what runs, then what failed, then what is next, then the rest."""
    from rich.table import Column, Table
    from rich.text import Text

    order: dict[Any, int] = {state: i for i, state in enumerate(("running", "interrupted", "failed", "waiting"))}
    room = max(1, height - RESERVED)
    shown = sorted(rows, key=lambda row: order.get(row.state, len(order)))[:room]
    drawn = Table(
        Column("", justify="right"),
        Column("state", no_wrap=True),
        Column("cell", no_wrap=True, overflow="ellipsis", ratio=3),
        Column("", no_wrap=True, overflow="ellipsis", ratio=2),
        box=None,
        caption=counts(rows),
        caption_justify="left",
        expand=True,
    )
    for row in sorted(shown, key=lambda row: row.number):
        drawn.add_row(*(Text(one_line(part)) for part in (str(row.number), row.state, row.text, _beside(row))))
    return drawn


def _beside(row: Row) -> str:
    if row.state == "running" and row.job is not None:
        return f"{time.monotonic() - row.began:.0f} s  {last_line(row.job.log)}"
    if row.state == "done":
        return "already complete" if row.was_there else f"{row.seconds:.0f} s"
    return row.reason or ""
