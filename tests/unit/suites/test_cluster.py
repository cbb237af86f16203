"""What is asked of a Ray cluster, and what is made of its answers: with a Ray that starts nothing."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.suite import Resources
from alignbench.errors import InputError
from alignbench.record.resumable import Resumable
from alignbench.suites import cluster, driver, node
from alignbench.suites.child import Ended, Gone
from alignbench.suites.cluster import Cluster
from alignbench.suites.driver import Driver
from alignbench.suites.node import made_of
from alignbench.suites.orders import Orders
from alignbench.suites.plan import Job


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a trace of many lines")
        self.cause = cause


class RaySystemError(RayError):
    pass


class ToyRay:
    """Has nodes of these resources. A task ends with what `ends` says, with None not at all; what a node says of itself
    is `there`."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        WorkerCrashedError=WorkerCrashedError,
        RayTaskError=RayTaskError,
        RaySystemError=RaySystemError,
    )
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources
        self.there: Any = (made_of(), None)
        self.ends: Any = Ended(0)
        self.tasks: list[tuple[dict[str, Any], tuple[Any, ...]]] = []  # options and arguments of cells
        self.cancelled: list[Any] = []
        self.is_open = False
        self.listening = socket.create_server(("127.0.0.1", 0))  # where its head answers
        self.head = f"127.0.0.1:{self.listening.getsockname()[1]}"

    def init(self, **options: Any) -> None:
        self.is_open = True

    def shutdown(self) -> None:
        self.is_open = False

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=self.head)

    def nodes(self) -> list[dict[str, Any]]:
        found = [
            {"NodeID": str(i), "Alive": True, "NodeManagerHostname": f"n{i}", "NodeManagerAddress": f"10.0.0.{i}"}
            for i in range(len(self.resources))
        ]
        dead = {"NodeID": "dead", "Alive": False, "Resources": {"GPU": 99.0}}
        return [one | {"Resources": own} for one, own in zip(found, self.resources, strict=True)] + [dead]

    def remote(self, work: Callable[..., Any]) -> Any:
        def options(**given: Any) -> Any:
            def task(*arguments: Any) -> Any:
                if work is node.seen_from:
                    return "there"
                self.tasks.append((given, arguments))
                return f"cell {len(self.tasks)}"

            return SimpleNamespace(remote=task)

        return SimpleNamespace(options=options)

    def get(self, reference: str, timeout: float | None = None) -> Any:
        found = self.there if reference == "there" else self.ends
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self, references: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], list(references)) if self.ends is None else (list(references), [])

    def cancel(self, reference: Any) -> None:
        self.cancelled.append(reference)


class ToyLine:
    """A line to a driver in this process, which works when somebody listens."""

    def __init__(self, ray: ToyRay) -> None:
        self.ray, self.driver = ray, None
        self.words: list[tuple[str, Any]] = []
        self.hangs = self.is_cut = False

    def tell(self, word: str, what: Any = None) -> None:
        if word == "run":
            self.driver.run(what)
        elif word == "stop":
            if self.driver is not None and not self.hangs:
                self.driver.stop()
        else:
            try:
                self.driver = Driver(self.ray, what)
                self.words.append(("joined", (self.driver.head, self.driver.nodes())))
            except InputError as error:
                self.words.append(("refused", str(error)))

    def heard(self, seconds: float = 0.0) -> tuple[str, Any] | None:
        if self.is_cut:
            raise EOFError
        if self.driver is not None and not self.hangs:
            self.words += [("ended", ended) for ended in self.driver.ended()]
        return self.words.pop(0) if self.words else None

    def last_words(self) -> str:
        return "Failed to connect to GCS"

    def end(self, seconds: float) -> None:
        self.ended_within = seconds


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """A function that connects to a cluster of some nodes, as if it were at an address or here."""
    monkeypatch.setattr(driver, "check_answers", lambda address: None)
    monkeypatch.setattr(cluster.children, "cores", lambda: 8)

    def connected(ray: ToyRay, address: str | None = "head:6379", at_once: int | None = None) -> Cluster:
        monkeypatch.setattr(cluster, "Line", lambda safe_path: ToyLine(ray))
        return Cluster(Orders(tmp_path, True), address, at_once, [job(tmp_path)])

    return connected


