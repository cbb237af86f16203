"""DDPO: train a diffusion model by policy gradient, one denoising path per episode.

Paper       Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", https://arxiv.org/abs/2305.13301;
            defaults from the authors' code (https://github.com/kvablack/ddpo-pytorch, config/dgx.py).
Objective   A step x_t → x_s is an action with the Gaussian density p_θ(x_s | x_t, c); only the image is rewarded. With
            log ρ = log p_θ − log p_old, averaged over the elements of a latent ("mean" units, see
            alignbench/diffusion/transition.py), and the standardised reward Â of the image,
                importance   L(θ) = E_{path, t}[ max(−Â ρ, −Â clip(ρ, 1 − ε, 1 + ε)) ]                        (1)
                reinforce    L(θ) = E_{path, t}[ −Â log p_θ(x_s | x_t, c) ]                                   (2)
            (2) has the gradient of (1) at θ = old; it is for one update per round.
Advantage   Â = (r − m_c) / (s_c + 1e-6), with mean and population standard deviation over the last rewards of the same
            prompt once there are enough, else over the round; then cut to ± advantage_clip.
Departures  The prompt statistics are part of the checkpoint (the authors' restart empty) and keep fractions for integer
            rewards (the authors' cut them off). Steps with σ = 0 have no density and are left out instead of being
            clamped away. Guidance is the evaluation's, trained through both branches. `skip_last` leaves final actions
            out: on paths of few steps the squared gradient of log p of the step onto the lowest noise level is tens of
            times the others' (10 steps: 69 against 1 to 2, in units of ‖∂ε‖²) and drowns what decides the composition;
            tuning "bias" trains few weights, whose gradient stands out of its noise after fewer images; `anneal` helps
            where the budget is short. The authors train all actions of a LoRA at a constant rate: the defaults.
Optimum     Of the exact testbed: not aimed at. There is no β; the reward alone is maximised, and the rounds decide how
            far. On the easy problem (gaussian) 20 rounds of 1024 points reach the optimum at β = 1 to a regret of 0.08
            nats (seeds 0.05 to 0.11), where its fifty DDIM steps alone cost base 0.01; so on overlap (linear). 60
            rounds run away from it, to a KL of 849 nats: by design. On grid and ring 60 rounds move mass to the right
            modes and spend 0.50 and 2.9 nats beyond the frontier: points move within and off their modes as well, and
            nothing weighs that. Three seeds with four times the points (0.42 on grid) leave open how much of it is
            gradient noise.
Units       The clip range bounds the log ratio per latent element: the true bound is ε times their number.
Symbols     B images of a batch, A actions (steps with σ > 0) of a path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Key, Policy, Probe, Problem, Sampler, Sampling
from alignbench.devices import chunked
from alignbench.diffusion.episodes import Episode, clipped_loss, collect, collect_all, draw_prompts
from alignbench.diffusion.optimisers import Tuned, set_rate, tuning_of
from alignbench.diffusion.rollout import PipelineSampler, path_divergence
from alignbench.diffusion.transition import Reduction, std_of
from alignbench.fields import at_least_one, positive

__all__ = ["DDPO"]

WATCHED = 32  # images of a round whose divergence from the reference is logged: it costs two evaluations an action


@dataclass(frozen=True, kw_only=True)
class DDPO:
    trains: ClassVar[bool] = True

    rounds: int = 100  # of sampling and updating
    samples_per_round: int = 256
    samples_per_prompt: int = 1  # images of the same prompt in a round
    updates_per_round: int = 2  # optimiser steps in one pass over a round's samples
    passes: int = 1  # over a round's samples
    batch: int = 8  # images per forward pass
    estimator: Literal["importance", "reinforce"] = "importance"  # (1) or (2)
    clip: float = 1e-4  # ε of (1), in the units of `reduction`
    reduction: Reduction = "mean"  # over the elements of a latent
    advantage_clip: float = 5.0
    buffer: int = 32  # rewards remembered per prompt
    min_count: int = 16  # rewards of a prompt from which its own statistics are used
    eta: float = 1.0  # noise of the sampled paths
    steps: int | None = None  # of the sampled paths; None: as in evaluation
    action_fraction: float = 1.0  # share of each path's actions that is trained on, drawn anew each round
    skip_last: int = 0  # final actions of each path that are never trained on, see Departures
    learning_rate: float = 3e-4
    anneal: bool = False  # let the learning rate fall linearly to zero over the rounds
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "lora"
    rank: int = 4  # of the LoRA

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "samples_per_round", "samples_per_prompt", "updates_per_round", "passes", "batch")
        at_least_one(self, "buffer", "min_count", "rank")
        positive(self, "clip", "advantage_clip", "learning_rate", "max_norm")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise a path has no density.")
        if not 0 < self.action_fraction <= 1:
            raise ValueError(f"action_fraction must lie in (0, 1], got {self.action_fraction}.")
        if self.skip_last < 0:
            raise ValueError(f"skip_last must not be negative, got {self.skip_last}.")
        if self.estimator == "reinforce" and self.updates_per_round * self.passes > 1:
            raise ValueError("estimator 'reinforce' is for one update per round; set updates_per_round=1 and passes=1.")

    def align(self, problem: Problem) -> Sampler:
        policy = problem.pipeline.adapt(tuning_of(self.tuning, self.rank), problem.key("adapter"))
        optimiser = torch.optim.AdamW(policy.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        statistics = PromptStatistics(self.buffer, self.min_count)
        sampling = replace(problem.sampling, eta=self.eta, steps=self.steps or problem.sampling.steps)
        plan = {
            "images a round": self.samples_per_round,
            "updates a round": self.updates_per_round * self.passes,
            "images an update": -(-self.samples_per_round // self.updates_per_round),
            "learning rate": self.learning_rate,
        }
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        state = {"policy": policy, "optimiser": optimiser, "statistics": statistics}
        for current in problem.rounds(self.rounds, state):
            set_rate(optimiser, self.learning_rate * (1 - current.index / self.rounds if self.anneal else 1))
            prompts = draw_prompts(
                problem.prompts, current.key("prompts"), self.samples_per_round, self.samples_per_prompt
            )
            places = current.shard(range(len(prompts)))
            keys = [current.key("sample", i) for i in places]
            mine = [prompts[i] for i in places]
            episodes = collect_all(problem, policy, mine, keys, sampling, self.batch, self.reduction)
            rewards = problem.gather(torch.cat([episode.rewards for episode in episodes]))
            advantages = statistics.advantages([prompt.id for prompt in prompts], rewards).clamp(
                -self.advantage_clip, self.advantage_clip
            )
            divergence = path_divergence(policy, episodes[0].path.first(WATCHED)).mean()
            data = list(zip(episodes, advantages[list(places)].split(self.batch), strict=True))
            updates = [
                self.update(problem, policy, optimiser, data, current.key("update", k)) for k in range(self.passes)
            ]
            first, last = updates[0][0], updates[-1][-1]
            current.log(
                reward=rewards.mean(),
                reward_std=rewards.std(correction=0),
                kl=divergence,
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
        optimiser: torch.optim.Optimizer,
        data: Sequence[tuple[Episode, Tensor]],
        key: Key,
    ) -> list[Update]:
        """One pass over a round's samples, with the advantage of each, in `updates_per_round` optimiser steps."""
        order = [data[i] for i in key("order").permutation(len(data))]
        size = -(-len(order) // self.updates_per_round)
        done = []
        for k, part in enumerate(chunked(order, size)):
            ratios: list[Tensor] = []
            losses = self.losses(policy, part, key("actions", k), ratios)
            norm = problem.step(losses, optimiser, self.max_norm)
            log_ratio = torch.cat(ratios)
            outside = ((log_ratio.exp() - 1).abs() > self.clip).float().mean()
            done.append(Update(float(log_ratio.abs().max()), float(outside), norm))
        return done

    def losses(
        self, policy: Policy, part: Sequence[tuple[Episode, Tensor]], key: Key, ratios: list[Tensor]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1) or (2), one forward pass each; they add up to the mean over images and actions."""
        images = sum(len(advantage) for _, advantage in part)
        for i, (episode, advantage) in enumerate(part):
            path = episode.path
            trained = len(path.actions) - self.skip_last
            kept = max(1, round(self.action_fraction * trained))
            for action in key(i).permutation(trained)[:kept]:
                log_prob = path.log_density(policy, action, self.reduction)
                old = path.log_prob[:, action]
                ratios.append((log_prob - old).detach().cpu())
                if self.estimator == "reinforce":
                    loss = reinforce_loss(log_prob, advantage.to(old.device))
                else:
                    loss = clipped_loss(log_prob, old, advantage.to(old.device), self.clip)
                yield loss.sum() / (images * kept)

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.prompts:
            return "DDPO draws prompts to train on, and none were named; pass --train-prompts."
        steps = problem.pipeline.timesteps(self.steps or problem.sampling.steps)
        actions = int((std_of(steps, self.eta) > 0).sum())
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


class PromptStatistics:
    """Running mean and standard deviation of the rewards of each prompt."""

    def __init__(self, buffer: int, min_count: int) -> None:
        self.buffer, self.min_count = buffer, min_count
        self.rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Remember these rewards, then standardise each by its prompt's statistics, or by the round's."""
        for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
            self.rewards.setdefault(prompt, deque(maxlen=self.buffer)).append(reward)
        whole = rewards.double()
        result = torch.empty_like(whole)
        for i, prompt in enumerate(prompts):
            own = torch.tensor(self.rewards[prompt], dtype=torch.float64)
            group = own if len(own) >= self.min_count else whole
            result[i] = (whole[i] - group.mean()) / (group.std(correction=0) + 1e-6)
        return result.float()

    def state_dict(self) -> dict[str, Any]:
        return {prompt: list(values) for prompt, values in self.rewards.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewards = {prompt: deque(values, maxlen=self.buffer) for prompt, values in state.items()}
