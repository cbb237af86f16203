"""Algorithms in one and in several processes: `trained` begins them and returns what each algorithm came to: weights,
curve and cost."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from on_tiny import pictures_with_pairs
from warm import begin

# Sizes that neither two nor three processes divide, and a last batch that is shorter.
FEW = {
    "rounds": 2, "samples_per_round": 13, "samples_per_update": 7, "pairs_per_update": 11, "updates_per_round": 3,
    "moves_per_update": 17, "value_batch": 19, "batch": 3, "passes": 2, "learning_rate": 5e-4, "clip": 0.1,
    "warmup": 0, "samples_per_prompt": 3,
}  # fmt: skip
FEWER = {**FEW, "samples_per_round": 2, "samples_per_update": 1, "pairs_per_update": 2, "updates_per_round": 1}
FEWER |= {"moves_per_update": 1, "value_batch": 1, "samples_per_prompt": 2}
# As little as two and three processes share unevenly, in passes of two pictures: for networks.
LEAST = {**FEW, "rounds": 1, "samples_per_round": 6, "samples_per_update": 5, "pairs_per_update": 5, "batch": 2}
LEAST |= {"updates_per_round": 1, "moves_per_update": 5, "value_batch": 5, "passes": 1, "samples_per_prompt": 2}
# One pass, which processes cut, at the preset's rate.
ONE_PASS = {name: value for name, value in (LEAST | {"batch": 7}).items() if name != "learning_rate"}
SIZES = {"fewer": FEWER, "least": LEAST, "one pass": ONE_PASS}  # of faults that are none
OWN = {"refl": {"steps": 8, "prior_weight": 0.5}, "dpok": {"future_kl": True, "lookahead": True}}
OWN |= {"d3po": {"samples_per_round": 14}, "reward_weighted_regression": {"samples_per_prompt": 1}}
SAME = {"mixture": 1e-6, "mixture_flow": 1e-6, "tiny": 1e-5}  # weights, by toy
# On pictures, the share of weights that may differ by more where an update has fewer forward passes than there are
# processes, which cut them. Sums of passes of other sizes round otherwise, and Adam's first step divides a gradient
# that is nothing but rounding by itself, so that a few weights move in either direction: at a rate of 5e-4 by up to
# 7e-5. At the presets' rates, in two and three processes, the farthest was one of diffusion_nft's, at 9.8e-6, which
# another processor may round beyond the bound.
STRAY = 2e-4


@dataclasses.dataclass(frozen=True)
class Came:
    """What training came to."""

    weights: list[torch.Tensor]
    curve: list[dict[str, Any]]
    cost: dict[str, int]

    def distance(self, other: Came) -> float:
        """The largest difference of a weight."""
        return max(float((a - b).abs().max()) for a, b in zip(self.weights, other.weights, strict=True))

    def beyond(self, other: Came, bound: float) -> float:
        """The share of weights that differ by more than a bound."""
        beyond = sum(int(((a - b).abs() > bound).sum()) for a, b in zip(self.weights, other.weights, strict=True))
        return beyond / sum(weight.numel() for weight in self.weights)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def environments(processes: int) -> list[dict[str, str]]:
    """What a launcher sets for each process."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"OMP_NUM_THREADS": "1"}
    return [{**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def trained(
    folder: Path, processes: int, names: Sequence[str], toy: str = "mixture", fault: str = "none"
) -> dict[str, Came]:
    """Train these algorithms, one after another, in so many processes. Fails with what they printed."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = [begin(train, folder, toy, fault, names, environment=own) for own in environments(processes)]
    ended = [process.ended(1200) for process in begun]
    assert all(done.returncode == 0 for done in ended), "\n".join(done.stdout + done.stderr for done in ended)
    return {name: Came(**torch.load(folder / f"{name}.pt", weights_only=True)) for name in names}


def train(folder: Path, toy_name: str, fault: str, names: Sequence[str]) -> None:
    from alignbench import plugins
    from alignbench.asking.presets import build_algorithm
    from alignbench.contracts.toys import points
    from alignbench.experiment.align import align
    from alignbench.meter import Cost
    from alignbench.processes import joined

    torch.set_num_threads(1)
    few = SIZES.get(fault, FEW)
    with joined("cpu") as processes, processes.together():
        toy = pictures_with_pairs(steps=6) if toy_name == "tiny" else points(flow=toy_name == "mixture_flow")
        for name in names:
            plant(fault, processes.rank)
            kind = plugins.load("algorithms", name)
            known = {field.name for field in dataclasses.fields(kind)}
            fields = {field: value for field, value in {**few, **OWN.get(name, {})}.items() if field in known}
            if fault in SIZES:
                fields |= {field: value for field, value in few.items() if field in known}
            problem = toy.problem(folder / f"{name}-{processes.rank}")
            problem.processes = processes
            toy.meter.total = Cost()
            sampler, _ = align(build_algorithm(name, kind, toy_name, fields)[0], problem)
            if processes.first:
                curve = [{k: v for k, v in line.items() if k != "seconds"} for line in problem.curve()]
                weights = [p.detach().clone() for p in sampler.pipeline.parameters()]
                content = {"weights": weights, "curve": curve, "cost": toy.meter.total.as_dict()}
                torch.save(content, folder / f"{name}.pt")


class Everything:
    """What an algorithm asks that does not share a part of its work."""

    def shard(self, items: Sequence[Any], together: int = 1) -> Sequence[Any]:
        return items

    def gather(self, parts: Sequence[Any]) -> list[Any]:
        return list(parts)


def plant(fault: str, rank: int) -> None:
    """A mistake that a test has to see, in this process."""
    from alignbench.experiment.problem import CellProblem
    from alignbench.keys import Key
    from alignbench.processes import Processes

    plain = Processes.sum_gradients
    if fault == "mean of local means":

        def averaged(self: Processes, parameters: Sequence[torch.nn.Parameter]) -> None:
            plain(self, parameters)
            for parameter in parameters:
                parameter.grad /= self.size

        Processes.sum_gradients = averaged  # type: ignore[method-assign]
    elif fault == "a padded duplicate":
        Processes.shard = lambda self, items, together=1: [  # type: ignore[method-assign]
            items[(self.rank + k * self.size) % len(items)] for k in range(-(-len(items) // self.size))
        ]
    elif fault == "seeds per rank":
        generator = Key.generator
        Key.generator = lambda self: generator(Key(*self.path, rank) if rank else self)  # type: ignore[method-assign]
    elif fault == "local permutation":
        permutation = Key.permutation
        Key.permutation = lambda self, n: permutation(self, n)[rank:] + permutation(self, n)[:rank]  # type: ignore[method-assign]
    elif fault == "losses not shared":
        from alignbench.algorithms.ddpo import DDPO

        losses = DDPO.losses
        DDPO.losses = lambda self, problem, *given: losses(self, Everything(), *given)  # type: ignore[method-assign]
    elif fault == "a weight moved" and rank == 1:

        def moved(self: Processes, parameters: Sequence[torch.nn.Parameter]) -> None:
            plain(self, parameters)
            parameters[0].data.view(-1)[0] += 1e-7

        Processes.sum_gradients = moved  # type: ignore[method-assign]
    elif (failure := fault.removeprefix("alone ")) in FAILURES:
        step, seen = CellProblem.step, []
        # Of a process that is alone, what counts of those that several would meet: the last.
        own = FAILURES[failure][1] if failure != fault else FAILURES[failure].get(rank)

        def failing(self: CellProblem, loss: Any, *rest: Any) -> float:
            seen.append(None)
            if len(seen) == 3 and own is not None:
                raise own
            return step(self, loss, *rest)

        CellProblem.step = failing  # type: ignore[method-assign]


def failures() -> dict[str, dict[int, Exception]]:
    from alignbench.errors import Diverged

    full = torch.OutOfMemoryError("CUDA out of memory")
    return {
        "diverged": {1: Diverged("the loss is nan")},
        "memory": {1: full},
        "memory and diverged": {0: Diverged("the loss is nan"), 1: full},
        "defect": {1: KeyError("a defect")},
    }


FAILURES = failures()


SOONER = 8.0  # seconds that an `impatient` command waits


def impatient(words: list[str]) -> None:
    """A command whose launcher waits less for a process that was asked to end, and whose processes wait less for one
    that is silent."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    from alignbench import launch
    from alignbench.__main__ import main

    plain, close = launch.command, SubprocessContext.close
    waits = f"from alignbench import __main__, processes; processes.BEAT, processes.SILENCE = 1.0, {SOONER}; "

    def command(*asked):
        python, *flags = plain(*asked)
        where = flags.index("-m")
        return [python, *flags[:where], "-c", waits + "__main__.main()", *flags[where + 2 :]]

    launch.command = command
    SubprocessContext.close = lambda self, signal=None, timeout=30: close(self, signal, SOONER)
    sys.argv = ["alignbench", *words]
    main()
