"""Progress for people: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alignbench.meter import Meter
from alignbench.printed import drawing, guard, one_line, spelled

if TYPE_CHECKING:
    from rich.progress import Progress as Live

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
NAME, BAR, LEFT = 10, 24, 7  # columns of a stage's name, of its bar and of the time left
WIDE = 72  # columns of a terminal with room for a bar
ALMOST = 0.99  # of what is under way is the most that is shown as done before it is


class Progress:
    """One stage at a time: a name, a total, and numbers worth showing. Writes to stderr.

    A step may take minutes. What moves within it is the count of evaluations, of a meter that is followed: it is shown,
    and once a step is done it says how far the next one is. Count and time left come first, and numbers as far as there
    is room.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._live: Live | None = None
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._task: Any = None
        self._name, self._total, self._done, self._first = "", 0, 0, 0
        self._started = self._last = 0.0
        self._meter: Meter | None = None
        self._used_before = 0  # at the beginning of this step
        self._per_step, self._at_once = 0.0, 0  # what the last steps have used, each, and how many there were
        self._numbers: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if self._terminal:
            self._live = _live(sys.stderr)
            self._live.start()
            self._redirected = contextlib.ExitStack()  # over what rich has put there, which prints above the bar
            self._redirected.enter_context(contextlib.redirect_stdout(guard(sys.stdout)))
            self._redirected.enter_context(contextlib.redirect_stderr(guard(sys.stderr)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._redirected.close()
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(one_line(text), highlight=False, markup=False)
        elif not self._quiet:
            self._write(text)

    def follow(self, meter: Meter) -> None:
        """From now on show what a meter counts, which grows within a step."""
        self._meter, meter.moved = meter, self._moved

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps of which `done` were done before."""
        self._name, self._total, self._done, self._first = name, total, done, done
        self._started, self._last = time.monotonic(), 0.0
        self._per_step, self._numbers = 0.0, {}
        self._step_begins()
        if self._live is not None:
            count, numbers = self._texts()
            self._task = self._live.add_task(one_line(name), total=total, completed=done, count=count, numbers=numbers)

    def skip(self, n: int) -> None:
        """n more steps were done before: they say nothing about how long the others take."""
        self._done, self._first = self._done + n, self._first + n
        self._step_begins()
        if self._live is not None:
            self._draw()

    def advance(self, n: int = 1, **numbers: float | None) -> None:
        """n more steps are done; numbers that are None are left out."""
        self._done += n
        self._per_step, self._at_once = self._used() / max(1, n), n
        self._step_begins()
        self._numbers = {name: value for name, value in numbers.items() if value is not None}
        if self._live is not None:
            self._draw()
        else:
            self._plain_line(self._last if self._done < self._total else -math.inf)

    def _moved(self) -> None:
        """Something was used within a step."""
        if self._quiet or self._done >= self._total:
            return
        if self._live is not None:
            self._draw()
        else:
            self._plain_line(max(self._started, self._last))

    def _step_begins(self) -> None:
        self._used_before = self._evaluations()

    def _used(self) -> int:
        """Evaluations within this step; a measurement that is no part of the cost takes them back."""
        return max(0, self._evaluations() - self._used_before)

    def _evaluations(self) -> int:
        return 0 if self._meter is None else self._meter.total.evaluations

    def _within(self) -> float:
        """How many of the steps that are under way are done, as far as the last ones tell."""
        under_way = min(self._at_once, self._total - self._done)
        return min(ALMOST * under_way, self._used() / self._per_step) if self._per_step else 0.0

    def _shown(self) -> list[str]:
        """The numbers worth showing, the first ones also where there is little room."""
        used = self._used()
        shown = [f"{one_line(name)} {value:.4g}" for name, value in self._numbers.items()]
        return [f"{used:,} evaluations", *shown] if used else shown

    def _draw(self) -> None:
        """Bring the live line up to date."""
        assert self._live is not None
        count, numbers = self._texts()
        self._live.update(self._task, completed=self._done + self._within(), count=count, numbers=numbers)

    def _texts(self) -> tuple[str, str]:
        """What the live line says: the count of steps that are kept, and as many whole numbers as there is room for."""
        assert self._live is not None
        width, counts = self._live.console.width, 2 * len(str(self._total)) + 1
        bar = BAR + 1 if width >= WIDE else 0
        room = width - max(NAME, len(self._name)) - bar - counts - LEFT - 3
        texts = self._shown()
        while texts and len("  ".join(texts)) > room:
            texts.pop()
        if not texts and self._used():
            texts = [f"+{self._used()}"]
        return f"{self._done:{len(str(self._total))}}/{self._total}", "  ".join(texts)

    def _plain_line(self, last: float) -> None:
        now = time.monotonic()
        if self._quiet or now - last < PLAIN_SECONDS:
            return
        self._last = now
        done = self._done + self._within()
        parts = [f"{self._name} {self._done}/{self._total}"]
        if self._done < self._total and done > self._first:
            left = (now - self._started) / (done - self._first) * (self._total - done)
            parts.append(f"about {left:.0f} s left")
        self._write("  ".join([*parts, *self._shown()]))

    def _write(self, text: str) -> None:
        print(spelled(one_line(text), sys.stderr.encoding), file=sys.stderr, flush=True)


def _live(stream: Any) -> Live:
    """The line on a terminal: what must not be cut stands in front."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Live
    from rich.table import Column

    console, whole = Console(file=drawing(stream)), Column(no_wrap=True)
    columns: list[ProgressColumn] = [
        TextColumn(f"{{task.description:{NAME}}}", markup=False, table_column=whole),
        TextColumn("{task.fields[count]}", markup=False, table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True, overflow="crop")),
    ]
    if console.width >= WIDE:
        columns.insert(1, BarColumn(bar_width=BAR, table_column=whole))
    return Live(*columns, console=console)
