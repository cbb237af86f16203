"""EDICT: a sampling chain of coupled pairs that can be run backwards exactly.

Paper     Wallace, Gokul, Naik 2022, "EDICT: Exact Diffusion Inversion via Coupled Transformations",
          https://arxiv.org/abs/2211.12446. A DDIM step (η = 0) is x_s = a x_t + b ε̂(x_t). Of a pair (x, y) each half is
          moved with the noise estimate of the other,
              even steps  x ← a x + b ε̂(y),   y ← a y + b ε̂(x);     odd steps the other way round,                 (1)
          and then both are mixed, with weight p, so that they stay together:
              x ← p x + (1 − p) y,   y ← (1 − p) x + p y.                                                            (2)
          Every line changes one half by a function of the other, so all of them can be undone in reverse order.
Limits    Undoing (2) divides by p twice a step: rounding grows by p^(−2N) over N steps, 1.4e3 for p = 0.93 and N = 50.
          Latents have to be float32 or better. Steps are numbered over the whole chain, so that a part of it, of any
          length, is undone by the same rule (the authors' and diffusers' code each err for one parity of N). Timesteps
          are the model's own; the authors' end at t = 0, a step that changes nothing.
Symbols   2 b: the pair (x, y) of b images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.interface import Pipeline
from alignbench.quantities import Condition, Steps

MIXING = 0.93  # p of (2)


@dataclass(frozen=True)
class Edict:
    """The coupled chain of a pipeline for given prompts."""

    pipeline: Pipeline
    steps: Steps
    condition: Condition
    guidance: float = 1.0
    mixing: float = MIXING

    def __post_init__(self) -> None:
        if not 0 < self.mixing <= 1:
            raise ValueError(f"the mixing weight must lie in (0, 1], got {self.mixing}.")

    def step(self, pair: Float[Tensor, "2 b *latent"], i: int) -> Float[Tensor, "2 b *latent"]:
        """(1) and (2) of step number i."""
        a, b = self.coefficients(i)
        first, second = (pair[1], pair[0]) if i % 2 else (pair[0], pair[1])
        first = a * first + b * self.noise(second, i)
        second = a * second + b * self.noise(first, i)
        x, y = (second, first) if i % 2 else (first, second)
        x = self.mixing * x + (1 - self.mixing) * y
        y = (1 - self.mixing) * x + self.mixing * y
        return torch.stack([x, y])

    def undo(self, pair: Float[Tensor, "2 b *latent"], i: int) -> Float[Tensor, "2 b *latent"]:
        """The pair that `step` number i started from."""
        a, b = self.coefficients(i)
        x, y = pair
        y = (y - (1 - self.mixing) * x) / self.mixing
        x = (x - (1 - self.mixing) * y) / self.mixing
        first, second = (y, x) if i % 2 else (x, y)
        second = (second - b * self.noise(first, i)) / a
        first = (first - b * self.noise(second, i)) / a
        return torch.stack([second, first] if i % 2 else [first, second])

    @torch.no_grad()
    def reconstruct(self, pair: Float[Tensor, "2 b *latent"], first: int = 0) -> Float[Tensor, "2 b *latent"]:
        """The clean pair, from the pair before step number `first`."""
        for i in range(first, len(self.steps)):
            pair = self.step(pair, i)
        return pair

    @torch.no_grad()
    def invert(self, pair: Float[Tensor, "2 b *latent"], first: int = 0) -> Float[Tensor, "2 b *latent"]:
        """The pair before step number `first` that `reconstruct` makes this clean pair from. An image's pair is its
        latents twice."""
        for i in reversed(range(first, len(self.steps))):
            pair = self.undo(pair, i)
        return pair

    def coefficients(self, i: int) -> tuple[float, float]:
        """a and b of (1)."""
        t, s = float(self.steps.alpha_bar[i]), float(self.steps.next_alpha_bar[i])
        a = (s / t) ** 0.5
        return a, (1 - s) ** 0.5 - a * (1 - t) ** 0.5

    def noise(self, latents: Float[Tensor, b * latent], i: int) -> Float[Tensor, b * latent]:
        """ε̂ in the precision of the latents."""
        prediction = self.pipeline.predict(latents, self.steps.t[i].item(), self.condition, self.guidance)
        return prediction.eps.to(latents.dtype)
