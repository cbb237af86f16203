"""What training algorithms share: what is tuned and how, the denoising error, and episodes that earn a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignbench.diffusion.rollout import Trajectory, rollout
from alignbench.diffusion.transition import Reduction
from alignbench.interface import (
    BiasFineTune,
    FullFineTune,
    LoRA,
    Pipeline,
    Policy,
    Problem,
    Prompt,
    Sampling,
    Tuning,
)
from alignbench.keys import Key, normal
from alignbench.quantities import Condition

T = TypeVar("T")
Tuned = Literal["lora", "full", "bias"]
OptimiserName = Literal["adamw", "adafactor"]


def tuning_of(name: Tuned, rank: int) -> Tuning:
    """The tuning an algorithm's fields name; `rank` is the LoRA's."""
    if name == "lora":
        return LoRA(rank)
    return FullFineTune() if name == "full" else BiasFineTune()


def optimiser_of(
    parameters: Sequence[nn.Parameter], name: OptimiserName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with a fixed learning rate (Shazeer and Stern 2018), which keeps no second moment per weight.

    Adafactor is transformers' and not torch's own: the latter always scales its steps by the size of the weights.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    from transformers.optimization import Adafactor

    adafactor: torch.optim.Optimizer = Adafactor(
        parameters, lr=learning_rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )
    return adafactor


def set_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next update."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def warmed_up(learning_rate: float, update: int, warmup: int) -> float:
    """Rises linearly over the first `warmup` updates (numbered from 0), then stays."""
    return learning_rate * min(1.0, (update + 1) / max(1, warmup))


def chunked(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in runs of `size`; the last may be shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def training_timesteps(keys: Sequence[Key], train_timesteps: int) -> Int[Tensor, " b"]:
    """t uniform over the training timesteps, one draw per key."""
    uniform = torch.cat([key("timestep").uniform(1) for key in keys])
    return (uniform.double() * train_timesteps).long()


def training_noise(keys: Sequence[Key], like: Float[Tensor, b * latent]) -> Float[Tensor, b * latent]:
    """Standard normal noise, one draw per key."""
    return normal([key("noise") for key in keys], like.shape[1:]).to(like.device)


def denoising_error(
    pipeline: Pipeline,
    x0: Float[Tensor, b * latent],
    noise: Float[Tensor, b * latent],
    t: Int[Tensor, " b"],
    condition: Condition,
    guidance: float = 1.0,
) -> Float[Tensor, " b"]:
    """‖ε − ε̂(x_t, t, c)‖² averaged over the elements of a latent, in float32 whatever the denoiser computes in."""
    prediction = pipeline.predict(pipeline.add_noise(x0, noise, t), t, condition, guidance)
    return (prediction.eps.float() - noise).square().flatten(1).mean(1)


class Episode(NamedTuple):
    """Sampled paths and what their images earned."""

    path: Trajectory
    rewards: Float[Tensor, " b"]


def collect(
    problem: Problem,
    policy: Policy,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    reduction: Reduction = "mean",
) -> Episode:
    """Sample one path per prompt and have its image rewarded."""
    path = rollout(policy, policy.condition(prompts), keys, sampling, reduction)
    with torch.no_grad():
        images = policy.decode(path.final)
    return Episode(path, problem.reward(images, prompts).cpu())


def collect_all(
    problem: Problem,
    policy: Policy,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    batch: int,
    reduction: Reduction = "mean",
) -> list[Episode]:
    """`collect`, `batch` prompts at a time."""
    return [
        collect(problem, policy, [prompts[i] for i in part], [keys[i] for i in part], sampling, reduction)
        for part in chunked(range(len(prompts)), batch)
    ]


def repeated(prompts: Sequence[Any], times: int, count: int) -> list[Any]:
    """Every prompt `times` times in a row, cut to `count`."""
    return [prompt for prompt in prompts for _ in range(times)][:count]
