"""Rollover: a step is drawn again until it beats the best so far, and what it leaves unspent goes to the next.

Paper       Kim et al. 2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover Budget
            Forcing", https://arxiv.org/abs/2503.19385; defaults are those of the authors' rbf/rbf.py
            (https://github.com/KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling).
Objective   A high reward by the choice of each step's noise. r* is the best reward of an x̂_0 so far, at first that of
            the best of `starts` noises x_T, which goes on. A step has the allowance Q = `candidates` + what the step
            before it left. It draws x_s^1, x_s^2, … from p_ref(x_s | x_t) until
                r(x̂_0(x_s^j)) > r*,   then r* ← r(x̂_0(x_s^j)) and x_s = x_s^j,                                  (1)
            or until Q are drawn and the best of them goes on. The last step but one spends all that is left and goes on
            with its best, so that every image costs the same. The last step is left to chance.
Departures  The authors count evaluations of a whole batch, here every image has its own: its noise and its stops do
            not depend on the batch. They return the x̂_0 of the last step but one; here the last step is taken. They
            divide 500 evaluations by the 10 steps, (500 − 25)/10 = 47, of which the last searched has 99; here all have
            47, and the steps are the evaluation's. Their SDE of a flow is on the variance-preserving path, as DDIM with
            η = 1 is, with a diffusion coefficient of its own, 3 t². Where no signal is left at the first level, as in
            exact flow models, the x̂_0 of all x_T are alike and `starts` buys nothing.
Optimum     Missed by design: there is no temperature, and improving x̂_0 step by step goes as far as the budget lets it.
Cost        `starts`, and `candidates` for every step but the last, in evaluations of the denoiser, decodes and rewards.
Symbols     b images of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignbench import (
    Condition,
    Cost,
    Key,
    Prediction,
    Problem,
    Prompt,
    Published,
    Sampler,
    Samples,
    Sampling,
    Start,
    Steps,
    TestTimeSampler,
    at_least_one,
    begin,
    expand,
    largest,
    reverse,
    step_noise,
    take_step,
    without_gaussian_steps,
)

__all__ = ["Rollover"]

CODE = "rbf/rbf.py of KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling"


@dataclass(frozen=True, kw_only=True)
class Rollover:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (Published("rbf", CODE, {"candidates": 47, "starts": 25}, {"steps": 10}),)

    candidates: int = 47  # an image's draws of a step, on average
    starts: int = 25  # noises x_T, of which the best goes on
    kernel: Literal["ddim", "flow_sde"] = "ddim"  # of the steps
    eta: float | None = 1.0  # their noise; None: as in evaluation
    steps: int | None = None  # of sampling; None: as in evaluation

    def __post_init__(self) -> None:
        at_least_one(self, "candidates", "starts")
        if self.eta is not None and not 0 < self.eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {self.eta}: without noise all candidates are alike.")

    def align(self, problem: Problem) -> Sampler:
        pipeline, sampling = problem.pipeline, self.sampling(problem)
        about = {"kind": "rollover", **sampling.as_dict(), "candidates": self.candidates, "starts": self.starts}

        @torch.no_grad()
        def draw(prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None) -> Samples:
            search, first, steps, condition = self.started(problem, prompts, keys, start)
            last = len(steps) - 1
            for _ in range(self.candidates * (last - first)):
                here = reverse(search.current, steps[search.place], sampling)
                x = here.sample(candidate_noise(keys, search.place, search.drawn, here.mean))
                ahead = pipeline.predict(x, steps.t[search.place + 1], condition, sampling.guidance)
                search = search.after(ahead, valued(problem, ahead, prompts), self.candidates, last - 1)
            x = take_step(reverse(search.kept, steps[last], sampling), keys, last)
            return Samples(pipeline.decode(x), x)

        return TestTimeSampler(draw, about)

    def started(
        self, problem: Problem, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None
    ) -> tuple[Search, int, Steps, Condition]:
        """The search from the best of `starts` noises, its first step, all steps, and the condition."""
        pipeline, sampling = problem.pipeline, self.sampling(problem)
        x, first, steps, condition = begin(pipeline, prompts, pipeline.initial_noise(keys), sampling, start)
        best = pipeline.predict(x, steps.t[first].item(), condition, sampling.guidance)
        highest = valued(problem, best, prompts)
        for j in range(1, self.starts):
            noise = pipeline.initial_noise([key("start", j) for key in keys])
            x = begin(pipeline, prompts, noise, sampling, start).latents
            found = pipeline.predict(x, steps.t[first].item(), condition, sampling.guidance)
            values = valued(problem, found, prompts)
            wins = values > highest  # of equals the first is kept
            best, highest = chosen(wins, found, best), torch.where(wins, values, highest)
        return Search.begun(best, highest, first, self.candidates), first, steps, condition

    def sampling(self, problem: Problem) -> Sampling:
        own = problem.sampling
        eta = own.eta if self.eta is None else self.eta
        return replace(own, steps=self.steps or own.steps, kernel=self.kernel, eta=eta)

    def cost(self, problem: Problem) -> Cost:
        """Of an image, wherever it stops at a step."""
        sampling = self.sampling(problem)
        looks = self.starts + self.candidates * (sampling.steps - 1)
        return Cost(denoiser_forward=sampling.evaluations * looks, decode_forward=looks + 1, reward_forward=looks)

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> Rollover:
        """As many candidates as the budget pays for."""
        return largest(lambda n: replace(self, candidates=n), lambda a: a.cost(problem), budget, "candidates")

    def unsupported(self, problem: Problem) -> str | None:
        if reason := without_gaussian_steps(problem, "rollover"):
            return reason
        if self.sampling(problem).eta > 0:
            return None
        return (
            "rollover draws a step again until it is better, and with eta=0 a step is an ODE's, which comes out the "
            "same; set eta=1."
        )


class Search(NamedTuple):
    """Where the search of each image stands. Every image has drawn equally often in all, wherever it stands."""

    current: Prediction  # at the latents that its step starts from
    kept: Prediction  # of the best candidate of its step
    value: Float[Tensor, " b"]  # what that would earn
    highest: Float[Tensor, " b"]  # r*
    place: Int[Tensor, " b"]  # the number of its step
    drawn: Int[Tensor, " b"]  # candidates of this step so far
    allowance: Int[Tensor, " b"]  # Q of this step

    @classmethod
    def begun(cls, best: Prediction, highest: Float[Tensor, " b"], first: int, candidates: int) -> Search:
        """Before the first candidate."""
        zero = torch.zeros(len(highest), dtype=torch.long)
        return cls(best, best, highest, highest, zero + first, zero, zero + candidates)

    def after(self, ahead: Prediction, values: Float[Tensor, " b"], candidates: int, last: int) -> Search:
        """With one candidate more of each image, by (1); `last` is the last step that is searched."""
        leads, wins, drawn = (self.drawn == 0) | (values > self.value), values > self.highest, self.drawn + 1
        kept = chosen(leads, ahead, self.kept)
        moves = (wins | (drawn == self.allowance)) & (self.place < last)
        return Search(
            current=chosen(moves, kept, self.current),
            kept=kept,
            value=torch.where(leads, values, self.value),
            highest=torch.where(wins, values, self.highest),
            place=self.place + moves.long(),
            drawn=torch.where(moves, 0, drawn),
            allowance=torch.where(moves, candidates + self.allowance - drawn, self.allowance),
        )


def valued(problem: Problem, prediction: Prediction, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
    """r(x̂_0)."""
    return problem.reward(problem.pipeline.decode(prediction.x0), prompts).cpu()


def candidate_noise(
    keys: Sequence[Key], place: Int[Tensor, " b"], drawn: Int[Tensor, " b"], like: Float[Tensor, b * latent]
) -> Float[Tensor, b * latent]:
    """Of each image's own step and candidate. The first candidate's is plain sampling's."""
    numbered = zip(keys, place.tolist(), drawn.tolist(), strict=True)
    rows = [step_noise([key("candidate", j) if j else key], i, like[:1]) for key, i, j in numbered]
    return torch.cat(rows)


def chosen(rows: Bool[Tensor, " b"], new: Prediction, old: Prediction) -> Prediction:
    """The rows of `new` that are chosen, and of `old` where not."""
    mask = expand(rows, new.native).bool()
    return replace(
        old,
        native=torch.where(mask, new.native, old.native),
        latents=torch.where(mask, new.latents, old.latents),
        alpha_bar=torch.where(rows.to(new.alpha_bar.device), new.alpha_bar, old.alpha_bar),
    )
