"""DDPO: train a diffusion model by policy gradient, one denoising path per episode.

Paper       Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", https://arxiv.org/abs/2305.13301;
            defaults are `compressibility` of the authors' config/dgx.py (https://github.com/kvablack/ddpo-pytorch).
Objective   A step x_t → x_s is an action with the Gaussian density p_θ(x_s | x_t, c); only the image is rewarded. With
            log ρ = log p_θ − log p_old and the standardised reward Â of the image,
                importance   L(θ) = E_{path, t}[ max(−Â ρ, −Â clip(ρ, 1 − ε, 1 + ε)) ]                        (1)
                reinforce    L(θ) = E_{path, t}[ −Â log p_θ(x_s | x_t, c) ]                                   (2)
            (2) has the gradient of (1) at θ = old; it is for one update per round.
Advantage   Â = (r − m_c) / (s_c + 1e-6), with mean and population standard deviation over the last rewards of the same
            prompt once there are enough, else over the round; then cut to ± advantage_clip.
Departures  The prompt statistics are part of the checkpoint (the authors' restart empty) and keep fractions for integer
            rewards (the authors' cut them off). Steps with σ = 0 have no density and are left out, not clamped away.
            Guidance is the evaluation's (theirs: 5), trained through both branches. `skip_last`, `anneal` and tuning
            "bias" are ours, for short budgets.
Optimum     Not aimed at: there is no β, the reward alone is maximised, and the rounds decide how far.
Units       log ρ is averaged over the elements of a latent (see alignbench/diffusion/transition.py): the true bound is
            ε times their number.
Symbols     n images of a round; an action is a step with σ > 0 of a path.
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
    Key,
    PipelineSampler,
    Policy,
    PolicyGradient,
    Probe,
    Problem,
    PromptStatistics,
    Published,
    Reduction,
    Sampler,
    Sampling,
    Sharing,
    Trajectory,
    ask,
    at_least_one,
    chunked,
    clip_fraction,
    clipped_loss,
    collect,
    collect_all,
    joined,
    log_density,
    moves_of,
    not_negative,
    path_divergence,
    positive,
    set_rate,
    shuffled_parts,
    watched_kl,
    without_prompts,
)

__all__ = ["DDPO"]

DGX = "config/dgx.py of kvablack/ddpo-pytorch"
JPEG = {
    "rounds": 100, "samples_per_round": 256, "samples_per_prompt": 1, "updates_per_round": 4, "passes": 1,
    "estimator": "importance", "clip": 1e-4, "reduction": "mean", "advantage_clip": 5.0, "buffer": 16, "min_count": 16,
    "action_fraction": 1.0, "skip_last": 0, "learning_rate": 3e-4, "anneal": False, "weight_decay": 1e-4,
    "max_norm": 1.0, "tuning": "lora", "rank": 4,
}  # fmt: skip
AESTHETIC = {**JPEG, "rounds": 200, "updates_per_round": 2, "buffer": 32}
FULL = {
    "rounds": 200, "passes": 1, "clip": 1e-4, "advantage_clip": 10.0, "buffer": 32, "min_count": 16,
    "learning_rate": 1e-5, "weight_decay": 1e-4, "max_norm": 1.0, "tuning": "full",
}  # fmt: skip
SAMPLED = {"steps": 50, "guidance": 5.0, "eta": 1.0}


@dataclass(frozen=True, kw_only=True)
class DDPO(PolicyGradient):  # which has eta, steps, tuning and rank
    paper: ClassVar[tuple[Published, ...]] = (
        Published("compressibility", DGX, JPEG, SAMPLED, reward="jpeg_compressibility"),
        Published("incompressibility", DGX, JPEG, SAMPLED, reward="jpeg_incompressibility"),
        Published("aesthetic", DGX, AESTHETIC, SAMPLED, reward="aesthetic_v2"),
        Published("all weights", "config/base.py of jannerm/ddpo", FULL, SAMPLED),
    )

    rounds: int = 100  # of sampling and updating
    samples_per_round: int = 256
    samples_per_prompt: int = 1  # images of the same prompt in a round
    updates_per_round: int = 4  # optimiser steps in one pass over a round's samples
    passes: int = 1  # over a round's samples
    batch: int = 8  # images per forward pass
    estimator: Literal["importance", "reinforce"] = "importance"  # (1) or (2)
    clip: float = 1e-4  # ε of (1), in the units of `reduction`
    reduction: Reduction = "mean"  # over the elements of a latent
    advantage_clip: float = 5.0
    buffer: int = 16  # rewards remembered per prompt
    min_count: int = 16  # rewards of a prompt from which its own statistics are used
    action_fraction: float = 1.0  # share of each path's actions that is trained on, drawn anew each round
    skip_last: int = 0  # final actions of each path that are never trained on
    learning_rate: float = 3e-4
    anneal: bool = False  # let the learning rate fall linearly to zero over the rounds
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # of the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_prompt", "passes", "buffer", "min_count")
        positive(self, "clip", "advantage_clip")
        not_negative(self, "skip_last")
        self.cut("images", self.samples_per_round)
        if not 0 < self.action_fraction <= 1:
            raise ValueError(f"action_fraction must lie in (0, 1], got {self.action_fraction}.")
        if self.estimator == "reinforce" and self.updates_per_round * self.passes > 1:
            raise ValueError("estimator 'reinforce' is for one update per round; set updates_per_round=1 and passes=1.")

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        statistics = PromptStatistics(self.buffer, self.min_count)
        sampling = self.path_sampling(problem)
        plan = self.plan("images", self.samples_per_round, self.passes)
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        state = {"policy": policy, "optimiser": optimiser, "statistics": statistics}
        for current in problem.rounds(self.rounds, state):
            set_rate(optimiser, self.learning_rate * (1 - current.index / self.rounds if self.anneal else 1))
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            path, rewards = joined(collect_all(problem, policy, *asked, sampling, self.batch, self.reduction))
            advantages = statistics.advantages([prompt.id for prompt in asked.prompts], rewards)
            advantages = advantages.clamp(-self.advantage_clip, self.advantage_clip)
            kl = watched_kl(problem, policy, path, self.batch, asked.keys)
            updates = [
                update
                for k in range(self.passes)
                for update in self.update(problem, policy, optimiser, path, advantages, current.key("update", k))
            ]
            first, last = updates[0], updates[-1]
            current.log(
                reward=rewards.mean(),
                reward_std=rewards.std(correction=0),
                kl=kl,
                ratio_error=first.ratio_error,
                clip_fraction=last.clip_fraction,
                gradient_norm=last.gradient_norm,
            )
        return PipelineSampler(policy, problem.sampling)

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = old the importance ratio is 1, and at θ = reference no step has moved."""
        key = problem.key("check")
        episode = collect(problem, policy, [problem.prompts[0]] * 2, [key(0), key(1)], sampling, self.reduction)
        log_prob = episode.path.log_density(policy, 0, self.reduction)
        ratio = (log_prob - episode.path.log_prob[:, 0]).exp()
        identities = {"the importance ratio": (ratio, 1.0), "KL": (path_divergence(policy, episode.path), 0.0)}
        return Probe(log_prob[0] - log_prob[1], identities)

    def update(
        self,
        problem: Problem,
        policy: Policy,
        optimiser: Optimizer,
        path: Trajectory,
        advantages: Float[Tensor, " n"],
        key: Key,
    ) -> list[Update]:
        """One pass over a round's images, with the advantage of each, in `updates_per_round` optimiser steps."""
        done = []
        for part in shuffled_parts(range(len(advantages)), key("order"), self.updates_per_round):
            ratios: list[Tensor] = []
            losses = self.losses(problem, policy, path, advantages, part, key("actions"), ratios)
            norm = problem.step(losses, optimiser, self.max_norm)
            log_ratio = torch.cat(problem.gather([torch.cat(ratios).cpu()] if ratios else []))
            done.append(Update(float(log_ratio.abs().max()), clip_fraction(log_ratio, self.clip), norm))
        return done

    def losses(
        self,
        problem: Sharing,
        policy: Policy,
        path: Trajectory,
        advantages: Float[Tensor, " n"],
        images: Sequence[int],
        key: Key,
        ratios: list[Tensor],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1) or (2), one forward pass each; they add up to the mean over images and actions. Every image
        draws its own actions, in an order of its own."""
        trained = len(path.actions) - self.skip_last
        kept = max(1, round(self.action_fraction * trained))
        for part in chunked(problem.shard(images, self.batch), self.batch):
            drawn = [key(image).permutation(trained)[:kept] for image in part]
            for actions in zip(*drawn, strict=True):
                moves = moves_of(path, part, actions)
                log_prob = log_density(moves.next_latents, moves.under(moves.predict(policy)), self.reduction)
                advantage = advantages[list(part)].to(log_prob)
                ratios.append((log_prob - moves.log_prob).detach())
                if self.estimator == "reinforce":
                    loss = reinforce_loss(log_prob, advantage)
                else:
                    loss = clipped_loss(log_prob, moves.log_prob, advantage, self.clip)
                yield loss.sum() / (len(images) * kept)

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_prompts(problem, "DDPO"):
            return reason
        actions = self.actions(problem)
        if self.skip_last >= actions:
            return f"skip_last={self.skip_last} leaves none of a path's {actions} actions to train; set it lower."
        return None


class Update(NamedTuple):
    """What one optimiser step saw."""

    ratio_error: float  # largest |log ρ|; 0 up to rounding in the first update of a round
    clip_fraction: float
    gradient_norm: float


def reinforce_loss(log_prob: Float[Tensor, " b"], advantage: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The terms of (2)."""
    return -advantage * log_prob
