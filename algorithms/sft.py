"""Supervised fine-tuning on the preferred images of pairs: what Diffusion-DPO must beat.

Paper       The SFT baseline of Wallace et al. 2023, https://arxiv.org/abs/2311.12908 (§5.1; defaults are the paper's
            rate and those of train.py --sft of https://github.com/SalesforceAIResearch/DiffusionDPO).
Objective   L(θ) = E ‖ε − ε_θ(x_t^w, t, c)‖², averaged over the elements of a latent, x^w the preferred image.      (1)
            The loser of a pair is not looked at.
Departures  LoRA by default, and a warm-up one update ahead, as in diffusion_dpo; ties, where they are kept, show their
            first image.
Optimum     Not aimed at: its target is the winners' distribution, 2 p_ref(x) E_y σ(r(x) − r(y)), whatever β is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    Key,
    Noising,
    PairBatch,
    Pairs,
    PairTraining,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Published,
    Sampler,
    denoising_error,
    first_batch,
    keyed_batches,
    noising,
    pairs_of,
    set_rate,
    warmed_up,
    without_pairs,
)

__all__ = ["SFT"]

SFT_RUN = {
    "pairs_per_update": 2048, "caption_dropout": 0.2, "optimiser": "adamw", "learning_rate": 2.048e-6,
    "weight_decay": 1e-2, "max_norm": 1.0, "tuning": "full",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SFT(PairTraining):  # which has what both of the paper's methods share
    paper: ClassVar[tuple[Published, ...]] = (
        Published("baseline", "arXiv:2311.12908, and train.py of SalesforceAIResearch/DiffusionDPO", SFT_RUN),
    )

    batch: int = 8  # images per forward pass
    learning_rate: float = 2.048e-6  # the paper's 1e-9 times 2048

    def align(self, problem: Problem) -> Sampler:
        pairs = pairs_of(problem, "SFT")
        policy, optimiser = self.start(problem, self.optimiser)
        plan = {
            "pairs": len(pairs),
            "images an update": self.pairs_per_update,
            "updates a round": self.updates_per_round,
            "learning rate": self.learning_rate,
        }
        problem.check(policy, plan, lambda: self.probe(problem, pairs, policy))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            seen: list[Tensor] = []
            for k in range(self.updates_per_round):
                update = current.index * self.updates_per_round + k
                set_rate(optimiser, warmed_up(self.learning_rate, update, self.warmup))
                order = self.order(problem, pairs, update)
                places = problem.shard(range(len(order)), self.batch)
                losses = self.losses(policy, pairs, order, places, current.key("update", k), seen)
                norm = problem.step(losses, optimiser, self.max_norm)
            current.log(loss=torch.cat(problem.gather(seen)).mean(), gradient_norm=norm)
        return PipelineSampler(policy, problem.sampling)

    def losses(
        self, policy: Policy, pairs: Pairs, order: Sequence[int], places: Sequence[int], key: Key, seen: list[Tensor]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (1), one forward pass each; they add up to the mean over the update's images."""
        for batch, keys in keyed_batches(pairs, order, places, self.batch, key):
            drawn = self.noising(policy, batch, keys)
            loss = denoising_error(policy, batch.winner, drawn.noise, drawn.t, drawn.condition)
            seen.append(loss.detach().cpu())
            yield loss.sum() / len(order)

    def noising(self, policy: Policy, batch: PairBatch, keys: Sequence[Key]) -> Noising:
        return noising(keys, batch.winner, batch.condition, policy, self.caption_dropout)

    def probe(self, problem: Problem, pairs: Pairs, policy: Policy) -> Probe:
        """At θ = reference the error is the reference's."""
        batch, keys = first_batch(pairs, problem.key("check"), self.batch)
        drawn = self.noising(policy, batch, keys)
        with torch.no_grad():
            reference = denoising_error(policy.reference, batch.winner, drawn.noise, drawn.t, drawn.condition)
        loss = denoising_error(policy, batch.winner, drawn.noise, drawn.t, drawn.condition)
        return Probe(loss.mean(), {"the error minus the reference's": (loss - reference, 0.0)})

    def unsupported(self, problem: Problem) -> str | None:
        return without_pairs(problem, "SFT")
