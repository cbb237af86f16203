"""Steering: particles of one prompt are weighted by the reward of where they head, and resampled on the way.

Paper       Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
            https://arxiv.org/abs/2501.06848 (Feynman-Kac steering), with the base model as proposal; defaults are
            text_to_image/launch.sh's of https://github.com/zacharyhorvitz/Fk-Diffusion-Steering.
Objective   Sample p* ∝ p_ref exp(r/β). Every `interval` steps, particle j with reward r_j = r(x̂_0(x_j)) is weighted by
                G = exp((r_j − r_j before)/β)        potential "difference",                                     (1)
                G = exp(max over checks so far of r_j / β)      "max",                                           (2)
                G = exp(sum over checks so far of r_j / β)      "sum",                                           (3)
            w ← w G, and where the effective size (Σ w)²/Σ w² falls below `resample_below` of the particles, they are
            drawn anew by w (systematic resampling) and w ← 1. At the end w ← w exp(r(x_0)/β) / Π G, so that the weights
            aim at p* whatever the potential. One particle is returned: drawn by w, or the best of them.
Departures  Weights are carried where nothing is resampled; the authors' code drops them with every potential. It keeps
            the last max or sum in the final weight, and works with weights, not their logarithms, cut at 1e10. Its max
            starts at reward 0, so that weights are uniform while all rewards are negative; ours has no floor. It
            resamples by multinomial draws. interval = 20 gives its checks of 100 steps, 20, 40, 60 and 80; of the
            evaluation's 50 steps, 20 and 40. `select="best"` is what it reports, and adds a best-of-n; "sample" is what
            the theory is about.
Optimum     Aimed at, and reached with many particles: of few, too few start where the best modes draw from.
Cost        n times the base model's, and a decode and a reward for every particle and check.
Symbols     b prompts of a batch, n particles of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench import (
    Cost,
    Key,
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
    categorical,
    effective_size,
    for_particles,
    largest,
    log_mean,
    not_negative,
    particle_keys,
    positive,
    reverse,
    rows_of,
    systematic,
    take_step,
    without_gaussian_steps,
)

__all__ = ["Steering"]

Potential = Literal["difference", "max", "sum"]
CODE = "zacharyhorvitz/Fk-Diffusion-Steering"
LAUNCHED = {"n": 4, "beta": 0.1, "potential": "max", "interval": 20, "select": "best"}
SHOWN = {"beta": 0.5, "interval": 20, "resample_below": 0.5}
SAMPLED = {"steps": 100, "guidance": 7.5, "eta": 1.0}


@dataclass(frozen=True, kw_only=True)
class Steering:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published("launch.sh", f"text_to_image/launch.sh of {CODE}", LAUNCHED, SAMPLED),
        Published("the paper's pictures", f"generate_samples_for_paper.py of {CODE}", SHOWN, SAMPLED),
    )

    n: int = 4  # particles
    beta: float = 0.1  # temperature of the target, in units of the reward; the authors' λ is 1/β
    potential: Potential = "max"
    interval: int = 20  # steps between checks
    resample_below: float = 0.5  # share of the particles; 0: never, above 1: at every check
    select: Literal["best", "sample"] = "best"
    steps: int | None = None  # of sampling; None: as in evaluation
    eta: float = 1.0  # noise of the steps, without which resampled particles stay alike

    def __post_init__(self) -> None:
        at_least_one(self, "n", "interval")
        positive(self, "beta")
        not_negative(self, "resample_below")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise resampled particles stay alike.")

    def align(self, problem: Problem) -> Sampler:
        fields = {name: getattr(self, name) for name in ("n", "beta", "potential", "interval", "select")}
        about = {"kind": "steering", **self.sampling(problem).as_dict(), **fields}

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            cloud = self.steer(problem, prompts, keys, start)
            if self.select == "best":
                chosen = cloud.rewards.argmax(1)
            else:
                chosen = categorical(cloud.log_weights, torch.cat([key("select").uniform(1) for key in keys]))
            rows = rows_of(chosen[:, None], self.n)
            return Samples(cloud.images[rows], cloud.latents[rows])

        return TestTimeSampler(draw, about, self.n)

    def steer(
        self, problem: Problem, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None = None
    ) -> Cloud:
        """All particles at the end, with their weights."""
        pipeline, n, sampling = problem.pipeline, self.n, self.sampling(problem)
        own, (asked, begins) = particle_keys(keys, n), for_particles(prompts, start, n)
        x, first, steps, condition = begin(pipeline, asked, pipeline.initial_noise(own), sampling, begins)
        weights = Weights.even(len(prompts), n)
        for i in range(first, len(steps)):
            prediction = pipeline.predict(x, steps[i].t.item(), condition, sampling.guidance)
            x = take_step(reverse(prediction, steps[i], sampling), own, i)
            if self.checks(i, len(steps)):
                rewards = problem.reward(pipeline.decode(prediction.x0), asked).cpu().reshape(-1, n)
                weights = weights.times(self.potential, rewards / self.beta)
                uniform = torch.cat([key("resample", i).uniform(1) for key in keys])
                weights, ancestors = weights.resampled(self.resample_below, uniform)
                x = x[rows_of(ancestors, n)]
        images = pipeline.decode(x)
        rewards = problem.reward(images, asked).cpu().reshape(-1, n)
        log_weights = weights.final(rewards / self.beta)
        return Cloud(images, x, rewards, log_weights, weights.log_evidence + log_mean(log_weights))

    def sampling(self, problem: Problem) -> Sampling:
        return replace(problem.sampling, steps=self.steps or problem.sampling.steps, eta=self.eta)

    def checks(self, i: int, steps: int) -> bool:
        """Whether particles are weighted after step number i. The last step's are weighed as images."""
        return 0 < i < steps - 1 and i % self.interval == 0

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling = self.sampling(problem)
        looks = self.n * (1 + sum(self.checks(i, sampling.steps) for i in range(sampling.steps)))
        forward = self.n * sampling.steps * sampling.evaluations
        return Cost(denoiser_forward=forward, decode_forward=looks, reward_forward=looks)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> Steering:
        """As many particles as the budget pays for."""
        return largest(lambda n: replace(self, n=n), lambda a: a.cost(problem), budget, "n")

    def unsupported(self, problem: Problem) -> str | None:
        steps = self.sampling(problem).steps
        if self.n > 1 and not any(self.checks(i, steps) for i in range(steps)):
            instead = f"set it to less than {steps - 1}" if steps > 2 else "sample in at least 3 steps"
            none = f"interval={self.interval} leaves no check within {steps} steps, and without one this is best_of_n"
            return f"{none}; {instead}."
        return without_gaussian_steps(problem, "steering")


