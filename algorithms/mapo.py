"""MaPO: preference pairs without a reference model, by the margin between what winner and loser cost the policy itself.

Paper       Hong et al. 2024, "Margin-aware Preference Optimization for Aligning Diffusion Models without Reference",
            https://arxiv.org/abs/2406.06424; defaults are those of the command in the authors' README.md
            (https://github.com/mapo-t2i/mapo).
Objective   For a pair x_0^w ≻ x_0^l of one prompt c, a timestep t and noise ε that both images share, with
            L(x_0) = ‖ε − ε_θ(x_t, t, c)‖² averaged over the elements of a latent:
                f(x_0) = ρ L / (e^{ρ L} − 1)                                                                    (1)
                z      = T (f(x_0^w) − f(x_0^l)),    T the number of training timesteps                         (2)
                loss   = E[L(x_0^w) − β log σ(z)]                                                               (3)
            f falls from 1 at L = 0 to 0, by ρ/2 at first, so that the score of an image is bounded on both sides.
Departures  LoRA by default (the authors' train.py trains every weight: tuning="full"; train_with_lora.py is theirs as
            well). (1) is computed without 0/0 at L = 0 and without overflow. A kept tie (label ½) counts half to either
            side, in both terms. Latents are the posterior mean. No flips, AdamW not in 8 bit. diffusers' ORPO script,
            which this grew from, rewards a larger error of the winner; (3) does not. On a flow model L is the error of
            its velocity, and v-prediction models have that of ε.
Optimum     Not aimed at: no reference holds it. L(x_0^w) is sft's and leads to the winners' distribution, the margin
            away from the losers'. With T = 1000 and ρ = ½ errors that differ by 0.01 make |z| = 2.5.
Cost        As diffusion_dpo's without the reference: half of its forward passes, and no second model.
Symbols     B pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
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

__all__ = ["MaPO"]

METHOD = "MaPO"
COMMAND = {
    "updates": 2000, "pairs_per_update": 16, "beta": 0.1, "sharpness": 0.5, "caption_dropout": 0.0, "warmup": 0,
    "optimiser": "adamw", "learning_rate": 1e-5, "weight_decay": 1e-2, "max_norm": 1.0,
}  # fmt: skip
SMALL = 0.1  # below it (1) is its series: the next term is 1e-6 / 30240


@dataclass(frozen=True, kw_only=True)
class MaPO(PairTraining):
    paper: ClassVar[tuple[Published, ...]] = (
        Published("train.py", "README.md of mapo-t2i/mapo", {**COMMAND, "tuning": "full"}, model="sdxl"),
        Published(
            "train_with_lora.py", "README.md of mapo-t2i/mapo", {**COMMAND, "tuning": "lora", "rank": 8}, model="sdxl"
        ),
    )

    pairs_per_update: int = 16
    batch: int = 4  # pairs per forward pass
    beta: float = 0.1  # weight of the margin
    sharpness: float = 0.5  # ρ of (1)
    caption_dropout: float = 0.0
    warmup: int = 0
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta", "sharpness")

    def align(self, problem: Problem) -> Sampler:
        pairs = pairs_of(problem, METHOD)
        policy, optimiser = self.start(problem, self.optimiser)
        plan = {
            "pairs": len(pairs),
            "pairs an update": self.pairs_per_update,
            "updates a round": self.updates_per_round,
            "learning rate": self.learning_rate,
            "beta": self.beta,
        }
        problem.check(policy, plan, lambda: self.probe(problem, pairs, policy))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            seen: list[Seen] = []
            for k in range(self.updates_per_round):
                update = current.index * self.updates_per_round + k
                set_rate(optimiser, warmed_up(self.learning_rate, update, self.warmup))
                order = self.order(problem, pairs, update)
                places = problem.shard(range(len(order)), self.batch)
                losses = self.losses(policy, pairs, order, places, current.key("update", k), seen)
                norm = problem.step(losses, optimiser, self.max_norm)
            current.log(gradient_norm=norm, **summary(problem.gather(seen)))
        return PipelineSampler(policy, problem.sampling)

    def losses(
        self, policy: Policy, pairs: Pairs, order: Sequence[int], places: Sequence[int], key: Key, seen: list[Seen]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (3), one forward pass each; they add up to the mean over the update's pairs."""
        for batch, keys in keyed_batches(pairs, order, places, self.batch, key):
            error = self.errors(policy, batch, keys)
            loss, z = mapo_loss(error, batch.label.to(error.device), self.beta, self.sharpness, policy.train_timesteps)
            seen.append(Seen(error.detach().cpu(), z.detach().cpu(), loss.detach().cpu()))
            yield loss.sum() / len(order)

    def errors(self, policy: Policy, batch: PairBatch, keys: Sequence[Key]) -> Float[Tensor, "2 b"]:
        """L of winners and losers, with t, noise and dropped prompts drawn from the pairs' keys."""
        return pair_errors(policy, batch, noising(keys, batch.winner, batch.condition, policy, self.caption_dropout))

    def probe(self, problem: Problem, pairs: Pairs, policy: Policy) -> Probe:
        """At θ = reference the errors are the reference's."""
        batch, keys = first_batch(pairs, problem.key("check"), self.batch)
        drawn = noising(keys, batch.winner, batch.condition, policy, self.caption_dropout)
        with torch.no_grad():
            reference = pair_errors(policy.reference, batch, drawn)
        error = self.errors(policy, batch, keys)
        loss, _ = mapo_loss(error, batch.label.to(error.device), self.beta, self.sharpness, policy.train_timesteps)
        return Probe(loss.mean(), {"the errors minus the reference's": (error - reference, 0.0)})

    def unsupported(self, problem: Problem) -> str | None:
        return without_pairs(problem, METHOD)


class Seen(NamedTuple):
    """What one forward pass saw."""

    error: Float[Tensor, "2 b"]
    z: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]


def score(error: Float[Tensor, "*n"], sharpness: float) -> Float[Tensor, "*n"]:
    """f of (1)."""
    x = sharpness * error
    series = 1 - x / 2 + x**2 / 12 - x**4 / 720
    large = torch.where(x < SMALL, SMALL, x)  # so that the branch that is not taken has a finite gradient
    return torch.where(x < SMALL, series, large * (-large).exp() / -torch.expm1(-large))


def mapo_loss(
    error: Float[Tensor, "2 b"],  # L of winners and losers; carries the gradient
    label: Float[Tensor, " b"],  # P(winner preferred)
    beta: float,
    sharpness: float,
    timesteps: int,  # T
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(3) of each pair, and z of (2)."""
    winner, loser = score(error, sharpness)
    z = timesteps * (winner - loser)
    preferred = label * error[0] + (1 - label) * error[1]
    margin = label * functional.logsigmoid(z) + (1 - label) * functional.logsigmoid(-z)
    return preferred - beta * margin, z


def summary(seen: Sequence[Seen]) -> dict[str, float]:
    """What a round's forward passes saw, for the training curve."""
    error, z, loss = (torch.cat(part, -1) for part in zip(*seen, strict=True))
    return {
        "loss": float(loss.mean()),
        "margin": float(z.mean()),
        "accuracy": implicit_accuracy(z),
        "winner_error": float(error[0].mean()),
        "loser_error": float(error[1].mean()),
    }
