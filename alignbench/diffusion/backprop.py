"""What training through a differentiable reward shares: latents on the way to an image, and rewards with a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.lookahead import without_gradient
from alignbench.diffusion.rollout import denoise
from alignbench.diffusion.training import without_prompts
from alignbench.interface import Pipeline, Problem, Sampling
from alignbench.keys import Key
from alignbench.quantities import Condition


@torch.no_grad()
def before_steps(
    pipeline: Pipeline, condition: Condition, keys: Sequence[Key], sampling: Sampling, places: Sequence[int]
) -> Float[Tensor, b * latent]:
    """The latents that sampling step number places[i] of row i starts from, without gradient: x_T for step 0, x_0 where
    the number is that of all steps. A row takes the steps before its place and no more, so that what it costs does not
    depend on the rows beside it."""
    latents, steps = pipeline.initial_noise(keys), pipeline.timesteps(sampling.steps)
    for i in range(max(places)):
        rows = [row for row, place in enumerate(places) if place > i]
        own = [keys[row] for row in rows]
        (latents[rows],) = denoise(pipeline, latents[rows], steps[: i + 1], condition[rows], sampling, own, i)
    return latents


def sample_through(
    policy: Pipeline, condition: Condition, keys: Sequence[Key], sampling: Sampling, last_steps: int
) -> Float[Tensor, b * latent]:
    """x_0, with a gradient through the last K steps alone; the latents those start from are constants."""
    steps = policy.timesteps(sampling.steps)
    first = len(steps) - last_steps
    latents = before_steps(policy, condition, keys, sampling, [first] * len(keys))
    for after in denoise(policy, latents, steps, condition, sampling, keys, first):
        latents = after
    return latents


def untrainable(problem: Problem, method: str) -> str | None:
    """Why a method cannot train through the problem's reward, or None."""
    return without_prompts(problem, method) or without_gradient(problem, method)
