"""Progress for people: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


class Progress:
    """One stage at a time: a name, a total, and numbers worth showing. Writes to stderr."""

    def __init__(self, quiet: bool = False) -> None:
        self._live: Any = None
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._task: Any = None
        self._name, self._total, self._done, self._first = "", 0, 0, 0
        self._started = self._last = 0.0

    def __enter__(self) -> Progress:
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Live

            columns = (
                TextColumn("{task.description:10}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._live = Live(*columns, console=Console(stderr=True))
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps of which `done` were done before."""
        self._name, self._total, self._done, self._first = name, total, done, done
        self._started, self._last = time.monotonic(), 0.0
        if self._live is not None:
            self._task = self._live.add_task(name, total=total, completed=done, numbers="")

    def skip(self, n: int) -> None:
        """n more steps were done before: they say nothing about how long the others take."""
        self._done, self._first = self._done + n, self._first + n
        if self._live is not None:
            self._live.update(self._task, advance=n)

    def advance(self, n: int = 1, **numbers: float | None) -> None:
        """n more steps are done; numbers that are None are left out."""
        self._done += n
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)
        if self._live is not None:
            self._live.update(self._task, advance=n, numbers=shown)
            return
        now = time.monotonic()
        if self._quiet or (self._done < self._total and now - self._last < PLAIN_SECONDS):
            return
        self._last = now
        left = (now - self._started) / max(1, self._done - self._first) * (self._total - self._done)
        ending = f"  about {left:.0f} s left" if self._done < self._total else ""
        print(f"{self._name} {self._done}/{self._total}  {shown}{ending}".rstrip(), file=sys.stderr, flush=True)
