"""The process of a suite that speaks to Ray, and nobody else does: Ray ends a process that has lost its cluster, or
keeps it waiting. `cluster` starts it, tells it what to run, and outlives it.

Messages are pairs of a word and what belongs to it. It hears `join`, `run` and `stop`, and says `joined` or `refused`,
then `nodes` now and then, `ended` for each task, and `gone`. An end of the line is a stop.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alignbench import children
from alignbench.errors import InputError, said
from alignbench.suites import node
from alignbench.suites.child import GRACE, Ended, Order

# Ray reads these when it is imported: a token is asked of whoever connects, and nothing is reported to its makers.
SETTINGS = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
MEMORY = 100 << 20  # bytes of a store through which nothing large goes
ANSWER = 20.0  # seconds within which a cluster says that it is there
ASKED = 120.0  # and within which a node says what it has: its first worker has to start
LOOKED = 5.0  # seconds between two looks at which nodes there are
PAUSE = 0.1  # and between two at what has ended
START_ONE = "start one with `ray start --head`"
WHOSE_TOKEN = "share the file ~/.ray/auth_token of the head node, or set RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True)
class Asked:
    """A cluster to join, and what its nodes have to share."""

    address: str | None  # HOST:PORT; None starts one here
    folder: Path  # that the suite was typed in
    tokens: Mapping[Path, str]  # in the folders of results
    made_of: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A cell for Ray to place."""

    number: int
    order: Order
    cpus: int
    gpus: int


class Driver:
    """A connection to a cluster, and the tasks that were given to it."""

    def __init__(self, ray: Any, asked: Asked) -> None:
        """Join. Raises InputError where there is no cluster, or a node would not run a cell as this machine does."""
        self._ray, self._asked = ray, asked
        self._running: dict[Any, int] = {}  # the number of a task, by Ray's reference
        self._connect()
        self.head = str(ray.get_runtime_context().gcs_address)
        try:
            self._ask_nodes()
        except BaseException:
            ray.shutdown()
            raise

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them."""
        return [found for found in self._ray.nodes() if found["Alive"]]

    def run(self, task: Task) -> None:
        own = {"num_cpus": task.cpus, "num_gpus": task.gpus, "max_retries": 0, "name": task.order.cell.name}
        work = self._ray.remote(node.run_here).options(**own)
        self._running[work.remote(task.order, self._asked.tokens, self._asked.made_of)] = task.number

    def ended(self) -> list[tuple[int, Ended]]:
        """The tasks that have ended since this was asked last."""
        if not self._running:
            return []
        found, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running.pop(reference), self._outcome(reference)) for reference in found]

    def stop(self) -> None:
        """End all tasks, and leave the cluster; one that was started here ends."""
        try:
            for reference in self._running:
                self._ray.cancel(reference)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE + 5)
        finally:
            self._running = {}
            self._ray.shutdown()

    def _connect(self) -> None:
        address = self._asked.address
        here = {"num_cpus": children.cores(), "include_dashboard": False, "object_store_memory": MEMORY}
        if address is not None:
            check_answers(address)
        try:
            self._ray.init(
                address=address or "local", logging_level="error", log_to_driver=False, **({} if address else here)
            )
        except (RuntimeError, ConnectionError, ValueError, self._ray.exceptions.RayError) as error:
            raise InputError(f"--on ray: {said(error)[:300]}") from error

    def _ask_nodes(self) -> None:
        """Raise InputError for a node with other code, other versions, or without the folders."""
        nodes, answers = self.nodes(), []
        for found in nodes:
            there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(found["NodeID"], soft=False)
            task = self._ray.remote(node.seen_from).options(num_cpus=0, max_retries=2, scheduling_strategy=there)
            answers.append(task.remote(self._asked.folder, self._asked.tokens))
        for found, answer in zip(nodes, answers, strict=True):
            name = f"node {found['NodeManagerHostname']} ({found['NodeManagerAddress']})"
            try:
                theirs, lacking = self._ray.get(answer, timeout=ASKED)
            except self._ray.exceptions.RayError as error:
                last = str(error).strip().splitlines()[-1]
                raise InputError(f"{name} cannot run this alignbench ({last[:200]}); install it there too.") from error
            if reason := node.differs(theirs, self._asked.made_of):
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


def library() -> Any:
    """Ray. Raises InputError where it is not installed."""
    children.set_defaults(SETTINGS)
    try:
        import ray
    except ImportError:
        raise InputError("--on ray needs Ray: pip install 'alignbench[ray]'.") from None
    return ray


def check_answers(address: str) -> None:
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


def serve(line: Any) -> None:
    """Do what is asked on this line until it ends."""
    word, asked = line.recv()
    assert word == "join"
    try:
        ray = library()
        driver = Driver(ray, asked)
    except InputError as error:
        line.send(("refused", str(error)))
        return
    line.send(("joined", (driver.head, driver.nodes())))
    try:
        _work(line, driver)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # who asked has ended
        pass
    except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
        line.send(("gone", said(error)[:100]))
        return
    driver.stop()


def _work(line: Any, driver: Driver) -> None:
    looked = time.monotonic()
    while True:
        if line.poll(PAUSE):
            word, task = line.recv()
            if word == "stop":
                return
            driver.run(task)
        for ended in driver.ended():
            line.send(("ended", ended))
        if time.monotonic() - looked > LOOKED:
            looked = time.monotonic()
            line.send(("nodes", driver.nodes()))


def main() -> None:
    """Serve the line of the file descriptor that stands behind the command."""
    serve(Connection(int(sys.argv[1])))
