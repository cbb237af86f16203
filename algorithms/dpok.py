"""DPOK: policy gradient with a bound on the divergence from the pretrained model, and a learned value baseline.

Paper       Fan et al. 2023, "DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models",
            https://arxiv.org/abs/2305.16381; defaults are those for one prompt of google-research's dpok/README.md and
            train_online_pg.py.
Objective   max_θ E r(x_0, c) − β E Σ_t KL_t,  KL_t = KL(p_θ(x_s | x_t, c) ‖ p_ref(x_s | x_t, c)),               (1)
            where β = kl_weight / reward_weight and Σ_t E KL_t bounds the divergence of the images. Over moves of
            sampled paths, with ρ = p_θ(x_s | x_t, c) / p_old(x_s | x_t, c),
                L(θ) = E_{path, t}[ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + kl_weight KL_t ],                      (2)
                A = reward_weight (r − V(x_t, c, t)),  V ← argmin E (r − V(x_t, c, t))².                         (3)
            (2) leaves out that an action also decides the KL of later steps. With `future_kl`, r of (3) is charged with
            β times that, and (2) has the exact gradient of (1).
Departures  The authors clamp ρ without PPO's max. KL_t is the exact Gaussian one; theirs lacks its factor per step and
            is kl="eps_mse". V's text is the mean of the token states, theirs CLIP's own pooled and projected embedding.
            Rounds are on-policy, theirs draw on the last 1000 moves. Each value batch is a step; they add up five to
            one. V starts at each action's mean return, theirs at zero, and `lookahead` lets it look ahead
            (alignbench/diffusion/value.py). Skipped actions leave Σ_t of (1), but not the logged kl. `guided`,
            `skip_last`, `anneal` and tuning "bias" are for budgets of minutes.
Optimum     Aimed at: p* ∝ p_ref exp(r/β) is that of (1), the path's bound being tight for it.
Units       log ρ and KL_t are per latent element under reduction "mean", as the authors', and in nats under "sum". β is
            in reward per nat either way; only the clip range changes its meaning.
Symbols     b moves of a batch, one image and one action (step with σ > 0) each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

from alignbench import (
    Episode,
    Experience,
    Key,
    Moves,
    PipelineSampler,
    Policy,
    PolicyGradient,
    Probe,
    Problem,
    Prompt,
    Published,
    Reduction,
    Sampler,
    Sampling,
    Sharing,
    Value,
    ask,
    at_least_one,
    chunked,
    clip_fraction,
    clipped_loss,
    collect,
    collect_all,
    divergence,
    foreseen_rewards,
    joined,
    log_density,
    moves_of,
    not_negative,
    positive,
    scale_of,
    set_rate,
    sum_of_later,
    watched_divergence,
    without_prompts,
)

__all__ = ["DPOK"]

SHARED = {
    "updates_per_round": 5, "kl": "eps_mse", "future_kl": False, "clip": 1e-4, "reduction": "mean", "guided": True,
    "skip_first": 0, "skip_last": 0, "learning_rate": 1e-5, "anneal": False, "weight_decay": 0.0, "max_norm": 0.1,
    "value_updates": 5, "value_batch": 256, "value_learning_rate": 1e-4, "lookahead": False, "tuning": "lora",
    "rank": 4,
}  # fmt: skip
ONE = {"rounds": 2000, "samples_per_round": 10, "moves_per_update": 48, "reward_weight": 10.0, "kl_weight": 0.01}
SEVERAL = {"rounds": 20_000, "reward_weight": 1000.0, "kl_weight": 0.1}
SAMPLED = {"steps": 50, "guidance": 7.5, "eta": 1.0}
README = "dpok/README.md of google-research/google-research"


@dataclass(frozen=True, kw_only=True)
class DPOK(PolicyGradient):  # which has eta, steps, tuning and rank
    paper: ClassVar[tuple[Published, ...]] = (
        Published("one prompt", README, {**ONE, **SHARED}, SAMPLED),
        Published("several prompts", README, {**SEVERAL, **SHARED}, SAMPLED),
    )

    rounds: int = 2000  # of sampling and updating
    samples_per_round: int = 10
    samples_per_prompt: int = 1  # images of the same prompt in a round
    updates_per_round: int = 5  # optimiser steps of the policy
    moves_per_update: int = 48  # drawn at random from all of a round
    batch: int = 8  # images, and moves, per forward pass
    reward_weight: float = 10.0
    kl_weight: float = 0.01
    kl: Literal["gaussian", "eps_mse"] = "gaussian"  # KL_t, or the authors' stand-in
    future_kl: bool = False  # charge an action with the KL of the steps after it
    clip: float = 1e-4  # ε of (2), in the units of `reduction`
    reduction: Reduction = "mean"  # over the elements of a latent
    guided: bool = True  # sample and train paths under the evaluation's guidance; False: without any
    skip_first: int = 0  # actions at the start of each path that are never trained on, nor their KL charged
    skip_last: int = 0  # and at its end
    learning_rate: float = 1e-5
    anneal: bool = False  # let the learning rate fall linearly to zero over the rounds
    weight_decay: float = 0.0
    max_norm: float = 0.1  # of the policy's gradient
    value_updates: int = 5  # optimiser steps of the value network in a round, before the policy's
    value_batch: int = 256  # moves in each
    value_learning_rate: float = 1e-4
    value_text_scale: float = 1.0  # of the text embedding where it enters the value network, beside the latents
    lookahead: bool = False  # V also gets r(x̂_0(x_t), c), which is one more decode and reward per action

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_prompt", "moves_per_update", "value_updates", "value_batch")
        positive(self, "reward_weight", "clip", "value_learning_rate", "value_text_scale")
        not_negative(self, "kl_weight", "skip_first", "skip_last")

    def align(self, problem: Problem) -> Sampler:
        policy, optimiser = self.start(problem)
        evaluated = self.path_sampling(problem)
        sampling = replace(evaluated, guidance=scale_of(evaluated, self.guided))
        value = self.value_network(problem, policy)
        value_optimiser = AdamW(value.parameters(), lr=self.value_learning_rate)
        plan = {
            "images a round": self.samples_per_round,
            "updates a round": self.updates_per_round,
            "moves an update": self.moves_per_update,
            "learning rate": self.learning_rate,
            "β": self.kl_weight / self.reward_weight,
        }
        problem.check(policy, plan, lambda: self.probe(problem, policy, sampling))
        state = {"policy": policy, "optimiser": optimiser, "value": value, "value_optimiser": value_optimiser}
        for current in problem.rounds(self.rounds, state):
            set_rate(optimiser, self.learning_rate * (1 - current.index / self.rounds if self.anneal else 1))
            asked = ask(problem, current.key, self.samples_per_round, self.samples_per_prompt)
            episode = joined(collect_all(problem, policy, *asked, sampling, self.batch, self.reduction, self.lookahead))
            # Logged under evaluation's guidance, as other methods' is.
            kl = watched_divergence(problem, policy, *asked, evaluated, self.batch)["kl"]
            data = self.experience(problem, policy, episode, asked.prompts)
            if current.index == 0:
                value.begin(data.foreseen, data.returns)
            for k in range(self.value_updates):
                value_error = self.fit(problem, value, value_optimiser, data, current.key("value", k))
            rows = data.draw(self.updates_per_round * self.moves_per_update, current.key("updates"))
            updates = [
                self.update(problem, policy, value, optimiser, data, part)
                for part in chunked(rows, self.moves_per_update)
            ]
            current.log(
                reward=episode.rewards.mean(),
                kl=kl,
                value_error=value_error,
                ratio_error=updates[0].ratio_error,
                clip_fraction=updates[-1].clip_fraction,
                gradient_norm=updates[-1].gradient_norm,
                kl_term=updates[-1].kl_term,
            )
        return PipelineSampler(policy, problem.sampling)

    def value_network(self, problem: Problem, policy: Policy) -> Value:
        inputs = torch.Size(policy.latent_shape).numel() + policy.condition(problem.prompts[:1]).pooled.shape[-1]
        trained = self.actions(problem) - self.skip_first - self.skip_last
        return Value(inputs, trained, problem.key("value"), self.value_text_scale).to(policy.parameters()[0].device)

    def probe(self, problem: Problem, policy: Policy, sampling: Sampling) -> Probe:
        """At θ = reference the importance ratio is 1 and no step has moved."""
        key = problem.key("check")
        path = collect(problem, policy, [problem.prompts[0]] * 2, [key(0), key(1)], sampling, self.reduction).path
        log_prob, kl = self.measure(policy, moves := moves_of(path, [0, 1], [0, 0]))
        identities = {"the importance ratio": ((log_prob - moves.log_prob).exp(), 1.0), "KL": (kl, 0.0)}
        return Probe(log_prob[0] - log_prob[1], identities)

    def measure(self, policy: Policy, moves: Moves) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """log p_θ(x_s | x_t) and KL_t of moves."""
        prediction = moves.predict(policy)
        with torch.no_grad():
            reference = moves.predict(policy.reference)
        step = moves.under(prediction)
        if self.kl == "gaussian":
            kl = divergence(step, moves.under(reference), self.reduction)
        else:
            kl = squared_difference(prediction.eps, reference.eps, self.reduction)
        return log_density(moves.next_latents, step, self.reduction), kl

    def experience(self, problem: Problem, policy: Policy, episode: Episode, prompts: Sequence[Prompt]) -> Experience:
        """The moves of a round's paths that are trained on."""
        path = episode.path.only(range(self.skip_first, len(episode.path.actions) - self.skip_last))
        foreseen = foreseen_rewards(problem, policy, path, prompts, self.batch)
        path = replace(path, x0=None)
        return Experience(path, self.returns(problem, policy, Episode(path, episode.rewards)), foreseen)

    def returns(self, problem: Sharing, policy: Policy, episode: Episode) -> Float[Tensor, "n actions"]:
        """r of (3) for each action: the reward, less the later KLs with `future_kl`."""
        n, actions = episode.path.log_prob.shape
        rewards = episode.rewards.to(episode.path.latents.device)[:, None].expand(n, actions)
        if not self.future_kl:
            return rewards
        found = []
        with torch.no_grad():
            for part in problem.shard(chunked(range(n), self.batch)):
                moves = (moves_of(episode.path, part, [a] * len(part)) for a in range(actions))
                found.append(torch.stack([self.measure(policy, own)[1] for own in moves], 1))
        kl = torch.cat(problem.gather(found))
        return rewards - self.kl_weight / self.reward_weight * sum_of_later(kl)

    def fit(
        self, problem: Problem, value: Value, optimiser: Optimizer, data: Experience, key: Key
    ) -> Float[Tensor, ""]:
        """One step on V of (3), which is small: one process takes it. The mean squared error before it."""
        errors = []
        for rows in problem.shard([data.draw(self.value_batch, key)]):
            moves, returns, ahead = data.pick(rows)
            errors.append((value(moves, ahead) - returns).square().sum() / len(rows))
        problem.step(errors, optimiser)
        return problem.gather([error.detach() for error in errors])[0]

    def update(
        self,
        problem: Problem,
        policy: Policy,
        value: Value,
        optimiser: Optimizer,
        data: Experience,
        rows: Sequence[int],
    ) -> Update:
        """One step on (2)."""
        seen: list[tuple[Tensor, Tensor]] = []
        norm = problem.step(self.losses(problem, policy, value, data, rows, seen), optimiser, self.max_norm)
        log_ratio, kl = (torch.cat(parts).cpu() for parts in zip(*problem.gather(seen), strict=True))
        return Update(float(log_ratio.abs().max()), clip_fraction(log_ratio, self.clip), float(kl.mean()), norm)

    def losses(
        self,
        problem: Sharing,
        policy: Policy,
        value: Value,
        data: Experience,
        rows: Sequence[int],
        seen: list[tuple[Tensor, Tensor]],
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (2), one forward pass each; they add up to the mean over moves. `seen` gets log ρ and KL_t."""
        for part in chunked(problem.shard(rows, self.batch), self.batch):
            moves, returns, ahead = data.pick(part)
            with torch.no_grad():
                advantage = self.reward_weight * (returns - value(moves, ahead))
            log_prob, kl = self.measure(policy, moves)
            seen.append(((log_prob - moves.log_prob).detach(), kl.detach()))
            loss = clipped_loss(log_prob, moves.log_prob, advantage, self.clip) + self.kl_weight * kl
            yield loss.sum() / len(rows)

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_prompts(problem, "DPOK"):
            return reason
        actions, skipped = self.actions(problem), self.skip_first + self.skip_last
        if skipped >= actions:
            return f"skip_first + skip_last = {skipped} leaves none of a path's {actions} actions; set them lower."
        return None


class Update(NamedTuple):
    """What one optimiser step saw."""

    ratio_error: float  # largest |log ρ|; 0 up to rounding in the first update of a round
    clip_fraction: float
    kl_term: float  # mean KL_t
    gradient_norm: float


def squared_difference(eps: Tensor, reference: Tensor, reduction: Reduction) -> Float[Tensor, " b"]:
    """The authors' KL_t. The Gaussian one is c²/(2σ²) times it, c = √(1 − ᾱ_s − σ²) − √(ᾱ_s (1 − ᾱ_t)/ᾱ_t)."""
    squared = (eps - reference).square().flatten(1)
    return squared.mean(1) if reduction == "mean" else squared.sum(1)
