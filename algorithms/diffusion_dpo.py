"""Diffusion-DPO: direct preference optimisation of a diffusion model on pairs of images.

Paper       Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization",
            https://arxiv.org/abs/2311.12908; defaults are those of the authors' launchers/sd15.sh
            (https://github.com/SalesforceAIResearch/DiffusionDPO).
Objective   For a pair x_0^w ≻ x_0^l of one prompt c, a timestep t and noise ε that both images share, with
            L(x_0) = ‖ε − ε_θ(x_t, t, c)‖² and R(x_0) the reference's, both averaged over the D elements of a latent:
                z(θ) = −(β / 2) [(L(x^w) − R(x^w)) − (L(x^l) − R(x^l))]                                        (1)
                loss = −E log σ(z)                                                                              (2)
            the evidence-bound form of DPO. A kept tie (label ½) counts half to either side.
Departures  LoRA by default (the authors train every weight: tuning="full"), with the adapter switched off as reference:
            no second model, and both run in one precision; errors in float32 (the authors' reference is a copy in half
            precision). Latents are the posterior mean. No flips. Conditions are dropped per pair, for both images. The
            learning rate is the one the authors' launchers reach after scaling by the batch, 1e-8 · 2048, and not the
            far smaller one of the paper's text. It warms up one update ahead: (k + 1) / warmup, theirs k / warmup. The
            error is that of ε for v-prediction models too, as in the paper; diffusers' script takes that of v.
Optimum     Neared: p* is that of DPO itself, but (1) puts one noised level, all weighted alike, in place of the
            likelihood.
Units       `beta` is that of the authors' code: means over elements and the factor ½. In the paper's own formula (sums,
            no ½) it is β / (2 D), printed at the start: 0.15 for Stable Diffusion at 512 pixels, 0.04 for SDXL at 1024.
            On a flow model L is the error of its velocity; the common code of flow_grpo has β = 100 there, which is
            β / (2 D) = 0.00076 for Stable Diffusion 3.5 at 512 pixels.
Symbols     B pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn import functional

from alignbench import (
    Key,
    PairBatch,
    Pairs,
    PairTraining,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Published,
    Sampler,
    first_batch,
    implicit_accuracy,
    keyed_batches,
    noising,
    pair_errors,
    pairs_of,
    positive,
    set_rate,
    warmed_up,
    without_pairs,
)

__all__ = ["DiffusionDPO"]

METHOD = "Diffusion-DPO"
SD15 = {
    "updates": 2000, "pairs_per_update": 2048, "beta": 5000.0, "caption_dropout": 0.2, "warmup": 500,
    "optimiser": "adamw", "learning_rate": 2.048e-5, "anneal": False, "weight_decay": 1e-2, "max_norm": 1.0,
    "tuning": "full",
}  # fmt: skip
TEXT = {name: SD15[name] for name in ("updates", "pairs_per_update", "tuning")}
LAUNCHERS = "SalesforceAIResearch/DiffusionDPO"
BUCKETS = 4  # of timesteps, in each of which the accuracy is logged


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(PairTraining):  # which has what both of the paper's methods share
    paper: ClassVar[tuple[Published, ...]] = (
        Published("sd15.sh", f"launchers/sd15.sh of {LAUNCHERS}", SD15, model="sd15"),
        Published("paper, SD1.5", "arXiv:2311.12908", {**TEXT, "beta": 2000.0}, model="sd15"),
        Published(
            "sdxl.sh", f"launchers/sdxl.sh of {LAUNCHERS}", {**SD15, "optimiser": "adafactor", "warmup": 200},
            model="sdxl",
        ),
    )  # fmt: skip

    batch: int = 4  # pairs per forward pass
    beta: float = 5000.0  # see Units
    learning_rate: float = 2.048e-5
    anneal: bool = False  # let the learning rate fall linearly to zero after the warm-up

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")

    def align(self, problem: Problem) -> Sampler:
        pairs = pairs_of(problem, METHOD)
        policy, optimiser = self.start(problem, self.optimiser)
        plan = {
            "pairs": len(pairs),
            "pairs an update": self.pairs_per_update,
            "updates a round": self.updates_per_round,
            "learning rate": self.learning_rate,
            "beta": self.beta,
            "beta over sums": self.beta / (2 * math.prod(policy.latent_shape)),
        }
        problem.check(policy, plan, lambda: self.probe(problem, pairs, policy))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            seen: list[Seen] = []
            for k in range(self.updates_per_round):
                update = current.index * self.updates_per_round + k
                set_rate(optimiser, self.rate(update))
                order = self.order(problem, pairs, update)
                places = problem.shard(range(len(order)), self.batch)
                losses = self.losses(policy, pairs, order, places, current.key("update", k), seen)
                norm = problem.step(losses, optimiser, self.max_norm)
            current.log(gradient_norm=norm, **summary(problem.gather(seen), policy.train_timesteps))
        return PipelineSampler(policy, problem.sampling)

    def rate(self, update: int) -> float:
        """The learning rate of an update, numbered from 0."""
        left = 1 - update / (self.rounds * self.updates_per_round) if self.anneal else 1
        return warmed_up(self.learning_rate, update, self.warmup) * left

    def losses(
        self, policy: Policy, pairs: Pairs, order: Sequence[int], places: Sequence[int], key: Key, seen: list[Seen]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (2), one forward pass each; they add up to the mean over the update's pairs."""
        for batch, keys in keyed_batches(pairs, order, places, self.batch, key):
            loss, result = self.loss(policy, batch, keys)
            seen.append(result)
            yield loss.sum() / len(order)

    def loss(self, policy: Policy, batch: PairBatch, keys: Sequence[Key]) -> tuple[Float[Tensor, " b"], Seen]:
        """(2) of each pair, with t, noise and dropped prompts drawn from its key."""
        drawn = noising(keys, batch.winner, batch.condition, policy, self.caption_dropout)
        with torch.no_grad():  # before the policy, while no activations are held
            reference = pair_errors(policy.reference, batch, drawn)
        own = pair_errors(policy, batch, drawn)
        loss, z = dpo_loss(own, reference, batch.label.to(own.device), self.beta)
        return loss, Seen(drawn.t, z.detach().cpu(), loss.detach().cpu(), (own - reference).detach().cpu())

    def probe(self, problem: Problem, pairs: Pairs, policy: Policy) -> Probe:
        """At θ = reference every pair has z = 0 and the loss ln 2."""
        loss, seen = self.loss(policy, *first_batch(pairs, problem.key("check"), self.batch))
        return Probe(loss.mean(), {"the loss": (loss, math.log(2)), "z": (seen.z, 0.0)})

    def unsupported(self, problem: Problem) -> str | None:
        return without_pairs(problem, METHOD)


