"""The quantities that pipelines and algorithms hand each other: conditions, predictions, sampling steps.

Notation  x_t = α_t x_0 + σ_t ε with α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t) (variance preserving);
          v = α_t ε − σ_t x_0 (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512).
          Flow models write x = (1 − σ) x_0 + σ ε and predict ε − x_0. Their latents are kept as x / ρ with
          ρ = √((1 − σ)² + σ²), so that α_t = (1 − σ) / ρ and σ_t = σ / ρ: one notation serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


def flow_level(sigma: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """ᾱ = (1 − σ)² / ((1 − σ)² + σ²) of a flow model's level σ."""
    return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)


def flow_sigma(alpha_bar: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """A flow model's level σ = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ))."""
    return (1 - alpha_bar).sqrt() * flow_scale(alpha_bar)


def flow_scale(alpha_bar: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """ρ = 1 / (√ᾱ + √(1 − ᾱ)), by which a flow model's own latents are larger than variance-preserving ones."""
    return 1 / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())


UNGUIDED = 1.0  # the scale of losses and images without guidance; what a denoiser that is told its scale is told there


def guided(guidance: float) -> bool:
    """Whether a scale of classifier-free guidance takes a second evaluation; at most 1 is none, as in diffusers."""
    return guidance > 1


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told about a batch of prompts, opaque to algorithms.

    Tensors whose first axis is the prompt, and the same for the empty prompt (used by classifier-free guidance).

    Stable Diffusion keeps "text" [b, tokens, dim] here; SDXL adds its pooled embedding and size ids under their own
    names. Algorithms index, repeat and concatenate conditions without looking inside; `pooled` is for value networks.
    """

    tensors: Mapping[str, Tensor]
    null_tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Condition:
        rows = [index] if isinstance(index, int) else index
        return self._map(lambda value: value[rows])

    def repeat(self, n: int) -> Condition:
        """Each row n times in a row."""
        return self._map(lambda value: value.repeat_interleave(n, 0))

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda value: value.to(device))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The rows of several conditions one after another."""
        return Condition(
            {name: torch.cat([c.tensors[name] for c in conditions]) for name in conditions[0].tensors},
            {name: torch.cat([c.null_tensors[name] for c in conditions]) for name in conditions[0].null_tensors},
        )

    def drop(self, rows: Bool[Tensor, " b"]) -> Condition:
        """Some rows replaced by the empty prompt (caption dropout)."""
        own = {
            name: torch.where(expand(rows, value).bool(), self.null_tensors[name], value)
            for name, value in self.tensors.items()
        }
        return Condition(own, self.null_tensors)

    @property
    def null(self) -> Condition:
        """The condition of the empty prompt, one row per row."""
        return Condition(self.null_tensors, self.null_tensors)

    @property
    def pooled(self) -> Tensor:
        """One vector per prompt: the model's pooled embedding where it has one, else the mean over tokens."""
        if "pooled" in self.tensors:
            return self.tensors["pooled"]
        text = self.tensors["text"]
        return text.mean(1) if text.dim() == 3 else text

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(
            {name: change(value) for name, value in self.tensors.items()},
            {name: change(value) for name, value in self.null_tensors.items()},
        )


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A per-row coefficient with trailing axes added so that it multiplies `like`, in its dtype and on its device."""
    coefficient = coefficient.to(like.device, like.dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (like.dim() - coefficient.dim()))


@dataclass(frozen=True)
class Prediction:
    """A denoiser's output at latents x_t, read as the noise ε, the clean latents x_0, or the velocity v.

    The conversions are exact at both ends of the schedule wherever the quantity is determined there: under `epsilon`
    x_0 needs ᾱ > 0, under `sample` ε needs ᾱ < 1, and under `v_prediction` and `flow` (ε − x_0) both always exist.
    """

    native: Float[Tensor, b * latent]
    latents: Float[Tensor, b * latent]
    alpha_bar: Float[Tensor, " b"]  # float64
    kind: PredictionType
    clip: float | None = None  # clamp the x_0 estimate to ± this (pixel-space models); ε follows the clamped estimate

    def __getitem__(self, rows: Sequence[int] | Tensor) -> Prediction:
        """The predictions of some rows."""
        return replace(self, native=self.native[rows], latents=self.latents[rows], alpha_bar=self.alpha_bar[rows])

    @property
    def _alpha(self) -> Tensor:
        return expand(self.alpha_bar.sqrt(), self.latents)

    @property
    def _sigma(self) -> Tensor:
        return expand((1 - self.alpha_bar).sqrt(), self.latents)

    @property
    def x0(self) -> Float[Tensor, b * latent]:
        """The estimate of the clean latents."""
        if self.kind == "sample":
            x0 = self.native
        elif self.kind == "epsilon":
            x0 = (self.latents - self._sigma * self.native) / self._alpha
        elif self.kind == "flow":
            x0 = (self.latents - self._sigma * self.native) / (self._alpha + self._sigma)
        else:
            x0 = self._alpha * self.latents - self._sigma * self.native
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    @property
    def eps(self) -> Float[Tensor, b * latent]:
        """The estimate of the noise. The denoiser's own under `epsilon`, even where x0 is clamped (as in DDIM)."""
        if self.kind == "epsilon":
            return self.native
        if self.kind == "v_prediction":
            return self._alpha * self.native + self._sigma * self.latents
        if self.kind == "flow":
            return (self.latents + self._alpha * self.native) / (self._alpha + self._sigma)
        return (self.latents - self._alpha * self.native) / self._sigma

    @property
    def v(self) -> Float[Tensor, b * latent]:
        """The estimate of the velocity."""
        if self.kind == "v_prediction":
            return self.native
        return self._alpha * self.eps - self._sigma * self.x0

    @property
    def velocity(self) -> Float[Tensor, b * latent]:
        """The estimate of a flow model's velocity ε − x_0."""
        return self.native if self.kind == "flow" else self.eps - self.x0

    def error(self, x0: Float[Tensor, b * latent], noise: Float[Tensor, b * latent]) -> Float[Tensor, " b"]:
        """The squared error that the model's literature trains, averaged over the elements of a latent, in float32
        where the denoiser computes in less: of ε, whatever a diffusion model predicts, and of a flow model's ε − x_0.
        """
        estimate, truth = (self.native, noise - x0) if self.kind == "flow" else (self.eps, noise)
        estimate = estimate.to(torch.promote_types(estimate.dtype, torch.float32))
        return (estimate - truth).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Steps:
    """Sampling steps, noisiest first: from level ᾱ_t at training timestep t to the next level ᾱ_s."""

    t: Real[Tensor, " n"]  # whole numbers of a diffusion model; of a flow model 1000 σ
    alpha_bar: Float[Tensor, " n"]  # float64
    next_alpha_bar: Float[Tensor, " n"]  # float64

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Steps:
        """The chosen steps; an integer keeps one step as a batch of one."""
        rows = [index] if isinstance(index, int) else index
        return Steps(self.t[rows], self.alpha_bar[rows], self.next_alpha_bar[rows])