def job(folder: Path, gpus: int | None = None, can_use_gpu: bool = True, is_timed: bool = False) -> Job:
    return Job(
        options=RunOptions(algo="base"),
        resources=Resources(gpus=gpus),
        text="base on tiny",
        path=Path("results/cell.json"),
        work=Resumable(Path("results/cell"), {}, "cell.json", elsewhere="go", replace="force"),
        final=lambda: None,
        can_use_gpu=can_use_gpu,
        is_timed=is_timed,
    )


def taken(ray: ToyRay, engine: Cluster, one: Job) -> tuple[float, float, Any]:
    """The CPUs and GPUs that a job asks Ray for, and the GPUs that its process is shown."""
    engine.start(one, 1)
    options, (order, *_) = ray.tasks[-1]
    assert options["max_retries"] == 0  # what is tried again is the suite's own
    assert order.threads == options["num_cpus"]
    return options["num_cpus"], options["num_gpus"], order.cards


def test_a_cell_takes_a_gpu_with_its_share_of_the_processors_or_one_processor_and_sees_no_gpu(connect, tmp_path):
    """Of nodes with 64 CPUs for 8 GPUs and 12 for 2, the smaller share is 6."""
    ray = ToyRay({"CPU": 64.0, "GPU": 8.0}, {"CPU": 12.0, "GPU": 2.0}, {"CPU": 4.0})
    engine = connect(ray)
    assert taken(ray, engine, job(tmp_path)) == (6, 1, None)  # Ray shows it one
    assert taken(ray, engine, job(tmp_path, gpus=2)) == (12, 2, None)
    assert taken(ray, engine, job(tmp_path, gpus=0)) == (1, 0, ())
    assert taken(ray, engine, job(tmp_path, can_use_gpu=False)) == (1, 0, ())


def test_where_no_node_has_a_gpu_a_cell_runs_on_a_processor_and_a_timed_one_on_all_of_a_node(connect, tmp_path):
    ray = ToyRay({"CPU": 4.0}, {"CPU": 16.0})
    engine = connect(ray)
    assert taken(ray, engine, job(tmp_path)) == (1, 0, ())
    assert taken(ray, engine, job(tmp_path, is_timed=True)) == (16, 0, ())


def test_on_a_cluster_of_this_machine_cells_at_once_divide_its_cores(connect, tmp_path):
    ray = ToyRay({"CPU": 8.0})
    engine = connect(ray, address=None, at_once=2)
    ray.ends = None
    assert taken(ray, engine, job(tmp_path)) == (4, 0, ())
    assert engine.fits(job(tmp_path))
    engine.start(job(tmp_path), 1)
    assert not engine.fits(job(tmp_path))


def test_ray_gets_as_many_cells_as_it_has_processors_and_a_few_that_wait(connect, tmp_path):
    ray = ToyRay({"CPU": 2.0}, {"CPU": 1.0})
    engine = connect(ray)
    ray.ends = None
    while engine.fits(job(tmp_path)):
        engine.start(job(tmp_path), 1)
    assert len(ray.tasks) == 3 + cluster.AHEAD


