"""Classifier guidance: every step is shifted along the gradient of the reward of the image it seems to lead to.

Paper       Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", https://arxiv.org/abs/2105.05233
            (algorithms 1 and 2), with the reward of the one-step estimate x̂_0 in place of a classifier of noisy images,
            as in Chung et al. 2022, "Diffusion Posterior Sampling", https://arxiv.org/abs/2209.14687.
Objective   Sample p*(x_0) ∝ p_ref(x_0) exp(r(x_0)/β). Its score at level t is ∇ log p_t + ∇ V_t,
                V_t(x_t) = log E[exp(r(x_0)/β) | x_t] ≈ r(x̂_0(x_t))/β,                                           (1)
            so each DDIM step's mean moves by
                μ ← μ + scale · c · ∇_{x_t} r(x̂_0(x_t)) / β,                                                    (2)
            where c puts the gradient into the score (rule "score", algorithm 2) or is the step's variance σ²
            ("variance", algorithm 1). Theory asks for scale 1; more trades the prior for the reward.
Departures  The gradient goes through the prediction that samples, guidance by text included (diffusers' CLIP-guided
            pipeline differentiates the conditional branch alone), and through images that are not clamped; x̂_0 is not
            blended with x_t. `jacobian="frozen"` holds ε̂ fixed and saves the denoiser's backward pass.
Optimum     Aimed at, and reached where (1) is exact: one Gaussian and a linear reward. Where the reward curves, x̂_0
            over-guides, and a smaller scale comes nearer.
Cost        A backward pass through the denoiser, and a decode and a reward with theirs, for every guided step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    ROOM_FOR_GRADIENTS,
    Condition,
    Cost,
    Key,
    Problem,
    Prompt,
    Sampler,
    Samples,
    Sampling,
    Start,
    Steps,
    TestTimeSampler,
    Transition,
    begin,
    clipped_gradient,
    ddim,
    expand,
    largest,
    positive,
    rewards_of,
    shift_per_gradient,
    slope,
    take_step,
    transition,
    without_ddim_steps,
    without_gradient,
)

__all__ = ["ClassifierGuidance"]


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    trains: ClassVar[bool] = False

    beta: float = 1.0  # temperature of the target, in units of the reward
    scale: float = 1.0  # of the shift; 1 is theory's, 0 leaves the chain as it is
    rule: Literal["score", "variance"] = "score"
    jacobian: Literal["full", "frozen"] = "full"
    window_start: float = 0.0  # guide from this share of the steps on …
    window_end: float = 1.0  # … up to this one
    max_norm: float | None = None  # of the reward's gradient ∇_{x_t} r, per image
    steps: int | None = None  # of sampling; None: as in evaluation
    eta: float | None = None  # noise of the steps; None: as in evaluation

    def __post_init__(self) -> None:
        positive(self, "beta", *(["max_norm"] if self.max_norm is not None else []))
        if not 0 <= self.window_start < self.window_end <= 1:
            raise ValueError(
                f"the window must lie in [0, 1], got window_start={self.window_start}, window_end={self.window_end}."
            )

    def align(self, problem: Problem) -> Sampler:
        sampling = self.sampling(problem)
        fields = {name: getattr(self, name) for name in ("beta", "scale", "rule", "jacobian")}

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            noise = problem.pipeline.initial_noise(keys)
            x, first, steps, condition = begin(problem.pipeline, prompts, noise, sampling, start)
            for i in range(first, len(steps)):
                if self.guides(i, len(steps)):
                    step = self.guided(problem, x, steps[i], condition, sampling, prompts)
                else:
                    step = transition(problem.pipeline, x, steps[i], condition, sampling)
                x = take_step(step, keys, i)
            return Samples(problem.pipeline.decode(x), x)

        return TestTimeSampler(draw, {"kind": "guided", **sampling.as_dict(), **fields}, ROOM_FOR_GRADIENTS)

    def guided(
        self,
        problem: Problem,
        latents: Float[Tensor, b * latent],
        step: Steps,
        condition: Condition,
        sampling: Sampling,
        prompts: Sequence[Prompt],
    ) -> Transition:
        """The step from `latents` with the mean of (2)."""

        def reward(x0: Float[Tensor, b * latent]) -> Float[Tensor, " b"]:
            return rewards_of(problem.pipeline, problem.reward, x0, prompts)

        here = slope(problem.pipeline, latents, step.t.item(), condition, sampling.guidance, reward, self.jacobian)
        factor = self.scale / self.beta * shift_per_gradient(step, sampling.eta, self.rule)
        plain = ddim(here.prediction, step, sampling.eta)
        return plain._replace(
            mean=plain.mean + expand(factor, latents) * clipped_gradient(here.gradient, self.max_norm)
        )

    def sampling(self, problem: Problem) -> Sampling:
        asked = problem.sampling
        return replace(asked, steps=self.steps or asked.steps, eta=asked.eta if self.eta is None else self.eta)

    def guides(self, i: int, steps: int) -> bool:
        """Whether step number i is within the window."""
        return self.window_start * steps <= i < self.window_end * steps

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling = self.sampling(problem)
        once, guided = sampling.evaluations, sum(self.guides(i, sampling.steps) for i in range(sampling.steps))
        return Cost(
            denoiser_forward=once * sampling.steps,
            denoiser_backward=once * guided if self.jacobian == "full" else 0,
            decode_forward=guided + 1,
            decode_backward=guided,
            reward_forward=guided,
            reward_backward=guided,
        )

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> ClassifierGuidance:
        """As many steps as the budget pays for, of those that divide the training timesteps: with others a chain begins
        lower. A schedule that begins without signal does so with any number of steps."""
        total = problem.pipeline.train_timesteps
        from_noise = float(problem.pipeline.timesteps(2).alpha_bar[0]) == 0
        counts = [n for n in range(1, total // 2 + 1) if from_noise or total % n == 0]
        return largest(
            lambda k: replace(self, steps=counts[min(k, len(counts)) - 1]), lambda a: a.cost(problem), budget, "steps"
        )

    def unsupported(self, problem: Problem) -> str | None:
        name, sampling = "classifier_guidance", self.sampling(problem)
        if self.rule == "variance" and sampling.eta == 0:
            return (
                'rule="variance" moves a step by its variance, and at eta=0 there is none; set eta=1 or rule="score".'
            )
        return without_gradient(problem, name) or without_ddim_steps(problem, name)
