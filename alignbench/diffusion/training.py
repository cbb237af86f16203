"""What methods that train weights share: the fields that all of them have, their checks, and how training begins.

A base holds fields and finished methods. What an algorithm does in a round stands in its own file, and so does every
value that is its paper's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, TypeVar

from torch.optim import Optimizer

from alignbench.diffusion.optimisers import OptimiserName, Tuned, optimiser_of, tuning_of
from alignbench.diffusion.rollout import noise_of
from alignbench.errors import Unsupported
from alignbench.fields import at_least_one, not_negative, positive
from alignbench.interface import Pairs, Policy, Problem, Sampling
from alignbench.keys import Key, epochs
from alignbench.quantities import UNGUIDED

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A method that trains in rounds. These fields have no values here: each method has its own paper's."""

    trains: ClassVar[bool] = True

    rounds: int
    updates_per_round: int  # optimiser steps
    batch: int  # per forward pass: a matter of memory alone
    learning_rate: float
    weight_decay: float
    max_norm: float  # of the gradient
    tuning: Tuned
    rank: int  # of the LoRA

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "updates_per_round", "batch", "rank")
        positive(self, "learning_rate", "max_norm")
        not_negative(self, "weight_decay")

    @property
    def updates(self) -> int:
        """Optimiser steps in all, of a method whose rounds pass over their data once."""
        return self.rounds * self.updates_per_round

    def cut(self, what: str, count: int) -> None:
        """Raise ValueError where a round has fewer images or pairs than optimiser steps."""
        if count < self.updates_per_round:
            raise ValueError(
                f"updates_per_round={self.updates_per_round} cannot be cut from the {count} {what} of a round; "
                "set it lower, or make more of them."
            )

    def start(self, problem: Problem, optimiser: OptimiserName = "adamw") -> tuple[Policy, Optimizer]:
        """A policy that equals the model so far, and what will move it."""
        policy = problem.pipeline.adapt(tuning_of(self.tuning, self.rank), problem.key("adapter"))
        return policy, optimiser_of(policy.parameters(), optimiser, self.learning_rate, self.weight_decay)

    def plan(self, what: str, count: int, passes: int = 1) -> dict[str, float]:
        """What the check at the start prints, of a method that makes `count` images or pairs a round."""
        return {
            f"{what} a round": count,
            "updates a round": self.updates_per_round * passes,
            f"{what} an update": count / self.updates_per_round,
            "learning rate": self.learning_rate,
        }


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Training):
    """A method that samples paths and changes how likely their steps are, from what their images earn."""

    samples_per_round: int
    eta: float = 1.0  # noise of the sampled paths
    steps: int | None = None  # of the sampled paths; None: as in evaluation
    tuning: Tuned = "lora"
    rank: int = 4  # of the LoRA

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_round")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise a path has no density.")

    def path_sampling(self, problem: Problem) -> Sampling:
        """How paths are sampled."""
        return replace(problem.sampling, eta=self.eta, steps=self.steps or problem.sampling.steps)

    def actions(self, problem: Problem) -> int:
        """The steps of a path with σ > 0, which are those that have a density."""
        sampling = self.path_sampling(problem)
        return int((noise_of(problem.pipeline.timesteps(sampling.steps), sampling) > 0).sum())


@dataclass(frozen=True, kw_only=True)
class PairTraining(Training):
    """A method that learns from preference pairs as Wallace et al. 2023 do (https://arxiv.org/abs/2311.12908; values of
    their Stable Diffusion 1.5 run, with a LoRA of ours)."""

    learns_from_pairs: ClassVar[bool] = True
    reads_reward: ClassVar[bool] = False  # one may have labelled the pairs

    rounds: int = 200
    updates_per_round: int = 10  # optimiser steps
    pairs_per_update: int = 2048
    caption_dropout: float = 0.2  # share of pairs shown without their prompt
    warmup: int = 500  # updates over which the learning rate rises
    optimiser: OptimiserName = "adamw"  # the authors' SDXL run: adafactor
    weight_decay: float = 1e-2
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "lora"
    rank: int = 8  # of the LoRA

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "pairs_per_update")
        not_negative(self, "warmup")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}.")

    def order(self, problem: Problem, pairs: Pairs, update: int) -> list[int]:
        """The pairs of an update, numbered from 0: the next of an endless order of all of them."""
        return epochs(problem.key("order"), len(pairs), update * self.pairs_per_update, self.pairs_per_update)


def scale_of(sampling: Sampling, guided: bool) -> float:
    """The guidance to sample own images or train on them under: the evaluation's, or none. A model that is told its
    scale has no prediction without one, and keeps it, as Flow-GRPO's and DanceGRPO's runs on FLUX.1 [dev] do."""
    return sampling.guidance if guided or sampling.embedded_guidance else UNGUIDED


def shuffled_parts(items: Sequence[T], key: Key, count: int) -> list[Sequence[T]]:
    """A pass over items in random order, cut into `count` updates, whose sizes differ by one at most. Fewer than
    `count` items make an update each."""
    order = [items[i] for i in key.permutation(len(items))]
    count = min(count, len(order))
    bounds = [len(order) * k // count for k in range(count + 1)] if order else []
    return [order[start:end] for start, end in pairwise(bounds)]


def without_prompts(problem: Problem, method: str) -> str | None:
    """Why a method that samples its own images cannot train on this problem, or None."""
    if problem.prompts:
        return None
    return f"{method} draws prompts to train on, and none were named; pass --train-prompts."


def without_pairs(problem: Problem, method: str) -> str | None:
    """Why a method that learns from pairs cannot train on this problem, or None."""
    if problem.pairs is not None:
        return None
    return f"{method} learns from preference pairs; pass --pairs, or --train-prompts and --reward to have some made."


def pairs_of(problem: Problem, method: str) -> Pairs:
    """The problem's pairs. Raises Unsupported where it has none."""
    if problem.pairs is None:
        raise Unsupported(str(without_pairs(problem, method)))
    return problem.pairs
