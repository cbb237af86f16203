"""DPOK: policy gradient with a bound on the divergence from the pretrained model, and a learned value baseline.

Paper       Fan et al. 2023, "DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models",
            https://arxiv.org/abs/2305.16381; defaults from the authors' code (google-research/dpok,
            train_online_pg.py, the recipe of one prompt).
Objective   max_θ E r(x_0, c) − β E Σ_t KL_t,  KL_t = KL(p_θ(x_s | x_t, c) ‖ p_ref(x_s | x_t, c)),               (1)
            where Σ_t E KL_t bounds the divergence of the images from above and β = kl_weight / reward_weight. Over
            moves of sampled paths, with ρ = p_θ(x_s | x_t, c) / p_old(x_s | x_t, c),
                L(θ) = E_{path, t}[ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + kl_weight KL_t ],                      (2)
                A = reward_weight (r − V(x_t, c, t)),  V ← argmin E (r − V(x_t, c, t))².                         (3)
            The gradient of (2) leaves out that an action also decides the KL of the steps after it. With `future_kl`
            the return r of (3) becomes r − β Σ_{later t'} KL_t' of the same path, and (2) the exact gradient of (1).
Departures  The authors clamp ρ without the max, so that their gradient vanishes wherever |ρ − 1| > ε, even where it
            would restore; here it is PPO's. KL_t is the exact Gaussian one; theirs, the mean squared difference of ε̂,
            lacks its factor per step and is kl="eps_mse". Rounds are on-policy instead of drawing on a buffer of the
            last 1000 moves (two to three rounds), and its updates together draw no move twice while there are others.
            Each batch of the value network is a step; they add up five to one. V starts at each action's mean return of
            the first round, theirs at zero: their reward is near it, others are not. `value_text_scale` makes V learn
            what prompts earn before it learns single images by heart. `skip_first` leaves out actions at the start of
            a path, and Σ_t of (1) then is over the others (the logged kl over all). Theirs, and the defaults, train
            under guidance; with `guided` = false all of (1), and the logged reward, is of paths without it, and only
            the logged kl of evaluation's. `skip_last`, "bias" and `anneal` are for budgets of minutes, as in ddpo.
Lookahead   With `lookahead`, a line in r(x̂_0(x_t), c) is part of V: one for each action, fitted to the first round's
            returns and fixed from then on. A V that knows x_t, c and t, and not what came after, leaves the mean of the
            gradient at ρ = 1 as it is and takes noise out of it. (Ours, as theirs, has been fitted to the same round.)
            One more image is decoded and rewarded per action. See README for what it and `guided` are worth.
Optimum     Of the exact testbed: p* ∝ p_ref exp(r/β) is the optimum of (1), the path's bound being tight for it. At
            kl_weight = reward_weight (β = 1) it comes to a regret of 0.05 to 0.08 nats on gaussian, where base's fifty
            DDIM steps alone cost 0.01, and stays: 0.07 after three times the rounds (one seed), where ddpo has run to
            hundreds. On grid it reaches 0.33 to 0.62, with `future_kl` 0.19 to 0.40: what (2) leaves out seems to
            matter where paths choose between modes. On overlap 0.21 to 1.1. Rounding moves these as far as seeds do.
Units       log ρ and KL_t are both per latent element under reduction "mean", as the authors', and both in nats under
            "sum". Either way β is in reward per nat; only the clip range changes its meaning.
Symbols     b moves of a batch, one image and one action (step with σ > 0) each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from alignbench import Key, Policy, Probe, Problem, Prompt, Sampler, Sampling
from alignbench.devices import chunked
from alignbench.diffusion.episodes import (
    Episode,
    Moves,
    clipped_loss,
    collect,
    collect_all,
    draw_prompts,
    joined,
    moves_of,
)
from alignbench.diffusion.optimisers import Tuned, set_rate, tuning_of
from alignbench.diffusion.rollout import PipelineSampler, Trajectory, path_divergence, rollout
from alignbench.diffusion.transition import Reduction, divergence, log_density, std_of
from alignbench.diffusion.value import Value
from alignbench.fields import at_least_one, positive

__all__ = ["DPOK"]

WATCHED = 32  # images of a round whose divergence from the reference is logged: it costs two evaluations an action


@dataclass(frozen=True, kw_only=True)
class DPOK:
    trains: ClassVar[bool] = True

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
    eta: float = 1.0  # noise of the sampled paths
    steps: int | None = None  # of the sampled paths; None: as in evaluation
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
    tuning: Tuned = "lora"
    rank: int = 4  # of the LoRA

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "samples_per_round", "samples_per_prompt", "updates_per_round")
        at_least_one(self, "moves_per_update", "batch", "value_updates", "value_batch", "rank")
        positive(self, "reward_weight", "clip", "learning_rate", "max_norm", "value_learning_rate", "value_text_scale")
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, got {self.kl_weight}.")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise a path has no density.")
        for name in ("skip_first", "skip_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")

    def align(self, problem: Problem) -> Sampler:
        policy = problem.pipeline.adapt(tuning_of(self.tuning, self.rank), problem.key("adapter"))
        optimiser = torch.optim.AdamW(policy.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        evaluated = replace(problem.sampling, eta=self.eta, steps=self.steps or problem.sampling.steps)
        sampling = evaluated if self.guided else replace(evaluated, guidance=1.0)
        value = self.value_network(problem, policy, sampling)
        value_optimiser = torch.optim.AdamW(value.parameters(), lr=self.value_learning_rate)
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
            prompts = draw_prompts(
                problem.prompts, current.key("prompts"), self.samples_per_round, self.samples_per_prompt
            )
            places = current.shard(range(len(prompts)))
            keys, mine = [current.key("sample", i) for i in places], [prompts[i] for i in places]
            episodes = collect_all(problem, policy, mine, keys, sampling, self.batch, self.reduction, self.lookahead)
            watched = episodes[0].path.first(WATCHED)
            if not self.guided:  # other methods' are logged under evaluation's guidance
                watched = rollout(policy, watched.condition, keys[: len(watched.log_prob)], evaluated)
            kl = path_divergence(policy, watched).mean()
            data = self.data(problem, policy, episodes, mine)
            if current.index == 0:
                tables = (data.foreseen, data.returns)
                value.begin(*(torch.stack([problem.gather(column) for column in table.T], 1) for table in tables))
            for k in range(self.value_updates):
                value_error = self.fit(problem, value, value_optimiser, data, current.key("value", k))
            rows = data.draw(self.updates_per_round * self.moves_per_update, current.key("updates"))
            updates = [
                self.update(problem, policy, value, optimiser, data, part)
                for part in chunked(rows, self.moves_per_update)
            ]
            current.log(
                reward=problem.gather(torch.cat([episode.rewards for episode in episodes])).mean(),
                kl=kl,
                value_error=value_error,
                ratio_error=updates[0].ratio_error,
                clip_fraction=updates[-1].clip_fraction,
                gradient_norm=updates[-1].gradient_norm,
                kl_term=updates[-1].kl_term,
            )
        return PipelineSampler(policy, problem.sampling)

    def value_network(self, problem: Problem, policy: Policy, sampling: Sampling) -> Value:
        inputs = torch.Size(policy.latent_shape).numel() + policy.condition(problem.prompts[:1]).pooled.shape[-1]
        trained = int((std_of(policy.timesteps(sampling.steps), self.eta) > 0).sum()) - self.skip_first - self.skip_last
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

    def data(self, problem: Problem, policy: Policy, episodes: Sequence[Episode], prompts: Sequence[Prompt]) -> Data:
        """The moves that a round's episodes, which are `batch` prompts each, are trained on."""
        trained = range(self.skip_first, len(episodes[0].path.actions) - self.skip_last)
        kept = [Episode(path.only(trained), rewards) for path, rewards in episodes]
        asked = zip(kept, chunked(prompts, self.batch), strict=True)
        return Data(
            joined(kept).path,
            torch.cat([self.returns(policy, episode) for episode in kept]),
            torch.cat([self.foreseen(problem, policy, episode, own) for episode, own in asked]),
        )

    def returns(self, policy: Policy, episode: Episode) -> Float[Tensor, "n actions"]:
        """r of (3) for each action: the reward, less the later KLs with `future_kl`."""
        n, actions = episode.path.log_prob.shape
        rewards = episode.rewards.to(episode.path.latents.device)[:, None].expand(n, actions)
        if not self.future_kl:
            return rewards
        with torch.no_grad():
            kl = [self.measure(policy, moves_of(episode.path, range(n), [a] * n))[1] for a in range(actions)]
        return rewards - self.kl_weight / self.reward_weight * later(torch.stack(kl, 1))

    def foreseen(
        self, problem: Problem, policy: Policy, episode: Episode, prompts: Sequence[Prompt]
    ) -> Float[Tensor, "n actions"]:
        """r of the x0 estimate before each action; zeros without `lookahead`."""
        if episode.path.x0 is None:
            return torch.zeros_like(episode.path.log_prob)
        with torch.no_grad():
            rewards = [problem.reward(policy.decode(x0), prompts) for x0 in episode.path.x0]
        return torch.stack(rewards, 1).to(episode.path.latents.device)

    def fit(self, problem: Problem, value: Value, optimiser: Optimizer, data: Data, key: Key) -> Float[Tensor, ""]:
        """One step on V of (3); the mean squared error before it."""
        moves, returns, foreseen = data.pick(data.draw(self.value_batch, key))
        error = (value(moves, foreseen) - returns).square().mean()
        problem.step(error, optimiser)
        return error.detach()

    def update(
        self, problem: Problem, policy: Policy, value: Value, optimiser: Optimizer, data: Data, rows: Sequence[int]
    ) -> Update:
        """One step on (2)."""
        seen: list[tuple[Tensor, Tensor]] = []
        norm = problem.step(self.losses(policy, value, data, rows, seen), optimiser, self.max_norm)
        log_ratio, kl = (torch.cat(parts).cpu() for parts in zip(*seen, strict=True))
        outside = ((log_ratio.exp() - 1).abs() > self.clip).float().mean()
        return Update(float(log_ratio.abs().max()), float(outside), float(kl.mean()), norm)

    def losses(
        self, policy: Policy, value: Value, data: Data, rows: Sequence[int], seen: list[tuple[Tensor, Tensor]]
    ) -> Iterator[Float[Tensor, ""]]:
        """The terms of (2), one forward pass each; they add up to the mean over moves. `seen` gets log ρ and KL_t."""
        for part in chunked(rows, self.batch):
            moves, returns, foreseen = data.pick(part)
            with torch.no_grad():
                advantage = self.reward_weight * (returns - value(moves, foreseen))
            log_prob, kl = self.measure(policy, moves)
            seen.append(((log_prob - moves.log_prob).detach(), kl.detach()))
            loss = clipped_loss(log_prob, moves.log_prob, advantage, self.clip) + self.kl_weight * kl
            yield loss.sum() / len(rows)

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.prompts:
            return "DPOK draws prompts to train on, and none were named; pass --train-prompts."
        steps = problem.pipeline.timesteps(self.steps or problem.sampling.steps)
        actions, skipped = int((std_of(steps, self.eta) > 0).sum()), self.skip_first + self.skip_last
        if skipped >= actions:
            return f"skip_first + skip_last = {skipped} leaves none of a path's {actions} actions; set them lower."
        return None


