"""Which cells run beside each other on one machine, on which GPUs and with how many threads: no process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.suite import Resources
from alignbench.errors import InputError
from alignbench.record.resumable import Resumable
from alignbench.suites import local
from alignbench.suites.child import Ended, Order
from alignbench.suites.local import Local
from alignbench.suites.orders import Orders
from alignbench.suites.plan import Job

STARTED: list[Order] = []


class ToyChild:
    """A process that ends when it is told how."""

    def __init__(self, order: Order) -> None:
        STARTED.append(order)
        self.ended: Ended | None = None

    def poll(self) -> Ended | None:
        return self.ended

    def ask_to_end(self) -> None:
        self.ended = Ended(-15)

    def end(self, until: float) -> None:
        assert self.ended is not None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that makes an engine of a machine with these GPUs and eight cores."""
    STARTED.clear()
    monkeypatch.setattr(local, "Child", ToyChild)
    monkeypatch.setattr(local.children, "cores", lambda: 8)

    def make(*cards: str, jobs: int | None = None) -> Local:
        monkeypatch.setattr(local.children, "cards", lambda: cards)
        return Local(Orders(tmp_path, True), jobs)

    return make


def job(gpus: int | None = None, can_use_gpu: bool = True, is_timed: bool = False) -> Job:
    return Job(
        options=RunOptions(algo="base", seed=3, output=Path("there")),
        resources=Resources(gpus=gpus),
        text="base on tiny",
        path=Path("results/cell.json"),
        work=Resumable(Path("results/cell"), {}, "cell.json", elsewhere="go", replace="force"),
        final=lambda: None,
        can_use_gpu=can_use_gpu,
        is_timed=is_timed,
    )


def end(engine: Local, number: int) -> None:
    engine._running[number][1].ended = Ended(0)


def test_each_gpu_has_a_cell_and_the_next_one_takes_the_gpu_that_is_free(machine):
    engine = machine("2", "5")
    first, second, third = job(), job(), job()
    engine.start(first, 1)
    engine.start(second, 1)
    assert not engine.fits(third)
    end(engine, 0)
    assert engine.ended() == [(first, Ended(0))]
    assert engine.fits(third)
    engine.start(third, 1)
    assert [order.cards for order in STARTED] == [("2",), ("5",), ("2",)]
    assert {order.threads for order in STARTED} == {4}


def test_a_cell_without_a_gpu_runs_beside_those_that_have_one_and_sees_none(machine):
    engine = machine("0", jobs=2)
    engine.start(job(), 1)
    assert not engine.fits(job())
    assert engine.fits(job(gpus=0))
    engine.start(job(can_use_gpu=False), 1)
    assert [order.cards for order in STARTED] == [("0",), ()]
    assert not engine.fits(job(gpus=0))  # two at once


def test_without_gpus_one_cell_has_all_threads_and_several_divide_them(machine):
    engine = machine()
    engine.start(job(), 1)
    assert not engine.fits(job())
    engine = machine(jobs=3)
    engine.start(job(), 1)
    assert [(order.threads, order.cards) for order in STARTED] == [(None, None), (2, None)]
    assert machine(jobs=20)._threads == 1


def test_a_cell_that_is_timed_on_the_processor_has_the_machine_for_itself(machine):
    engine = machine(jobs=4)
    engine.start(job(), 1)
    assert not engine.fits(job(is_timed=True))
    end(engine, 0)
    engine.ended()
    assert engine.fits(job(is_timed=True))
    engine.start(job(is_timed=True), 1)
    assert not engine.fits(job())
    assert STARTED[-1].threads is None


def test_one_that_is_timed_on_its_gpu_is_alone_there_anyway(machine):
    engine = machine("0", "1")
    engine.start(job(), 1)
    assert engine.fits(job(is_timed=True))


def test_a_cell_with_more_gpus_than_there_are_is_refused(machine):
    machine("0", "1").check([job(gpus=2)])
    with pytest.raises(InputError, match=r"^base on tiny asks for 3 GPUs, and this machine has 2\."):
        machine("0", "1").check([job(), job(gpus=3)])
    machine().check([job()])


def test_an_order_says_what_was_asked_for_and_where(machine, tmp_path):
    machine().start(job(), 2)
    (order,) = STARTED
    assert order.options == {"algo": "base", "seed": 3, "output": "there"}
    assert RunOptions.parse(order.options) == job().options
    assert (order.log, order.cell, order.attempt) == (tmp_path / "results/cell.log", tmp_path / "results/cell", 2)


def test_a_stop_ends_every_process(machine):
    engine = machine(jobs=2)
    engine.start(job(), 1)
    engine.start(job(), 1)
    engine.stop()
    assert engine.ended() == []
    assert engine.fits(job())
