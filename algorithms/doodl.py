"""DOODL: gradient ascent on the initial latents, through the whole sampling chain.

Paper       Wallace et al. 2023, "End-to-End Diffusion Latent Optimization Improves Classifier Guidance",
            https://arxiv.org/abs/2303.13703; defaults are those of gen() in https://github.com/salesforce/DOODL.
Objective   max_z r(decode(chain(z))), with z kept near the shell where Gaussian noise lives. From z ~ N(0, I),
            `updates` times, for each image on its own:
                g ← clip(−learning_rate ∇_z r, ± clip)                                                           (1)
                m ← momentum m + g,   z ← z − m + perturbation ξ,   ξ ~ N(0, I)                                  (2)
                z ← z ‖z_0‖ / ‖z‖                                     with `renormalise`.                         (3)
Departures  The best iterate of every image is rendered (the authors' last update never is, and no best is kept), which
            adds a best-of-n over iterates. Both halves of the EDICT pair give their reward, and r is the mean; their
            gradient is half of that one's, which is the default learning_rate. Any reward stands in for their losses,
            and sees images that are not clamped to [0, 1] (theirs are). Steps are the model's own timesteps, 981 … 1 of
            Stable Diffusion, where theirs run 980 … 0, whose last changes nothing. Guidance is the evaluation's.
            `chain="recompute"` is plain DDIM (η = 0): half the evaluations, and as their code keeps every state anyway,
            nothing is lost.
Optimum     Not aimed at: every start climbs to a mode near it and keeps its share of the mass. It is for one image at a
            time.
Cost        (updates + 1) chains forward, and for each update one more forward and one backward; EDICT's chain takes two
            evaluations a step. The activations of one step are held at a time, and one latent (or pair) of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    ROOM_FOR_GRADIENTS,
    Chain,
    Cost,
    Edict,
    Key,
    Problem,
    Prompt,
    Published,
    Sampler,
    Samples,
    Sampling,
    Start,
    TestTimeSampler,
    at_least_one,
    begin,
    chain_gradient,
    expand,
    largest,
    normal,
    not_negative,
    positive,
    rewards_of,
    transition,
    without_ddim_steps,
    without_gradient,
    without_signal,
)

__all__ = ["DOODL"]

TEXT = {
    "updates": 50, "chain": "edict", "mixing": 0.93, "learning_rate": 0.5, "clip": 1e-3, "momentum": 0.9,
    "perturbation": 1e-4, "renormalise": True,
}  # fmt: skip
CLASSES = {**TEXT, "learning_rate": 0.025, "clip": 1e-2, "perturbation": 1e-3}
PERSON = {**TEXT, "updates": 500, "learning_rate": 1.5, "clip": 3e-3, "perturbation": 0.0}
SAMPLED = {"steps": 50, "guidance": 7.5}
CODE = "doodl.py of salesforce/DOODL"


@dataclass(frozen=True, kw_only=True)
class DOODL:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published("text guidance", CODE, TEXT, SAMPLED),
        Published("fine-grained classes", CODE, CLASSES, SAMPLED),
        Published("personalisation", CODE, PERSON, SAMPLED),
    )

    updates: int = 50
    chain: Literal["edict", "recompute"] = "edict"
    steps: int | None = 50  # of the chain; None: as in evaluation
    mixing: float = 0.93  # of the EDICT pair
    learning_rate: float = 0.5  # acts before the clip
    clip: float = 1e-3  # of the gradient, element by element
    momentum: float = 0.9
    perturbation: float = 1e-4  # standard deviation of ξ
    renormalise: bool = True  # false where the latents have few dimensions, and no shell

    def __post_init__(self) -> None:
        at_least_one(self, "updates")
        positive(self, "learning_rate", "clip")
        not_negative(self, "perturbation")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}.")
        if not 0 < self.mixing <= 1:
            raise ValueError(f"mixing must lie in (0, 1], got {self.mixing}.")

    def align(self, problem: Problem) -> Sampler:
        sampling = self.sampling(problem)
        about = {"kind": f"doodl {self.chain}", **sampling.as_dict(), "updates": self.updates}

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            noise = problem.pipeline.initial_noise(keys)
            chain = self.unrolled(problem, begin(problem.pipeline, prompts, noise, sampling, start), sampling)
            z, best = chain.latents, None
            norm, velocity = z.flatten(1).norm(dim=1), torch.zeros_like(z)
            for k in range(self.updates):
                swept = chain_gradient(chain.steps, z, lambda end: self.reward(problem, end, prompts))
                best = better(best, Iterate(self.rendered(swept.end), swept.values[0]))
                velocity = self.momentum * velocity + step_of(swept.gradient, self.learning_rate, self.clip)
                xi = normal([key("perturbation", k) for key in keys], z.shape[1:]).to(z)
                z = z + velocity + self.perturbation * xi
                z = z * expand(norm / z.flatten(1).norm(dim=1), z) if self.renormalise else z
            end = run(chain.steps, z)
            with torch.enable_grad():  # the last iterate's reward by the same path as the others'
                values = self.reward(problem, end.requires_grad_(), prompts).detach()
            x0 = better(best, Iterate(self.rendered(end.detach()), values[0])).x0
            return Samples(problem.pipeline.decode(x0), x0)

        return TestTimeSampler(draw, about, ROOM_FOR_GRADIENTS * (2 if self.chain == "edict" else 1))

    def unrolled(self, problem: Problem, begun: Chain, sampling: Sampling) -> Unrolled:
        """The chain from z to the clean latents, or to a clean pair of them."""
        pipeline, condition = problem.pipeline, begun.condition
        places = range(begun.first, len(begun.steps))
        if self.chain == "edict":
            edict = Edict(pipeline, begun.steps, condition, sampling.guidance, self.mixing)
            return Unrolled(begun.latents, [twice, *(partial(edict.step, i=i) for i in places)])

        def ddim(x: Tensor, i: int) -> Tensor:
            return transition(pipeline, x, begun.steps[i], condition, sampling).mean

        return Unrolled(begun.latents, [partial(ddim, i=i) for i in places])

    def reward(self, problem: Problem, end: Tensor, prompts: Sequence[Prompt]) -> Float[Tensor, "halves b"]:
        """Summands of the reward that is climbed: r of clean latents; of a pair, half of r of each half."""
        if self.chain == "recompute":
            return rewards_of(problem.pipeline, problem.reward, end, prompts)[None]
        both = rewards_of(problem.pipeline, problem.reward, end.flatten(0, 1), [*prompts, *prompts])
        return both.reshape(2, -1) / 2

    def rendered(self, end: Tensor) -> Float[Tensor, b * latent]:
        """The latents that become the image: of a pair, its first half."""
        return end if self.chain == "recompute" else end[0]

    def sampling(self, problem: Problem) -> Sampling:
        return replace(problem.sampling, steps=self.steps or problem.sampling.steps, eta=0.0)

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling, halves = self.sampling(problem), 2 if self.chain == "edict" else 1
        chain = sampling.evaluations * sampling.steps * halves
        return Cost(
            denoiser_forward=chain * (2 * self.updates + 1),
            denoiser_backward=chain * self.updates,
            decode_forward=halves * (self.updates + 1) + 1,
            decode_backward=halves * self.updates,
            reward_forward=halves * (self.updates + 1),
            reward_backward=halves * self.updates,
        )

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> DOODL:
        """As many updates as the budget pays for."""
        return largest(lambda n: replace(self, updates=n), lambda a: a.cost(problem), budget, "updates")

    def unsupported(self, problem: Problem) -> str | None:
        reason = without_gradient(problem, "doodl") or without_ddim_steps(problem, "doodl")
        if reason is None and self.chain == "edict":
            reason = without_signal(problem, "doodl with chain='edict'", "pass --set chain=recompute, plain DDIM")
        return reason


class Unrolled(NamedTuple):
    """Where a chain starts, and its steps."""

    latents: Float[Tensor, b * latent]
    steps: list[Callable[[Tensor], Tensor]]


class Iterate(NamedTuple):
    """What z became, and the reward of what is rendered, by a factor."""

    x0: Float[Tensor, b * latent]
    rewards: Float[Tensor, " b"]


def step_of(gradient: Float[Tensor, b * latent], learning_rate: float, clip: float) -> Float[Tensor, b * latent]:
    """−g of (1), an ascent."""
    return (learning_rate * gradient).clamp(-clip, clip)


def better(old: Iterate | None, new: Iterate) -> Iterate:
    """Image by image the iterate of the higher reward; of equals the earlier."""
    if old is None:
        return new
    wins = new.rewards > old.rewards
    return Iterate(torch.where(expand(wins, new.x0).bool(), new.x0, old.x0), torch.maximum(new.rewards, old.rewards))


def twice(z: Float[Tensor, b * latent]) -> Float[Tensor, "2 b *latent"]:
    """A pair of equal halves."""
    return torch.stack([z, z])


def run(steps: Sequence[Callable[[Tensor], Tensor]], start: Tensor) -> Tensor:
    """The end of a chain."""
    for step in steps:
        start = step(start)
    return start
