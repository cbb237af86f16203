"""One reverse step as a Gaussian p(x_s | x_t): pure functions of tensors.

Paper     Song et al. 2020, "Denoising Diffusion Implicit Models", https://arxiv.org/abs/2010.02502, eqs. (12) and (16):
              σ   = η √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s)                                                      (1)
              μ   = √ᾱ_s x̂_0 + √(1 − ᾱ_s − σ²) ε̂                                                                (2)
              x_s = μ + σ z,   z ~ N(0, I)                                                                        (3)
          η = 0 is the deterministic ODE step, η = 1 with stride one the DDPM posterior.
Units     Densities and divergences are in nats. `reduction="sum"` is the true value; "mean" divides by the number of
          elements D of a latent, the convention of the DDPO, D3PO and SPO code: a clip range of 1e-4 in "mean" units is
          a bound of 1e-4 D on the true log ratio (1.64 for Stable Diffusion at 512 pixels, 6.55 for SDXL at 1024).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from alignbench.quantities import Prediction, Steps, expand

Reduction = Literal["mean", "sum"]


class Transition(NamedTuple):
    """The Gaussian of one reverse step. `std` is per row and may be zero: such a step is deterministic."""

    mean: Float[Tensor, b * latent]
    std: Float[Tensor, " b"]

    def sample(self, noise: Float[Tensor, b * latent]) -> Float[Tensor, b * latent]:
        """x_s of (3)."""
        return self.mean + expand(self.std, self.mean) * noise


def std_of(steps: Steps, eta: float) -> Float[Tensor, " n"]:
    """σ of (1) for each step, float64. Zero where η = 0 and where a step ends at the level it starts from."""
    ratio = (1 - steps.next_alpha_bar) / (1 - steps.alpha_bar)
    return eta * (ratio * (1 - steps.alpha_bar / steps.next_alpha_bar)).clamp(min=0).sqrt()


def ddim(prediction: Prediction, steps: Steps, eta: float) -> Transition:
    """(1) and (2). `steps` holds one step for all rows or one per row."""
    std = std_of(steps, eta)
    like = prediction.latents
    root = expand(steps.next_alpha_bar.sqrt(), like)
    direction = expand((1 - steps.next_alpha_bar - std**2).clamp(min=0).sqrt(), like)
    mean = root * prediction.x0 + direction * prediction.eps
    return Transition(mean, std.to(like.device, like.dtype).expand(len(like)))


def log_density(
    latents: Float[Tensor, b * latent], transition: Transition, reduction: Reduction = "mean"
) -> Float[Tensor, " b"]:
    """log p(x_s | x_t). Raises ValueError where σ = 0: a deterministic step has no density."""
    if _is_known(transition.std) and (transition.std <= 0).any():
        raise ValueError("a step with standard deviation 0 has no density; leave deterministic steps out.")
    std = expand(transition.std, latents)
    log_p = -(((latents - transition.mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2
    return _reduce(log_p, reduction)


def divergence(p: Transition, q: Transition, reduction: Reduction = "sum") -> Float[Tensor, " b"]:
    """KL(p ‖ q) of two steps with the same σ > 0: ‖μ_p − μ_q‖² / (2σ²)."""
    if _is_known(p.std) and (p.std <= 0).any():
        raise ValueError("a step with standard deviation 0 has no finite divergence; leave deterministic steps out.")
    if _is_known(p.std) and not p.std.equal(q.std):
        raise ValueError("the divergence is implemented for steps with equal standard deviations.")
    return _reduce(((p.mean - q.mean) / expand(p.std, p.mean)) ** 2 / 2, reduction)


def _is_known(std: Tensor) -> bool:
    """Whether looking at it does not wait for a GPU. There, the infinite value that follows is found in the loss."""
    return std.device.type == "cpu"


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)