class Seen(NamedTuple):
    """What one forward pass saw."""

    t: Real[Tensor, " b"]
    z: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]
    moved: Float[Tensor, "2 b"]  # error minus the reference's, of winners and losers


def dpo_loss(
    error: Float[Tensor, "2 b"],  # L of winners and losers; carries the gradient
    reference_error: Float[Tensor, "2 b"],  # R
    label: Float[Tensor, " b"],  # P(winner preferred)
    beta: float,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(2) of each pair, and z of (1)."""
    winner, loser = error - reference_error
    z = -beta / 2 * (winner - loser)
    return -label * functional.logsigmoid(z) - (1 - label) * functional.logsigmoid(-z), z


def summary(seen: Sequence[Seen], train_timesteps: int) -> dict[str, float]:
    """What a round's forward passes saw, for the training curve."""
    t, z, loss, moved = (torch.cat(part, -1) for part in zip(*seen, strict=True))
    bucket = t * BUCKETS // train_timesteps
    by_bucket = {f"accuracy_t{i}": implicit_accuracy(z[bucket == i]) for i in range(BUCKETS) if (bucket == i).any()}
    return {
        "loss": float(loss.mean()),
        "accuracy": implicit_accuracy(z),
        "margin": float(z.mean()),
        "winner_moved": float(moved[0].mean()),
        "loser_moved": float(moved[1].mean()),
        **by_bucket,
    }
