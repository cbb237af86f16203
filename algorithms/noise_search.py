"""Noise search: try other noise for the sampling chain, at random or near the best so far, and keep what scores best.

Paper       Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
            https://arxiv.org/abs/2501.09732 (random search, and zero-order search with four neighbours); there is no
            code of the authors, `neighbours` and `cosine` are those of https://github.com/sayakpaul/tt-scale-flux.
Objective   x = argmax r(chain(z)) over the noises z tried: all the noise that the chain takes, x_T first. Each of
            `iterations` draws `neighbours` noises about the pivot z_0, the best so far,
                z = ‖z_0‖ (cosine u + √(1 − cosine²) w),   u = z_0/‖z_0‖,   w ⊥ u a random direction,             (1)
            with strategy "zero_order", or anew with "random", which is best-of-n with n = 1 + iterations neighbours.
Departures  The authors search x_T of a deterministic sampler; with η = 0 so does this. Where no neighbour is better the
            pivot stays, and the next ones are drawn about it again.
Optimum     Missed by design, as best_of_n misses it, and further: the neighbours of a pivot end near it, so that the
            first draw decides about the mode.
Cost        1 + iterations neighbours times the base model's evaluations, decodes, and a reward for each.
Symbols     b images of a batch, n noises of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    Cost,
    Key,
    Pipeline,
    Problem,
    Prompt,
    Published,
    Sampler,
    Samples,
    Sampling,
    Start,
    TestTimeSampler,
    at_least_one,
    begin,
    expand,
    largest,
    noise_of,
    not_negative,
    step_noise,
    transition,
    without_gaussian_steps,
)

__all__ = ["NoiseSearch"]


@dataclass(frozen=True, kw_only=True)
class NoiseSearch:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published("zero-order", "sayakpaul/tt-scale-flux", {"strategy": "zero_order", "neighbours": 4, "cosine": 0.95}),
    )

    strategy: Literal["zero_order", "random"] = "zero_order"
    iterations: int = 4
    neighbours: int = 4  # noises tried in each
    cosine: float = 0.95  # of the angle between a neighbour and the pivot

    def __post_init__(self) -> None:
        at_least_one(self, "neighbours")
        not_negative(self, "iterations")
        if not -1 < self.cosine < 1:
            raise ValueError(f"cosine must lie in (-1, 1), got {self.cosine}: a neighbour has to be another noise.")

    def align(self, problem: Problem) -> Sampler:
        about = {"kind": "noise_search", **problem.sampling.as_dict(), "strategy": self.strategy}
        about |= {"images": 1 + self.iterations * self.neighbours}
        pipeline, reward, sampling = problem.pipeline, problem.reward, problem.sampling

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            pivot = chain_noise(pipeline, keys, sampling)
            best = chain(pipeline, prompts, pivot, sampling, start)
            best_reward = reward(best.images, prompts)
            for i in range(self.iterations):
                centre = pivot
                for j in range(self.neighbours):
                    # Fresh noise is best_of_n's, candidate by candidate, so that the two agree.
                    own = [key("candidate", 1 + i * self.neighbours + j) for key in keys]
                    fresh = chain_noise(pipeline, own, sampling)
                    tried = neighbour(centre, fresh, self.cosine) if self.strategy == "zero_order" else fresh
                    found = chain(pipeline, prompts, tried, sampling, start)
                    earned = reward(found.images, prompts)
                    wins = earned > best_reward
                    best = Samples(*(kept(wins, new, old) for new, old in (
                        (found.images, best.images), (found.latents, best.latents)
                    )))  # fmt: skip
                    pivot, best_reward = kept(wins, tried, pivot), torch.maximum(earned, best_reward)
            return best

        return TestTimeSampler(draw, about)

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        n, sampling = 1 + self.iterations * self.neighbours, problem.sampling
        return Cost(denoiser_forward=n * sampling.steps * sampling.evaluations, decode_forward=n, reward_forward=n)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> NoiseSearch:
        """As many iterations as the budget pays for."""
        return largest(lambda n: replace(self, iterations=n), lambda a: a.cost(problem), budget, "iterations", least=0)

    def unsupported(self, problem: Problem) -> str | None:
        return without_gaussian_steps(problem, "noise_search")


def chain_noise(pipeline: Pipeline, keys: Sequence[Key], sampling: Sampling) -> Float[Tensor, "b n *latent"]:
    """x_T, then the noise of each step that takes some: what plain sampling draws from these keys."""
    x = pipeline.initial_noise(keys)
    noisy = noise_of(pipeline.timesteps(sampling.steps), sampling) > 0
    return torch.stack([x, *(step_noise(keys, int(i), x) for i in noisy.nonzero())], 1)


def chain(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    noise: Float[Tensor, "b n *latent"],
    sampling: Sampling,
    start: Start | None,
) -> Samples:
    """The images that a chain's noise leads to."""
    x, first, steps, condition = begin(pipeline, prompts, noise[:, 0], sampling, start)
    places = {int(i): 1 + k for k, i in enumerate((noise_of(steps, sampling) > 0).nonzero())}
    for i in range(first, len(steps)):
        step = transition(pipeline, x, steps[i], condition, sampling)
        x = step.sample(noise[:, places[i]]) if i in places else step.mean
    return Samples(pipeline.decode(x), x)


def neighbour(
    pivot: Float[Tensor, "b n *latent"], fresh: Float[Tensor, "b n *latent"], cosine: float
) -> Float[Tensor, "b n *latent"]:
    """(1), from a direction drawn anew."""
    flat, other = pivot.flatten(1), fresh.flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    unit = flat / norm
    across = other - (other * unit).sum(1, keepdim=True) * unit
    across = across / across.norm(dim=1, keepdim=True)
    return (norm * (cosine * unit + (1 - cosine**2) ** 0.5 * across)).reshape(pivot.shape)


def kept(wins: Tensor, new: Float[Tensor, b * shape], old: Float[Tensor, b * shape]) -> Float[Tensor, b * shape]:
    """The rows of `new` that win, and of `old` where not."""
    return torch.where(expand(wins, new).bool(), new, old)
