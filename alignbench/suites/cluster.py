"""Cells on a Ray cluster: one that is running, or one of this machine alone that ends with the suite.

Ray finds the machine and its GPUs, and tells when a worker or a node is lost. What is tried again, and how often, is
the suite's own, as everywhere. Nodes have the same code, versions and folders, which is asked before anything runs.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignbench import children
from alignbench.errors import InputError, said
from alignbench.files import write_text
from alignbench.suites import node
from alignbench.suites.child import GRACE, Ended, Gone
from alignbench.suites.orders import Orders
from alignbench.suites.plan import Job

# Ray reads these when it is imported: a token is asked of whoever connects, and nothing is reported to its makers.
SETTINGS = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
MEMORY = 100 << 20  # bytes of a store through which nothing large goes
ANSWER = 20.0  # seconds within which a cluster says that it is there
ASKED = 120.0  # and within which a node says what it has: its first worker has to start
LOOKED = 5.0  # seconds between two looks at which nodes there are
AHEAD = 8  # jobs that may wait in Ray
TOKEN = ".suite-"  # how the name of a file begins that says whether a folder is shared
START_ONE = "start one with `ray start --head`"
WHOSE_TOKEN = "share the file ~/.ray/auth_token of the head node, or set RAY_AUTH_TOKEN_PATH"


class Cluster:
    """A Ray cluster."""

    def __init__(self, orders: Orders, address: str | None, at_once: int | None, jobs: Sequence[Job]) -> None:
        """Connect to the cluster at an address, HOST:PORT, or start one here. Raises InputError where there is none,
        or a node cannot run these jobs as this machine would."""
        self._orders, self._address, self._at_once = orders, address, at_once
        self._running: dict[Any, Job] = {}  # by Ray's reference
        self._logs: dict[int, int] = {}  # by the job's id: how long its log was before
        self._looked, self._nodes, self._had_gpus = 0.0, list[dict[str, Any]](), False
        self._reached, self._gone = 0.0, False
        self._ray = _ray()
        self._connect()
        self._head = str(self._ray.get_runtime_context().gcs_address)
        self._tokens: dict[Path, str] = {}
        self._made_of = node.made_of()
        try:
            self._look()
            for folder in sorted({orders.folder / job.path.parent for job in jobs}):
                self._tokens[folder / f"{TOKEN}{secrets.token_hex(4)}"] = secrets.token_hex(16)
            for path, token in self._tokens.items():
                write_text(path, token)
            self._ask_nodes()
        except BaseException:
            self._close()
            raise

    def describe(self) -> str:
        cpus, gpus = (int(sum(found.get(name, 0) for found in self._resources)) for name in ("CPU", "GPU"))
        where = f"at {self._address}" if self._address else "of this machine"
        nodes = f"{len(self._nodes)} nodes" if len(self._nodes) != 1 else "1 node"
        return f"on the Ray cluster {where} ({nodes}, {cpus} CPUs, {gpus} GPUs)"

    def check(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            cpus, gpus = self._cpus(job), job.gpus(self._has_gpus)
            if not any(found.get("CPU", 0) >= cpus and found.get("GPU", 0) >= gpus for found in self._resources):
                most = int(max(found.get("GPU", 0) for found in self._resources))
                raise InputError(f"{job.text} asks for {gpus} GPUs and {cpus} CPUs; the largest node has {most} GPUs.")

    def fits(self, job: Job) -> bool:
        """Whether Ray is to have one more job: a few wait there, which a cluster that grows takes as a wish."""
        if time.monotonic() - self._looked > LOOKED:
            self._look()
        cpus = int(sum(found.get("CPU", 0) for found in self._resources))
        return len(self._running) < (self._at_once or cpus + AHEAD)

    def start(self, job: Job, attempt: int) -> None:
        self._reach_head(at_once=True)
        cpus, gpus = self._cpus(job), job.gpus(self._has_gpus)
        # Ray shows a task with GPUs just those, and one without all of them.
        order = self._orders.of(job, attempt, cpus, None if gpus else ())
        task = self._ray.remote(node.run_here).options(num_cpus=cpus, num_gpus=gpus, max_retries=0, name=job.path.stem)
        self._logs[id(job)] = _size(order.log)
        self._running[task.remote(order, self._tokens, self._made_of)] = job

    def is_running(self, job: Job) -> bool:
        """Whether the job's log has grown: that is the first thing a try does, wherever it is."""
        return _size(self._orders.folder / job.log) > self._logs[id(job)]

    def ended(self) -> list[tuple[Job, Ended]]:
        if not self._running:
            return []
        self._reach_head()
        try:
            found, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        except (self._ray.exceptions.RaySystemError, ConnectionError) as error:
            raise self._lost(said(error)[:100]) from error
        ends = [(self._running.pop(reference), self._outcome(reference)) for reference in found]
        if any(ended.is_death for _, ended in ends):
            self._reach_head(at_once=True)
        return ends

    def stop(self) -> None:
        if self._gone:
            self._forget()
            return
        try:
            for reference in self._running:
                self._ray.cancel(reference)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE + 5)
        finally:
            self._running = {}
            self._close()

    def _connect(self) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        here = {"num_cpus": children.cores(), "include_dashboard": False, "object_store_memory": MEMORY}
        if self._address is not None:
            _check_answers(self._address)
        try:
            self._ray.init(
                address=self._address or "local",
                logging_level="error",
                log_to_driver=False,
                **({} if self._address else here),
            )
        except (RuntimeError, ConnectionError, ValueError, self._ray.exceptions.RayError) as error:
            raise InputError(f"--on ray: {said(error)[:300]}") from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process where it stands

    def _reach_head(self, at_once: bool = False) -> None:
        """Raise Gone where the head no longer answers: Ray waits for it and then ends the process itself."""
        if time.monotonic() - self._reached < LOOKED and not at_once:
            return
        self._reached = time.monotonic()
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        except OSError as error:
            raise self._lost(said(error)[:100]) from error

    def _lost(self, reason: str) -> Gone:
        self._gone = True
        return Gone(f"the Ray cluster is gone ({reason}); the same command continues.")

    def _look(self) -> None:
        """See which nodes there are."""
        self._reach_head(at_once=True)
        self._looked = time.monotonic()
        self._nodes = [found for found in self._ray.nodes() if found["Alive"]]
        self._had_gpus |= any(bool(found.get("GPU", 0)) for found in self._resources)

    @property
    def _resources(self) -> list[dict[str, float]]:
        return [found["Resources"] for found in self._nodes]

    def _ask_nodes(self) -> None:
        """Raise InputError for a node with other code, other versions, or without the folders."""
        asked = []
        for found in self._nodes:
            there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(found["NodeID"], soft=False)
            task = self._ray.remote(node.seen_from).options(num_cpus=0, max_retries=2, scheduling_strategy=there)
            asked.append(task.remote(self._orders.folder, self._tokens))
        for found, answer in zip(self._nodes, asked, strict=True):
            name = f"node {found['NodeManagerHostname']} ({found['NodeManagerAddress']})"
            try:
                theirs, lacking = self._ray.get(answer, timeout=ASKED)
            except self._ray.exceptions.RayError as error:
                last = str(error).strip().splitlines()[-1]
                raise InputError(f"{name} cannot run this alignbench ({last[:200]}); install it there too.") from error
            if reason := node.differs(theirs, self._made_of):
                raise InputError(f"{name} {reason}; a suite's cells must be made with the same.")
            if lacking is not None:
                raise InputError(f"{name} {lacking}.")

    def _outcome(self, reference: Any) -> Ended:
        errors = self._ray.exceptions
        try:
            ended = self._ray.get(reference)
        except errors.RayTaskError as error:  # a defect, or a place where its log cannot be written
            return Ended(1, said(error.cause if error.cause is not None else error)[:300])
        except errors.WorkerCrashedError:
            return Ended(None, "its Ray worker died, or its node was lost")
        except errors.RayError as error:
            return Ended(None, said(error)[:200])
        assert isinstance(ended, Ended)
        return ended

    @property
    def _has_gpus(self) -> bool:
        """Whether the cluster has or had any: where all are lost, cells wait for others and do not go to processors."""
        return self._had_gpus

    def _cpus(self, job: Job) -> int:
        """CPUs that a job takes, which are its threads: its GPU's share of a node's, or one; all where it is timed."""
        gpus = job.gpus(self._has_gpus)
        if gpus:
            nodes = [found for found in self._resources if found.get("GPU", 0) >= gpus]
            return max(1, min((int(n.get("CPU", 1) / n["GPU"] * gpus) for n in nodes), default=1))
        if job.is_timed:
            return int(max(found.get("CPU", 1) for found in self._resources))
        return max(1, children.cores() // self._at_once) if self._at_once and self._address is None else 1

    def _close(self) -> None:
        self._forget()
        self._ray.shutdown()

    def _forget(self) -> None:
        """Take the tokens away."""
        for path in self._tokens:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _ray() -> Any:
    """The library. Raises InputError where it is not installed."""
    children.set_defaults(SETTINGS)
    try:
        import ray
    except ImportError:
        raise InputError("--on ray needs Ray: pip install 'alignbench[ray]'.") from None
    return ray


def _check_answers(address: str) -> None:
    """Raise InputError where no Ray answers, which Ray itself would wait for without an end."""
    form = re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address)
    if form is None or not 0 < int(form[1]) < 2**16:
        raise InputError(f"--on ray:{address}: expected HOST:PORT of a head node, such as ray:10.0.0.1:6379.")
    code = "from ray.scripts.scripts import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, "health-check", "--address", address],
            capture_output=True, text=True, timeout=ANSWER, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"--on ray:{address}: no Ray answers there within {ANSWER:.0f} s; {START_ONE}.") from None
    if "AuthenticationError" in done.stderr:
        raise InputError(f"--on ray:{address}: the cluster refuses the token of this machine; {WHOSE_TOKEN}.")
    if done.returncode:
        raise InputError(f"--on ray:{address}: no Ray answers there{_reason(done.stderr)}; {START_ONE}.")


def _reason(said: str) -> str:
    """What Ray gave as the reason, in brackets, if that is among its stack traces and log lines."""
    errors = re.findall(r"^[\w.]*(?:Error|Exception): (.+)$", said, re.MULTILINE)
    return f" ({errors[-1].strip().rstrip('.')[:200]})" if errors else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
