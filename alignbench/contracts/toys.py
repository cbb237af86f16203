"""Small problems that algorithms are checked on: on points in a second, on the embedded model's pictures in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import plugins
from alignbench.asking.prompts import take
from alignbench.choices import ToyName
from alignbench.diffusion import registry
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.schedule import Schedule
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import CellProblem
from alignbench.interface import Pairs, Pipeline, Prompt, Prompts, Reward, RewardInfo, Sampling
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.progress import Progress
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.tilt import Quadratic
from alignbench.testbed.toys import grid


@dataclass(frozen=True)
class Rightwards:
    """The first coordinate of a point: higher to the right."""

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Float[Tensor, "b d"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return images[:, 0]

    with_grad = __call__

    def info(self) -> RewardInfo:
        return RewardInfo(id="rightwards-1", range="real")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None


@dataclass(frozen=True)
class Toy:
    """A pipeline with its meter, prompts to draw and to train on, a reward, and preference pairs by that reward."""

    pipeline: Pipeline
    meter: Meter
    prompts: Sequence[Prompt]
    training: Prompts
    reward: Reward
    sampling: Sampling
    pairs: Pairs | None

    def problem(self, folder: Path, prompts: bool = True, kind: type[CellProblem] = CellProblem) -> CellProblem:
        """The problem that an algorithm meets, without prompts and pairs where it is to miss them."""
        folder.mkdir(parents=True, exist_ok=True)
        return kind(
            pipeline=self.pipeline,
            reward=MeteredReward("toy", self.reward, self.meter),
            prompts=self.training if prompts else Prompts(()),
            sampling=self.sampling,
            key=Key("align", 0),
            meter=self.meter,
            folder=folder,
            progress=Progress(quiet=True),
            pairs=self.pairs if prompts else None,
        )


def toy(name: ToyName) -> Toy:
    """A toy of the exact testbed, or of the embedded model."""
    return pictures() if name == "tiny" else points(flow=name == "mixture_flow")


def points(count: int = 64, flow: bool = False) -> Toy:
    """The grid of nine modes, under the usual noise schedule or as a flow model; the reward is the first coordinate."""
    meter, levels = Meter(), Schedule.scaled_linear()
    schedule = FlowSchedule(shift=3.0) if flow else Schedule(levels, float(levels[0]), steps_offset=1)
    pipeline = MixturePipeline(grid().mixture, schedule, meter)
    prompts = [Prompt(f"p{i}", f"point {i}") for i in range(count)]
    rightwards = Quadratic.linear(torch.tensor([1.0, 0.0]))  # the same reward in closed form, which labels pairs
    return Toy(
        pipeline,
        meter,
        prompts,
        training=Prompts([Prompt(f"t{i}", f"training point {i}") for i in range(20)]),
        reward=Rightwards(),
        sampling=Sampling(steps=8, guidance=1.0, eta=0.0 if flow else 1.0),
        pairs=MixturePairs(pipeline.mixture, rightwards, pipeline, prompts, Key("pairs"), 2000),
    )


def pictures(count: int = 8) -> Toy:
    """The embedded model on captions of its world; the reward is learned. It has no pairs."""
    meter = Meter()
    return Toy(
        registry.load(registry.find("tiny"), meter),
        meter,
        take("shapes", "test")[:count],
        training=Prompts(take("shapes", "train")[:20]),
        reward=plugins.load("rewards", "shapes_preference")(),
        sampling=Sampling(steps=6, guidance=3.0, eta=1.0),
        pairs=None,
    )
