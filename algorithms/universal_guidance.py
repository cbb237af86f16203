"""Universal guidance: forward and backward guidance by the reward of the estimated image, with self-recurrence.

Paper       Bansal et al. 2023, "Universal Guidance for Diffusion Models", https://arxiv.org/abs/2302.07121
            (algorithm 1), in the terms of Ye et al. 2024, "TFG: Unified Training-Free Guidance for Diffusion Models",
            https://arxiv.org/abs/2409.15761, which has DPS, LGD and MPGD as special cases.
Objective   Sample p* ∝ p_ref exp(r/β). With f(x_0) = exp(r(x_0)/β), where `smoothing` is positive its mean over
            x_0 + δ, δ ~ N(0, smoothing² (1 − ᾱ_t)), each step is
                g   = ∇_{x_t} log f(x̂_0(x_t))                             forward guidance,                      (1)
                Δ_0 = Σ_j backward (1 − ᾱ_t) ∇_{x_0} log f(x̂_0 + Δ_0)     backward guidance, `backward_steps` j,  (2)
                ε̂   ← ε̂ − forward √(1 − ᾱ_t) g − √(ᾱ_t/(1 − ᾱ_t)) Δ_0,   x_s by DDIM,                           (3)
                x_t ← √(ᾱ_t/ᾱ_s) x_s + √(1 − ᾱ_t/ᾱ_s) z                   and again, `recurrence` times in all.  (4)
Departures  (1) and (2) are two ways to the same shift: scales that add up to 1 aim at p*. forward = 1 alone, once, is
            classifier_guidance under its rule "score". The authors' scales, tuned by hand, lie between 2 and 20000, as
            their losses have no temperature. (2) moves by the variance x_0 has given x_t for data of unit variance, in
            plain steps; they run Adam at 0.01. With keep_noise, (3) moves x̂_0 alone and keeps ε̂, as MPGD and TFG do:
            x_s gains √ᾱ_s Δ_0.
Optimum     Aimed at, as near as classifier_guidance comes with half the evaluations.
Cost        For each recurrence a step of the denoiser with its backward pass (none for forward = 0), and a decode and a
            reward with theirs for (1) and for each step of (2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    ROOM_FOR_GRADIENTS,
    Condition,
    Cost,
    Key,
    Prediction,
    Problem,
    Prompt,
    Sampler,
    Samples,
    Sampling,
    Start,
    Steps,
    TestTimeSampler,
    Transition,
    at_least_one,
    begin,
    ddim,
    expand,
    largest,
    normal,
    not_negative,
    positive,
    rewards_of,
    shift_per_gradient,
    slope,
    std_of,
    take_step,
    without_ddim_steps,
    without_gradient,
)

__all__ = ["UniversalGuidance"]

LogTilt = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class UniversalGuidance:
    trains: ClassVar[bool] = False

    beta: float = 1.0  # temperature of the target, in units of the reward
    forward: float = 0.5  # scale of (1); 0 saves the denoiser's backward pass
    backward: float = 0.5  # scale of (2)
    backward_steps: int = 1
    keep_noise: bool = False
    recurrence: int = 2  # times each step is taken
    smoothing: float = 0.0  # of the reward, in standard deviations of the noise at x_t
    smoothing_samples: int = 4
    eta: float | None = None  # noise of the steps; None: as in evaluation

    def __post_init__(self) -> None:
        positive(self, "beta")
        at_least_one(self, "recurrence", "smoothing_samples")
        not_negative(self, "forward", "backward", "backward_steps", "smoothing")

    def align(self, problem: Problem) -> Sampler:
        sampling = replace(problem.sampling, eta=problem.sampling.eta if self.eta is None else self.eta)
        fields = ("beta", "forward", "backward", "backward_steps", "recurrence", "smoothing")
        about = {"kind": "guided", **sampling.as_dict(), **{name: getattr(self, name) for name in fields}}
        pipeline = problem.pipeline

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            x, first, steps, condition = begin(pipeline, prompts, pipeline.initial_noise(keys), sampling, start)
            for i in range(first, len(steps)):
                for k in range(self.recurrence):
                    own = [key("recurrence", k) for key in keys] if k else keys
                    tilt = self.log_tilt(problem, prompts, steps[i], [key("smoothing", i) for key in own])
                    after = take_step(self.guided(problem, x, steps[i], condition, sampling, tilt), own, i)
                    if k + 1 < self.recurrence:
                        x = renoised(after, steps[i], normal([key("renoise", i) for key in own], x.shape[1:]))
                x = after
            return Samples(pipeline.decode(x), x)

        return TestTimeSampler(draw, about, ROOM_FOR_GRADIENTS * (self.smoothing_samples if self.smoothing else 1))

    def guided(
        self,
        problem: Problem,
        latents: Float[Tensor, b * latent],
        step: Steps,
        condition: Condition,
        sampling: Sampling,
        tilt: LogTilt,
    ) -> Transition:
        """The step of (3)."""
        if self.forward:
            here = slope(problem.pipeline, latents, step.t.item(), condition, sampling.guidance, tilt)
            prediction, gradient = here.prediction, here.gradient
        else:
            prediction = problem.pipeline.predict(latents, step.t.item(), condition, sampling.guidance)
            gradient = torch.zeros_like(latents)
        plain = ddim(prediction, step, sampling.eta)
        forward = self.forward * shift_per_gradient(step, sampling.eta, "score")
        moved = self.moved(prediction, step, tilt)
        backward = shift_per_estimate(step, sampling.eta, self.keep_noise)
        mean = plain.mean + expand(forward, latents) * gradient + expand(backward, latents) * moved
        return plain._replace(mean=mean)

    def moved(self, prediction: Prediction, step: Steps, tilt: LogTilt) -> Float[Tensor, b * latent]:
        """Δ_0 of (2)."""
        delta, rate = torch.zeros_like(prediction.x0), self.backward * float(1 - step.alpha_bar)
        for _ in range(self.backward_steps):
            with torch.enable_grad():
                x0 = (prediction.x0 + delta).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(tilt(x0).sum(), x0)
            delta = delta + rate * gradient
        return delta

    def log_tilt(self, problem: Problem, prompts: Sequence[Prompt], step: Steps, keys: Sequence[Key]) -> LogTilt:
        """log f of estimates at a step; each use draws the same δ."""
        if not self.smoothing:
            return lambda x0: rewards_of(problem.pipeline, problem.reward, x0, prompts) / self.beta
        n, deviation = self.smoothing_samples, self.smoothing * float(1 - step.alpha_bar) ** 0.5

        def smoothed(x0: Float[Tensor, b * latent]) -> Float[Tensor, " b"]:
            noise = normal([key(j) for key in keys for j in range(n)], x0.shape[1:]).to(x0.device)
            near = x0.repeat_interleave(n, 0) + deviation * noise
            asked = [prompt for prompt in prompts for _ in range(n)]
            rewards = rewards_of(problem.pipeline, problem.reward, near, asked) / self.beta
            return rewards.reshape(len(x0), n).logsumexp(1) - torch.log(torch.tensor(float(n)))

        return smoothed

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling = problem.sampling
        taken = sampling.steps * self.recurrence
        looks = taken * (bool(self.forward) + self.backward_steps) * (self.smoothing_samples if self.smoothing else 1)
        return Cost(
            denoiser_forward=sampling.evaluations * taken,
            denoiser_backward=sampling.evaluations * taken if self.forward else 0,
            decode_forward=looks + 1,
            decode_backward=looks,
            reward_forward=looks,
            reward_backward=looks,
        )

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> UniversalGuidance:
        """As many recurrences as the budget pays for."""
        return largest(lambda n: replace(self, recurrence=n), lambda a: a.cost(problem), budget, "recurrence")

    def unsupported(self, problem: Problem) -> str | None:
        name = "universal_guidance"
        return without_gradient(problem, name) or without_ddim_steps(problem, name)


def shift_per_estimate(step: Steps, eta: float, keep_noise: bool) -> Float[Tensor, " n"]:
    """How far the mean of a DDIM step moves with x̂_0, float64: ε̂ follows it, or is kept."""
    t, s, variance = step.alpha_bar, step.next_alpha_bar, std_of(step, eta) ** 2
    follows = (1 - s - variance).clamp(min=0).sqrt() * (t / (1 - t)).sqrt()
    return s.sqrt() if keep_noise else s.sqrt() - follows


def renoised(
    latents: Float[Tensor, b * latent], step: Steps, noise: Float[Tensor, b * latent]
) -> Float[Tensor, b * latent]:
    """x_t of (4) from x_s."""
    ratio = step.alpha_bar / step.next_alpha_bar
    return expand(ratio.sqrt(), latents) * latents + expand((1 - ratio).sqrt(), latents) * noise.to(latents.device)
