"""Experiment trackers that people look at already, through accelerate: TensorBoard, Weights & Biases, trackio, MLflow.

They see what the training curve holds. A tracker that fails is left out from then on and never ends a run.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignbench.choices import TrackerName
from alignbench.errors import InputError, described

CLASSES = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandBTracker",
    "trackio": "TrackioTracker",
    "mlflow": "MLflowTracker",
}
PROJECT = "alignbench"


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise InputError for a tracker whose library is not here."""
    for name in names:
        if any(importlib.util.find_spec(library) is None for library in ("accelerate", name)):
            raise InputError(
                f"--report-to {name}: its library is not installed; run `pip install 'alignbench[trackers]'`, or leave "
                "it out."
            )


class Trackers:
    """The trackers of one cell."""

    def __init__(
        self, names: Sequence[TrackerName], folder: Path, run: str, about: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._open: dict[TrackerName, Any] = {}
        for name in names:
            self._guarded(name, functools.partial(self._start, name, folder, run, about))

    def _start(self, name: TrackerName, folder: Path, run: str, about: Mapping[str, Any]) -> None:
        from accelerate import PartialState, tracking

        PartialState()  # the trackers ask it whether this is the first process
        kind = getattr(tracking, CLASSES[name])
        if name == "tensorboard":
            tracker = kind(run, logging_dir=str(folder / "tensorboard"))
        elif name == "mlflow":
            tracker = kind(experiment_name=PROJECT, run_name=run)
        elif name == "wandb":
            tracker = kind(PROJECT, name=run, resume="allow", id=run)
        else:
            tracker = kind(PROJECT, name=run, resume="allow")
        tracker.start()
        self._open[name] = tracker
        tracker.store_init_configuration({key: _plain(value) for key, value in about.items()})

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of a round, nested ones as `outer/inner`."""
        flat = dict(_flat(values))
        for name, tracker in list(self._open.items()):
            self._guarded(name, functools.partial(tracker.log, flat, step=step))

    def finish(self) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.finish)

    def _guarded(self, name: TrackerName, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a tracker's library, network or server does
            self._open.pop(name, None)
            self._say(f"tracker {name} is left out: {described(error, 200)}")


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((above + name, float(value)))
    return found


def _plain(value: Any) -> bool | str | float | int | None:
    return value if isinstance(value, bool | str | float | int | None) else str(value)
