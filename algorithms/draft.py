"""DRaFT and AlignProp: ascend the gradient of a differentiable reward through the last sampling steps.

Paper       DRaFT: Clark et al. 2023, "Directly Fine-Tuning Diffusion Models on Differentiable Rewards",
            https://arxiv.org/abs/2309.17400; defaults after its small-scale experiments (no code was published to
            check them by).
            AlignProp: Prabhudesai et al. 2023, "Aligning Text-to-Image Diffusion Models with Reward Backpropagation",
            https://arxiv.org/abs/2310.03739.
Objective   x_0 is sampled in T steps from noise that does not depend on θ, x_0 = f_θ(x_T, z, c), and
                L(θ) = −E_{c, x_T, z}[ r(x_0, c) ]                                                             (1)
            DRaFT-K differentiates the last K steps alone; K = T is the gradient of (1), K = 1 the cheapest. AlignProp
            draws K uniformly, of all T steps. DRaFT-LV is for K = 1: x_0, held constant, is noised again to the level
            of the last step with n fresh noises, so that one sampled image gives 1 + n gradients of the last step,
                L(θ) = −E[ (r(x_0, c) + Σ_i r(x_0^i, c)) / (1 + n) ],   x_0^i = last step from x_t^i             (2)
Departures  K is drawn once for all images of an update; AlignProp's paper draws one per sample, its first code one at
            every step. (2) is a mean, the paper's a sum. The steps before the last K run without gradient (AlignProp's
            code differentiates them and cuts the chain). What that code draws by default is the step at which it cuts,
            from N(42, 5) of 50, and its rate, decay and batch are others (`alignbench show draft`). Images are not
            clamped to [0, 1]: saturated pixels would have no gradient. The gradient's norm is clipped at 1; what the
            paper does is not known to us. No regulariser.
Optimum     Not aimed at: nothing weighs what it costs to earn more, and a gradient moves mass between modes only by
            carrying points across.
Symbols     B images of an update, T sampling steps, K those with gradient, n resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    Key,
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
    denoise,
    normal,
    not_negative,
    rewards_of,
    sample_through,
    set_rate,
    untrainable,
    watched_divergence,
)

__all__ = ["DRaFT"]

SMALL = {"last_steps": 1, "truncation": "fixed", "learning_rate": 4e-4, "weight_decay": 0.1, "tuning": "lora"}
ALIGNPROP = {"samples_per_update": 128, "learning_rate": 1e-3, "tuning": "lora", "rank": 4}
RELEASED = {**ALIGNPROP, "weight_decay": 1e-4, "max_norm": 1.0}
FIRST = {**ALIGNPROP, "last_steps": "all", "truncation": "random", "weight_decay": 0.1, "max_norm": 5.0}


@dataclass(frozen=True, kw_only=True)
class DRaFT(Training):
    paper: ClassVar[tuple[Published, ...]] = (
        Published("DRaFT-1", "arXiv:2309.17400, not checked: no code", SMALL, {"steps": 50, "guidance": 7.5}),
        Published(
            "AlignProp", "config/alignprop_config.py of mihirp1998/AlignProp", RELEASED,
            {"steps": 50, "guidance": 5.0, "eta": 1.0},
        ),
        Published(
            "AlignProp, first code", "config/align_prop.py of mihirp1998/AlignProp", FIRST,
            {"steps": 50, "guidance": 7.5, "eta": 0.0},
        ),
    )  # fmt: skip

    rounds: int = 200
    updates_per_round: int = 10  # optimiser steps
    samples_per_update: int = 4  # B
    batch: int = 4  # images per forward pass
    last_steps: int | Literal["all"] = 1  # K; "all": T, plain DRaFT
    truncation: Literal["fixed", "random"] = "fixed"  # random: K uniform in 1 … last_steps ("all": AlignProp)
    resamples: int = 0  # n of (2); 2 in the paper's DRaFT-LV
    steps: int | None = None  # T of the sampled paths; None: as in evaluation
    eta: float | None = None  # noise of the sampled paths; None: as in evaluation
    learning_rate: float = 4e-4
    anneal: bool = False  # let the learning rate fall linearly to zero over the updates
    weight_decay: float = 0.1
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "lora"
    rank: int = 8  # of the LoRA

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_update")
        not_negative(self, "resamples")
        if self.last_steps != "all":
            at_least_one(self, "last_steps")
        if self.steps is not None:
            at_least_one(self, "steps")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}.")
        if self.resamples and (self.last_steps != 1 or self.truncation != "fixed"):
            raise ValueError("resamples are of the last step alone; set last_steps=1 and truncation='fixed'.")
        if self.truncation == "random" and self.last_steps == 1:
            raise ValueError(
                "truncation 'random' has nothing to draw with last_steps=1; set last_steps=all or a number."
            )

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        sampling = self.sampling(problem)
        plan = {
            "images an update": self.samples_per_update,
            "updates a round": self.updates_per_round,
            "steps": sampling.steps,
            "with gradient at most": self.deepest(sampling),
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
                depth = self.depth(key, sampling)
                losses = self.losses(problem, policy, *asked, sampling, depth, rewards)
                norm = problem.step(losses, optimiser, self.max_norm)
            earned = torch.cat(problem.gather(rewards))
            divergence = watched_divergence(problem, policy, *asked, sampling, self.batch)
            current.log(reward=earned.mean(), reward_std=earned.std(correction=0), gradient_norm=norm, **divergence)
        return PipelineSampler(policy, problem.sampling)

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = reference the policy samples the reference's images."""
        prompts, keys = [problem.prompts[0]] * 2, [problem.key("check", i) for i in range(2)]
        losses = self.losses(problem, policy, prompts, keys, sampling, self.deepest(sampling), [])
        own, reference = (
            pipeline.decode(before_steps(pipeline, pipeline.condition(prompts), keys, sampling, [sampling.steps] * 2))
            for pipeline in (policy, policy.reference)
        )
        return Probe(torch.stack(list(losses)).sum(), {"the change of an image": (own - reference, 0.0)})

    def sampling(self, problem: Problem) -> Sampling:
        """How the training images are sampled."""
        return replace(
            problem.sampling,
            steps=self.steps or problem.sampling.steps,
            eta=problem.sampling.eta if self.eta is None else self.eta,
        )

    def deepest(self, sampling: Sampling) -> int:
        """The largest K."""
        return sampling.steps if self.last_steps == "all" else self.last_steps

    def depth(self, key: Key, sampling: Sampling) -> int:
        """K of an update."""
        deepest = self.deepest(sampling)
        return deepest if self.truncation == "fixed" else 1 + key("truncation").permutation(deepest)[0]

    def losses(
        self,
        problem: Problem,
        policy: Policy,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        sampling: Sampling,
        depth: int,
        rewards: list[Tensor],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1) or (2), one backward pass each; `rewards` receives those of the sampled images."""
        count = len(prompts) * (1 + self.resamples)
        for part in chunked(problem.shard(range(len(prompts)), self.batch), self.batch):
            asked, own = [prompts[i] for i in part], [keys[i] for i in part]
            condition = policy.condition(asked)
            x0 = sample_through(policy, condition, own, sampling, depth)
            earned = rewards_of(policy, problem.reward, x0, asked)
            rewards.append(earned.detach().cpu())
            yield -earned.sum() / count
            steps, x0 = policy.timesteps(sampling.steps), x0.detach()
            for n in range(self.resamples):
                fresh = [key("resample", n) for key in own]
                noise = normal([key("noise") for key in fresh], x0.shape[1:]).to(x0.device)
                noised = policy.add_noise(x0, noise, steps.t[-1].expand(len(x0)))
                (again,) = denoise(policy, noised, steps, condition, sampling, fresh, len(steps) - 1)
                yield -rewards_of(policy, problem.reward, again, asked).sum() / count

    def unsupported(self, problem: Problem) -> str | None:
        if reason := untrainable(problem, "DRaFT"):
            return reason
        sampling = self.sampling(problem)
        if self.deepest(sampling) > sampling.steps:
            return f"last_steps={self.last_steps} is more than a path's {sampling.steps} steps; set it lower."
        return None
