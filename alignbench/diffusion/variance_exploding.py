"""A pipeline's levels in the variance-exploding view, where the probability-flow ODE and its SDEs are simplest.

Source    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
          https://arxiv.org/abs/2206.00364, eqs. (1) and (103). With σ = √((1 − ᾱ)/ᾱ) and x̃ = x/√ᾱ = x_0 + σ ε,
              dx̃ = ε̂ dσ                                                              the flow,                    (1)
              dx̃ = (1 + s σ) ε̂ dσ + √(2 s) σ dw,   dσ < 0                             an SDE of the same marginals   (2)
          for any s ≥ 0; s = 1/σ reverses dx̃ = √(2σ) dw itself (Anderson 1982).
Steps     Heun's, on the levels of the pipeline's own sampling steps: no level in between is ever asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.transition import ddim
from alignbench.interface import Pipeline
from alignbench.quantities import Condition, Steps

STIFFEST = 2.0  # of s σ: drift and noise of (2) then are three times the ODE's; Stable Diffusion's first level has 1.5


@dataclass(frozen=True)
class ProbabilityFlow:
    """The levels σ_0 > … > σ_N of N sampling steps, and steps between any two of them."""

    pipeline: Pipeline
    steps: Steps
    guidance: float = 1.0
    stochasticity: float | None = 0.1  # s of (2); None: 1/σ

    @cached_property
    def alpha_bar(self) -> list[float]:
        """ᾱ of each level; the last is what the last step ends in."""
        return [*self.steps.alpha_bar.tolist(), float(self.steps.next_alpha_bar[-1])]

    @cached_property
    def sigma(self) -> list[float]:
        return [((1 - level) / level) ** 0.5 if level > 0 else math.inf for level in self.alpha_bar]

    @property
    def blind(self) -> int:
        """How many first levels are passed by DDIM steps: those without signal, where σ is infinite, and those at which
        an SDE of stochasticity s is too stiff for Heun's method (s σ > STIFFEST)."""
        most = math.inf if self.stochasticity is None else STIFFEST / self.stochasticity
        return next(i for i, sigma in enumerate(self.sigma) if sigma <= most and sigma < math.inf)

    def entered(
        self, latents: Float[Tensor, b * latent], level: int, condition: Condition
    ) -> tuple[Float[Tensor, b * latent], int]:
        """The latents and the level from which the SDE may run, see `blind`."""
        for i in range(level, self.blind):
            prediction = self.pipeline.predict(latents, self.steps.t[i].item(), condition, self.guidance)
            latents = ddim(prediction, self.steps[i], 0.0).mean
        return latents, max(level, self.blind)

    def noise(self, x: Float[Tensor, b * latent], level: int, condition: Condition) -> Float[Tensor, b * latent]:
        """ε̂ of x̃ at a level."""
        scaled = x * self.alpha_bar[level] ** 0.5
        return self.pipeline.predict(scaled, self.steps.t[level].item(), condition, self.guidance).eps

    def ode(
        self, x: Float[Tensor, b * latent], levels: Sequence[int], condition: Condition
    ) -> Float[Tensor, b * latent]:
        """(1) by Heun's method over these levels; the last step, into the clean image, is Euler's."""
        for here, there in itertools.pairwise(levels):
            slope, dt = self.noise(x, here, condition), self.sigma[there] - self.sigma[here]
            end = x + slope * dt
            if there < len(self.steps):
                end = x + (slope + self.noise(end, there, condition)) / 2 * dt
            x = end
        return x

    def sde(
        self,
        x: Float[Tensor, b * latent],
        slope: Float[Tensor, b * latent],
        noise: Float[Tensor, b * latent],
        level: int,
        condition: Condition,
    ) -> Float[Tensor, b * latent]:
        """(2) by Heun's method from a level to the next, with standard normal noise; `slope` is ε̂ at x."""
        here, there = self.sigma[level], self.sigma[level + 1]
        dt, root = there - here, (here - there) ** 0.5
        f1, g1 = self.drift(here) * slope, self.diffusion(here)
        end = x + f1 * dt + g1 * root * noise
        if level + 1 == len(self.steps):
            return end
        f2, g2 = self.drift(there) * self.noise(end, level + 1, condition), self.diffusion(there)
        return x + (f1 + f2) / 2 * dt + (g1 + g2) / 2 * root * noise

    def drift(self, sigma: float) -> float:
        return 2.0 if self.stochasticity is None else 1 + self.stochasticity * sigma

    def diffusion(self, sigma: float) -> float:
        return (2 * sigma) ** 0.5 if self.stochasticity is None else (2 * self.stochasticity) ** 0.5 * sigma


def spread_levels(first: int, last: int, steps: int) -> list[int]:
    """At most `steps` steps from level `first` to level `last`, as even as whole levels can be."""
    count = max(1, min(steps, last - first))
    return [first + round((last - first) * k / count) for k in range(count + 1)]
