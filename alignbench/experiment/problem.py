"""The problem an algorithm meets: the pipeline, the reward, prompts, and the services that keep runs resumable."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignbench import devices
from alignbench.errors import AlignbenchError, CannotContinue, Diverged, described
from alignbench.experiment import start_up
from alignbench.files import append_line, replace_file, write_text
from alignbench.interface import Pairs, Pipeline, Policy, Probe, Prompts, Reward, Sampling
from alignbench.keys import Key
from alignbench.meter import Cost, Meter
from alignbench.processes import ALONE, Processes
from alignbench.progress import Progress
from alignbench.reading import json_of, read_bytes, records

T = TypeVar("T")

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
ROLLBACK = "rollback.json"
SPIKE = 100  # times the median of the last gradients' norms: a gradient that large ends a round
USUAL = 20, 50  # how many of them there must be, and how many are kept
# A checkpoint that takes longer than so many seconds to write is written again after so many times as long, or after so
# many seconds where that is sooner: what a kill or a time limit costs is bounded.
SELDOM = 1.0, 20, 300.0
PROBES = 5  # times a run looks at its policy on held-out prompts, the first before training


@dataclass
class TrainingRound:
    """One round, and what was logged in it."""

    index: int
    key: Key
    logged: dict[str, float] = field(default_factory=dict)

    def log(self, **values: float | Tensor) -> None:
        plain = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self.logged |= {name: float(value) for name, value in plain.items()}


@dataclass
class CellProblem:
    """The `Problem` of one cell. `folder` holds the checkpoint and the training curve."""

    pipeline: Pipeline
    reward: Reward
    prompts: Prompts
    sampling: Sampling
    key: Key
    meter: Meter
    folder: Path
    progress: Progress
    probe: Callable[[Pipeline], Mapping[str, float]] | None = None  # held-out scores of a policy
    report: Callable[[int, Mapping[str, Any]], None] | None = None  # each line of the curve, by round
    pairs: Pairs | None = None
    budget: Mapping[str, float] | None = None
    processes: Processes = ALONE
    seconds: float = 0.0  # of all processes, spent in finished rounds, over all attempts
    resumed_at: int = 0
    _done: int = field(default=0, init=False)
    _optimisers: dict[int, str] = field(default_factory=dict, init=False)  # id -> name in the state
    _norms: dict[str, list[float]] = field(default_factory=dict, init=False)  # of the last gradients, by optimiser
    _saved: tuple[float, float] = field(default=(0.0, 0.0), init=False)  # seconds the last checkpoint took; when it was

    def check(self, policy: Policy, plan: Mapping[str, float], probe: Callable[[], Probe]) -> None:
        before, processes = self.meter.total, self.processes
        self.processes = ALONE  # each looks at all of it
        try:
            start_up.check(policy, probe())
        finally:
            self.processes = processes
        self.meter.total = before
        trained = sum(parameter.numel() for parameter in policy.parameters())
        self.progress.say("  ".join([f"trains {trained:,} weights", *(f"{k} {v:g}" for k, v in plan.items())]))

    def roll_back(self, error: Diverged) -> bool:
        """Whether the run may go on from its last checkpoint: once. The round that failed is then drawn anew."""
        path = self.folder / ROLLBACK
        if self.processes.agree(int(path.exists())):
            return False
        if self.processes.first:
            write_text(path, json.dumps({"round": self._done, "reason": str(error)}) + "\n")
        again = "going back to the last checkpoint, and drawing that round anew"
        self.progress.say(f"round {self._done + 1}: {error}; {again}")
        self.start_again()
        return True

    def start_again(self) -> None:
        """Before `align` is called once more: the checkpoint, if there is one, says what was spent and seen."""
        self.meter.total, self.seconds, self._done, self._norms = Cost(), 0.0, 0, {}

    def rounds(self, n: int, state: Mapping[str, Any]) -> Iterator[TrainingRound]:
        """See `Problem.rounds`. Killed at any moment, a run repeats the round it was in, and those since the last
        checkpoint where these are large (see `SELDOM`)."""
        self._optimisers = {id(item): name for name, item in state.items()}
        first = self._restore(n, state)
        again = self._rolled_back()
        self.progress.stage("align", n, first)
        probed = self._probe(state, 0, {}) if first == 0 else {}
        for index in range(first, n):
            started, before = time.monotonic(), self.meter.total
            self._done = index
            key, failed = self.key("round", index), again.get(index)
            current = TrainingRound(index, key("again") if failed else key)
            yield current
            self.seconds += (time.monotonic() - started) * self.processes.size
            self._meet(before, state)
            record: dict[str, Any] = {"round": index + 1, **current.logged}
            record |= {"rolled_back": failed} if failed else {}
            fresh = self._probe(state, index + 1, record) if self._probe_is_due(index + 1, n) else {}
            if not fresh:
                self._append(record)
            if index + 1 == n or self._save_is_due():
                self._save(index + 1, state)
            probed = fresh or probed
            shown = {name: current.logged.get(name) for name in ("reward", "kl")}
            self.progress.advance(1, **shown, **probed)

    def shard(self, items: Sequence[T], together: int = 1) -> Sequence[T]:
        return self.processes.shard(items, together)

    def gather(self, parts: Sequence[T]) -> list[T]:
        return self.processes.gather(parts)

    def _meet(self, before: Cost, state: Mapping[str, Any]) -> None:
        """After a round: count what all processes used in it, and see that they hold the same weights."""
        if self.processes.size == 1:
            return
        used = (self.meter.total - before).as_dict()
        self.meter.total = before + Cost(**dict(zip(used, self.processes.total(list(used.values())), strict=True)))
        self.processes.check_same(tensors_of([item.state_dict() for item in state.values()]), "the trained weights")

    def step(
        self, loss: Tensor | Iterable[Tensor], optimiser: torch.optim.Optimizer, max_norm: float | None = None
    ) -> float:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        optimiser.zero_grad(set_to_none=True)
        values = []
        for part in [loss] if isinstance(loss, Tensor) else loss:
            part.backward()
            values.append(part.detach())  # looked at below: a look at each would wait for the GPU each time
        if broken := [value for value in torch.stack(values).tolist() if not math.isfinite(value)] if values else []:
            raise Diverged(f"the loss is {broken[0]}")
        self.processes.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}")
        self._check_spike(norm, self._norms.setdefault(self._optimisers.get(id(optimiser), ""), []))
        optimiser.step()
        return norm

    def _check_spike(self, norm: float, norms: list[float]) -> None:
        """Raise Diverged for a gradient far above the last ones'; else remember its norm."""
        usual = statistics.median(norms) if len(norms) >= USUAL[0] else math.inf
        if usual > 0 and norm > SPIKE * usual:
            raise Diverged(f"the gradient's norm is {norm:.3g}, {norm / usual:.0f} times what it used to be")
        norms.append(norm)
        del norms[: -USUAL[1]]

    def _rolled_back(self) -> dict[int, str]:
        """The round that is done anew, if one is, and why."""
        path = self.folder / ROLLBACK
        try:
            record = self.processes.told(json_of(read_bytes(path)) if self.processes.first and path.exists() else None)
            return {} if record is None else {int(record["round"]): str(record["reason"])}
        except (ValueError, KeyError, TypeError) as error:
            raise CannotContinue(f"{path} cannot be read ({described(error, 200)})") from error

    def curve(self) -> list[dict[str, Any]]:
        """The training curve so far."""
        return records(self.folder / METRICS, _of_a_round, self.progress.say)

    def _probe_is_due(self, done: int, n: int) -> bool:
        return done * (PROBES - 1) // n > (done - 1) * (PROBES - 1) // n

    def _probe(self, state: Mapping[str, Any], done: int, record: dict[str, Any]) -> dict[str, float]:
        """Score the policy on held-out prompts, outside the cost of alignment, and write the curve's line."""
        if self.probe is None or "policy" not in state or not self.processes.first:
            return {}
        before = self.meter.total
        scores = dict(self.probe(state["policy"]))
        self.meter.total = before
        self._append({"round": done, **record, "held_out": scores})
        return scores

    def _append(self, record: dict[str, Any]) -> None:
        if not self.processes.first:
            return
        line = _finite(record) | {"seconds": round(self.seconds, 3), **self.meter.total.as_dict()}
        append_line(self.folder / METRICS, json.dumps(line, allow_nan=False))
        if self.report is not None:
            self.report(int(line["round"]), {name: value for name, value in line.items() if name != "round"})

    def _save_is_due(self) -> bool:
        """Whether a checkpoint, for which all other processes wait, is worth its time by now."""
        (short, times, longest), (took, ended) = SELDOM, self._saved
        return took < short or time.monotonic() - ended >= min(times * took, longest)

    def _save(self, done: int, state: Mapping[str, Any]) -> None:
        if not self.processes.first:
            return
        started = time.monotonic()
        content = {
            "done": done,
            "state": {name: item.state_dict() for name, item in state.items()},
            "cost": self.meter.total.as_dict(),
            "seconds": self.seconds,
            "norms": self._norms,
        }
        with replace_file(self.folder / CHECKPOINT) as temporary:
            torch.save(content, temporary)
        self._saved = time.monotonic() - started, time.monotonic()

    def _restore(self, n: int, state: Mapping[str, Any]) -> int:
        """Load the last checkpoint into `state`, cut the curve back to it, and see that all processes begin with the
        same weights. Returns the number of rounds done."""
        path = self.folder / CHECKPOINT
        done = 0
        with _continued(path):
            if saved := self.processes.told(_read(path) if self.processes.first and path.exists() else None):
                for name, item in state.items():
                    item.load_state_dict(saved["state"][name])
                done = int(saved["done"])
                self.seconds = float(saved["seconds"])
                self.meter.total = Cost(**saved["cost"])
                self._norms = {str(name): [float(x) for x in norms] for name, norms in saved["norms"].items()}
        self.resumed_at = done
        if done:
            self.progress.say(f"resumed at round {done} of {n}")
        metrics = self.folder / METRICS
        if self.processes.first and metrics.exists():
            kept = [line for line in self.curve() if line["round"] <= done] if done else []
            write_text(metrics, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))
        self.processes.check_same(tensors_of([item.state_dict() for item in state.values()]), "the weights to train")
        return done


def tensors_of(state: Any) -> list[Tensor]:
    """Every tensor in a tree of mappings and sequences, in order."""
    if isinstance(state, Tensor):
        return [state]
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in inner for tensor in tensors_of(item)]


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _continued(path: Path) -> Iterator[None]:
    """Within, what torch and the optimisers raise for a broken or a foreign file becomes CannotContinue."""
    try:
        yield
    except Exception as error:
        if devices.is_full(error) or isinstance(error, AlignbenchError):
            raise
        damaged = isinstance(error, pickle.UnpicklingError | EOFError)  # whose words advise to run its code
        reason = "it is damaged, or no checkpoint" if damaged else described(error, 200)
        raise CannotContinue(f"{path} cannot be continued ({reason})") from error


def _of_a_round(line: Any) -> dict[str, Any]:
    """A line of the curve, if it is one."""
    return {**line, "round": int(line["round"])}


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with numbers that JSON cannot hold as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _finite(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in record.items()}
