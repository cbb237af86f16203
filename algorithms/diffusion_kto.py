"""Diffusion-KTO: preferences about single images, each of them desirable or not, valued as prospect theory values.

Paper       Li et al. 2024, "Aligning Diffusion Models by Optimizing Human Utility", https://arxiv.org/abs/2404.04465;
            defaults are those of the authors' exps/example.sh (https://github.com/jacklishufan/diffusion-kto).
Objective   An image x_0 with a prompt c and a label s, +1 for desirable and −1 for undesirable, has a timestep t and
            noise ε of its own. With L(x_0) = ‖ε − ε_θ(x_t, t, c)‖² and R(x_0) the reference's, both averaged over the D
            elements of a latent:
                g = R(x_0) − L(x_0),   κ = max(0, mean of g over the images of an update), a constant             (1)
                loss = E[1 − U(s β (g − κ))]                                                                      (2)
            with the utility U = σ (Kahneman and Tversky's value function), log σ (loss averse) or −log σ(−·) (risk
            seeking). κ is the gain that values are reckoned from.
Departures  LoRA by default (the authors train every weight: tuning="full"), with the adapter switched off as reference:
            no second model, and both run in one precision; errors in float32. κ is over the images of an update, which
            takes an evaluation of the policy more for each; theirs is over the eight of one forward pass on four
            devices, which makes it a matter of memory. An image is one of a pair, the winner in a share
            `desirable_share` of the draws, and a pair has one turn in a pass; the authors label an image by all
            comparisons it was in, and one that won some and lost some is desirable. A kept tie counts half as either,
            which leaves no gradient under σ. Latents are the posterior mean. No flips, no weights of the two labels
            (theirs are both 1), AdamW not in 8 bit. The warm-up is one update ahead. On a flow model L is the error of
            its velocity.
Optimum     Not aimed at. While σ is straight it rests where d p_w − (1 − d) p_l leads, d the share of winners; at d = ½
            nowhere. log σ is logistic regression: of q, the chance of being desirable, β (g − κ) = log q/(1 − q).
Units       `beta` is that of the authors' code: means over elements, no ½. Over sums it is β / D, printed at the start.
Symbols     B images of a batch, one of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from alignbench import (
    Key,
    Noising,
    PairBatch,
    Pairs,
    PairTraining,
    Pipeline,
    PipelineSampler,
    Policy,
    Probe,
    Problem,
    Published,
    Sampler,
    denoising_error,
    expand,
    first_batch,
    keyed_batches,
    noising,
    pairs_of,
    positive,
    set_rate,
    warmed_up,
    without_pairs,
)

__all__ = ["DiffusionKTO"]

METHOD = "Diffusion-KTO"
Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]
EXAMPLE = {
    "updates": 20_000, "pairs_per_update": 2048, "beta": 1000.0, "utility": "kahneman_tversky",
    "desirable_share": 0.8, "caption_dropout": 0.2, "warmup": 200, "optimiser": "adamw", "learning_rate": 1e-7,
    "weight_decay": 1e-2, "max_norm": 1.0, "tuning": "full",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DiffusionKTO(PairTraining):
    paper: ClassVar[tuple[Published, ...]] = (
        Published("example.sh", "exps/example.sh of jacklishufan/diffusion-kto", EXAMPLE, model="sd15"),
    )

    rounds: int = 2000
    batch: int = 8  # images per forward pass
    beta: float = 1000.0  # see Units
    utility: Utility = "kahneman_tversky"
    desirable_share: float = 0.8  # of the images that are shown: winners, the others losers
    warmup: int = 200  # updates over which the learning rate rises
    learning_rate: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")
        if not 0 < self.desirable_share < 1:
            raise ValueError(
                f"desirable_share must lie in (0, 1), got {self.desirable_share}: images of both labels are needed."
            )

    def align(self, problem: Problem) -> Sampler:
        pairs = pairs_of(problem, METHOD)
        policy, optimiser = self.start(problem, self.optimiser)
        plan = {
            "pairs": len(pairs),
            "images an update": self.pairs_per_update,
            "updates a round": self.updates_per_round,
            "learning rate": self.learning_rate,
            "beta": self.beta,
            "beta over sums": self.beta / math.prod(policy.latent_shape),
        }
        problem.check(policy, plan, lambda: self.probe(problem, pairs, policy))
        for current in problem.rounds(self.rounds, {"policy": policy, "optimiser": optimiser}):
            seen: list[Seen] = []
            for k in range(self.updates_per_round):
                update = current.index * self.updates_per_round + k
                set_rate(optimiser, warmed_up(self.learning_rate, update, self.warmup))
                order, key = self.order(problem, pairs, update), current.key("update", k)
                places = problem.shard(range(len(order)), self.batch)
                before = self.before(policy, pairs, order, places, key)
                kappa = reference_point(torch.cat([torch.zeros(0), *problem.gather(before.gains)]))
                losses = self.losses(policy, pairs, order, places, key, before.reference, kappa, seen)
                norm = problem.step(losses, optimiser, self.max_norm)
            current.log(gradient_norm=norm, kappa=kappa, **summary(problem.gather(seen)))
        return PipelineSampler(policy, problem.sampling)

    @torch.no_grad()
    def before(self, policy: Policy, pairs: Pairs, order: Sequence[int], places: Sequence[int], key: Key) -> Before:
        """What (2) takes as constants, of all images of an update: κ has to be known before the first gradient."""
        reference, gains = list[Tensor](), list[Tensor]()
        for batch, keys in keyed_batches(pairs, order, places, self.batch, key):
            shown = self.shown(policy, batch, keys)
            reference.append(shown.error(policy.reference))
            gains.append((reference[-1] - shown.error(policy)).cpu())
        return Before(reference, gains)

    def losses(
        self,
        policy: Policy,
        pairs: Pairs,
        order: Sequence[int],
        places: Sequence[int],
        key: Key,
        reference: Sequence[Tensor],
        kappa: float,
        seen: list[Seen],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (2), one forward pass each; they add up to the mean over the update's images."""
        batches = keyed_batches(pairs, order, places, self.batch, key)
        for (batch, keys), error in zip(batches, reference, strict=True):
            shown = self.shown(policy, batch, keys)
            own = error - shown.error(policy)
            loss = kto_loss(own, shown.desirable.to(own.device), kappa, self.beta, self.utility)
            seen.append(Seen(own.detach().cpu(), shown.desirable.cpu(), loss.detach().cpu()))
            yield loss.sum() / len(order)

    def shown(self, policy: Policy, batch: PairBatch, keys: Sequence[Key]) -> Shown:
        """One image of each pair, with t, noise and whether its prompt is dropped, all drawn from the pair's key."""
        won = torch.cat([key("shown").uniform(1) for key in keys]) < self.desirable_share
        x0 = torch.where(expand(won, batch.winner).bool(), batch.winner, batch.loser)
        label = batch.label.cpu()
        drawn = noising(keys, x0, batch.condition, policy, self.caption_dropout)
        return Shown(x0, torch.where(won, label, 1 - label), drawn)

    def probe(self, problem: Problem, pairs: Pairs, policy: Policy) -> Probe:
        """At θ = reference no image has gained, and every loss is 1 − U(0)."""
        batch, keys = first_batch(pairs, problem.key("check"), self.batch)
        shown = self.shown(policy, batch, keys)
        with torch.no_grad():
            reference = shown.error(policy.reference)
        gains = reference - shown.error(policy)
        loss = kto_loss(gains, shown.desirable.to(gains.device), 0.0, self.beta, self.utility)
        at_zero = 1 - float(utility_of(torch.zeros(()), self.utility))
        return Probe(loss.mean(), {"the loss": (loss, at_zero), "the gain": (gains, 0.0)})

    def unsupported(self, problem: Problem) -> str | None:
        return without_pairs(problem, METHOD)


