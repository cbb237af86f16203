"""Reward-weighted regression: sample, weigh the samples by their reward, and fit them by denoising.

Paper       Lee et al. 2023, "Aligning Text-to-Image Models using Human Feedback", https://arxiv.org/abs/2302.12192;
            iterated and with exponential weights as RWR of Black et al. 2023, https://arxiv.org/abs/2305.13301;
            defaults are `compressed_animals_rwr` of its config/base.py (https://github.com/jannerm/ddpo).
Objective   A round samples N images x_0 from the policy, then minimises for some passes over them
                L(θ) = E_{i, t, ε}[ w_i ‖ε − ε̂_θ(x_t, t, c_i)‖² ],   x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,            (1)
                w = N softmax(r / τ) over the round, or over each prompt's images with `per_prompt`; mean 1.       (2)
            `keep` is RWR-sparse: the top share of the round, or of each prompt, with equal weights.
Departures  The authors' `temperature` multiplies the reward, ours divides it: their 1/5 is our 5. They train through
            guidance (`guided`), at their sampling scale; here the evaluation's. What is fitted is the latents that were
            sampled; they decode, encode again and sample the posterior. Adam keeps its state from round to round,
            theirs begins anew. Their batch depends on their devices; updates_per_round is for one of 128.
Optimum     Passed: K rounds at τ sample, weigh and fit towards p_ref exp(K r / τ), which is p* at β = τ / K; more
            rounds sharpen it without end.
Symbols     τ temperature, N images of a round; the squared error is averaged over the elements of a latent, of a flow
            model that of its velocity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from alignbench import (
    Key,
    Pipeline,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Prompt,
    Published,
    Sampler,
    Training,
    Tuned,
    ask,
    at_least_one,
    chunked,
    denoising_error,
    noising,
    positive,
    sample_rewarded,
    scale_of,
    shuffled_parts,
    without_prompts,
)

__all__ = ["RewardWeightedRegression"]

JPEG = {
    "rounds": 10, "samples_per_round": 10_240, "samples_per_prompt": 1, "passes": 5, "temperature": 5.0,
    "per_prompt": False, "keep": None, "guided": True, "learning_rate": 1e-5, "weight_decay": 1e-4, "max_norm": 1.0,
    "tuning": "full",
}  # fmt: skip
SAMPLED = {"steps": 50, "guidance": 5.0, "eta": 1.0}
CONFIG = "config/base.py of jannerm/ddpo"


@dataclass(frozen=True, kw_only=True)
class RewardWeightedRegression(Training):
    paper: ClassVar[tuple[Published, ...]] = (
        Published("compressed_animals_rwr", CONFIG, JPEG, SAMPLED, reward="jpeg_compressibility"),
        Published("neg_compressed_animals_rwr", CONFIG, JPEG, SAMPLED, reward="jpeg_incompressibility"),
        Published("a_animals_rwr", CONFIG, {**JPEG, "per_prompt": True}, SAMPLED, reward="aesthetic_v2"),
    )

    rounds: int = 10  # of sampling and fitting
    samples_per_round: int = 10_240  # N
    samples_per_prompt: int = 1  # images of the same prompt in a round
    passes: int = 5  # over a round's images, with new noise
    updates_per_round: int = 80  # optimiser steps in one pass
    batch: int = 8  # images per forward pass
    temperature: float = 5.0  # τ, in the units of the reward (the authors': kB of a JPEG)
    per_prompt: bool = False  # weigh the images of each prompt among themselves
    keep: float | None = None  # top share that is fitted, with equal weights
    guided: bool = True  # fit the guided prediction instead of the denoiser's own
    learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "full"
    rank: int = 4  # of the LoRA

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_round", "samples_per_prompt", "passes")
        positive(self, "temperature")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1] or be left out, got {self.keep}.")
        self.cut("images that are fitted", max(1, round((self.keep or 1) * self.samples_per_round)))

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        plan = self.plan("images", self.samples_per_round, self.passes)
        problem.check(policy, plan, lambda: self.probe(problem, policy))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            latents, rewards = sample_rewarded(problem, policy, *asked, self.batch)
            weights = self.weigh([prompt.id for prompt in asked.prompts], rewards)
            data = [
                Weighted(latent, prompt, float(weight))
                for latent, prompt, weight in zip(latents, asked.prompts, weights, strict=True)
                if weight > 0
            ]
            updates = [
                update
                for k in range(self.passes)
                for update in self.update(problem, policy, optimiser, data, current.key("update", k))
            ]
            current.log(
                reward=rewards.mean(),
                error=updates[0].error,
                effective_share=1 / (len(weights) * (weights / weights.sum()).square().sum()),
                gradient_norm=updates[-1].gradient_norm,
            )
        return PipelineSampler(policy, problem.sampling)

    def probe(self, problem: Problem, policy: Policy) -> Probe:
        """At θ = reference the weighted error is the reference's; the weights of what is fitted have mean 1."""
        key, prompts = problem.key("check"), [problem.prompts[0]] * 2
        latents, rewards = sample_rewarded(problem, policy, prompts, [key(0), key(1)], self.batch)
        weights = self.weigh([prompt.id for prompt in prompts], rewards)
        data = [Weighted(*row) for row in zip(latents, prompts, weights.tolist(), strict=True)]
        keys = [key("noise", i) for i in range(2)]
        error, reference = (self.error(problem, pipeline, data, keys).sum() for pipeline in (policy, policy.reference))
        identities = {
            "the weighted error": (error, float(reference)),
            "the mean weight": (weights[weights > 0].mean(), 1.0),
        }
        return Probe(error, identities)

    def weigh(self, prompts: Sequence[str], rewards: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """(2), or with `keep` one for the best and zero for the others."""
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt if self.per_prompt else "", []).append(i)
        weights = torch.zeros_like(rewards)
        for rows in groups.values():
            own = rewards[rows]
            weights[rows] = softmax_weights(own, self.temperature) if self.keep is None else best(own, self.keep)
        return weights

    def update(
        self,
        problem: Problem,
        policy: Policy,
        optimiser: Optimizer,
        data: Sequence[Weighted],
        key: Key,
    ) -> list[Update]:
        """One pass over a round's images in `updates_per_round` optimiser steps."""
        done = []
        for part in shuffled_parts(range(len(data)), key("order"), self.updates_per_round):
            seen: list[Tensor] = []
            own = problem.shard(part, self.batch)
            images, keys = [data[i] for i in own], [key("image", i) for i in own]
            losses = self.losses(problem, policy, images, keys, len(part), seen)
            norm = problem.step(losses, optimiser, self.max_norm)
            done.append(Update(float(torch.stack(problem.gather(seen)).sum()), norm))
        return done

    def losses(
        self,
        problem: Problem,
        policy: Policy,
        data: Sequence[Weighted],
        keys: Sequence[Key],
        count: int,
        seen: list[Tensor],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1), one forward pass each; over all `count` images of the update they add up to the mean."""
        for part in chunked(range(len(data)), self.batch):
            error = self.error(problem, policy, [data[i] for i in part], [keys[i] for i in part])
            loss = error.sum() / count
            seen.append(loss.detach())
            yield loss

    def error(
        self, problem: Problem, pipeline: Pipeline, data: Sequence[Weighted], keys: Sequence[Key]
    ) -> Float[Tensor, " b"]:
        """w_i ‖ε − ε̂(x_t, t, c_i)‖² with t and ε from the keys."""
        x0 = torch.stack([row.latent for row in data])
        condition = pipeline.condition([row.prompt for row in data])
        t, noise, condition = noising(keys, x0, condition, pipeline)
        guidance = scale_of(problem.sampling, self.guided)
        error = denoising_error(pipeline, x0, noise, t, condition, guidance)
        return error * torch.tensor([row.weight for row in data]).to(error)

    def unsupported(self, problem: Problem) -> str | None:
        return without_prompts(problem, "reward_weighted_regression")


class Weighted(NamedTuple):
    """An image to fit, and how much it counts."""

    latent: Float[Tensor, "*latent"]
    prompt: Prompt
    weight: float


class Update(NamedTuple):
    """What one optimiser step saw."""

    error: float  # weighted
    gradient_norm: float


def softmax_weights(rewards: Float[Tensor, " n"], temperature: float) -> Float[Tensor, " n"]:
    """(2): they sum to their number."""
    return (len(rewards) * (rewards.double() / temperature).softmax(0)).to(rewards)


def best(rewards: Float[Tensor, " n"], share: float) -> Float[Tensor, " n"]:
    """One for the top share, at least one of them, and zero for the others; the earlier of equals is kept."""
    kept = rewards.argsort(descending=True, stable=True)[: max(1, round(share * len(rewards)))]
    weights = torch.zeros_like(rewards)
    weights[kept] = 1
    return weights
