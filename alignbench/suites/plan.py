"""What a suite is going to do: its cells resolved, with what each needs of a machine and where its result goes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import Cell, resolve
from alignbench.asking.suite import Resources, SuiteCell, describe, explained, matches, shard_of
from alignbench.errors import AlignbenchError, InputError, UnknownName, Unsupported
from alignbench.experiment.estimate import Estimate, estimate
from alignbench.experiment.run import final_result, work_of
from alignbench.meter import Cost
from alignbench.record.result import Result
from alignbench.record.resumable import Resumable

State = Literal["waiting", "running", "done", "unsupported", "failed", "interrupted"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "unsupported", "failed", "interrupted")


@dataclass(frozen=True)
class Job:
    """A cell that can be run."""

    options: RunOptions
    resources: Resources
    text: str  # the cell in a line
    path: Path  # of its result
    work: Resumable  # in its folder
    final: Callable[[], Result | None]  # the result that is there; raises InputError
    can_use_gpu: bool
    is_timed: bool  # it measures what a second comes to, so nothing else may run beside it

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def gpus(self, there_are: bool) -> int:
        """How many GPUs it takes, where there are any or none."""
        asked, own = self.resources.gpus, self.resources.processes
        return asked if asked is not None else own * int(there_are and self.can_use_gpu)


@dataclass
class Row:
    """A cell of the suite's table: what it is, and how far."""

    number: int
    text: str
    options: RunOptions
    job: Job | None  # None: it cannot be run, for `reason`
    state: State = "waiting"
    reason: str | None = None
    tries: int = 0
    was_there: bool = False  # its result was there before
    began: float = 0.0  # of `time.monotonic`
    seconds: float = 0.0
    wrong_input: bool = False  # why it has failed: what was asked, and nothing that is missing or broken
    look_again: float = field(default=0.0, repr=False)  # when to see whether another process still has it

    @property
    def path(self) -> Path | None:
        return self.job.path if self.job else None

    def as_values(self) -> dict[str, Any]:
        """What --json says of it."""
        job = self.job
        return {
            "cell": self.text,
            "state": self.state,
            "reason": self.reason,
            "result": str(job.path) if job else None,
            "log": str(job.log) if job and self.tries else None,
            "was_there": self.was_there,
            "tries": self.tries,
            "seconds": round(self.seconds, 1),
        }


def planned(cells: Sequence[SuiteCell], only: str | None = None, shard: str | None = None) -> list[Row]:
    """The rows of a suite, or of those of its cells whose algorithm or result's name is `only`, or of a shard of them.
    A cell that cannot be resolved is a row that has failed. Raises InputError for a wrong shard, and where nothing is
    left."""
    rows = told_apart([_row(cell) for cell in cells])
    if only is not None:
        rows = [row for row in rows if matches(only, *_names(row))]
        if not rows:
            raise InputError(str(UnknownName("cell", only, {name for cell in cells for name in _names(_row(cell))})))
    if shard is not None:
        rows = shard_of(rows, shard)
    for number, row in enumerate(rows, start=1):
        row.number = number
    return rows


def _names(row: Row) -> tuple[str, ...]:
    return (row.options.algorithm, *([row.path.stem] if row.path else []))


def _row(cell: SuiteCell) -> Row:
    text = describe(cell.options)
    try:
        return Row(0, text, cell.options, job_of(resolve(cell.options), cell.resources))
    except Exception as error:  # a defect in one plug-in must not cost the night's other cells
        wrong = isinstance(error, InputError)
        return Row(0, text, cell.options, None, "failed", explained(error), wrong_input=wrong)


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, of which those that would read alike also say the options in which they differ."""
    alike: dict[str, list[dict[str, Any]]] = {}
    every = [row.options.asked for row in rows]
    for row, asked in zip(rows, every, strict=True):
        alike.setdefault(row.text, []).append(asked)
    differing = {text: _differing(group) for text, group in alike.items()}
    found = []
    for row, asked in zip(rows, every, strict=True):
        own = [f"{name}={value}" for name, value in asked.items() if name in differing[row.text]]
        text = " ".join([row.text, *own])
        found.append(replace(row, text=text, job=row.job and replace(row.job, text=text)))
    return found


def _differing(group: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names that some have with another value than the first, or not at all."""
    first = group[0]
    return {name for other in group for name in {*first, *other} if other.get(name) != first.get(name)}


