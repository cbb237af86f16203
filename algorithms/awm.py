"""Advantage Weighted Matching: policy gradient with the flow-matching error in the place of a log density.

Paper       Xue et al. 2025, "Advantage Weighted Matching", https://arxiv.org/abs/2509.25050; defaults are
            `ocr_sd3_no_cfg` of the authors' config/dgx_awm.py (https://github.com/scxue/advantage_weighted_matching).
Objective   A round samples images x_0 without noise. With A as in alignbench/diffusion/groups.py divided by its clip,
            fresh noise and levels σ of the sampling grid, v = ε − x_0 and m = mean (v_θ(x_σ) − v)²,
                ℓ = −m w(σ), or with "ghuber" ℓ = −((m + δ)^p − δ^p) σ / p,  δ = 1e-10;   log ρ = ℓ − ℓ_old      (1)
                L(θ) = E[ max(−A ρ, −A clip(ρ, 1 ± ε)) + β mean (v_θ − v_ref)² + β_ema mean (v_θ − v_ema)² ]     (2)
            After a round ema ← d ema + (1 − d) θ with d = min(rate k, most) after k updates.
Levels      `levels` for each image, one of each of as many equal parts of the steps from `first` to `share` of all.
Departures  Every image draws its own levels; the authors draw them once for each GPU's batch, whose size decides how
            many an update sees. Images are sampled by Euler steps (theirs: SA-solver). No second average is kept for
            evaluation. `weighting` has not their Huber loss, which is half of "ghuber" with p = ½.
Optimum     Aimed at by "uniform" with β > 0: L rests where v_θ − v_ref = cov(A, v | x_σ) / β, p*'s at temperature
            5 β s to first order, and to all orders where that covariance is the same under p*. "ghuber" reweighs it.
Symbols     On diffusion models v_θ is ε̂ − x̂_0 of the prediction and σ = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.optim import Optimizer

from alignbench import (
    Condition,
    GroupTraining,
    Key,
    Pipeline,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Prompt,
    Published,
    Sampler,
    Sampling,
    ask,
    at_least_one,
    blend,
    chunked,
    clip_fraction,
    clipped_loss,
    flow_sigma,
    normal,
    not_negative,
    positive,
    sample_rewarded,
    shuffled_parts,
    without_prompts,
)

__all__ = ["AWM"]

CONFIG = "config/dgx_awm.py of scxue/advantage_weighted_matching"
OCR = {
    "samples_per_round": 1728, "samples_per_prompt": 24, "updates_per_round": 1, "spread": "round", "guided": False,
    "levels": 6, "first": 1, "share": 0.9, "weighting": "ghuber", "power": 0.25, "clip": 1.0, "beta": 0.003,
    "ema_beta": 1.0, "decay_rate": 0.001, "decay_most": 0.3, "advantage_clip": 5.0, "learning_rate": 3e-4,
    "weight_decay": 1e-4, "max_norm": 1.0, "tuning": "lora", "rank": 32, "alpha": 64.0,
}  # fmt: skip
PICKSCORE = {**OCR, "samples_per_round": 576, "first": 0, "beta": 1e-4}
DELTA = 1e-10
Weighting = Literal["ghuber", "sigma", "uniform"]
SAMPLED = {"steps": 14, "guidance": 1.0}


@dataclass(frozen=True, kw_only=True)
class AWM(GroupTraining):  # which has the groups, their advantage, steps and what is tuned
    paper: ClassVar[tuple[Published, ...]] = (
        Published("ocr_sd3_no_cfg", CONFIG, OCR, SAMPLED),
        Published("pickscore_sd3_no_cfg", CONFIG, PICKSCORE, SAMPLED, reward="pickscore"),
    )

    rounds: int = 1000  # of sampling and updating; the authors' end when they are stopped
    samples_per_round: int = 1728
    updates_per_round: int = 1  # optimiser steps in one pass over a round's images
    batch: int = 9  # images per forward pass
    steps: int | None = 14
    guided: bool = False
    levels: int = 6  # that each image is trained at
    first: int = 1  # step of the grid that is trained at
    share: float = 0.9  # of the grid's steps, from its start, that are
    weighting: Weighting = "ghuber"  # of (1); w(σ) = σ, or 1
    power: float = 0.25  # p
    clip: float = 1.0  # ε of (2); at 1 and with one update a round ρ = 1 and nothing is clipped
    beta: float = 0.003
    ema_beta: float = 1.0
    decay_rate: float = 0.001  # of d, by which the average is kept
    decay_most: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "levels")
        positive(self, "clip", "power")
        not_negative(self, "first", "beta", "ema_beta", "decay_rate")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}.")
        if not 0 <= self.decay_most < 1:
            raise ValueError(f"decay_most must lie in [0, 1), got {self.decay_most}: the average would never change.")

    def align(self, problem: Problem) -> Sampler:
        (policy, optimiser), average = self.start(problem), self.policy(problem)
        sampling = self.path_sampling(problem)
        plan = {**self.plan("images", self.samples_per_round), "β": self.beta}
        problem.check(policy, plan, lambda: self.probe(problem, policy, average, sampling))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser, "average": average}):
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            latents, rewards = sample_rewarded(problem, policy, *asked, self.batch, sampling)
            advantages = self.advantages([prompt.id for prompt in asked.prompts], rewards) / self.advantage_clip
            data = [Advantaged(*row) for row in zip(latents, asked.prompts, advantages.tolist(), strict=True)]
            updates = self.update(problem, policy, average, optimiser, data, sampling, current.key("update"))
            decay = min(self.decay_rate * (current.index + 1) * self.updates_per_round, self.decay_most)
            blend(average, policy, decay)
            current.log(
                reward=rewards.mean(),
                without_advantage=(advantages == 0).float().mean(),
                distance=updates[-1].distance,
                error=updates[0].error,
                ratio_error=updates[0].ratio_error,
                clip_fraction=updates[-1].clip_fraction,
                gradient_norm=updates[-1].gradient_norm,
            )
        return PipelineSampler(policy, problem.sampling)

    def update(
        self,
        problem: Problem,
        policy: Policy,
        average: Policy,
        optimiser: Optimizer,
        data: Sequence[Advantaged],
        sampling: Sampling,
        key: Key,
    ) -> list[Update]:
        """One pass over a round's images in `updates_per_round` optimiser steps. ℓ_old of the first is ℓ itself, that
        of the others is measured before it."""
        parts = shuffled_parts(range(len(data)), key("order"), self.updates_per_round)
        shares = [problem.shard(part, self.batch) for part in parts]
        terms = partial(self.terms, policy, data, sampling, key)
        with torch.no_grad():
            later = [[self.score(term.under(policy), term) for term in terms(part)] for part in shares[1:]]
        done = []
        for part, own, old in zip(parts, shares, [None, *later], strict=True):
            seen: list[Seen] = []
            losses = self.losses(policy, average, terms(own), old, seen)
            norm = problem.step((loss.sum() / (len(part) * self.levels) for loss in losses), optimiser, self.max_norm)
            log_ratio, m, distance = (torch.cat(values).cpu() for values in zip(*problem.gather(seen), strict=True))
            worst, clipped = float(log_ratio.abs().max()), clip_fraction(log_ratio, self.clip)
            done.append(Update(worst, clipped, float(m.mean()), float(distance.mean()), norm))
        return done

    def terms(
        self, policy: Policy, data: Sequence[Advantaged], sampling: Sampling, key: Key, images: Sequence[int]
    ) -> Iterator[Term]:
        """What is matched, one forward pass each. Every image draws its own levels, in an order of its own."""
        steps = policy.timesteps(sampling.steps)
        for part in chunked(images, self.batch):
            x0 = torch.stack([data[i].latent for i in part])
            condition = policy.condition([data[i].prompt for i in part])
            advantage = torch.tensor([data[i].advantage for i in part], device=x0.device)
            drawn = [self.draw_levels(key("levels", i), len(steps)) for i in part]
            for k, numbers in enumerate(zip(*drawn, strict=True)):
                noise = normal([key("noise", i, k) for i in part], x0.shape[1:]).to(x0)
                at = steps[list(numbers)]
                x = policy.add_noise(x0, noise, at.t)
                yield Term(x, at.t, flow_sigma(at.alpha_bar), noise - x0, condition, sampling.guidance, advantage)

    def draw_levels(self, key: Key, steps: int) -> list[int]:
        """Numbers of the grid's steps: one of each equal part, in random order."""
        last = int(steps * self.share)
        bounds = [self.first + (last - self.first) * k // self.levels for k in range(self.levels + 1)]
        within = key("within").uniform(self.levels).tolist()
        numbers = [low + int(u * (high - low)) for u, (low, high) in zip(within, pairwise(bounds), strict=True)]
        return [numbers[i] for i in key("order").permutation(self.levels)]

    def losses(
        self,
        policy: Policy,
        average: Policy,
        terms: Iterable[Term],
        old: Sequence[Float[Tensor, " _"]] | None,
        seen: list[Seen],
    ) -> Iterator[Float[Tensor, " _"]]:
        """(2) of each image and level, a tensor a term (the last may be shorter); without `old` ℓ_old is ℓ."""
        for k, term in enumerate(terms):
            with torch.no_grad():  # before the policy, while no activations are held
                reference, ema = (term.under(pipeline) for pipeline in (policy.reference, average))
            own = term.under(policy)
            score = self.score(own, term)
            log_ratio = score - (score.detach() if old is None else old[k])
            loss = clipped_loss(log_ratio, torch.zeros_like(log_ratio), term.advantage.to(log_ratio), self.clip)
            distance = error(own, reference)
            seen.append(Seen(log_ratio.detach(), error(own.detach(), term.velocity), distance.detach()))
            yield loss + self.beta * distance + self.ema_beta * error(own, ema)

    def score(self, own: Float[Tensor, b * latent], term: Term) -> Float[Tensor, " b"]:
        """ℓ of (1)."""
        return weighted(error(own, term.velocity), term.sigma, self.weighting, self.power)

    def probe(self, problem: Problem, policy: Policy, average: Policy, sampling: Sampling) -> Probe:
        """At θ = old = reference the ratio is 1, and the loss is −A."""
        key, prompts = problem.key("check"), [problem.prompts[0]] * 2
        latents, _ = sample_rewarded(problem, policy, prompts, [key(0), key(1)], self.batch, sampling)
        data = [Advantaged(latent, prompts[0], 1.0) for latent in latents]
        terms = list(self.terms(policy, data, sampling, key, [0, 1]))
        with torch.no_grad():
            old = [self.score(term.under(policy), term) for term in terms]
        loss = torch.cat(list(self.losses(policy, average, terms, old, [])))
        return Probe(loss.sum(), {"the loss": (loss, -1.0)})

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_prompts(problem, "AWM"):
            return reason
        steps = self.path_sampling(problem).steps
        if self.first >= int(steps * self.share):
            return f"first={self.first} and share={self.share:g} leave none of a path's {steps} steps; set first lower."
        return None


class Advantaged(NamedTuple):
    """An image to learn from."""

    latent: Float[Tensor, "*latent"]
    prompt: Prompt
    advantage: float  # in [-1, 1]


class Term(NamedTuple):
    """What one forward pass matches."""

    x: Float[Tensor, b * latent]  # x_σ
    t: Real[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    velocity: Float[Tensor, b * latent]  # ε − x_0
    condition: Condition
    guidance: float
    advantage: Float[Tensor, " b"]

    def under(self, pipeline: Pipeline) -> Float[Tensor, b * latent]:
        """What a pipeline predicts for the velocity."""
        return pipeline.predict(self.x, self.t, self.condition, self.guidance).velocity


class Seen(NamedTuple):
    """What one forward pass saw."""

    log_ratio: Float[Tensor, " b"]
    error: Float[Tensor, " b"]  # m
    distance: Float[Tensor, " b"]  # mean (v_θ − v_ref)²


class Update(NamedTuple):
    """What one optimiser step saw."""

    ratio_error: float  # largest |log ρ|; exactly 0 in the first update of a round
    clip_fraction: float
    error: float  # mean m
    distance: float
    gradient_norm: float


def error(one: Float[Tensor, b * latent], other: Float[Tensor, b * latent]) -> Float[Tensor, " b"]:
    """The mean squared difference of velocities, in float64."""
    return (one.double() - other.double()).square().flatten(1).mean(1)


def weighted(m: Float[Tensor, " b"], sigma: Float[Tensor, " b"], by: Weighting, power: float) -> Float[Tensor, " b"]:
    """ℓ of (1)."""
    if by == "ghuber":
        return -((m + DELTA) ** power - DELTA**power) * sigma.to(m) / power
    return -m * sigma.to(m) if by == "sigma" else -m
