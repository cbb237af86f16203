"""ReFL: ascend the gradient of a differentiable reward of the x_0 estimate at one random late sampling step.

Paper       Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation",
            https://arxiv.org/abs/2304.05977, algorithm 1; defaults are those of the authors' script for Stable
            Diffusion 1.4 (https://github.com/THUDM/ImageReward, ReFL.py), with the paper's prior.
            Direct-Align: Shen et al. 2025, "Directly Aligning the Full Diffusion Trajectory with Fine-Grained Human
            Preference", https://arxiv.org/abs/2509.06942 (https://github.com/Tencent-Hunyuan/SRPO).
Objective   x_T is denoised without gradient to a step t drawn uniformly from the last quarter of T; there the reward
            of the estimate x̂_0(x_t, t, c) is differentiated through one evaluation of the denoiser:
                L_reward(θ) = λ E_{c, t, x_t}[ max(0, m − r(x̂_0, c)) ]                                        (1)
                L_prior(θ)  = E_{c, x_0, t, ε}[ ‖ε − ε_θ(x_t, t, c)‖² ],   mean over the elements of a latent    (2)
            θ minimises (1) + w (2). Images that earn more than the margin m give no gradient.
            With estimate="direct_align" x_0 is sampled to its end without gradient and noised with a known ε to t. One
            step with η = 0 is taken from there, with gradient, to the next level s, and ε is taken out again:
                x̂_0 = (x_s − √(1 − ᾱ_s) ε) / √ᾱ_s                                                             (3)
            stands in (1). Where the denoiser names ε it is x_0 itself, whatever t is, so that window=1 makes sense.
Departures  (2) is of images that the reference samples for the same prompts, in T steps without guidance, so that the
            reference is near its minimum; the paper's are 625 thousand pictures of LAION. The paper updates on (2) and
            (1) in turn, one update here takes their sum, w = 1; the script leaves (2) out (prior_weight=0). Each image
            draws its own step, in the script a forward pass does. Images are not clamped to [0, 1]: saturated pixels
            would have no gradient. No moving average of the weights. m = 2 is on the scale of ImageReward; rewards of
            another scale need another margin, or margin="none".
            Of SRPO, (3) alone: no reward relative to control words, no discounts over t, no steps towards the noise.
Optimum     Not aimed at, as draft does not, which it resembles.
Symbols     B images of an update, T sampling steps; of a flow model (2) is the error of its velocity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    InputError,
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
    Training,
    Tuned,
    ask,
    at_least_one,
    before_steps,
    chunked,
    ddim,
    denoising_error,
    expand,
    noising,
    normal,
    not_negative,
    positive,
    rewards_of,
    set_rate,
    untrainable,
    watched_divergence,
)

__all__ = ["ReFL"]

SCRIPT = {
    "updates": 100, "samples_per_update": 64, "window": 0.25, "margin": 2.0, "reward_weight": 1e-3,
    "prior_weight": 0.0, "learning_rate": 1e-5, "anneal": False, "weight_decay": 1e-2, "max_norm": 1.0,
    "tuning": "full",
}  # fmt: skip
STEPS = {"steps": 40, "guidance": 1.0, "eta": 1.0}


@dataclass(frozen=True, kw_only=True)
class ReFL(Training):
    paper: ClassVar[tuple[Published, ...]] = (
        Published("ReFL.py", "ImageReward/ReFL.py of THUDM/ImageReward", SCRIPT, STEPS),
        Published("algorithm 1", "arXiv:2304.05977", {"prior_weight": 1.0}),
    )

    rounds: int = 10
    updates_per_round: int = 10  # optimiser steps
    samples_per_update: int = 64  # B
    batch: int = 2  # images per forward pass
    steps: int = 40  # T of the training images
    window: float = 0.25  # share of the steps, at the end, that t is drawn from
    eta: float = 1.0  # noise of the training images' steps; 1 is the script's DDPM
    guidance: float = 1.0  # of the training images: none
    estimate: Literal["direct_align"] | None = None  # what is rewarded: (3); None: x̂_0 on the way of the image itself
    margin: float | Literal["none"] = 2.0  # m of (1); "none": the loss is −λ r
    reward_weight: float = 1e-3  # λ
    prior_weight: float = 1.0  # w
    learning_rate: float = 1e-5
    anneal: bool = False  # let the learning rate fall linearly to zero over the updates
    weight_decay: float = 1e-2
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "full"
    rank: int = 4  # of the LoRA

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_update", "steps")
        positive(self, "reward_weight")
        not_negative(self, "guidance", "prior_weight")
        if not 0 < self.window <= 1:
            raise ValueError(f"window must lie in (0, 1], got {self.window}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}.")

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        sampling = replace(problem.sampling, steps=self.steps, guidance=self.guidance, eta=self.eta)
        plan = {
            "images an update": self.samples_per_update,
            "updates a round": self.updates_per_round,
            "learning rate": self.learning_rate,
        }
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            for k in range(self.updates_per_round):
                done = (current.index + k / self.updates_per_round) / self.rounds
                set_rate(optimiser, self.learning_rate * (1 - done if self.anneal else 1))
                key = current.key("update", k)
                asked = ask(problem, key, self.samples_per_update)
                rewards: list[Tensor] = []
                losses = self.losses(problem, policy, *asked, sampling, rewards)
                norm = problem.step(losses, optimiser, self.max_norm)
            earned = torch.cat(problem.gather(rewards))
            closed = (earned >= self.margin).float().mean() if self.margin != "none" else 0.0
            divergence = watched_divergence(problem, policy, *asked, sampling, self.batch)
            current.log(reward=earned.mean(), above_margin=closed, gradient_norm=norm, **divergence)
        return PipelineSampler(policy, problem.sampling)

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = reference the policy estimates the reference's images."""
        prompts, keys = [problem.prompts[0]] * 2, [problem.key("check", i) for i in range(2)]
        rewards: list[Tensor] = []
        loss = torch.stack(list(self.losses(problem, policy, prompts, keys, sampling, rewards))).sum()
        found = torch.cat(rewards)
        if self.margin != "none" and (found >= self.margin).all():
            earned = " and ".join(f"{reward:.4g}" for reward in found.tolist())
            raise InputError(
                f"margin={self.margin:g}, but the model's own images earn {earned} already, and such images have no "
                "gradient; set margin above the rewards that are wanted, or margin=none."
            )
        own, reference = (
            pipeline.decode(self.estimates(pipeline, prompts, keys, sampling)).detach()
            for pipeline in (policy, policy.reference)
        )
        return Probe(loss, {"the change of an image": (own - reference, 0.0)})

    def losses(
        self,
        problem: Problem,
        policy: Policy,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        sampling: Sampling,
        rewards: list[Tensor],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1) and (2), one backward pass each."""
        for part in chunked(problem.shard(range(len(prompts)), self.batch), self.batch):
            asked, own = [prompts[i] for i in part], [keys[i] for i in part]
            estimates = self.estimates(policy, asked, own, sampling)
            earned = rewards_of(policy, problem.reward, estimates, asked)
            rewards.append(earned.detach().cpu())
            yield self.reward_weight * gated_loss(earned, self.margin).sum() / len(prompts)
            if self.prior_weight > 0:
                yield self.prior_weight * self.prior(policy, asked, own, sampling).sum() / len(prompts)

    def estimates(
        self, pipeline: Pipeline, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling
    ) -> Float[Tensor, b * latent]:
        """x̂_0 at each image's own step, with a gradient through that step alone."""
        condition = pipeline.condition(prompts)
        places = [self.place(key, sampling) for key in keys]
        steps = pipeline.timesteps(sampling.steps)[places]
        if self.estimate is None:
            latents = before_steps(pipeline, condition, keys, sampling, places)
            return pipeline.predict(latents, steps.t, condition, sampling.guidance).x0
        x0 = before_steps(pipeline, condition, keys, sampling, [sampling.steps] * len(keys))
        noise = normal([key("known noise") for key in keys], x0.shape[1:]).to(x0.device)
        noised = pipeline.add_noise(x0, noise, steps.t)
        after = ddim(pipeline.predict(noised, steps.t, condition, sampling.guidance), steps, 0.0).mean
        return without_noise(after, noise, steps.next_alpha_bar)

    def place(self, key: Key, sampling: Sampling) -> int:
        """The number of the sampling step that is differentiated, of one image."""
        late = max(1, round(self.window * sampling.steps))
        return sampling.steps - late + key("place").permutation(late)[0]

    def prior(
        self, policy: Policy, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling
    ) -> Float[Tensor, " b"]:
        """The denoising errors of (2), of images that the reference samples."""
        keys, condition = [key("prior") for key in keys], policy.condition(prompts)
        x0 = before_steps(policy.reference, condition, keys, sampling, [sampling.steps] * len(keys))
        t, noise, condition = noising(keys, x0, condition, policy)
        return denoising_error(policy, x0, noise, t, condition)

    def unsupported(self, problem: Problem) -> str | None:
        return untrainable(problem, "ReFL")


def gated_loss(rewards: Float[Tensor, " b"], margin: float | Literal["none"]) -> Float[Tensor, " b"]:
    """The terms of (1), without λ."""
    return -rewards if margin == "none" else (margin - rewards).clamp(min=0)


def without_noise(
    latents: Float[Tensor, b * latent], noise: Float[Tensor, b * latent], alpha_bar: Float[Tensor, " b"]
) -> Float[Tensor, b * latent]:
    """(3)."""
    return (latents - expand((1 - alpha_bar).sqrt(), latents) * noise) / expand(alpha_bar.sqrt(), latents)