def job_of(cell: Cell, resources: Resources) -> Job:
    """A resolved cell as a job. Raises InputError for a device that a suite would have to take from another cell."""
    if re.fullmatch(r"cuda:[1-9]\d*", cell.options.device):
        raise InputError(f"device {cell.options.device}: a suite gives each cell a GPU of its own; write cuda.")
    work = work_of(cell)
    return Job(
        options=cell.options,
        resources=resources,
        text=describe(cell.options),
        path=cell.path,
        work=work,
        final=functools.partial(final_result, cell.path, cell.configuration, work),
        can_use_gpu=_can_use_gpu(cell),
        is_timed="seconds" in (cell.options.budget or {}),
    )


def _can_use_gpu(cell: Cell) -> bool:
    """Whether a cell runs on a GPU where there is one: some models never do, some cells are told not to."""
    if cell.options.device == "cpu":
        return False
    try:
        return cell.family.device("cuda").startswith("cuda")
    except InputError:  # there is none here, but there may be elsewhere
        return True


class Settled(NamedTuple):
    """What a job has come to."""

    state: State
    reason: str | None
    is_there: bool = True  # its result, and not another one in its place


def settled(job: Job) -> Settled | None:
    """What a job has come to by the file that is there; None where it is left to be run."""
    try:
        result = job.final()
    except InputError as error:  # it is of another configuration, or damaged
        return Settled("failed", explained(error), is_there=False)
    if result is None:
        return None
    if result.status == "diverged":
        return Settled("failed", f"diverged: {result.reason}")
    return Settled("unsupported" if result.status == "unsupported" else "done", result.reason)


def look(rows: Sequence[Row]) -> None:
    """Say of rows, before any is run, what they have come to."""
    for row in rows:
        if row.job is not None and (found := settled(row.job)) is not None:
            row.state, row.reason, row.was_there = found.state, found.reason, found.is_there
            row.wrong_input = not found.is_there  # a file of another cell, or a damaged one


@dataclass(frozen=True)
class Total:
    """What the cells that are left would cost together, as far as it is known."""

    cells: int
    cost: Cost
    seconds: float | None  # on this machine, one cell after another; None where no model is at hand
    unknown: int  # cells whose cost a run has to find out


def total(rows: Sequence[Row]) -> Total:
    """The cost of the rows that wait. What cells cost that ask for as much, such as seeds of one, is worked out once;
    one that stands there twice is run once."""
    found: dict[str, Estimate | None] = {}
    left = {row.path: row for row in rows if row.state == "waiting"}
    each = [_estimated(resolve(row.options), found) for row in left.values()]
    known = [one for one in each if one is not None]
    timed = [one.seconds for one in known if one.seconds is not None]
    cost = sum((one.alignment + one.evaluation for one in known), Cost())
    return Total(len(left), cost, sum(timed) if timed else None, len(left) - len(known))


def _estimated(cell: Cell, found: dict[str, Estimate | None]) -> Estimate | None:
    """What a cell would cost, as was `found` for another one that asks for as much."""
    c = cell.configuration
    pairs = (c.pairs or {}).get("source"), (c.pairs or {}).get("count"), (c.pairs or {}).get("candidates")
    sizes = len(cell.training), len(cell.evaluated), c.images_per_prompt, c.resolution, c.dtype, pairs
    key = repr((cell.algorithm, cell.model, cell.sampling, c.budget, *sizes))
    if key not in found:
        try:
            found[key] = estimate(cell)
        except Unsupported:  # it costs nothing, as a run will find
            found[key] = Estimate(cell.algorithm, Cost(), Cost(), None)
        except AlignbenchError:  # it has a count with which cost does not grow evenly: a run has to find out
            found[key] = None
    return found[key]