class Update(NamedTuple):
    """What one optimiser step saw."""

    ratio_error: float  # largest |log ρ|; 0 up to rounding in the first update of a round
    clip_fraction: float
    kl_term: float  # mean KL_t
    gradient_norm: float


class Data(NamedTuple):
    """The moves of a round, numbered image by image, what each is followed by and what was foreseen before it."""

    path: Trajectory
    returns: Float[Tensor, "n actions"]
    foreseen: Float[Tensor, "n actions"]  # r of the x0 estimate; zeros without `lookahead`

    def draw(self, count: int, key: Key) -> list[int]:
        """Numbers of random moves, without repetition while they last."""
        return key.sample(range(self.returns.numel()), count)

    def pick(self, rows: Sequence[int]) -> tuple[Moves, Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Moves by their numbers, their returns and what was foreseen."""
        trained = self.returns.shape[1]
        images, actions = [row // trained for row in rows], [row % trained for row in rows]
        return moves_of(self.path, images, actions), self.returns[images, actions], self.foreseen[images, actions]


def later(kl: Float[Tensor, "n actions"]) -> Float[Tensor, "n actions"]:
    """The sum of what stands after each action."""
    return kl.flip(1).cumsum(1).flip(1) - kl


def squared_difference(eps: Tensor, reference: Tensor, reduction: Reduction) -> Float[Tensor, " b"]:
    """The authors' KL_t. The Gaussian one is c²/(2σ²) times it, c = √(1 − ᾱ_s − σ²) − √(ᾱ_s (1 − ᾱ_t)/ᾱ_t)."""
    squared = (eps - reference).square().flatten(1)
    return squared.mean(1) if reduction == "mean" else squared.sum(1)
