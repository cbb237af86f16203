"""The one way a cell of a suite is run: `alignbench run` in a process of its own, whose output is a log file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignbench import children
from alignbench.errors import RunError
from alignbench.files import explained, make_folder
from alignbench.locks import claim, in_use
from alignbench.printed import one_line

GRACE = 20.0  # seconds that a child has to end by itself; a batch system gives its jobs 30
LOOK = 0.1  # seconds between two looks at a child
HEADER = "== "  # how a log begins to tell of a try
ERROR = "alignbench: "  # how the line begins that says why a command failed
TAIL = 4096  # bytes at the end of a log in which its last lines are


@dataclass(frozen=True)
class Order:
    """A cell that is to be run, as it can be sent to another machine."""

    text: str  # the cell in a line
    options: Mapping[str, Any]  # of `alignbench run`
    folder: Path  # the current one, absolute
    log: Path
    cell: Path  # the cell's own folder
    safe_path: bool
    attempt: int
    threads: int | None = None
    cards: tuple[str, ...] | None = None
    processes: int = 1


@dataclass(frozen=True)
class Ended:
    """How a try at a cell ended: the exit code of its process, minus the signal that killed it; None where there was no
    process, or it was lost with its worker."""

    code: int | None
    reason: str | None = None
    held_by: str | None = None  # another process that works on the cell: nothing was tried

    @property
    def is_death(self) -> bool:
        """Whether the process was ended, and did not end: another try goes on from where it was."""
        return self.held_by is None and (self.code is None or self.code not in (0, 1, 2))


class Gone(RunError):
    """The engine that runs the cells is no longer there."""


class Held(Exception):
    """Another suite has started a cell, which does not hold its folder yet."""


class Child:
    """A cell's process. Its log is locked as long as it lives, so that no other suite starts the same cell."""

    def __init__(self, order: Order) -> None:
        """Start it. Raises Held where another suite has."""
        import yaml

        make_folder(order.log.parent)
        with explained(order.log):
            log = open(order.log, "ab")  # noqa: SIM115
        with log:
            if not claim(log):
                raise Held("another suite")
            self._options = tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8")  # noqa: SIM115
            yaml.safe_dump(dict(order.options), self._options, allow_unicode=True)
            self._options.flush()
            several = ["--processes", str(order.processes)] if order.processes > 1 else []
            words = children.command(["run", "--config", self._options.name, *several], order.safe_path)
            log.write(_header(order).encode())
            log.flush()
            self._process = subprocess.Popen(
                words,
                cwd=order.folder,
                env=children.environment(order.threads and max(1, order.threads // order.processes), order.cards),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for who started it, and it ends its children
            )

    def poll(self) -> Ended | None:
        """How it ended; None while it runs."""
        if self._process.poll() is None:
            return None
        self._clear()
        return Ended(self._process.returncode)

    def ask_to_end(self) -> None:
        """Tell it to end, which it may do in an order of its own."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)

    def end(self, until: float) -> None:
        """Wait until it has ended; at that time, of `time.monotonic`, kill it."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where somebody loses patience
            self._clear()

    def _clear(self) -> None:
        """Leave nothing: neither what the process may have started itself, nor its file of options."""
        if self._options.closed:
            return
        self._options.close()
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def run_child(order: Order, looking: Callable[[], None] = lambda: None) -> Ended:
    """Run a cell to its end, unless another process has it at this moment. An interrupt ends it too."""
    if holder := in_use(order.cell):
        return Ended(None, held_by=holder)
    try:
        child = Child(order)
    except Held as error:
        return Ended(None, held_by=str(error))
    try:
        while (ended := child.poll()) is None:
            looking()
            time.sleep(LOOK)
        return ended
    finally:
        child.ask_to_end()
        child.end(time.monotonic() + GRACE)


def last_line(log: Path) -> str:
    """What a log says at its end; empty where this try says nothing yet."""
    lines = [line for line in _tail(log) if line.strip()]
    if lines and lines[-1].startswith(HEADER):
        return ""
    return one_line(lines[-1].strip()) if lines else ""


def why(log: Path) -> str | None:
    """The line of a log that says why its command failed."""
    said = [line.removeprefix(ERROR) for line in _tail(log) if line.startswith(ERROR)]
    return one_line(said[-1].strip()) if said else None


def _tail(log: Path) -> list[str]:
    try:
        with open(log, "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - TAIL))
            return handle.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _header(order: Order) -> str:
    """What a try begins its log with: when and where, and the options, which `--config` takes."""
    import yaml

    now = datetime.now(UTC).isoformat(timespec="seconds")
    threads = "" if order.threads is None else f", {order.threads} threads"
    cards = "" if order.cards is None else f", GPU {','.join(order.cards) or 'none'}"
    options = yaml.safe_dump(dict(order.options), default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return f"{HEADER}{now} on {socket.gethostname()}, try {order.attempt}{threads}{cards}: {options}\n"
