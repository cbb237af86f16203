"""Supervised fine-tuning on the preferred images of pairs: what Diffusion-DPO must beat.

Paper       The SFT baseline of Wallace et al. 2023, https://arxiv.org/abs/2311.12908 (§5.1; train.py --sft).
Objective   L(θ) = E ‖ε − ε_θ(x_t^w, t, c)‖², averaged over the elements of a latent, x^w the preferred image.      (1)
            The loser of a pair is not looked at.
Departures  LoRA by default, as in diffusion_dpo; ties, where they are kept, show their first image.
Optimum     Of the exact testbed: not aimed at. Its target is the winners' distribution, 2 p_ref(x) E_y σ(r(x) − r(y)),
            whatever β is: on gaussian that earns 1.05 (p*: 2.25), and sft 1.02 to 1.08, with a regret of 0.43
            to 0.49 nats; on grid 6.2 to 6.6, on overlap 1.9 to 2.0. All are within 0.12 nats of the frontier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Key, PairBatch, Pairs, Policy, Probe, Problem, Sampler, Unsupported
from alignbench.diffusion.objectives import Noising, denoising_error, first_batch, keyed_batches, noising
from alignbench.diffusion.optimisers import OptimiserName, Tuned, optimiser_of, set_rate, tuning_of, warmed_up
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.fields import at_least_one, positive
from alignbench.keys import epochs

__all__ = ["SFT"]

NO_PAIRS = "SFT learns from the winners of pairs; pass --pairs, or --train-prompts and --reward to have some made."


@dataclass(frozen=True, kw_only=True)
class SFT:
    trains: ClassVar[bool] = True
    learns_from_pairs: ClassVar[bool] = True

    rounds: int = 200  # a checkpoint after each
    updates_per_round: int = 10  # optimiser steps
    pairs_per_update: int = 2048  # whose winners are shown
    batch: int = 8  # images per forward pass
    caption_dropout: float = 0.2  # share of images shown without their prompt
    learning_rate: float = 2.048e-6  # the paper's 1e-9 times 2048
    warmup: int = 500  # updates over which the learning rate rises
    optimiser: OptimiserName = "adamw"
    weight_decay: float = 1e-2
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "lora"
    rank: int = 8  # of the LoRA

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "updates_per_round", "pairs_per_update", "batch", "rank")
        positive(self, "learning_rate", "max_norm")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}.")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup}.")

    def align(self, problem: Problem) -> Sampler:
        pairs = problem.pairs
        if pairs is None:
            raise Unsupported(NO_PAIRS)
        policy = problem.pipeline.adapt(tuning_of(self.tuning, self.rank), problem.key("adapter"))
        optimiser = optimiser_of(policy.parameters(), self.optimiser, self.learning_rate, self.weight_decay)
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
                order = epochs(problem.key("order"), len(pairs), update * self.pairs_per_update, self.pairs_per_update)
                places = current.shard(range(len(order)))
                losses = self.losses(policy, pairs, order, places, current.key("update", k), seen)
                norm = problem.step(losses, optimiser, self.max_norm)
            current.log(loss=torch.cat(seen).mean(), gradient_norm=norm)
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
        return noising(keys, batch.winner, batch.condition, policy.train_timesteps, self.caption_dropout)

    def probe(self, problem: Problem, pairs: Pairs, policy: Policy) -> Probe:
        """At θ = reference the error is the reference's."""
        batch, keys = first_batch(pairs, problem.key("check"), self.batch)
        drawn = self.noising(policy, batch, keys)
        with torch.no_grad():
            reference = denoising_error(policy.reference, batch.winner, drawn.noise, drawn.t, drawn.condition)
        loss = denoising_error(policy, batch.winner, drawn.noise, drawn.t, drawn.condition)
        return Probe(loss.mean(), {"the error minus the reference's": (loss - reference, 0.0)})

    def unsupported(self, problem: Problem) -> str | None:
        return NO_PAIRS if problem.pairs is None else None
