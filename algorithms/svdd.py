"""SVDD: at each step draw several candidates and go on from one, chosen by the reward of where it heads.

Paper       Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based
            Decoding", https://arxiv.org/abs/2408.08252 (algorithm 1, SVDD-PM); defaults are those of the authors' code
            (https://github.com/masa-ue/SVDD-image), but for `choose`.
Objective   Sample p* ∝ p_ref exp(r/α). Its reverse kernel is p_ref(x_s | x_t) exp(V_s(x_s)) up to a constant, with
            V_s(x) = log E[exp(r(x_0)/α) | x_s = x] ≈ r(x̂_0(x))/α. One of `candidates` draws x_s^j from p_ref(x_s | x_t)
            goes on,
                j ~ softmax_j r(x̂_0(x_s^j))/α,                                                                  (1)
            or the best with choose="argmax" (α → 0), as in the authors' experiments.
Departures  The default is (1), algorithm 1's rule; the code and the experiments take the best. The winner's prediction
            serves the next step, where the authors evaluate it again. The last step is left to chance, as theirs is.
Optimum     Aimed at. With choose="argmax" there is no temperature, and it goes as far as it can.
Cost        `candidates` evaluations of the denoiser, decodes and rewards for every step but the last.
Symbols     b prompts of a batch, m candidates of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench import (
    Cost,
    Key,
    Problem,
    Prompt,
    Published,
    Sampler,
    Samples,
    Sampling,
    Start,
    TestTimeSampler,
    Transition,
    at_least_one,
    begin,
    categorical,
    for_particles,
    largest,
    particle_keys,
    positive,
    reverse,
    rows_of,
    take_step,
    without_gaussian_steps,
)

__all__ = ["SVDD"]

CODE = "inference_decoding_nonp.py of masa-ue/SVDD-image"


@dataclass(frozen=True, kw_only=True)
class SVDD:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published(
            "experiments", CODE, {"candidates": 20, "choose": "argmax"}, {"steps": 50, "guidance": 7.5, "eta": 1.0}
        ),
        Published("algorithm 1", "arXiv:2408.08252", {"choose": "softmax"}),
    )

    candidates: int = 20
    alpha: float = 1.0  # temperature of the target, in units of the reward
    choose: Literal["softmax", "argmax"] = "softmax"
    steps: int | None = None  # of sampling; None: as in evaluation
    eta: float = 1.0  # noise of the steps, without which candidates are alike

    def __post_init__(self) -> None:
        at_least_one(self, "candidates")
        positive(self, "alpha")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise all candidates are alike.")

    def align(self, problem: Problem) -> Sampler:
        sampling, m = self.sampling(problem), self.candidates
        fields = {name: getattr(self, name) for name in ("candidates", "alpha", "choose")}
        pipeline = problem.pipeline

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            x, first, steps, condition = begin(pipeline, prompts, pipeline.initial_noise(keys), sampling, start)
            own, (asked, _), crowd = particle_keys(keys, m), for_particles(prompts, None, m), condition.repeat(m)
            prediction = pipeline.predict(x, steps[first].t.item(), condition, sampling.guidance)
            for i in range(first, len(steps) - 1):
                x = take_step(repeated(reverse(prediction, steps[i], sampling), m), own, i)
                ahead = pipeline.predict(x, steps[i + 1].t.item(), crowd, sampling.guidance)
                values = problem.reward(pipeline.decode(ahead.x0), asked).cpu().reshape(-1, m)
                rows = rows_of(self.chosen(values, [key("choice", i) for key in keys])[:, None], m)
                x, prediction = x[rows], ahead[rows]
            x = take_step(reverse(prediction, steps[len(steps) - 1], sampling), keys, len(steps) - 1)
            return Samples(pipeline.decode(x), x)

        return TestTimeSampler(draw, {"kind": "svdd", **sampling.as_dict(), **fields}, m)

    def chosen(self, values: Float[Tensor, "b m"], keys: Sequence[Key]) -> Int[Tensor, " b"]:
        """j of (1)."""
        if self.choose == "argmax":
            return values.argmax(1)
        return categorical(values / self.alpha, torch.cat([key.uniform(1) for key in keys]))

    def sampling(self, problem: Problem) -> Sampling:
        return replace(problem.sampling, steps=self.steps or problem.sampling.steps, eta=self.eta)

    def cost(self, problem: Problem) -> Cost:
        """Of an image."""
        sampling = self.sampling(problem)
        looks = self.candidates * (sampling.steps - 1)
        return Cost(denoiser_forward=sampling.evaluations * (1 + looks), decode_forward=looks + 1, reward_forward=looks)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> SVDD:
        """As many candidates as the budget pays for."""
        return largest(lambda n: replace(self, candidates=n), lambda a: a.cost(problem), budget, "candidates")

    def unsupported(self, problem: Problem) -> str | None:
        return without_gaussian_steps(problem, "svdd")


def repeated(step: Transition, n: int) -> Transition:
    """Each row of a step n times in a row."""
    return Transition(step.mean.repeat_interleave(n, 0), step.std.repeat_interleave(n, 0))
