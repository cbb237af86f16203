"""DiffusionNFT: reinforcement on the forward process, by contrast of an implicit positive and negative policy.

Paper       Zheng et al. 2025, "DiffusionNFT: Online Diffusion Reinforcement with Forward Process",
            https://arxiv.org/abs/2509.16117; defaults are `sd3_geneval` of the authors' config/nft.py
            (https://github.com/NVlabs/DiffusionNFT).
Objective   A round samples images x_0 without noise from an old policy. With A as in alignbench/diffusion/groups.py and
            r = clip(clip(A, ± 5) / 10 + ½, 0, 1), for fresh noise and levels σ of the sampling grid,
                v₊ = b v_θ + (1 − b) v_old,   v₋ = (1 + b) v_old − b v_θ,   x̂± = x_σ − σ v±                         (1)
                L(θ) = E[ 5/b (r ℓ₊ + (1 − r) ℓ₋) + β mean (v_θ − v_ref)² ],   ℓ = mean (x̂ − x_0)² / mean |x̂ − x_0| (2)
            with the denominator as a constant. After a round old ← d old + (1 − d) θ, d = min(rate (k − start), most)
            after k updates, 0 before `start`. At θ = old the gradient is 5 (2r − 1) that of matching the flow.
Departures  Images are sampled by Euler steps (theirs: dpm2, a multistep solver of second order, at timesteps that it
            cuts to whole numbers). Timesteps here are floats in sampling and training. A run continues with its own
            old policy; theirs starts θ and old from the average. The last weights are evaluated, not their average.
Optimum     Not aimed at, but β > 0 rests near one: where v_θ − v_ref is cov(A, v | x_σ) over β with the weights of ℓ,
            a temperature in proportion to β s, which differs from level to level. At the published β it is near 0.
Symbols     v = ε − x_0. On diffusion models v and x̂ are those of the prediction, ε̂ − x̂_0 and x̂_0: the same (1) at the
            level σ = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ)), where an error of ε̂ grows with 1 / √ᾱ.
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
    Condition,
    GroupTraining,
    Key,
    Pipeline,
    PipelineSampler,
    Policy,
    Prediction,
    Probe,
    Problem,
    Prompt,
    Published,
    Sampler,
    Sampling,
    Steps,
    ask,
    blend,
    chunked,
    normal,
    not_negative,
    sample_rewarded,
    shuffled_parts,
    without_prompts,
)

__all__ = ["DiffusionNFT"]

CONFIG = "config/nft.py of NVlabs/DiffusionNFT"
GENEVAL = {
    "samples_per_round": 1152, "samples_per_prompt": 24, "updates_per_round": 1, "spread": "round", "guided": False,
    "mixing": 1.0, "beta": 1e-4, "skipped": 1, "decay_rate": 0.001, "decay_start": 0, "decay_most": 0.5,
    "advantage_clip": 5.0, "learning_rate": 3e-4, "weight_decay": 1e-4, "max_norm": 1.0, "tuning": "lora", "rank": 32,
    "alpha": 64.0,
}  # fmt: skip
OCR = {"updates_per_round": 2, "mixing": 0.1, "decay_rate": 0.0075, "decay_start": 75, "decay_most": 0.999}
SAMPLED = {"steps": 10, "guidance": 1.0}


@dataclass(frozen=True, kw_only=True)
class DiffusionNFT(GroupTraining):  # which has the groups, their advantage, steps and what is tuned
    paper: ClassVar[tuple[Published, ...]] = (
        Published("sd3_geneval", CONFIG, GENEVAL, SAMPLED),
        Published("sd3_pickscore", CONFIG, GENEVAL, SAMPLED, reward="pickscore"),
        Published("sd3_ocr", CONFIG, {**GENEVAL, **OCR}, SAMPLED),
    )

    rounds: int = 1000  # of sampling and updating; the authors' end when they are stopped
    samples_per_round: int = 1152
    updates_per_round: int = 1  # optimiser steps in one pass over a round's images
    batch: int = 9  # images per forward pass
    guided: bool = False
    mixing: float = 1.0  # b of (1)
    beta: float = 1e-4  # of (2)
    skipped: int = 1  # levels of the grid that an image is not trained on, drawn for each image
    decay_rate: float = 0.001  # of d, by which the old policy is kept
    decay_start: int = 0
    decay_most: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "beta", "skipped", "decay_rate", "decay_start")
        if not 0 < self.mixing <= 1:
            raise ValueError(f"mixing must lie in (0, 1], got {self.mixing}.")
        if not 0 <= self.decay_most < 1:
            raise ValueError(
                f"decay_most must lie in [0, 1), got {self.decay_most}: the old policy would never change."
            )

    def align(self, problem: Problem) -> Sampler:
        (policy, optimiser), old = self.start(problem), self.policy(problem)
        sampling = self.path_sampling(problem)
        plan = {**self.plan("images", self.samples_per_round), "β": self.beta}
        problem.check(policy, plan, lambda: self.probe(problem, policy, old, sampling))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser, "old": old}):
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            latents, rewards = sample_rewarded(problem, old, *asked, self.batch, sampling)
            advantages = self.advantages([prompt.id for prompt in asked.prompts], rewards)
            r = optimality(advantages, self.advantage_clip)
            data = [Judged(*row) for row in zip(latents, asked.prompts, r.tolist(), strict=True)]
            updates = self.update(problem, policy, old, optimiser, data, sampling, current.key("update"))
            decay = self.decay((current.index + 1) * self.updates_per_round)
            blend(old, policy, decay)
            current.log(
                reward=rewards.mean(),
                reward_std=rewards.std(correction=0),
                without_advantage=(advantages == 0).float().mean(),
                loss=updates[0].loss,
                distance=updates[-1].distance,
                old_decay=decay,
                gradient_norm=updates[-1].gradient_norm,
            )
        return PipelineSampler(policy, problem.sampling)

    def decay(self, updates: int) -> float:
        """d after so many updates."""
        return min(self.decay_rate * max(0, updates - self.decay_start), self.decay_most)

    def update(
        self,
        problem: Problem,
        policy: Policy,
        old: Policy,
        optimiser: Optimizer,
        data: Sequence[Judged],
        sampling: Sampling,
        key: Key,
    ) -> list[Update]:
        """One pass over a round's images in `updates_per_round` optimiser steps."""
        done = []
        for part in shuffled_parts(range(len(data)), key("order"), self.updates_per_round):
            seen: list[tuple[Tensor, Tensor]] = []
            own = problem.shard(part, self.batch)
            images, keys = [data[i] for i in own], [key("image", i) for i in own]
            losses = self.losses(policy, old, images, keys, len(part), sampling, seen)
            norm = problem.step(losses, optimiser, self.max_norm)
            loss, distance = (float(torch.stack(values).sum()) for values in zip(*problem.gather(seen), strict=True))
            done.append(Update(loss, distance, norm))
        return done

    def losses(
        self,
        policy: Policy,
        old: Policy,
        data: Sequence[Judged],
        keys: Sequence[Key],
        count: int,
        sampling: Sampling,
        seen: list[tuple[Tensor, Tensor]],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (2), one forward pass each; over all `count` images of the update they add up to the mean over
        images and levels. Every image draws its own levels, in an order of its own."""
        steps = policy.timesteps(sampling.steps)
        kept = len(steps) - self.skipped
        for part in chunked(range(len(data)), self.batch):
            x0 = torch.stack([data[i].latent for i in part])
            condition = policy.condition([data[i].prompt for i in part])
            r = torch.tensor([data[i].r for i in part], device=x0.device)
            drawn = [keys[i]("levels").permutation(len(steps))[:kept] for i in part]
            for k, numbers in enumerate(zip(*drawn, strict=True)):
                noise = normal([keys[i]("noise", k) for i in part], x0.shape[1:]).to(x0)
                three = self.predictions(policy, old, x0, noise, steps[list(numbers)], condition, sampling.guidance)
                loss, distance = self.loss(*three, x0, r)
                share = count * kept
                seen.append(((loss.detach().sum() / share).cpu(), (distance.detach().sum() / share).cpu()))
                yield (loss + self.beta * distance).sum() / share

    def predictions(
        self,
        policy: Policy,
        old: Policy,
        x0: Tensor,
        noise: Tensor,
        steps: Steps,
        condition: Condition,
        guidance: float,
    ) -> tuple[Prediction, Prediction, Prediction]:
        """Of the policy, the old policy and the reference at one level for each row."""
        x = policy.add_noise(x0, noise, steps.t)

        def predict(pipeline: Pipeline) -> Prediction:
            return pipeline.predict(x, steps.t, condition, guidance)

        with torch.no_grad():  # before the policy, while no activations are held
            before, reference = predict(old), predict(policy.reference)
        return predict(policy), before, reference

    def loss(
        self,
        own: Prediction,
        old: Prediction,
        reference: Prediction,
        x0: Float[Tensor, b * latent],
        r: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """The two terms of (2) for each image, the second without β."""
        positive, negative = implicit_errors(own.x0, old.x0, x0, self.mixing)
        distance = (own.velocity - reference.velocity).square().flatten(1).mean(1)
        return self.advantage_clip / self.mixing * (r * positive + (1 - r) * negative), distance

    def probe(self, problem: Problem, policy: Policy, old: Policy, sampling: Sampling) -> Probe:
        """At θ = old = reference r changes nothing, and nothing has moved."""
        key, prompts = problem.key("check"), [problem.prompts[0]] * 2
        latents, _ = sample_rewarded(problem, old, prompts, [key(0), key(1)], self.batch, sampling)
        steps = policy.timesteps(sampling.steps)
        middle = steps[[len(steps) // 2] * 2]
        noise = normal([key("noise", 0), key("noise", 1)], latents.shape[1:]).to(latents)
        condition = policy.condition(prompts)
        three = self.predictions(policy, old, latents, noise, middle, condition, sampling.guidance)
        ones = torch.ones(2, device=latents.device)
        (good, distance), (bad, _) = (self.loss(*three, latents, r) for r in (ones, 0 * ones))
        identities = {"the positive minus the negative loss": (good - bad, 0.0), "the distance": (distance, 0.0)}
        return Probe(good.sum(), identities)

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_prompts(problem, "DiffusionNFT"):
            return reason
        steps = self.path_sampling(problem).steps
        if self.skipped >= steps:
            return f"skipped={self.skipped} leaves none of a path's {steps} levels to train at; set it lower."
        return None


class Judged(NamedTuple):
    """An image to learn from, and how good it is."""

    latent: Float[Tensor, "*latent"]
    prompt: Prompt
    r: float  # in [0, 1]


class Update(NamedTuple):
    """What one optimiser step saw."""

    loss: float  # without β
    distance: float  # mean (v_θ − v_ref)²
    gradient_norm: float


def optimality(advantages: Float[Tensor, " n"], clip: float) -> Float[Tensor, " n"]:
    """r: the advantage in ± clip as a probability."""
    return (advantages.clamp(-clip, clip) / (2 * clip) + 0.5).clamp(0, 1)


def implicit_errors(
    own: Float[Tensor, b * latent],  # x̂_0 of the policy; carries the gradient
    old: Float[Tensor, b * latent],
    x0: Float[Tensor, b * latent],
    mixing: float,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """ℓ₊ and ℓ₋ of (2). As the weights of v_θ and v_old in (1) add up to 1, x̂± mix the estimates in the same way."""
    return relative_error(mixing * own + (1 - mixing) * old, x0), relative_error((1 + mixing) * old - mixing * own, x0)


def relative_error(estimate: Float[Tensor, b * latent], x0: Float[Tensor, b * latent]) -> Float[Tensor, " b"]:
    """ℓ of (2), in float64."""
    error = (estimate.double() - x0.double()).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=1e-5)
