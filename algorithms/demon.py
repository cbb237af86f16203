"""Demon: of several noises for a step, a mixture is taken that leans towards those the reward likes.

Paper       Yeh, Lee, Chen 2024, "Training-free Diffusion Model Alignment with Sampling Demons",
            https://arxiv.org/abs/2410.05760; defaults are the released code's (https://github.com/aiiu-lab/DemonSampling).
Objective   A high reward by the choice of the SDE's noise. At each step `candidates` noises z_k lead to x_k, and R_k is
            the reward of where the probability-flow ODE takes x_k from there. The step is then made with
                z* ∝ Σ_k w_k z_k,   ‖z*‖ = √D                                                                     (1)
                w_k = tanh((R_k − mean R)/τ)      rule "tanh",        w = softmax(R/τ)      "boltzmann".           (2)
            Below the level `ode_after` nothing is left to choose and the ODE runs to the end.
Departures  τ = None is the spread of the R_k of this step and image, over their number k; the released code divides by
            k − 1 and freezes the spread of the first step. Guidance is the evaluation's (theirs: 2). One candidate, or
            equal values, give w_k = 1 (the code divides by zero, or by the spread of one). With shell=False, z* is Σ
            w_k z_k / ‖w‖, a standard normal for fixed weights: normals live on the shell in many dimensions only.
            Levels are those of the pipeline's own sampling steps, not Karras' spacing.
Optimum     Not aimed at: neither rule has a β. Its tilts add up over steps, so that τ, their number and the SDE set the
            strength together.
Cost        For each step above `ode_after`, `candidates` times an SDE step and an ODE, and two evaluations more.
Symbols     b prompts of a batch, k candidates of each, D elements of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import (
    Cost,
    Key,
    ProbabilityFlow,
    Problem,
    Prompt,
    Published,
    Sampler,
    Samples,
    Start,
    TestTimeSampler,
    at_least_one,
    begin,
    expand,
    for_particles,
    largest,
    not_negative,
    particle_keys,
    positive,
    spread_levels,
    step_noise,
    without_ddim_steps,
)

__all__ = ["Demon"]

Rule = Literal["tanh", "boltzmann"]
CODE = "aiiu-lab/DemonSampling"
RELEASED = {
    "candidates": 16, "rule": "tanh", "temperature": None, "shell": True, "stochasticity": 0.1, "ode_after": 0.11,
    "value_steps": 20,
}  # fmt: skip
FLAT = 1e-8  # a spread of values below which they are equal


@dataclass(frozen=True, kw_only=True)
class Demon:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published("released code", f"src/api.py and pipelines of {CODE}", RELEASED, {"steps": 64, "guidance": 2.0}),
        Published("with a VLM", f"README.md of {CODE}", {"candidates": 16, "stochasticity": 0.1}, {"steps": 128}),
    )

    candidates: int = 16
    rule: Rule = "tanh"
    temperature: float | None = None  # τ of (2), in units of the reward; None: the spread of the values
    shell: bool = True
    stochasticity: float | None = 0.1  # of the SDE; None: 1/σ, the reverse of the noising process
    ode_after: float = 0.11  # level σ below which the ODE runs to the end
    # Of the ODE that values a candidate at the noisiest level; from a level on the way, as large a share of those left.
    value_steps: int = 20  # 1 is the one-step estimate
    steps: int | None = 64  # of sampling; None: as in evaluation

    def __post_init__(self) -> None:
        at_least_one(self, "candidates", "value_steps")
        for name in ("temperature", "stochasticity"):
            if getattr(self, name) is not None:
                positive(self, name)
        not_negative(self, "ode_after")

    def align(self, problem: Problem) -> Sampler:
        fields = {name: getattr(self, name) for name in ("candidates", "rule", "temperature", "value_steps")}
        flow = self.flow(problem)
        about = {"kind": "demon", "steps": len(flow.steps), "guidance": flow.guidance, **fields}
        pipeline, n, end = problem.pipeline, self.candidates, len(flow.steps)

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            sampling = replace(problem.sampling, steps=end)
            latents, first, _, condition = begin(pipeline, prompts, pipeline.initial_noise(keys), sampling, start)
            own, (asked, _), crowd = particle_keys(keys, n), for_particles(prompts, None, n), condition.repeat(n)
            latents, first = flow.entered(latents, first, condition)
            x = latents / flow.alpha_bar[first] ** 0.5
            while first < self.turn(flow):
                slope, noise = flow.noise(x, first, condition), step_noise(own, first, x)
                ahead = flow.sde(x.repeat_interleave(n, 0), slope.repeat_interleave(n, 0), noise, first, crowd)
                x0 = flow.ode(ahead, self.levels(first + 1, end), crowd) * flow.alpha_bar[end] ** 0.5
                values = problem.reward(pipeline.decode(x0), asked).cpu().reshape(-1, n)
                weights = weights_of(values, self.rule, self.temperature)
                x = flow.sde(x, slope, mixed(noise, weights, self.shell), first, condition)
                first += 1
            latents = flow.ode(x, range(first, end + 1), condition) * flow.alpha_bar[end] ** 0.5
            return Samples(pipeline.decode(latents), latents)

        return TestTimeSampler(draw, about, n)

    def flow(self, problem: Problem) -> ProbabilityFlow:
        sampling = problem.sampling
        steps = problem.pipeline.timesteps(self.steps or sampling.steps)
        return ProbabilityFlow(problem.pipeline, steps, sampling.guidance, self.stochasticity)

    def turn(self, flow: ProbabilityFlow) -> int:
        """The level from which on the ODE runs: the first below `ode_after`, at the latest the last noisy one."""
        below = [i for i, sigma in enumerate(flow.sigma) if sigma < self.ode_after]
        return min([*below, len(flow.steps) - 1])

    def levels(self, first: int, last: int) -> list[int]:
        """The levels of the ODE that values a candidate at level `first`."""
        return spread_levels(first, last, math.ceil(self.value_steps * (last - first) / last))

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        flow = self.flow(problem)
        end, n, once = len(flow.steps), self.candidates, problem.sampling.evaluations
        searched = range(flow.blind, self.turn(flow))
        valued = sum(2 * len(self.levels(i + 1, end)) - 3 for i in searched)
        evaluations = flow.blind + len(searched) * (n + 2) + n * valued + 2 * (end - searched.stop) - 1
        looks = len(searched) * n
        return Cost(denoiser_forward=once * evaluations, decode_forward=looks + 1, reward_forward=looks)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> Demon:
        """As many candidates as the budget pays for."""
        return largest(lambda n: replace(self, candidates=n), lambda a: a.cost(problem), budget, "candidates")

    def unsupported(self, problem: Problem) -> str | None:
        return without_ddim_steps(problem, "demon")


def weights_of(values: Float[Tensor, "b k"], rule: Rule, temperature: float | None) -> Float[Tensor, "b k"]:
    """w of (2); ones where the values are all equal."""
    spread = values.std(1, keepdim=True, unbiased=False) if values.shape[1] > 1 else torch.zeros(len(values), 1)
    tau = spread if temperature is None else torch.full_like(spread, temperature)
    centred = (values - values.mean(1, keepdim=True)) / tau.clamp(min=FLAT)
    weights = centred.tanh() if rule == "tanh" else centred.softmax(1)
    return torch.where(spread < FLAT, 1.0, weights)


def mixed(noise: Float[Tensor, bk * latent], weights: Float[Tensor, "b k"], shell: bool) -> Float[Tensor, b * latent]:
    """z* of (1)."""
    candidates = noise.unflatten(0, weights.shape)
    total = (candidates * expand(weights, candidates)).sum(1)
    norm = weights.norm(dim=1)
    if shell:
        return total * expand(math.sqrt(total[0].numel()) / total.flatten(1).norm(dim=1).cpu(), total)
    return total / expand(norm, total)
