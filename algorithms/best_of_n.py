"""Best-of-n: draw n images and keep the one the reward likes best.

Paper       Folklore; its divergence from the base model is at most log n − (n − 1)/n, with equality for rewards without
            ties (Beirami et al. 2024, https://arxiv.org/abs/2401.01879).
Objective   x = argmax r(x_j) over x_1 … x_n ~ p_ref(· | prompt).                                               (1)
Departures  None. The candidates are nested: the first is the base model's image under the same key, and the first n of
            any larger set are the same, so that for every prompt the reward cannot fall as n grows.
Optimum     Missed by design: its density n F(r)^(n−1) p_ref ranks rewards and forgets their size, where p* weighs them
            by exp(r/β).
Cost        n times the base model's denoiser evaluations and decodes, and n reward evaluations, per image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignbench import (
    Cost,
    Key,
    PipelineSampler,
    Problem,
    Prompt,
    Reward,
    Sampler,
    Samples,
    Start,
    at_least_one,
    largest,
)

__all__ = ["BestOfN"]


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    trains: ClassVar[bool] = False

    n: int = 4  # images drawn per image kept

    def __post_init__(self) -> None:
        at_least_one(self, "n")

    def align(self, problem: Problem) -> Sampler:
        return BestOfNSampler(PipelineSampler(problem.pipeline, problem.sampling), problem.reward, self.n)

    def unsupported(self, problem: Problem) -> str | None:
        return None

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling = problem.sampling
        forward = self.n * sampling.steps * sampling.evaluations
        return Cost(denoiser_forward=forward, decode_forward=self.n, reward_forward=self.n)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> BestOfN:
        """As many images as the budget pays for."""
        return largest(lambda n: replace(self, n=n), lambda a: a.cost(problem), budget, "n")


@dataclass(frozen=True)
class BestOfNSampler:
    base: PipelineSampler
    reward: Reward
    n: int
    particles: int = 1  # candidates are drawn one after another; only the best so far is kept

    def describe(self) -> Mapping[str, Any]:
        return {**self.base.describe(), "n": self.n}

    def save(self, folder: Path) -> None:
        """Nothing was trained."""

    def divergence(self) -> float | None:
        """log n − (n − 1)/n where the candidates are the model's own distribution, see Paper."""
        known = self.base.divergence()
        return None if known is None else known + math.log(self.n) - (self.n - 1) / self.n

    def __call__(self, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None = None) -> Samples:
        best = self.base(prompts, keys, start)
        best_reward = self.reward(best.images, prompts)
        for j in range(1, self.n):
            drawn = self.base(prompts, [key("candidate", j) for key in keys], start)
            reward = self.reward(drawn.images, prompts)
            better = reward > best_reward  # of equals the first is kept
            images, latents = keep(better, drawn.images, best.images), keep(better, drawn.latents, best.latents)
            best, best_reward = Samples(images, latents), torch.maximum(reward, best_reward)
        return best


def keep(
    chosen: Bool[Tensor, " b"], new: Float[Tensor, b * shape], old: Float[Tensor, b * shape]
) -> Float[Tensor, b * shape]:
    """The rows of `new` that are chosen, and of `old` where not."""
    return torch.where(chosen.to(new.device).reshape(-1, *[1] * (new.dim() - 1)), new, old)
