"""Flow-GRPO: policy gradient over the stochastic steps of a flow model, with advantages within groups of images.

Paper       Liu et al. 2025, "Flow-GRPO", https://arxiv.org/abs/2505.05470; defaults are `geneval_sd3` of the authors'
            config/grpo.py (https://github.com/yifan123/flow_grpo). Guard: "GRPO-Guard", https://arxiv.org/abs/2510.22319.
Objective   A step x → x' of the kernel's noise is an action. With A as in alignbench/diffusion/groups.py,
                L(θ) = E_{path, t}[ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + β KL_t ],  log ρ = log p_θ − log p_old.   (1)
            `guard`: log ρ := q (log ρ + mean (μ − μ_old)² / 2q²), q the step's deviation, and −A ρ over |dt|.      (2)
            `window`: that many steps in a row have noise and are trained on, all in the first half, where each round
            draws them; all others are Euler steps (Flow-GRPO-Fast, MixGRPO).
Units       "official": log ρ is averaged over the D elements of a latent (CPS: and times 2 q²), and KL_t is
            mean (μ − μ_ref)² / 2s², which is the true one times |dt| / D (CPS, DDIM: 1 / D). "nats": log ρ and KL_t are
            the true ones, so that ε bounds the true ratio and β is advantage per nat.
Departures  Images without advantage stay, and keep their KL: the authors drop them on each GPU, so that a sample's
            weight depends on their number; nor does noise depend on it (their device-specific seeds). Guidance is the
            evaluation's, trained through both branches (older code of theirs detaches one). An update is trained on in
            the batches it was sampled in, so that ρ = 1 at the first to the last bit. No moving average is evaluated.
Optimum     Aimed at in nats: β KL_t is DPOK's, so p* ∝ p_ref exp(A/β), at temperature β s of the reward, and β with
            spread "none". In official units early steps pay less than late ones, which makes another distribution.
Symbols     σ level of a flow model, dt = σ' − σ; on diffusion models σ = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from alignbench import (
    Asked,
    Batch,
    GroupTraining,
    Key,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Published,
    Reduction,
    Sampler,
    Sampling,
    Steps,
    Trajectory,
    ask,
    clip_fraction,
    clipped_loss,
    collect,
    collect_own,
    divergence,
    flow_scale,
    flow_sigma,
    log_density,
    noise_of,
    not_negative,
    positive,
    shuffled_parts,
    watched_kl_of,
    without_prompts,
)

__all__ = ["FlowGRPO"]

CONFIG = "config/grpo.py of yifan123/flow_grpo"
GENEVAL = {
    "samples_per_round": 1152, "samples_per_prompt": 24, "updates_per_round": 2, "spread": "round", "skip_last": 1,
    "kernel": "flow_sde", "window": None, "guided": True, "guard": False, "units": "official", "clip": 1e-4,
    "beta": 0.04, "advantage_clip": 5.0, "learning_rate": 3e-4, "weight_decay": 1e-4, "max_norm": 1.0,
    "tuning": "lora", "rank": 32, "alpha": 64.0,
}  # fmt: skip
FAST = {**GENEVAL, "kernel": "cps", "window": 2, "guided": False, "clip": 1e-5, "beta": 0.0}
GUARD = {**GENEVAL, "spread": "prompt", "guard": True, "clip": 2e-6, "learning_rate": 1e-4}
SAMPLED = {"steps": 10, "guidance": 4.5, "eta": 0.7}


@dataclass(frozen=True, kw_only=True)
class FlowGRPO(GroupTraining):  # which has the groups, their advantage, steps and what is tuned
    paper: ClassVar[tuple[Published, ...]] = (
        Published("geneval_sd3", CONFIG, GENEVAL, SAMPLED),
        Published("pickscore_sd3", CONFIG, {**GENEVAL, "beta": 0.01}, SAMPLED, reward="pickscore"),
        Published("fast", CONFIG, FAST, {"steps": 10, "guidance": 1.0, "eta": 0.8}),
        Published("guard", "train_sd3_GRPO_Guard.py of yifan123/flow_grpo", GUARD, SAMPLED),
    )

    rounds: int = 2500  # of sampling and updating; the authors' end when they are stopped
    samples_per_round: int = 1152
    updates_per_round: int = 2  # optimiser steps in one pass over a round's images
    batch: int = 9  # images per forward pass
    guided: bool = True
    kernel: Literal["flow_sde", "dance_sde", "cps", "ddim"] = "flow_sde"  # of the steps that have noise
    eta: float = 0.7  # their noise
    skip_last: int = 1  # final steps of each path that are never trained on
    window: int | None = None  # steps that have noise; None: all
    guard: bool = False  # (2), whose log ρ has mean 0
    units: Literal["official", "nats"] = "official"
    clip: float = 1e-4  # ε of (1)
    beta: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "clip", "eta")
        not_negative(self, "skip_last", "beta")
        Sampling(1, 1.0, self.eta, self.kernel)  # which refuses a noise that the kernel does not have
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 or be left out, got {self.window}.")
        if self.guard and (self.kernel not in ("flow_sde", "dance_sde") or self.units != "official"):
            asked = f"{self.kernel} in {self.units}"
            raise ValueError(f"guard is for flow_sde and dance_sde in official units, not {asked}.")

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        sampling = self.path_sampling(problem, self.kernel, self.eta)
        plan = {**self.plan("images", self.samples_per_round), "β": self.beta}
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            parts = shuffled_parts(range(len(asked.prompts)), current.key("order"), self.updates_per_round)
            window = self.draw_window(sampling.steps, current.key("window"))
            own, rewards = self.sample(problem, policy, asked, parts, sampling, window)
            advantages = self.advantages([prompt.id for prompt in asked.prompts], rewards)
            kl = watched_kl_of(problem, policy, own, [asked.keys[i] for part in parts for i in part], self.batch)
            current.log(reward=rewards.mean(), kl=kl)
            updates = self.update(problem, policy, optimiser, own, advantages, parts)
            current.log(
                without_advantage=(advantages == 0).float().mean(),
                kl_term=updates[-1].kl_term,
                ratio_error=updates[0].ratio_error,
                clip_fraction=updates[-1].clip_fraction,
                gradient_norm=updates[-1].gradient_norm,
            )
        return PipelineSampler(policy, problem.sampling)

    def draw_window(self, steps: int, key: Key) -> range | None:
        """The steps of a round that have noise, all in the first half of the path; None: all of the path."""
        if self.window is None:
            return None
        start = key.permutation(min(steps // 2, steps - self.skip_last) - self.window + 1)[0]
        return range(start, start + self.window)

    def sample(
        self,
        problem: Problem,
        policy: Policy,
        asked: Asked,
        parts: Sequence[Sequence[int]],
        sampling: Sampling,
        window: range | None,
    ) -> tuple[list[Batch], Float[Tensor, " n"]]:
        """This process's paths, whose places are in the order of the parts, and all rewards in that of prompts."""
        batches, found, end = list[Batch](), list[Tensor](), 0
        for part in parts:
            first, end = end, end + len(part)
            prompts, keys = [asked.prompts[i] for i in part], [asked.keys[i] for i in part]
            own, rewards = collect_own(
                problem, policy, prompts, keys, sampling, self.batch, self.reduction, window, keep_means=self.guard
            )
            batches += [Batch([first + place for place in places], path) for places, path in own]
            found.append(rewards)
        rewards = torch.empty_like(torch.cat(found))
        rewards[[i for part in parts for i in part]] = torch.cat(found)
        return batches, rewards

    def update(
        self,
        problem: Problem,
        policy: Policy,
        optimiser: Optimizer,
        own: Sequence[Batch],
        advantages: Float[Tensor, " n"],
        parts: Sequence[Sequence[int]],
    ) -> list[Update]:
        """One pass over a round's paths; an optimiser step for each part."""
        done, end, advantages = [], 0, advantages[[i for part in parts for i in part]]
        for part in parts:
            first, end = end, end + len(part)
            seen: list[Moved] = []
            share = [batch for batch in own if first <= batch.places[0] < end]
            losses = self.losses(policy, share, advantages, len(part), seen)
            norm = problem.step(losses, optimiser, self.max_norm)
            moved, kl = (torch.cat(values).cpu() for values in zip(*problem.gather(seen), strict=True))
            done.append(Update(float(moved.abs().max()), clip_fraction(moved, self.clip), float(kl.mean()), norm))
        return done

    def losses(
        self, policy: Policy, own: Sequence[Batch], advantages: Float[Tensor, " n"], count: int, seen: list[Moved]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1), one forward pass each; those of all processes add up to the mean over `count` paths."""
        for places, path in own:
            actions = self.trained(path)
            for action in actions:
                moved = self.measure(policy, path, action)
                seen.append(Moved(*(value.detach() for value in moved)))
                advantage = advantages[list(places)].to(moved.log_ratio)
                loss = clipped_loss(moved.log_ratio, torch.zeros_like(moved.log_ratio), advantage, self.clip)
                if self.guard:
                    loss = loss / length(path.steps[path.actions[action]])
                yield (loss + self.beta * moved.kl).sum() / (count * len(actions))

    def trained(self, path: Trajectory) -> list[int]:
        """The numbers of the actions that are trained on."""
        kept = len(path.steps) - self.skip_last
        return [number for number, step in enumerate(path.actions) if step < kept]

    def measure(self, policy: Policy, path: Trajectory, action: int) -> Moved:
        """log ρ and KL_t of one action of paths; KL_t is 0 where it costs nothing."""
        i, step = path.actions[action], path.transition(policy, action)
        log_ratio = log_density(path.latents[i + 1], step, self.reduction) - path.log_prob[:, action]
        if self.guard and path.means is not None:
            squared = ((step.mean - path.means[action]).flatten(1) / step.std[:, None]).square().mean(1)
            log_ratio = deviation(path.steps[i], path.sampling) * (log_ratio + squared / 2)
        kl = torch.zeros_like(log_ratio)
        if self.beta:
            with torch.no_grad():
                reference = path.transition(policy.reference, action)
            kl = divergence(step, reference, self.reduction)
        if self.units == "official":
            scales = official_scales(path.steps[i], path.sampling)
            return Moved(scales[0] * log_ratio, scales[1] * kl)
        return Moved(log_ratio, kl)

    @property
    def reduction(self) -> Reduction:
        return "mean" if self.units == "official" else "sum"

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = old every ratio is 1, and at θ = reference no step has moved."""
        key, prompt = problem.key("check"), problem.prompts[0]
        window = self.draw_window(sampling.steps, key("window"))
        asked = ([prompt] * 2, [key(0), key(1)])
        path = collect(problem, policy, *asked, sampling, self.reduction, window=window, keep_means=self.guard).path
        moved = self.measure(policy, path, 0)
        identities = {"the importance ratio": (moved.log_ratio.exp(), 1.0), "KL": (moved.kl, 0.0)}
        return Probe(moved.log_ratio[0] - moved.log_ratio[1], identities)

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_prompts(problem, "Flow-GRPO"):
            return reason
        sampling = self.path_sampling(problem, self.kernel, self.eta)
        if self.window is not None and self.window > min(sampling.steps // 2, sampling.steps - self.skip_last):
            return f"window={self.window} exceeds what is trained of the first half of {sampling.steps} steps."
        noisy = noise_of(problem.pipeline.timesteps(sampling.steps), sampling) > 0
        if not noisy[: max(0, sampling.steps - self.skip_last)].any():
            return f"skip_last={self.skip_last} leaves none of a path's {sampling.steps} steps to train; set it lower."
        return None


class Moved(NamedTuple):
    """How far an action has moved, in the units of (1)."""

    log_ratio: Float[Tensor, " b"]
    kl: Float[Tensor, " b"]


class Update(NamedTuple):
    """What one optimiser step saw."""

    ratio_error: float  # largest |log ρ|; exactly 0 in the first update of a round
    clip_fraction: float
    kl_term: float  # mean KL_t
    gradient_norm: float


def length(step: Steps) -> float:
    """|dt| of one step."""
    return float(flow_sigma(step.alpha_bar) - flow_sigma(step.next_alpha_bar))


def deviation(step: Steps, sampling: Sampling) -> float:
    """q: the standard deviation of one step in a flow model's own coordinates."""
    return float(noise_of(step, sampling) * flow_scale(step.next_alpha_bar))


def official_scales(step: Steps, sampling: Sampling) -> tuple[float, float]:
    """What the authors' log ratio and KL of a step are of the true ones' means over elements."""
    if sampling.kernel == "cps":
        return 2 * deviation(step, sampling) ** 2, 1.0
    return 1.0, length(step) if sampling.kernel in ("flow_sde", "dance_sde") else 1.0
