"""D3PO: direct preference optimisation of every denoising step, on pairs that the policy samples and a reward orders.

Paper       Yang et al. 2023, "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model",
            https://arxiv.org/abs/2311.13231; defaults are config/base.py's of https://github.com/yk7333/d3po.
Objective   Two paths of one prompt start from the same x_T; w is the one whose image earns more, l the other. With
            ρ = p_θ(x_s | x_t, c) / p_ref(x_s | x_t, c), its logarithm averaged over the elements of a latent,
                L(θ) = E_{pair, t}[ −log σ( β (log ρ̄_w − log ρ̄_l) ) ],   ρ̄ = clip(ρ, 1 − ε, 1 + ε).             (1)
            At the defaults this is ½ β (log ρ_l − log ρ_w) up to a constant, masked where ρ has left its range.
Departures  The pairs are ordered by the problem's reward, as in the authors' train_with_rm.py; equal rewards give no
            gradient, and no step is taken for them alone (theirs takes Adam's). Steps and guidance are the evaluation's
            (theirs: 20 and 5). Every pair is new, so that the old weights only enter through what they sample. Steps
            with σ = 0 have no density and are left out.
Optimum     Not aimed at: (1) has none of its own. ε, not β, bounds how far a policy goes from the reference, and the
            rounds decide how far it has gone.
Symbols     n pairs of a batch; a move is one step with σ > 0 of both paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.optim import Optimizer

from alignbench import (
    Episode,
    Key,
    Moves,
    PipelineSampler,
    Policy,
    PolicyGradient,
    Probe,
    Problem,
    Prompt,
    Published,
    Sampler,
    Sampling,
    Sharing,
    Trajectory,
    at_least_one,
    chunked,
    clip_fraction,
    collect,
    joined,
    log_density,
    moves_of,
    positive,
    repeated,
    shuffled_parts,
    watched_kl,
    without_prompts,
)

__all__ = ["D3PO"]

BASE = {
    "rounds": 400, "samples_per_round": 40, "updates_per_round": 20, "passes": 1, "beta": 0.1, "clip": 0.1,
    "learning_rate": 3e-5, "weight_decay": 1e-4, "max_norm": 1.0, "tuning": "lora", "rank": 4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class D3PO(PolicyGradient):  # which has eta, tuning and rank
    paper: ClassVar[tuple[Published, ...]] = (
        Published("base", "config/base.py of yk7333/d3po", BASE, {"steps": 20, "guidance": 5.0, "eta": 1.0}),
    )

    rounds: int = 400  # of sampling and updating
    samples_per_round: int = 40  # two for each pair
    updates_per_round: int = 20  # optimiser steps in one pass over a round's pairs
    passes: int = 1  # over a round's pairs
    batch: int = 1  # pairs per forward pass
    beta: float = 0.1  # β of (1)
    clip: float = 0.1  # ε of (1)
    steps: int | None = None  # of the sampled paths; None: as in evaluation (the authors: 20)
    learning_rate: float = 3e-5
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # of the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "passes")
        positive(self, "beta", "clip")
        if self.samples_per_round % 2:
            raise ValueError(f"samples_per_round must be even, two for each pair, got {self.samples_per_round}.")
        self.cut("pairs", self.samples_per_round // 2)
        if self.clip >= 1:
            raise ValueError(f"clip must lie below 1, got {self.clip}.")

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        sampling = self.path_sampling(problem)
        plan = self.plan("pairs", self.samples_per_round // 2, self.passes)
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            prompts = problem.prompts.sample(current.key("prompts"), self.samples_per_round // 2)
            episodes = [
                twins(problem, policy, [prompts[i] for i in part], [current.key("pair", i) for i in part], sampling)
                for part in problem.shard(chunked(range(len(prompts)), self.batch))
            ]
            path, rewards = joined(problem.gather(episodes))
            pairs = ordered(rewards)
            shown: dict[str, float | Tensor] = {"reward": rewards.mean()}
            shown |= {"ties": 1 - 2 * len(pairs) / len(rewards), "kl": watched_kl(problem, policy, path, self.batch)}
            if pairs:
                updates = [
                    update
                    for k in range(self.passes)
                    for update in self.update(problem, policy, optimiser, path, pairs, current.key("update", k))
                ]
                shown |= {"loss": updates[0].loss, "clip_fraction": updates[-1].clip_fraction}
                shown |= {"gradient_norm": updates[-1].gradient_norm}
            current.log(**shown)
        return PipelineSampler(policy, problem.sampling)

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = reference every ratio is 1 and every loss ln 2."""
        path, _ = twins(problem, policy, [problem.prompts[0]], [problem.key("check")], sampling)
        log_ratio = log_ratios(policy, moves_of(path, [0, 1], [0, 0]))
        loss = preference_loss(log_ratio[:1], log_ratio[1:], self.beta, self.clip)
        identities = {"the ratio to the reference": (log_ratio.exp(), 1.0), "the loss": (loss, math.log(2))}
        return Probe(loss.sum(), identities)

    def update(
        self,
        problem: Problem,
        policy: Policy,
        optimiser: Optimizer,
        path: Trajectory,
        pairs: Sequence[tuple[int, int]],
        key: Key,
    ) -> list[Update]:
        """One pass over a round's pairs in `updates_per_round` optimiser steps."""
        done = []
        for part in shuffled_parts(pairs, key, self.updates_per_round):
            seen: list[Seen] = []
            norm = problem.step(self.losses(problem, policy, path, part, seen), optimiser, self.max_norm)
            log_ratio, loss = (torch.cat(parts) for parts in zip(*problem.gather(seen), strict=True))
            done.append(Update(float(loss.mean()), clip_fraction(log_ratio, self.clip), norm))
        return done

    def losses(
        self, problem: Sharing, policy: Policy, path: Trajectory, pairs: Sequence[tuple[int, int]], seen: list[Seen]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1), one forward pass over winners and losers each; they add up to the mean over pairs and
        steps."""
        actions = len(path.actions)
        for part in chunked(problem.shard(pairs, self.batch), self.batch):
            images = [winner for winner, _ in part] + [loser for _, loser in part]
            for action in range(actions):
                log_ratio = log_ratios(policy, moves_of(path, images, [action] * len(images)))
                loss = preference_loss(log_ratio[: len(part)], log_ratio[len(part) :], self.beta, self.clip)
                seen.append(Seen(log_ratio.detach(), loss.detach()))
                yield loss.sum() / (len(pairs) * actions)

    def unsupported(self, problem: Problem) -> str | None:
        return without_prompts(problem, "D3PO")


class Seen(NamedTuple):
    """What one forward pass saw."""

    log_ratio: Float[Tensor, " b"]
    loss: Float[Tensor, " n"]


class Update(NamedTuple):
    """What one optimiser step saw."""

    loss: float
    clip_fraction: float  # share of moves outside the clip range, which get no gradient
    gradient_norm: float


def twins(
    problem: Problem, policy: Policy, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling
) -> Episode:
    """Two rewarded paths of each prompt, one after the other, that share x_T and no noise after it."""
    start = policy.initial_noise(keys).repeat_interleave(2, 0)
    steps = [key(twin) for key in keys for twin in ("first", "second")]
    return collect(problem, policy, repeated(prompts, 2, len(steps)), steps, sampling, initial=start)


def ordered(rewards: Float[Tensor, " n"]) -> list[tuple[int, int]]:
    """(winner, loser) of the pairs (0, 1), (2, 3), …, without ties and without what could not be scored."""
    pairs = []
    for first, (one, other) in zip(range(0, len(rewards), 2), rewards.view(-1, 2).tolist(), strict=True):
        if one > other:
            pairs.append((first, first + 1))
        elif other > one:
            pairs.append((first + 1, first))
    return pairs


def log_ratios(policy: Policy, moves: Moves) -> Float[Tensor, " b"]:
    """log ρ of moves, averaged over the elements of a latent."""
    with torch.no_grad():
        reference = log_density(moves.next_latents, moves.under(moves.predict(policy.reference)))
    return log_density(moves.next_latents, moves.under(moves.predict(policy))) - reference


def preference_loss(
    winner: Float[Tensor, " n"],  # log ρ_w; carries the gradient
    loser: Float[Tensor, " n"],
    beta: float,
    clip: float,
) -> Float[Tensor, " n"]:
    """The terms of (1)."""
    low, high = math.log(1 - clip), math.log(1 + clip)
    return -logsigmoid(beta * (winner.clamp(low, high) - loser.clamp(low, high)))
