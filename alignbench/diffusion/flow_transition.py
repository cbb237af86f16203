"""The reverse steps of the flow literature, in the variance-preserving coordinates of a pipeline.

In a flow model's own coordinates x = ρ y (see flow_schedule.py), with the velocity v = ε̂ − x̂_0, a step from σ to
σ' < σ and dt = σ' − σ < 0:

Flow-SDE  Liu et al. 2025, "Flow-GRPO", https://arxiv.org/abs/2505.05470, eq. (9):
              s = a √(σ / (1 − σ))                  where σ = 1 takes 1 − σ' in the place of 1 − σ                 (1)
              μ = x (1 + s² dt / 2σ) + v (1 + s² (1 − σ) / 2σ) dt,   x' = μ + s √(−dt) z                          (2)
Dance-SDE Xue et al. 2025, "DanceGRPO", https://arxiv.org/abs/2505.07818: (2) with a constant s = η.
CPS       Wang and Yu 2025, "Coefficients-Preserving Sampling", https://arxiv.org/abs/2509.05952:
              s = σ' sin(a π / 2),   μ = (1 − σ') x̂_0 + √(σ'² − s²) ε̂,   x' = μ + s z                            (3)
Marginals Flow-SDE and Dance-SDE keep those of the flow in the limit of many steps. CPS does not: with an exact model it
          makes less spread (0.24 for 0.3 with a = 0.8 and 1,000 steps).
The noise level a or η is `Sampling.eta`. Noise is added in the last step as well, as the authors' code does.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.choices import Kernel
from alignbench.diffusion.transition import Transition, log_density
from alignbench.quantities import Prediction, Steps, expand, flow_scale, flow_sigma


def flow_rate(steps: Steps, kernel: Kernel, eta: float) -> Float[Tensor, " n"]:
    """s of (1), the constant η, or of (3), float64."""
    sigma, after = flow_sigma(steps.alpha_bar), flow_sigma(steps.next_alpha_bar)
    if kernel == "dance_sde":
        return torch.full_like(sigma, eta)
    if kernel == "cps":
        return after * math.sin(eta * math.pi / 2)
    return eta * (sigma / (1 - torch.where(sigma >= 1, after, sigma))).sqrt()


def flow_std(steps: Steps, kernel: Kernel, eta: float) -> Float[Tensor, " n"]:
    """Standard deviation of each step in the pipeline's coordinates, float64."""
    rate = flow_rate(steps, kernel, eta)
    if kernel != "cps":
        rate = rate * (flow_sigma(steps.alpha_bar) - flow_sigma(steps.next_alpha_bar)).clamp(min=0).sqrt()
    return rate / flow_scale(steps.next_alpha_bar)


def flow_step(prediction: Prediction, steps: Steps, kernel: Kernel, eta: float) -> Transition:
    """(2) or (3). `steps` holds one step for all rows or one per row."""
    like = prediction.latents
    rate, std = flow_rate(steps, kernel, eta), flow_std(steps, kernel, eta)
    sigma, after = flow_sigma(steps.alpha_bar), flow_sigma(steps.next_alpha_bar)
    if kernel == "cps":
        kept = (after**2 - rate**2).clamp(min=0).sqrt()
        mean = expand(1 - after, like) * prediction.x0 + expand(kept, like) * prediction.eps
    else:
        dt, drift = after - sigma, rate**2 / (2 * sigma)
        own = expand((1 + drift * dt) * flow_scale(steps.alpha_bar), like) * like
        mean = own + expand((1 + drift * (1 - sigma)) * dt, like) * prediction.velocity
    mean = mean / expand(flow_scale(steps.next_alpha_bar), like)
    return Transition(mean, std.to(like.device, like.dtype).expand(len(like)))


def official_log_density(
    latents: Float[Tensor, b * latent], transition: Transition, steps: Steps, kernel: Kernel
) -> Float[Tensor, " b"]:
    """What the authors' code calls the log probability of a step, in the flow model's own coordinates.

    Flow-SDE and Dance-SDE: log p(x') divided by the number of elements D, so that a clip range of 1e-4 bounds the true
    log ratio by 1e-4 D. CPS: −mean (x' − μ)², without its variance: the log ratio is 2 s² / D of the true one.
    """
    scale = flow_scale(steps.next_alpha_bar).to(latents.device, latents.dtype)
    if kernel == "cps":
        return -(latents - transition.mean).square().flatten(1).mean(1) * scale**2
    return log_density(latents, transition, "mean") - scale.log()