class Shown(NamedTuple):
    """The images of a forward pass."""

    x0: Float[Tensor, b * latent]
    desirable: Float[Tensor, " b"]  # the probability that it is
    drawn: Noising

    def error(self, pipeline: Pipeline) -> Float[Tensor, " b"]:
        """L, or R."""
        return denoising_error(pipeline, self.x0, self.drawn.noise, self.drawn.t, self.drawn.condition)


class Before(NamedTuple):
    """An update before its first gradient."""

    reference: list[Tensor]  # R, batch by batch
    gains: list[Tensor]  # g, likewise


class Seen(NamedTuple):
    """What one forward pass saw."""

    gain: Float[Tensor, " b"]
    desirable: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]


def reference_point(gains: Float[Tensor, " n"]) -> float:
    """κ of (1); 0 where there are no images."""
    return max(0.0, float(gains.mean())) if len(gains) else 0.0


def utility_of(value: Float[Tensor, "*n"], utility: Utility) -> Float[Tensor, "*n"]:
    """U."""
    if utility == "kahneman_tversky":
        return value.sigmoid()
    return functional.logsigmoid(value) if utility == "loss_averse" else -functional.logsigmoid(-value)


def kto_loss(
    gain: Float[Tensor, " b"],  # g; carries the gradient
    desirable: Float[Tensor, " b"],  # P(s = 1)
    kappa: float,
    beta: float,
    utility: Utility,
) -> Float[Tensor, " b"]:
    """(2) of each image."""
    value = beta * (gain - kappa)
    return 1 - desirable * utility_of(value, utility) - (1 - desirable) * utility_of(-value, utility)


def summary(seen: Sequence[Seen]) -> dict[str, float]:
    """What a round's forward passes saw, for the training curve."""
    gain, desirable, loss = (torch.cat(part) for part in zip(*seen, strict=True))
    groups = {"desirable_gain": gain[desirable > 0.5], "undesirable_gain": gain[desirable < 0.5]}
    return {"loss": float(loss.mean())} | {name: float(own.mean()) for name, own in groups.items() if len(own)}
