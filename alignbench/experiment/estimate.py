"""What a cell would cost, counted by running its algorithm against a stand-in that computes nothing.

The stand-in has the model's schedule and latents of its kind, but tiny ones, and counts like the real pipeline; one
round of training is run and multiplied, and large counts are reckoned from small ones. Seconds are only given where
the model is at hand: one batch of the real denoiser is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alignbench.asking.resolve import Cell
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.rollout import initial_noise
from alignbench.diffusion.schedule import Schedule
from alignbench.errors import Unsupported
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import TrainingRound
from alignbench.experiment.reckoned import TooLong, reckoned
from alignbench.interface import (
    Algorithm,
    PairBatch,
    Pairs,
    Policy,
    Probe,
    Prompt,
    Prompts,
    RewardInfo,
    Sampling,
    TestTimeAlgorithm,
    Tuning,
)
from alignbench.keys import Key
from alignbench.meter import Cost, Meter
from alignbench.quantities import Condition, Prediction, Steps

T = TypeVar("T")

IMAGES = 2  # sampled to count the cost per image
SIDE = 2  # of the stand-in's latents: what is counted does not depend on it, and a FLUX's own would take gigabytes


@dataclass(frozen=True)
class Estimate:
    """Counted cost of alignment and of the evaluation's images, and seconds where they could be measured; the
    algorithm is the cell's, with what its budget pays for."""

    algorithm: Algorithm
    alignment: Cost
    evaluation: Cost
    seconds: float | None


class StandIn:
    """A pipeline and policy whose denoiser returns one trainable number everywhere."""

    def __init__(
        self, schedule: Schedule | FlowSchedule, latent_shape: tuple[int, ...], meter: Meter, sampling: Sampling
    ) -> None:
        self.schedule, self.latent_shape, self.meter, self.sampling = schedule, latent_shape, meter, sampling
        self.weight = nn.Parameter(torch.zeros(()))

    @property
    def train_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def reference(self) -> StandIn:
        return self

    def info(self) -> Mapping[str, Any]:
        return {}

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        rows = {"text": torch.zeros(len(prompts), 1)}
        return Condition(rows, rows)

    def initial_noise(self, keys: Sequence[Key]) -> Tensor:
        return initial_noise(keys, self.latent_shape)

    def timesteps(self, n: int) -> Steps:
        return self.schedule.steps(n)

    def training_timesteps(self, uniform: Tensor) -> Tensor:
        return self.schedule.draw(uniform)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, noise, t)

    def predict(self, latents: Tensor, t: float | Tensor, condition: Condition, guidance: float = 1.0) -> Prediction:
        n = len(latents) * replace(self.sampling, guidance=guidance).evaluations
        output = latents * 0.1 + self.weight
        self.meter.forward("denoiser", n)
        self.meter.watch("denoiser", output, n)
        return self.schedule.predict(output, latents, t)

    def exact_step(self, latents: Tensor, step: Steps, keys: Sequence[Key]) -> Tensor:
        self.meter.forward("denoiser", len(latents))
        return latents

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        self.meter.forward("decode", len(latents))
        self.meter.watch("decode", latents, len(latents))
        return latents.atan()  # a sigmoid is 1 of all that is far off, and no pair may tie

    def encode(self, images: Tensor) -> Tensor:
        return images

    def adapt(self, tuning: Tuning, key: Key) -> StandIn:
        return self

    @property
    def recomputations(self) -> None:
        return None

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def networks(self) -> list[nn.Module]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def save(self, folder: Path) -> None:
        """Nothing to save."""


class _MeanReward:
    """Differs between images and has a gradient; nothing else matters."""

    differentiable = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.flatten(1).mean(1)

    with_grad = __call__

    def info(self) -> RewardInfo:
        return RewardInfo(id="stand-in")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None


@dataclass(frozen=True)
class _SomePairs:
    """As many pairs as the real ones, all alike."""

    pipeline: StandIn
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> PairBatch:
        n = len(indices)
        latents = torch.zeros(2, n, *self.pipeline.latent_shape)
        condition = self.pipeline.condition([Prompt("", "")] * n)
        return PairBatch(latents[0], latents[1], condition, torch.ones(n), range(n))


