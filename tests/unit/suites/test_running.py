"""Which cell is started when, and what becomes of one whose process ends, dies, or is somebody else's: on an engine
that starts no process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.suite import Resources
from alignbench.errors import InputError, ResultFileError, RunError
from alignbench.experiment.diversity import LATENTS
from alignbench.locks import exclusive
from alignbench.record.resumable import Resumable
from alignbench.suites import run as running
from alignbench.suites.child import Ended, Gone, Held
from alignbench.suites.plan import Job, Row
from alignbench.suites.run import run_rows

DIES = Ended(-9)


@dataclass
class Result:
    """What a result says of itself here."""

    status: str = "complete"
    reason: str | None = None


@dataclass
class Toy:
    """An engine whose cells end as they are told, one try after another; a cell that ends well has a result then."""

    ends: dict[str, list[Ended]]
    results: dict[str, Any]
    at_once: int = 2
    refuses: str | None = None
    started: list[str] = field(default_factory=list)
    most: int = 0  # cells that ran at once
    stopped: int = 0
    now: list[Job] = field(default_factory=list)

    def check(self, jobs: Sequence[Job]) -> None:
        if self.refuses:
            raise InputError(self.refuses)

    def describe(self) -> str:
        return "in a test"

    def fits(self, job: Job) -> bool:
        return len(self.now) < self.at_once

    def start(self, job: Job, attempt: int) -> None:
        self.started.append(job.text)
        self.now.append(job)
        self.most = max(self.most, len(self.now))

    def is_running(self, job: Job) -> bool:
        return True

    def ended(self) -> list[tuple[Job, Ended]]:
        found = [(job, self.ends.get(job.text, [Ended(0)]).pop(0)) for job in self.now]
        self.now = []
        for job, ended in found:
            if ended.code == 0:
                self.results.setdefault(job.text, Result())
        return found

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(running, "PAUSE", 0.001)
    monkeypatch.setattr(running, "HELD", 0.01)


@pytest.fixture
def suite(tmp_path: Path):
    """A function that makes rows of these names, with results that are there, and an engine for them."""

    def make(
        names: str, ends: dict[str, list[Ended]] | None = None, timed: str = "", **how: Any
    ) -> tuple[list[Row], Toy]:
        results: dict[str, Any] = how.pop("results", {})

        def final(name: str) -> Any:
            found = results.get(name)
            if isinstance(found, Exception):
                raise found
            return found

        def job(name: str) -> Job:
            work = Resumable(tmp_path / name, {}, "cell.json", elsewhere="go", replace="force")
            return Job(
                options=RunOptions(algo=name),
                resources=Resources(),
                text=name,
                path=tmp_path / f"{name}.json",
                work=work,
                final=lambda: final(name),
                can_use_gpu=False,
                is_timed=name in timed,
            )

        rows = [Row(i, name, RunOptions(algo=name), job(name)) for i, name in enumerate(names, start=1)]
        return rows, Toy(ends or {}, results, **how)

    return make


def states(rows: Sequence[Row]) -> list[str]:
    return [row.state for row in rows]


def run(rows: Sequence[Row], engine: Toy) -> list[tuple[str, str, str | None]]:
    """Run rows; the states that were told, in order."""
    told: list[tuple[str, str, str | None]] = []
    run_rows(rows, engine, lambda row: told.append((row.text, row.state, row.reason)), lambda: None)
    assert engine.stopped == 1
    return told


def test_every_cell_is_run_once_as_many_at_once_as_fit(suite):
    rows, engine = suite("abcde")
    told = run(rows, engine)
    assert engine.started == list("abcde")
    assert engine.most == 2
    assert states(rows) == ["done"] * 5
    assert [(name, state) for name, state, _ in told] == [(name, "done") for name in "abcde"]


def test_a_cell_that_waits_for_a_machine_is_not_said_to_run(suite):
    rows, engine = suite("a")
    placed: list[Job] = []
    engine.is_running = placed.__contains__
    looks: list[str] = []
    ended, engine.ended = engine.ended, list

    def looked() -> None:
        looks.append(rows[0].state)
        if len(looks) == 2:
            placed.append(rows[0].job)
        if len(looks) == 4:
            engine.ended = ended

    run_rows(rows, engine, lambda row: None, looked)
    assert looks == ["waiting", "waiting", "running", "running", "done"]


def test_what_is_there_is_not_run_again(suite):
    rows, engine = suite("abc", results={"b": Result()})
    run(rows, engine)
    assert engine.started == ["a", "c"]
    assert [row.was_there for row in rows] == [False, True, False]


def test_a_cell_whose_process_dies_goes_on_twice_and_is_reported_then(suite):
    rows, engine = suite("abc", {"a": [DIES, DIES, Ended(0)], "b": [DIES, DIES, DIES]})
    told = run(rows, engine)
    assert states(rows) == ["done", "failed", "done"]
    assert [row.tries for row in rows] == [3, 3, 1]
    assert ("a", "waiting", "its process was killed by SIGKILL; it goes on from its checkpoint") in told
    assert rows[1].reason == f"its process was killed by SIGKILL, as 2 times before; see {rows[1].job.log}"


@pytest.mark.parametrize("code", [None, -15, -9, 130, 137, 143, 3])
def test_whatever_is_no_end_of_its_own_is_a_death(suite, code):
    rows, engine = suite("a", {"a": [Ended(code, "lost" if code is None else None), Ended(0)]})
    run(rows, engine)
    assert (states(rows), rows[0].tries) == (["done"], 2)


@pytest.mark.parametrize("code", [1, 2])
def test_a_run_that_failed_and_wrong_input_are_never_tried_again(suite, code):
    rows, engine = suite("ab", {"a": [Ended(code)]})
    rows[0].job.log.write_text("loading model\nalignbench: no such thing; name another.\nlast words\n")
    run(rows, engine)
    assert states(rows) == ["failed", "done"]
    assert rows[0].reason == "no such thing; name another."
    assert engine.started == ["a", "b"]


def test_a_failure_without_a_word_names_its_log(suite):
    rows, engine = suite("a", {"a": [Ended(1)]})
    run(rows, engine)
    assert rows[0].reason == f"exit code 1; see {rows[0].job.log}"


def test_a_death_after_the_result_was_written_is_no_loss(suite):
    rows, engine = suite("a", {"a": [DIES]})
    engine.results["a"] = None
    before = engine.ended

    def ended() -> list[tuple[Job, Ended]]:
        engine.results["a"] = Result()
        return before()

    engine.ended = ended
    run(rows, engine)
    assert (states(rows), rows[0].tries, rows[0].was_there) == (["done"], 1, False)


def test_a_cell_that_died_after_its_result_leaves_no_latents(suite):
    rows, engine = suite("a", results={"a": Result()})
    work = rows[0].job.work
    with work.held():
        (work.folder / LATENTS).mkdir()
        (work.folder / LATENTS / "00000-0.npy").touch()
    run(rows, engine)
    assert json.loads((work.folder / "cell.json").read_text())["running"] is False
    assert not (work.folder / LATENTS).exists()


def test_a_result_says_what_its_cell_came_to(suite):
    results = {
        "a": Result("unsupported", "no"),
        "b": Result("diverged", "in round 3"),
        "c": ResultFileError("c is torn"),
    }
    rows, engine = suite("abc", results=results)
    run(rows, engine)
    assert [(row.state, row.reason) for row in rows] == [
        ("unsupported", "no"),
        ("failed", "diverged: in round 3"),
        ("failed", "c is torn"),
    ]
    assert engine.started == []


def test_a_process_that_ends_well_without_a_result_says_that_something_changed(suite):
    rows, engine = suite("a", {"a": [Ended(0)]})
    engine.results["a"] = None
    run(rows, engine)
    assert rows[0].state == "failed"
    assert "a file that it reads has changed; type the same command again" in rows[0].reason


def test_a_cell_that_another_process_has_is_left_until_the_others_are_done(suite):
    rows, engine = suite("abc", at_once=1)
    holding = exclusive(rows[0].job.work.folder)
    holding.__enter__()
    looks: list[int] = []

    def looked() -> None:
        looks.append(1)
        if engine.started == ["b", "c"] and len(looks) > 20:
            holding.__exit__(None, None, None)
            engine.results["a"] = Result()  # the other process has done it

    told: list[tuple[str, str, str | None]] = []
    run_rows(rows, engine, lambda row: told.append((row.text, row.state, row.reason)), looked)
    assert engine.started == ["b", "c"]
    assert states(rows) == ["done"] * 3
    assert rows[0].was_there
    ((_, state, reason),) = [line for line in told if line[0] == "a" and line[1] == "waiting"]
    assert (state, reason.split()[:3]) == ("waiting", ["in", "use", "by"])


def test_a_cell_that_another_suite_has_just_started_is_left_too_and_that_is_no_try(suite):
    rows, engine = suite("ab", at_once=1)
    before, refusals = engine.start, ["another suite"]

    def start(job: Job, attempt: int) -> None:
        if job.text == "a" and refusals:
            raise Held(refusals.pop())
        before(job, attempt)

    engine.start = start
    told = run(rows, engine)
    assert engine.started == ["b", "a"]
    assert ("a", "waiting", "in use by another suite") in told
    assert [(row.state, row.tries) for row in rows] == [("done", 1)] * 2


def test_a_worker_that_finds_its_cell_in_use_gives_it_back_and_that_is_no_try(suite):
    rows, engine = suite("ab", {"a": [Ended(None, held_by="another"), Ended(0)]})
    told = run(rows, engine)
    assert states(rows) == ["done", "done"]
    assert engine.started == ["a", "b", "a"]
    assert ("a", "waiting", "in use by another") in told
    assert rows[0].tries == 1


def test_what_a_second_comes_to_is_never_measured_by_two_at_a_time(suite):
    rows, engine = suite("abcde", timed="ac", at_once=5)
    at_once: list[list[str]] = []
    before = engine.ended

    def ended() -> list[tuple[Job, Ended]]:
        at_once.append([job.text for job in engine.now])
        return before()

    engine.ended = ended
    run(rows, engine)
    assert at_once[0] == ["b", "d", "e", "a"]
    assert ["c"] in at_once
    assert states(rows) == ["done"] * 5


def test_an_engine_that_is_gone_interrupts_what_runs_and_ends_the_suite(suite):
    rows, engine = suite("ab", at_once=1)
    looks: list[int] = []

    def ended() -> list[tuple[Job, Ended]]:
        looks.append(1)
        if len(looks) == 2:
            raise Gone("the cluster is gone.")
        return []

    engine.ended = ended
    with pytest.raises(Gone, match="the cluster is gone"):
        run_rows(rows, engine, lambda row: None, lambda: None)
    assert engine.stopped == 1
    assert [(row.state, row.reason) for row in rows] == [
        ("interrupted", "the same command continues it"),
        ("waiting", None),
    ]


def test_a_cell_that_no_machine_holds_is_refused_before_anything_is_started(suite):
    rows, engine = suite("ab", refuses="a asks for 8 GPUs, and this machine has 0.")
    with pytest.raises(InputError, match="asks for 8 GPUs"):
        run_rows(rows, engine, lambda row: None, lambda: None)
    assert engine.started == []
    assert engine.stopped == 1


def test_a_log_that_cannot_be_written_fails_its_cell_alone(suite):
    rows, engine = suite("ab")
    before = engine.start

    def start(job: Job, attempt: int) -> None:
        if job.text == "a":
            raise RunError("cannot write a.log: the disk is full.")
        before(job, attempt)

    engine.start = start
    run(rows, engine)
    assert [(row.state, row.reason) for row in rows] == [
        ("failed", "cannot write a.log: the disk is full."),
        ("done", None),
    ]


def test_an_interrupt_stops_the_engine_and_says_what_ran(suite):
    rows, engine = suite("abc")
    engine.ended = list  # nothing ends

    def looked() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rows(rows, engine, lambda row: None, looked)
    assert engine.stopped == 1
    assert states(rows) == ["interrupted", "interrupted", "waiting"]


def ends_itself() -> None:
    with running.terminating():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


def test_being_told_to_end_is_an_interrupt_within_and_what_it_was_before_outside():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(running.Terminated):
        ends_itself()
    assert signal.getsignal(signal.SIGTERM) is before
