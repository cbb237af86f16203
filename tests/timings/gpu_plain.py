"""The plain ways that gpu.py compares with: what a script without this package would do, on the same weights.

They call the denoiser itself. `conditioned` is a function of latents and a timestep, as each script has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignbench.quantities import Condition, Steps

Denoise = Callable[[Tensor, Tensor], Tensor]  # latents and t to ε, under guidance
Decode = Callable[[Tensor], Tensor]  # latents to pictures in [0, 1]


def guided(pipeline: Any, condition: Condition, guidance: float) -> Denoise:
    """ε under classifier-free guidance, both branches in one call."""
    both = Condition.cat([condition.null, condition]).tensors
    call = pipeline.components.architecture.call

    def denoise(latents: Tensor, t: Tensor) -> Tensor:
        time = t.to(latents.device).expand(2 * len(latents))
        null, conditional = call(pipeline.denoiser, torch.cat([latents, latents]), time, both).float().chunk(2)
        return null + guidance * (conditional - null)

    return denoise


def decoder(pipeline: Any) -> Decode:
    autoencoder = pipeline.components.autoencoder
    scale = autoencoder.config.scaling_factor

    def decode(latents: Tensor) -> Tensor:
        pictures: Tensor = autoencoder.decode((latents / scale).to(autoencoder.dtype)).sample.float() / 2 + 0.5
        return pictures

    return decode


def step_of(eps: Tensor, latents: Tensor, steps: Steps, i: int) -> tuple[Tensor, float]:
    """DDIM's mean and standard deviation with η = 1."""
    a, s = float(steps.alpha_bar[i]), float(steps.next_alpha_bar[i])
    variance = (1 - s) / (1 - a) * (1 - a / s)
    x0 = (latents - (1 - a) ** 0.5 * eps) / a**0.5
    return s**0.5 * x0 + max(1 - s - variance, 0.0) ** 0.5 * eps, variance**0.5


def log_density(after: Tensor, mean: Tensor, deviation: float) -> Tensor:
    return (-((after - mean) ** 2) / (2 * deviation**2)).flatten(1).mean(1)


class PlainDDPO:
    """As ddpo-pytorch does it: sample paths batch by batch, then pass over images and timesteps one by one, with a
    backward pass each."""

    def __init__(self, policy: Any, steps: int, guidance: float, reward: Callable[[Tensor], Tensor]) -> None:
        self.policy, self.steps, self.guidance, self.reward = policy, policy.timesteps(steps), guidance, reward
        self.optimiser = torch.optim.AdamW(policy.parameters(), lr=3e-4)

    @torch.no_grad()
    def sample(self, condition: Condition, noise: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        denoise, latents, densities = guided(self.policy, condition, self.guidance), [noise], []
        for i in range(len(self.steps)):
            mean, deviation = step_of(denoise(latents[-1], self.steps.t[i]), latents[-1], self.steps, i)
            latents.append(mean + deviation * torch.randn_like(mean))
            densities.append(log_density(latents[-1], mean, deviation) if deviation > 0 else torch.zeros(len(mean)))
        return latents, densities, self.reward(decoder(self.policy)(latents[-1]))

    def update(self, condition: Condition, batches: list[tuple[slice, list[Tensor], list[Tensor], Tensor]]) -> None:
        rewards = torch.cat([batch[-1] for batch in batches])
        advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).clamp(-5, 5)
        first = batches[0][1][0]
        actions = [i for i in range(len(self.steps)) if step_of(first, first, self.steps, i)[1] > 0]
        for rows, latents, densities, _ in batches:
            denoise = guided(self.policy, condition[rows], self.guidance)
            for i in actions:
                mean, deviation = step_of(denoise(latents[i], self.steps.t[i]), latents[i], self.steps, i)
                ratio = (log_density(latents[i + 1], mean, deviation) - densities[i]).exp()
                advantage = advantages[rows]
                loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
                (loss / (len(batches) * len(actions))).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


class PlainDOODL:
    """As salesforce/DOODL does it: the gradient through a chain of EDICT with each step checkpointed, the two halves
    decoded one after the other."""

    def __init__(self, pipeline: Any, condition: Condition, steps: int, guidance: float, reward: Any) -> None:
        self.steps, self.reward = pipeline.timesteps(steps), reward
        self.denoise, self.decode = guided(pipeline, condition, guidance), decoder(pipeline)

    def step(self, x: Tensor, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        t, s = float(self.steps.alpha_bar[i]), float(self.steps.next_alpha_bar[i])
        a, p, time = (s / t) ** 0.5, 0.93, self.steps.t[i]
        b = (1 - s) ** 0.5 - a * (1 - t) ** 0.5
        if i % 2:
            y = a * y + b * self.denoise(x, time)
            x = a * x + b * self.denoise(y, time)
        else:
            x = a * x + b * self.denoise(y, time)
            y = a * y + b * self.denoise(x, time)
        x = p * x + (1 - p) * y
        return x, (1 - p) * x + p * y

    def chain(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, y = z, z
        for i in range(len(self.steps)):
            x, y = checkpoint(self.step, x, y, i, use_reentrant=False)
        return x, y

    def __call__(self, z: Tensor, updates: int) -> Tensor:
        norm, velocity = z.norm(), torch.zeros_like(z)
        for _ in range(updates):
            z = z.detach().requires_grad_()
            earned = sum(self.reward(self.decode(half)).sum() / 2 for half in self.chain(z))
            (gradient,) = torch.autograd.grad(earned, z)
            velocity = 0.9 * velocity + (0.5 * gradient).clamp(-1e-3, 1e-3)
            z = z.detach() + velocity + 1e-4 * torch.randn_like(z)
            z = z * norm / z.norm()
        with torch.no_grad():
            return self.decode(self.chain(z)[0])
