"""Looking ahead from a noisy latent: the image it seems to become, what the reward says of it, and its gradient.

Source    x̂_0 = (x_t − √(1 − ᾱ_t) ε̂) / √ᾱ_t, the posterior mean (Tweedie). The target is p* ∝ p_ref exp(r/β); its score
          is ∇ log p_t(x) + ∇ V_t(x) with V_t(x) = log E[exp(r(x_0)/β) | x_t = x] (Uehara et al. 2024,
          https://arxiv.org/abs/2407.13734). Plugging x̂_0 into r, V_t(x) ≈ r(x̂_0(x))/β, is exact for one Gaussian and a
          linear reward, up to a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.transition import std_of
from alignbench.errors import RunError
from alignbench.interface import Pipeline, Problem, Prompt, Reward
from alignbench.quantities import Condition, Prediction, Steps, expand

Jacobian = Literal["full", "frozen"]
Rule = Literal["score", "variance"]
ROOM_FOR_GRADIENTS = 4  # images that one image counts as: a denoiser's, decoder's and reward's activations are held


class Slope(NamedTuple):
    """A prediction at x_t, and how a function of its estimate of x_0 rises there."""

    prediction: Prediction
    values: Float[Tensor, " b"]
    gradient: Float[Tensor, b * latent]  # with respect to x_t


def slope(
    pipeline: Pipeline,
    latents: Float[Tensor, b * latent],
    t: float,
    condition: Condition,
    guidance: float,
    function: Callable[[Float[Tensor, b * latent]], Float[Tensor, " b"]],
    jacobian: Jacobian = "full",
) -> Slope:
    """The gradient of function(x̂_0(x_t)) at x_t: through the denoiser, or with its ε̂ held fixed (`frozen`), where it is
    the gradient at x̂_0 over √ᾱ_t, and zero where no signal is left."""
    full = jacobian == "full"
    with torch.set_grad_enabled(full):
        x = latents.detach().requires_grad_(full)
        prediction = pipeline.predict(x, t, condition, guidance)
        x0 = prediction.x0 if full else prediction.x0.detach().requires_grad_()
    with torch.enable_grad():
        values = function(x0)
        (gradient,) = torch.autograd.grad(values.sum(), x if full else x0)
    if not full:
        root = prediction.alpha_bar.sqrt()
        gradient = gradient / expand(torch.where(root > 0, root, math.inf), gradient)
    detached = Prediction(
        prediction.native.detach(), latents.detach(), prediction.alpha_bar, prediction.kind, prediction.clip
    )
    return Slope(detached, values.detach(), gradient)


def rewards_of(
    pipeline: Pipeline, reward: Reward, x0: Float[Tensor, b * latent], prompts: Sequence[Prompt]
) -> Float[Tensor, " b"]:
    """The differentiable rewards of latents. Images are what the decoder gives and may leave [0, 1]: clamped pixels
    would have no gradient. Raises RunError where the reward loses the gradient."""
    rewards = reward.with_grad(pipeline.decode(x0, clamp=False), prompts)
    if not rewards.requires_grad:
        raise RunError(
            f"reward {reward.info().id!r} says that it is differentiable, but what its with_grad returns has "
            "no gradient; compute it from the images without detaching them."
        )
    return rewards


def shift_per_gradient(step: Steps, eta: float, rule: Rule) -> Float[Tensor, " n"]:
    """How far the mean of a DDIM step moves for a gradient of V_t, float64.

    `score` puts ∇V_t into the score, ε̂ ← ε̂ − √(1 − ᾱ_t) ∇V_t, which is right for any η as steps become short;
    `variance` is Σ ∇V_t, Dhariwal and Nichol's (2021, algorithm 1), for η = 1. Where no signal is left (ᾱ_t = 0: the
    first step of flow models and of zero terminal SNR) the score moves nothing: there x_t says nothing of the image.
    """
    variance = std_of(step, eta) ** 2
    if rule == "variance":
        return variance
    t, s = step.alpha_bar, step.next_alpha_bar
    shift = s.sqrt() * (1 - t) / t.sqrt() - (1 - s - variance).clamp(min=0).sqrt() * (1 - t).sqrt()
    return torch.where(t > 0, shift, 0.0)


def clipped_gradient(gradient: Float[Tensor, b * latent], max_norm: float | None) -> Float[Tensor, b * latent]:
    """The gradient, each row at most this long."""
    if max_norm is None:
        return gradient
    norm = gradient.flatten(1).norm(dim=1)
    return gradient * expand((max_norm / norm.clamp(min=1e-12)).clamp(max=1), gradient)


def without_gradient(problem: Problem, method: str) -> str | None:
    """Why a method that needs the reward's gradient cannot run on this problem, or None."""
    if problem.reward.differentiable:
        return None
    return (
        f"{method} follows the gradient of the reward, and {problem.reward.info().id!r} has none; "
        "choose a differentiable --reward, or an algorithm that needs no gradient, such as ddpo or steering."
    )


def without_signal(problem: Problem, method: str, instead: str) -> str | None:
    """Why a method that divides by √ᾱ cannot run on this problem, or None; `instead` is what to do then."""
    if float(problem.pipeline.timesteps(problem.sampling.steps).alpha_bar[0]) > 0:
        return None
    return (
        f"{method} divides by the signal that is left at the first step, and this model's schedule leaves none "
        f"(a flow model, or zero terminal SNR); {instead}."
    )


def without_gaussian_steps(problem: Problem, method: str) -> str | None:
    """Why a method that draws or chooses among Gaussian steps cannot run on this problem, or None."""
    return without_ddim_steps(problem, method) if problem.sampling.kernel == "exact" else None


def without_ddim_steps(problem: Problem, method: str) -> str | None:
    """Why a method that changes DDIM's steps cannot run on this problem, or None."""
    if problem.sampling.kernel == "ddim":
        return None
    has = "the exact kernel has none" if problem.sampling.kernel == "exact" else "this kernel's are others"
    return f"{method} changes DDIM's Gaussian steps, and {has}; leave --kernel out."