class Cloud(NamedTuple):
    """Particles at the end of their chains, those of a prompt next to each other."""

    images: Float[Tensor, bn * image]
    latents: Float[Tensor, bn * latent]
    rewards: Float[Tensor, "b n"]
    log_weights: Float[Tensor, "b n"]
    log_evidence: Float[Tensor, " b"]  # estimates log E_ref exp(r/β); its exponential has that as its mean


class Weights(NamedTuple):
    """What is known of each particle's past; rewards are in units of β. Resampling permutes all of it alike."""

    log_weights: Float[Tensor, "b n"]  # since the last resampling
    log_past: Float[Tensor, "b n"]  # log of the product of all potentials so far
    last: Float[Tensor, "b n"]  # reward at the last check
    highest: Float[Tensor, "b n"]  # at any check
    total: Float[Tensor, "b n"]  # over checks
    log_evidence: Float[Tensor, " b"]  # of the resamplings so far

    @classmethod
    def even(cls, prompts: int, n: int) -> Weights:
        """Before the first check."""
        zero = torch.zeros(prompts, n)
        return cls(zero, zero, zero, zero - torch.inf, zero, torch.zeros(prompts))

    def times(self, potential: Potential, rewards: Float[Tensor, "b n"]) -> Weights:
        """After a check: (1), (2) or (3)."""
        highest, total = torch.maximum(self.highest, rewards), self.total + rewards
        log_g = {"difference": rewards - self.last, "max": highest, "sum": total}[potential]
        return Weights(self.log_weights + log_g, self.log_past + log_g, rewards, highest, total, self.log_evidence)

    def resampled(self, below: float, uniform: Float[Tensor, " b"]) -> tuple[Weights, Int[Tensor, "b n"]]:
        """Prompt by prompt, where the effective size asks for it: what the ancestors hold, and who they are."""
        n = self.log_weights.shape[1]
        due = (effective_size(self.log_weights) < below * n)[:, None]
        ancestors = torch.where(due, systematic(self.log_weights, uniform), torch.arange(n))
        log_weights, log_past, last, highest, total = (value.gather(1, ancestors) for value in self[:5])
        evidence = self.log_evidence + torch.where(due[:, 0], log_mean(self.log_weights), 0.0)
        return Weights(torch.where(due, 0.0, log_weights), log_past, last, highest, total, evidence), ancestors

    def final(self, rewards: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """log w of the images: the potentials of the way are taken back."""
        return self.log_weights + rewards - self.log_past