@dataclass
class _OneRound:
    """A problem that runs a single round and multiplies its cost."""

    pipeline: StandIn
    reward: MeteredReward
    prompts: Prompts
    sampling: Sampling
    meter: Meter
    key: Key
    pairs: Pairs | None = None
    budget: None = None

    def rounds(self, n: int, state: Mapping[str, Any]) -> Iterator[TrainingRound]:
        before = self.meter.total
        yield TrainingRound(0, self.key)
        once = self.meter.total - before
        self.meter.total = before + Cost(**{name: n * value for name, value in once.as_dict().items()})

    def check(self, policy: Policy, plan: Mapping[str, float], probe: Callable[[], Probe]) -> None:
        """Costs nothing, as the real one."""

    def shard(self, items: Sequence[T], together: int = 1) -> Sequence[T]:
        return items

    def gather(self, parts: Sequence[T]) -> list[T]:
        return list(parts)

    def step(
        self, loss: Tensor | Iterable[Tensor], optimiser: torch.optim.Optimizer, max_norm: float | None = None
    ) -> float:
        for part in [loss] if isinstance(loss, Tensor) else loss:
            part.backward()
        return 0.0


def estimate(cell: Cell) -> Estimate | None:
    """The cost of a cell, or None where it depends on what a run has to find out: the model's shapes before they are
    downloaded, or what a second of a budget comes to. Raises Unsupported where the algorithm cannot run, or a budget
    does not pay for one image."""
    if cell.family.latent_shape(cell.model, cell.evaluated, cell.options.resolution) is None:
        return None
    problem, algorithm, budget = _problem(cell), cell.algorithm, cell.configuration.budget
    if (steps := getattr(algorithm, "steps", None)) is not None:
        problem.pipeline.timesteps(steps)  # refuses more than the schedule has
    if reason := algorithm.unsupported(problem):
        raise Unsupported(reason)
    if budget and isinstance(algorithm, TestTimeAlgorithm):
        if "seconds" in budget:
            return None
        algorithm = algorithm.for_budget(budget, problem)
    trained, some = reckoned(lambda asked, seconds: _counted(cell, asked, seconds), algorithm)
    made = 0
    if (pairs := cell.configuration.pairs) is not None and pairs["source"] == "made":
        made = int(pairs["count"] or 0) * int(pairs["candidates"] or 0)
    steps = cell.sampling.steps * cell.sampling.evaluations
    alignment = trained + Cost(denoiser_forward=made * steps, decode_forward=made, reward_forward=made)
    images = len(cell.evaluated) * cell.options.images_per_prompt
    evaluation = Cost(**{name: value * images // IMAGES for name, value in some.as_dict().items()})
    return Estimate(algorithm, alignment, evaluation, _seconds(cell, alignment + evaluation))


def _problem(cell: Cell) -> _OneRound:
    """A cell's problem on the stand-in, whose meter is at zero."""
    shape, meter = cell.family.latent_shape(cell.model, cell.evaluated, cell.options.resolution) or (), Meter()
    small = (*shape[:-2], *(min(side, SIDE) for side in shape[-2:])) if len(shape) > 2 else shape
    stand_in = StandIn(cell.family.typical_schedule(cell.model), small, meter, cell.sampling)
    reward, pairs = MeteredReward("stand-in", _MeanReward(), meter), cell.configuration.pairs
    some = _SomePairs(stand_in, int(pairs["count"] or 0)) if pairs is not None else None
    return _OneRound(stand_in, reward, cell.training, cell.sampling, meter, Key("estimate"), some)


def _counted(cell: Cell, algorithm: Algorithm, seconds: float) -> tuple[Cost, Cost]:
    """What is counted of an algorithm's alignment, and of IMAGES images of its sampler. Raises TooLong."""
    problem, end = _problem(cell), time.monotonic() + seconds

    def moved() -> None:
        if time.monotonic() > end:
            raise TooLong

    problem.meter.moved = moved
    sampler = algorithm.align(problem)
    trained = problem.meter.total
    sampler((list(cell.evaluated) * IMAGES)[:IMAGES], [Key("estimate", i) for i in range(IMAGES)])
    return trained, problem.meter.total - trained


def _seconds(cell: Cell, cost: Cost) -> float | None:
    """Denoiser evaluations times the measured time of one, a backward pass counted as two forward ones."""
    if not cell.family.at_hand:
        return None
    meter = Meter()
    pipeline = cell.family.load(cell.model, meter, cell.hold("cpu"), cell.evaluated)
    condition = pipeline.condition(list(cell.evaluated[:1]) * 32)
    latents = initial_noise([Key("estimate", i) for i in range(32)], pipeline.latent_shape)
    timed = []
    with torch.no_grad():
        for _ in range(3):
            started = time.monotonic()
            pipeline.predict(latents, 500, condition, 2.0)
            timed.append(time.monotonic() - started)
    return min(timed) / 64 * (cost.denoiser_forward + 2 * cost.denoiser_backward)
