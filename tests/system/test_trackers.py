"""Trackers show the training curve; one that fails is left out and never ends a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.errors import InputError
from alignbench.experiment import trackers
from alignbench.experiment.run import run_cell
from alignbench.experiment.trackers import Trackers, check_installed


def test_tensorboard_holds_what_the_curve_holds(toy_cell):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cell = resolve(RunOptions(**toy_cell("ddpo", report_to=("tensorboard",))))
    result = run_cell(cell, quiet=True).result
    folder = cell.folder / "tensorboard" / cell.path.stem
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"reward", "kl", "gradient_norm", "seconds", "denoiser_forward"} <= set(events.Tags()["scalars"])
    shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("reward")]
    assert shown == [(line["round"], line["reward"]) for line in result.curve]


class Failing:
    """A tracker whose server goes away at some call."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise ConnectionError("the server\nis gone")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values) -> None:
        self._call("store")

    def log(self, values, step) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("at", ["start", "store", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_left_out(at, monkeypatch, tmp_path):
    from accelerate import tracking

    made, said = Failing(at), []
    monkeypatch.setattr(tracking, trackers.CLASSES["wandb"], lambda *given, **named: made)
    several = Trackers(["wandb"], tmp_path, "run", {"fields": {"a": 1}, "seed": None}, said.append)
    for step in range(3):
        several.log(step, {"reward": 1.0, "held_out": {"r": 0.5}})
    several.finish()
    assert said == ["tracker wandb is left out: ConnectionError: the server is gone"]
    assert made.calls.count(at) == 1


def test_a_run_goes_on_without_its_tracker(toy_cell, monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, trackers.CLASSES["tensorboard"], lambda *given, **named: Failing("log"))
    cell = resolve(RunOptions(**toy_cell("ddpo", report_to=("tensorboard",))))
    assert run_cell(cell, quiet=True).result.status == "complete"


def test_numbers_are_flat_and_nothing_else_is_logged(monkeypatch, tmp_path):
    from accelerate import tracking

    heard = {}

    class Listening(Failing):
        def log(self, values, step) -> None:
            heard[step] = values

    monkeypatch.setattr(tracking, trackers.CLASSES["trackio"], lambda *given, **named: Listening("never"))
    several = Trackers(["trackio"], tmp_path, "run", {}, print)
    several.log(2, {"reward": 1, "held_out": {"r": 0.5}, "rolled_back": "the loss is nan", "kl": None, "done": True})
    assert heard == {2: {"reward": 1.0, "held_out/r": 0.5}}


def test_a_library_that_is_not_here_is_named_before_anything_runs(toy_cell, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    with pytest.raises(InputError, match=r"--report-to mlflow: its library is not installed; run `pip install"):
        check_installed(["mlflow"])
    cell = resolve(RunOptions(**toy_cell("ddpo", report_to=("mlflow",))))
    with pytest.raises(InputError, match="--report-to mlflow"):
        run_cell(cell, quiet=True)
    assert not Path(cell.path).exists()


def test_a_method_without_a_curve_has_nothing_to_show(toy_cell):
    with pytest.raises(InputError, match="--report-to: 'base' trains nothing"):
        resolve(RunOptions(**toy_cell("base", report_to=("wandb",))))
