"""Cells on a Ray cluster: one that is running, or one of this machine alone that ends with the suite.

Ray finds the machine and its GPUs, and tells when a worker or a node is lost. What is tried again, and how often, is
the suite's own, as everywhere. Nodes have the same code, versions and folders, which is asked before anything runs.
All that Ray is asked is asked by a process of its own (`driver`), so that nothing waits for a cluster that is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alignbench import children
from alignbench.errors import InputError, said
from alignbench.files import write_text
from alignbench.suites import node
from alignbench.suites.child import GRACE, TAIL, Ended, Gone
from alignbench.suites.driver import LOOKED, Asked, Task
from alignbench.suites.orders import Orders
from alignbench.suites.plan import Job

JOINS = 600.0  # seconds for Ray to start, and its nodes to say what they have
QUIET = LOOKED + 5.0  # seconds without a word, after which the head is called; no more is asked before it answers
SILENCE = 40.0  # and after which the cluster counts as gone
LEAVES = GRACE + 20.0  # seconds for the cells to end, and Ray
LEAVES_EARLY = 10.0  # and where none has begun
STOPPED = 1.0  # a longer time between two looks counts as this: this process was stopped itself
AHEAD = 8  # jobs that may wait in Ray
TOKEN = ".suite-"  # how the name of a file begins that says whether a folder is shared


class Line:
    """The process that speaks to Ray, and the line to it."""

    def __init__(self, safe_path: bool) -> None:
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        words = [*children.calling("alignbench.suites.driver", safe_path), str(theirs.fileno())]
        self._process = subprocess.Popen(
            words,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which tells the other
        )
        theirs.close()
        self._connection = Connection(ours.detach())

    def tell(self, word: str, what: Any = None) -> None:
        """Raises OSError where nobody listens."""
        self._connection.send((word, what))

    def heard(self, seconds: float = 0.0) -> tuple[str, Any] | None:
        """What was said, once it is, within so many seconds. Raises EOFError or OSError at the end of the line."""
        return self._connection.recv() if self._connection.poll(seconds) else None

    def last_words(self) -> str:
        """The last line that the process printed."""
        number = self._said.fileno()  # whose place in the file is the other process's too
        written = os.pread(number, TAIL, max(0, os.fstat(number).st_size - TAIL))
        lines = written.decode(errors="replace").strip().splitlines()
        return said(Exception(lines[-1]))[-100:] if lines else "Ray ended without a word"

    def end(self, seconds: float) -> None:
        """Wait until the process has ended; kill it after so many seconds, with all that it has started."""
        self._connection.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where somebody loses patience
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Cluster:
    """A Ray cluster."""

    def __init__(self, orders: Orders, address: str | None, at_once: int | None, jobs: Sequence[Job]) -> None:
        """Connect to the cluster at an address, HOST:PORT, or start one here. Raises InputError where there is none,
        or a node cannot run these jobs as this machine would."""
        self._orders, self._address, self._at_once = orders, address, at_once
        self._running: dict[int, Job] = {}  # by number
        self._logs: dict[int, int] = {}  # by the job's id: how long its log was before
        self._ends: list[tuple[Job, Ended]] = []  # that nobody has asked for yet
        self._count, self._gone = 0, False
        self._nodes, self._had_gpus = list[dict[str, Any]](), False
        self._silent, self._asked, self._called = 0.0, time.monotonic(), 0.0
        self._tokens: dict[Path, str] = {}
        folders = sorted({orders.folder / job.path.parent for job in jobs})
        self._new = [folder for folder in folders if not folder.exists()]
        for folder in folders:
            self._tokens[folder / f"{TOKEN}{secrets.token_hex(4)}"] = secrets.token_hex(16)
        self._line = Line(orders.safe_path)
        try:
            for path, token in self._tokens.items():
                write_text(path, token)
            self._line.tell("join", Asked(address, orders.folder, self._tokens, node.made_of()))
            self._head = self._joined()
        except BaseException:
            self._close(LEAVES_EARLY)
            raise

    def describe(self) -> str:
        cpus, gpus = (int(sum(found.get(name, 0) for found in self._resources)) for name in ("CPU", "GPU"))
        nodes = f"{len(self._nodes)} nodes" if len(self._nodes) != 1 else "1 node"
        return f"on the Ray cluster {self._where} ({nodes}, {cpus} CPUs, {gpus} GPUs)"

    def check(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            cpus, gpus = self._cpus(job), job.gpus(self._had_gpus)
            if not any(found.get("CPU", 0) >= cpus and found.get("GPU", 0) >= gpus for found in self._resources):
                most = int(max(found.get("GPU", 0) for found in self._resources))
                raise InputError(f"{job.text} asks for {gpus} GPUs and {cpus} CPUs; the largest node has {most} GPUs.")

    def fits(self, job: Job) -> bool:
        """Whether Ray is to have one more job: a few wait there, which a cluster that grows takes as a wish."""
        self._listen()
        cpus = int(sum(found.get("CPU", 0) for found in self._resources))
        return self._silent < QUIET and len(self._running) < (self._at_once or cpus + AHEAD)

    def start(self, job: Job, attempt: int) -> None:
        cpus, gpus = self._cpus(job), job.gpus(self._had_gpus)
        # Ray shows a task with GPUs just those, and one without all of them.
        order = self._orders.of(job, attempt, cpus, None if gpus else ())
        self._logs[id(job)] = _size(order.log)
        self._count += 1
        try:
            self._line.tell("run", Task(self._count, order, cpus, gpus))
        except OSError as error:
            raise self._lost(self._line.last_words()) from error
        self._running[self._count] = job

    def is_running(self, job: Job) -> bool:
        """Whether the job's log has grown: that is the first thing a try does, wherever it is."""
        return _size(self._orders.folder / job.log) > self._logs[id(job)]

    def ended(self) -> list[tuple[Job, Ended]]:
        self._listen()
        found, self._ends = self._ends, []
        if any(ended.is_death for _, ended in found):
            self._call_head()
        return found

    def stop(self) -> None:
        self._close(0.0 if self._gone else LEAVES)

    @property
    def _where(self) -> str:
        return f"at {self._address}" if self._address else "of this machine"

    def _joined(self) -> str:
        """Wait until the cluster is joined; the address of its head."""
        try:
            found = self._line.heard(JOINS)
        except (EOFError, OSError) as error:
            raise InputError(f"--on ray: {self._line.last_words()}") from error
        if found is None:
            raise InputError(
                f"--on ray: the cluster {self._where} is not ready within {JOINS:.0f} s; see `ray status`."
            )
        word, what = found
        if word == "refused":
            raise InputError(what)
        head, nodes = what
        self._see(nodes)
        return str(head)

    def _listen(self) -> None:
        """Take in what was said since. Raises Gone."""
        now = time.monotonic()
        self._silent, self._asked = self._silent + min(now - self._asked, STOPPED), now
        try:
            while (found := self._line.heard()) is not None:
                self._silent = 0.0
                self._take(*found)
        except (EOFError, OSError) as error:
            self._call_head()
            raise self._lost(self._line.last_words()) from error
        if self._silent > SILENCE:
            raise self._lost("it does not answer")
        if self._silent > QUIET and now - self._called > LOOKED:
            self._call_head()

    def _take(self, word: str, what: Any) -> None:
        if word == "nodes":
            self._see(what)
        elif word == "ended":
            number, ended = what
            self._ends.append((self._running.pop(number), ended))
        else:
            raise self._lost(what)

    def _see(self, nodes: list[dict[str, Any]]) -> None:
        self._nodes = nodes
        # Where all GPUs of a cluster are lost, cells wait for others and do not go to processors.
        self._had_gpus |= any(bool(found.get("GPU", 0)) for found in self._resources)

    def _call_head(self) -> None:
        """Raise Gone where nobody listens at the head's address."""
        self._called = time.monotonic()
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LOOKED).close()
        except OSError as error:
            raise self._lost(said(error)[:100]) from error

    def _lost(self, reason: str) -> Gone:
        self._gone = True
        return Gone(f"the head of the Ray cluster {self._where} is gone ({reason}); the same command continues.")

    @property
    def _resources(self) -> list[dict[str, float]]:
        return [found["Resources"] for found in self._nodes]

    def _cpus(self, job: Job) -> int:
        """CPUs that a job takes, which are its threads: its GPU's share of a node's, or one; all where it is timed."""
        gpus = job.gpus(self._had_gpus)
        if gpus:
            nodes = [found for found in self._resources if found.get("GPU", 0) >= gpus]
            return max(1, min((int(n.get("CPU", 1) / n["GPU"] * gpus) for n in nodes), default=1))
        if job.is_timed:
            return int(max((found.get("CPU", 1) for found in self._resources), default=1))
        return max(1, children.cores() // self._at_once) if self._at_once and self._address is None else 1

    def _close(self, patience: float) -> None:
        """Leave the cluster within so many seconds, and take away the tokens, and folders that are empty as before."""
        with contextlib.suppress(OSError):
            self._line.tell("stop")
        try:
            self._line.end(patience)
        finally:
            for path in self._tokens:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            for folder in self._new:
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
