"""Running the rows of a suite on an engine: each once, again where its process died, later where another has it.

Two suites on one folder share its cells: a cell that another process works on is left until it is free, and the
others are done first.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from alignbench.asking.suite import explained
from alignbench.errors import AlignbenchError
from alignbench.experiment.diversity import LATENTS
from alignbench.locks import in_use
from alignbench.suites.child import Ended, Gone, Held, why
from alignbench.suites.local import Engine
from alignbench.suites.plan import Job, Row, State, settled

TRIES = 3  # at a cell whose process dies: a worker that was killed, a node that was lost
PAUSE = 0.1  # seconds between two looks at the engine
HELD = 1.0  # and at a cell that another process works on

Told = Callable[[Row], None]


class Terminated(KeyboardInterrupt):
    """The process was told to end, by a batch system or by hand."""


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Within, SIGTERM is raised as Terminated, so that what was started is ended too."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_rows(rows: Sequence[Row], engine: Engine, told: Told, looked: Callable[[], None]) -> None:
    """Run every row that waits. `told` hears of a row whenever its state is new, `looked` is called between. Raises
    InputError, before anything is started, for a row that no machine can hold, and Gone; that, or an interrupt, ends
    what runs."""
    running = _Running(rows, engine, told)
    try:
        engine.check([row.job for row in running.waiting if row.job is not None])
        while running.waiting or running.started:
            running.look()
            looked()
            time.sleep(PAUSE)
    except (KeyboardInterrupt, Gone):
        running.interrupted()
        raise
    finally:
        engine.stop()


class _Running:
    """Rows that wait, and those that were started."""

    def __init__(self, rows: Sequence[Row], engine: Engine, told: Told) -> None:
        self.engine, self.told = engine, told
        waiting = [row for row in rows if row.state == "waiting"]
        self.waiting = sorted(waiting, key=lambda row: row.job is not None and row.job.is_timed)
        self.started: dict[int, Row] = {}  # by the job's id

    def look(self) -> None:
        """Start what can be started, and take what has ended."""
        for row in list(self.waiting):
            assert row.job is not None
            if time.monotonic() >= row.look_again and self.engine.fits(row.job) and not self.is_beside_timed(row.job):
                self.try_to_start(row, row.job)
        for job, ended in self.engine.ended():
            self.take(self.started.pop(id(job)), job, ended)
        for row in self.started.values():
            if row.state == "waiting" and row.job is not None and self.engine.is_running(row.job):
                row.began = time.monotonic()
                self.change(row, "running")

    def interrupted(self) -> None:
        """Say of what runs that it was interrupted."""
        for row in self.started.values():
            if row.state == "running":
                self.change(row, "interrupted", "the same command continues it")

    def change(self, row: Row, state: State, reason: str | None = None) -> None:
        if row.state == "running":
            row.seconds += time.monotonic() - row.began
        row.state, row.reason = state, reason
        self.told(row)

    def is_beside_timed(self, job: Job) -> bool:
        """Whether a timed job is under way: what a second comes to is measured once, and not by two at a time."""
        others = [row.job for row in self.started.values()]
        return job.is_timed and any(other is not None and other.is_timed for other in others)

    def try_to_start(self, row: Row, job: Job) -> None:
        """Start a row, unless its result is there or another process has it."""
        if self.is_final(row, job):
            self.waiting.remove(row)
        elif holder := in_use(job.work.folder):
            self.leave(row, holder)
        else:
            try:
                self.engine.start(job, row.tries + 1)
            except Gone:
                raise
            except Held as error:
                self.leave(row, str(error))
                return
            except (AlignbenchError, OSError) as error:  # such as a full disk, or no room for another process
                self.waiting.remove(row)
                self.change(row, "failed", explained(error))
                return
            row.tries += 1
            self.waiting.remove(row)
            self.started[id(job)] = row

    def leave(self, row: Row, holder: str) -> None:
        """Leave a row to the process that works on it, and see later what became of it."""
        row.look_again, before = time.monotonic() + HELD, row.reason
        reason = f"in use by {holder}"
        if reason != before:
            self.change(row, "waiting", reason)

    def is_final(self, row: Row, job: Job) -> bool:
        """Whether there is nothing left to do for a row; its state then says so."""
        found = settled(job)
        if found is None:
            return False
        if found.is_there:
            job.work.settle(passing=LATENTS)
            row.was_there = row.tries == 0
        self.change(row, found.state, found.reason)
        return True

    def take(self, row: Row, job: Job, ended: Ended) -> None:
        """What becomes of a row whose process has ended."""
        if ended.held_by is not None:
            row.tries -= 1
            self.waiting.append(row)
            self.leave(row, ended.held_by)
        elif self.is_final(row, job):
            return
        elif ended.is_death and row.tries < TRIES:
            self.waiting.insert(0, row)
            self.change(row, "waiting", f"{_how(ended)}; it goes on from its checkpoint")
        elif ended.is_death:
            self.change(row, "failed", f"{_how(ended)}, as {TRIES - 1} times before; see {job.log}")
        elif ended.code == 0:
            what = "its process ended well, and its result is not there"
            self.change(row, "failed", f"{what}: a file that it reads has changed; type the same command again")
        else:
            self.change(row, "failed", ended.reason or why(job.log) or f"exit code {ended.code}; see {job.log}")


def _how(ended: Ended) -> str:
    """How a process died."""
    if ended.reason is not None:
        return ended.reason
    if ended.code is not None and ended.code < 0:
        return f"its process was killed by {signal.Signals(-ended.code).name}"
    return f"its process died with exit code {ended.code}"
