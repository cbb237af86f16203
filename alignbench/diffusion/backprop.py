"""What training through a differentiable reward shares: latents on the way to an image, and rewards with a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.devices import chunked
from alignbench.diffusion.lookahead import without_gradient
from alignbench.diffusion.rollout import WATCHED_IMAGES, denoise, noise_of, path_divergence, rollout
from alignbench.diffusion.training import without_prompts
from alignbench.interface import Pipeline, Policy, Problem, Prompt, Sampling, Sharing
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


def watched_divergence(
    problem: Sharing, policy: Policy, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling, batch: int
) -> dict[str, float]:
    """The divergence of sampled paths from the reference's in nats (see `path_divergence`) as `kl`, of the first of
    these prompts, `batch` at a time; nothing where the chain has no noise, whose paths have no density."""
    if not (noise_of(policy.timesteps(sampling.steps), sampling) > 0).any():
        return {}
    found = []
    for part in problem.shard(chunked(range(min(WATCHED_IMAGES, len(prompts))), batch)):
        path = rollout(policy, policy.condition([prompts[i] for i in part]), [keys[i] for i in part], sampling)
        found.append(path_divergence(policy, path))
    return {"kl": float(torch.cat(problem.gather(found)).mean())}
