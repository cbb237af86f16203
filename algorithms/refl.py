"""ReFL: ascend the gradient of a differentiable reward of the x_0 estimate at one random late sampling step.

Paper       Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation",
            https://arxiv.org/abs/2304.05977, algorithm 1; defaults from it and from the authors' script for Stable
            Diffusion 1.4 (https://github.com/THUDM/ImageReward, ReFL.py).
Objective   x_T is denoised without gradient to a step t drawn uniformly from the last quarter of T; there the reward
            of the estimate x̂_0(x_t, t, c) is differentiated through one evaluation of the denoiser:
                L_reward(θ) = λ E_{c, t, x_t}[ max(0, m − r(x̂_0, c)) ]                                        (1)
                L_prior(θ)  = E_{c, x_0, t, ε}[ ‖ε − ε_θ(x_t, t, c)‖² ],   mean over the elements of a latent    (2)
            θ minimises (1) + w (2). Images that earn more than the margin m give no gradient.
Departures  (2) is of images that the reference samples during training, for the same prompts, in the same T steps and
            without guidance, so that the reference is near its minimum; the paper's are 625 thousand pictures of LAION,
            and a benchmark of algorithms brings no data of its own. w = 1 is the paper's, which updates on (2) and (1)
            in turn, where one update here takes their sum; the released script leaves (2) out (prior_weight=0, half
            the cost), and its users report images worse than the base model's. Each image draws its own step, the
            script one per forward pass. The image handed to the reward is what the decoder gives and may leave [0, 1];
            the script clamps it, and saturated pixels have no gradient. No moving average of the weights. m = 2 is on
            the scale of ImageReward; rewards of another scale need another margin, or margin="none": no gate.
            With Adam λ matters only beside w, weight decay and the clipped norm.
Optimum     Of the exact testbed: not aimed at, as draft, which it resembles: on gaussian the preset (no gate, prior
            weight 1) stops it at a regret of 0.05 to 0.09 nats, on grid and overlap far before the optimum (7.1 to 7.4
            and 2.4 to 2.6).
Symbols     B images of an update, T sampling steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import InputError, Key, Pipeline, Policy, Probe, Problem, Prompt, Sampler, Sampling
from alignbench.devices import chunked
from alignbench.diffusion.backprop import before_steps, untrainable, watched_divergence
from alignbench.diffusion.lookahead import rewards_of
from alignbench.diffusion.objectives import denoising_error, noising
from alignbench.diffusion.optimisers import Tuned, set_rate, tuning_of
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.fields import at_least_one, positive

__all__ = ["ReFL"]


@dataclass(frozen=True, kw_only=True)
class ReFL:
    trains: ClassVar[bool] = True

    rounds: int = 10  # a checkpoint after each
    updates_per_round: int = 10  # optimiser steps
    samples_per_update: int = 64  # B
    batch: int = 2  # images per forward pass
    steps: int = 40  # T of the training images
    window: float = 0.25  # share of the steps, at the end, that t is drawn from
    eta: float = 1.0  # noise of the training images' steps; 1 is the script's DDPM
    guidance: float = 1.0  # of the training images: none
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
        at_least_one(self, "rounds", "updates_per_round", "samples_per_update", "batch", "steps", "rank")
        positive(self, "reward_weight", "learning_rate", "max_norm")
        if not 0 < self.window <= 1:
            raise ValueError(f"window must lie in (0, 1], got {self.window}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}.")
        for name in ("guidance", "prior_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")

    def align(self, problem: Problem) -> Sampler:
        policy = problem.pipeline.adapt(tuning_of(self.tuning, self.rank), problem.key("adapter"))
        optimiser = torch.optim.AdamW(policy.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
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
                prompts = problem.prompts.sample(key("prompts"), self.samples_per_update)
                places = current.shard(range(len(prompts)))
                mine, keys = [prompts[i] for i in places], [key("sample", i) for i in places]
                rewards: list[Tensor] = []
                norm = problem.step(
                    self.losses(problem, policy, mine, keys, sampling, rewards), optimiser, self.max_norm
                )
            earned = problem.gather(torch.cat(rewards))
            closed = (earned >= self.margin).float().mean() if self.margin != "none" else 0.0
            divergence = watched_divergence(policy, mine, keys, sampling)
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
        for part in chunked(range(len(prompts)), self.batch):
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
        latents = before_steps(pipeline, condition, keys, sampling, places)
        t = pipeline.timesteps(sampling.steps).t[places]
        return pipeline.predict(latents, t, condition, sampling.guidance).x0

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
        t, noise, condition = noising(keys, x0, condition, policy.train_timesteps)
        return denoising_error(policy, x0, noise, t, condition)

    def unsupported(self, problem: Problem) -> str | None:
        return untrainable(problem, "ReFL")


def gated_loss(rewards: Float[Tensor, " b"], margin: float | Literal["none"]) -> Float[Tensor, " b"]:
    """The terms of (1), without λ."""
    return -rewards if margin == "none" else (margin - rewards).clamp(min=0)