def test_what_no_node_can_hold_is_refused_and_nodes_that_are_gone_hold_nothing(connect, tmp_path):
    engine = connect(ToyRay({"CPU": 8.0, "GPU": 4.0}, {"CPU": 4.0}))
    engine.check([job(tmp_path, gpus=4)])
    with pytest.raises(InputError, match=r"^base on tiny asks for 8 GPUs and 1 CPUs; the largest node has 4 GPUs\."):
        engine.check([job(tmp_path, gpus=8)])


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ((made_of() | {"torch": "1.0"}, None), "node n0 (10.0.0.0) has torch 1.0, and this machine"),
        ((made_of(), "does not share /results"), "node n0 (10.0.0.0) does not share /results."),
        (RayError("Traceback\nModuleNotFoundError: alignbench"), "cannot run this alignbench (ModuleNotFoundError: "),
    ],
)
def test_a_node_that_is_not_like_this_machine_is_named_and_nothing_is_left(connect, tmp_path, there, message):
    ray = ToyRay({"CPU": 2.0})
    ray.there = there
    with pytest.raises(InputError, match=re.escape(message)):
        connect(ray)
    assert not ray.is_open
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("ends", "expected", "is_death"),
    [
        (Ended(0), Ended(0), False),
        (Ended(2), Ended(2), False),
        (WorkerCrashedError("gone"), Ended(None, "its Ray worker died, or its node was lost"), True),
        (RayError("the node was lost"), Ended(None, "the node was lost"), True),
        (RayTaskError(InputError("no place for its log")), Ended(1, "no place for its log"), False),
    ],
)
def test_what_ray_says_of_a_cell(connect, tmp_path, ends, expected, is_death):
    ray = ToyRay({"CPU": 2.0})
    engine = connect(ray)
    ray.ends, one = ends, job(tmp_path)
    engine.start(one, 1)
    assert engine.ended() == [(one, expected)]
    assert expected.is_death is is_death
    assert engine.ended() == []


def test_a_cell_runs_once_its_log_has_grown(connect, tmp_path):
    engine, one = connect(ToyRay({"CPU": 2.0})), job(tmp_path)
    log = tmp_path / "results" / "cell.log"
    log.write_text("== of an earlier try\n")
    engine.start(one, 2)
    assert not engine.is_running(one)
    log.write_text("== of an earlier try\n== and of this one\n")
    assert engine.is_running(one)


def test_a_head_where_nobody_listens_ends_the_suite_once_its_cell_dies_and_nothing_more_is_asked(connect, tmp_path):
    ray = ToyRay({"CPU": 2.0})
    engine, one = connect(ray), job(tmp_path)
    engine.start(one, 1)
    ray.ends = WorkerCrashedError("gone")
    ray.listening.close()
    said = r"^the head of the Ray cluster at head:6379 is gone \(.*refused\); the same command continues\.$"
    with pytest.raises(Gone, match=said):
        engine.ended()
    engine.stop()
    assert engine._line.ended_within == 0
    assert not (tmp_path / "results").exists()


def test_a_driver_that_says_nothing_is_not_waited_for(connect, tmp_path, monkeypatch):
    """The head is called after a while; where it listens and still nothing is heard, it hangs."""
    ray, now = ToyRay({"CPU": 2.0}), [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    engine = connect(ray)
    engine._line.hangs = True
    for _ in range(int(cluster.SILENCE)):
        now[0] += 1
        assert engine.ended() == []
        assert engine.fits(job(tmp_path)) is (engine._silent < cluster.QUIET)
    now[0] += 3600.0  # this process was stopped itself, which counts as a second
    with pytest.raises(Gone, match="is gone \\(it does not answer\\)"):
        engine.ended()


def test_a_driver_that_says_nothing_and_a_head_where_nobody_listens_are_a_cluster_that_is_gone(
    connect, tmp_path, monkeypatch
):
    ray, now = ToyRay({"CPU": 2.0}), [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    engine = connect(ray)
    engine._line.hangs = True
    ray.listening.close()
    for _ in range(int(cluster.QUIET)):
        now[0] += 1
        assert engine.ended() == []
    now[0] += 1
    with pytest.raises(Gone, match="refused"):
        engine.ended()


def test_a_driver_that_ray_has_ended_says_why(connect, tmp_path):
    engine = connect(ToyRay({"CPU": 2.0}))
    engine._line.is_cut = True
    with pytest.raises(Gone, match=r"is gone \(Failed to connect to GCS\); the same command continues"):
        engine.fits(job(tmp_path))


class Spoken:
    """The driver's end of a line: what it will hear, and what it has said. The line ends once a task has ended."""

    def __init__(self, *words: tuple[str, Any]) -> None:
        self.words, self.said = list(words), []

    def poll(self, seconds: float) -> bool:
        return bool(self.words) or any(word == "ended" for word, _ in self.said)

    def recv(self) -> tuple[str, Any]:
        if not self.words:
            raise EOFError
        return self.words.pop(0)

    def send(self, words: tuple[str, Any]) -> None:
        self.said.append(words)


@pytest.fixture
def ray(monkeypatch):
    """The library that a driver imports."""
    found = ToyRay({"CPU": 2.0})
    monkeypatch.setattr(driver, "library", lambda: found)
    monkeypatch.setattr(driver, "LOOKED", 0.0)
    return found


def asked(folder: Path) -> tuple[str, Any]:
    return "join", driver.Asked(None, folder, {}, made_of())


def test_a_driver_does_what_it_hears_until_the_line_ends(ray, tmp_path):
    order = Orders(tmp_path, True).of(job(tmp_path), 1, 1, ())
    line = Spoken(asked(tmp_path), ("run", driver.Task(7, order, 1, 0)))
    driver.serve(line)
    (word, (head, nodes)), *others = line.said
    assert (word, head, len(nodes)) == ("joined", ray.head, 1)
    assert ("ended", (7, Ended(0))) in others
    assert {word for word, _ in others} == {"ended", "nodes"}
    assert not ray.is_open


def test_a_driver_leaves_no_cell_behind_when_it_is_told_to_stop(ray, tmp_path):
    order = Orders(tmp_path, True).of(job(tmp_path), 1, 1, ())
    ray.ends = None
    driver.serve(Spoken(asked(tmp_path), ("run", driver.Task(7, order, 1, 0)), ("stop", None)))
    assert ray.cancelled == ["cell 1"]
    assert not ray.is_open


def test_a_driver_says_that_its_cluster_is_gone_and_why_it_has_not_joined_one(ray, tmp_path, monkeypatch):
    line = Spoken(asked(tmp_path))
    seen = iter([ray.nodes(), ray.nodes(), RaySystemError("no head")])  # asked what they have, and told

    def nodes() -> Any:
        found = next(seen)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ray, "nodes", nodes)
    driver.serve(line)
    assert line.said[-1] == ("gone", "no head")
    ray.there, ray.nodes = (made_of(), "has no folder"), ToyRay({"CPU": 2.0}).nodes
    line = Spoken(asked(tmp_path))
    driver.serve(line)
    assert line.said == [("refused", "node n0 (10.0.0.0) has no folder.")]


def test_a_stop_cancels_what_runs_and_takes_the_token_away(connect, tmp_path):
    ray = ToyRay({"CPU": 2.0})
    engine = connect(ray)
    (token,) = (tmp_path / "results").iterdir()
    assert token.name.startswith(".suite-")
    ray.ends = None
    engine.start(job(tmp_path), 1)
    engine.stop()
    assert ray.cancelled == ["cell 1"]
    assert not ray.is_open
    assert not token.exists()


@pytest.mark.parametrize(
    "address",
    ["head", "auto", "ray://head:10001", "head:", ":6379", "head:port", "a b:1", "h:1;x", "h:0", "h:65536", "[::1]"],
)
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(InputError, match=f"^--on ray:{re.escape(address)}: expected HOST:PORT of a head node"):
        driver.check_answers(address)


def test_without_ray_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setattr(driver.children, "set_defaults", lambda values: None)
    with pytest.raises(InputError, match=r"^--on ray needs Ray: pip install 'alignbench\[ray\]'"):
        driver.library()


def test_of_rays_stack_traces_only_the_reason_is_told():
    told = "[2026 W] Failed to connect\n  File x\nray.exceptions.RpcError: Timed out.\n/usr/bin/python(_start+0x21)\n"
    assert driver._reason(told) == " (Timed out)"
    assert driver._reason("/usr/bin/python(_start+0x21)\n") == ""
