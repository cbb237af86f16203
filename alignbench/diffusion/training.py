"""What training algorithms share: what is tuned and how, the denoising error, and episodes that earn a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignbench.diffusion.rollout import Trajectory, rollout
from alignbench.diffusion.transition import Reduction, Transition, ddim
from alignbench.errors import RunError
from alignbench.interface import (
    BiasFineTune,
    FullFineTune,
    LoRA,
    PairBatch,
    Pairs,
    Pipeline,
    Policy,
    Problem,
    Prompt,
    Prompts,
    Sampling,
    Tuning,
)
from alignbench.keys import Key, normal
from alignbench.quantities import Condition, Prediction, Steps

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


class Noising(NamedTuple):
    """What a denoising error is measured under, drawn from keys."""

    t: Int[Tensor, " b"]
    noise: Float[Tensor, b * latent]
    condition: Condition  # with some prompts dropped


def noising(
    keys: Sequence[Key],
    like: Float[Tensor, b * latent],
    condition: Condition,
    train_timesteps: int,
    caption_dropout: float = 0.0,
) -> Noising:
    """t uniform over the training timesteps, standard normal noise, and a share of prompts dropped: one draw each per
    key, whatever batch it stands in."""
    uniform = torch.cat([key("timestep", "dropout").uniform(2)[None] for key in keys])
    t = (uniform[:, 0].double() * train_timesteps).long()
    noise = normal([key("noise") for key in keys], like.shape[1:]).to(like.device)
    dropped = uniform[:, 1] < caption_dropout
    return Noising(t, noise, condition.drop(dropped) if caption_dropout else condition)


def denoising_error(
    pipeline: Pipeline,
    x0: Float[Tensor, b * latent],
    noise: Float[Tensor, b * latent],
    t: Int[Tensor, " b"],
    condition: Condition,
    guidance: float = 1.0,
) -> Float[Tensor, " b"]:
    """‖ε − ε̂(x_t, t, c)‖² averaged over the elements of a latent, in float32 where the denoiser computes in less."""
    eps = pipeline.predict(pipeline.add_noise(x0, noise, t), t, condition, guidance).eps
    return (eps.to(torch.promote_types(eps.dtype, torch.float32)) - noise).square().flatten(1).mean(1)


def pair_errors(pipeline: Pipeline, batch: PairBatch, drawn: Noising) -> Float[Tensor, "2 b"]:
    """`denoising_error` of winners and losers in one forward pass, under the same timesteps, noise and prompts."""
    x0, noise, t = (torch.cat(part) for part in ((batch.winner, batch.loser), [drawn.noise] * 2, [drawn.t] * 2))
    return denoising_error(pipeline, x0, noise, t, Condition.cat([drawn.condition] * 2)).reshape(2, len(batch))


def keyed_batches(
    pairs: Pairs, order: Sequence[int], places: Sequence[int], size: int, key: Key
) -> Iterator[tuple[PairBatch, list[Key]]]:
    """The pairs at these places of an order, `size` at a time, each with a key of its place. Those that cannot be read
    are left out, and so is a batch of none."""
    for part in chunked(places, size):
        batch = pairs.batch([order[i] for i in part])
        if len(batch):
            yield batch, [key("pair", part[row]) for row in batch.rows]


def first_batch(pairs: Pairs, key: Key, size: int) -> tuple[PairBatch, list[Key]]:
    """As many pairs as a forward pass has, four at most, to check a start with. Raises RunError where not one can be
    read."""
    for found in keyed_batches(pairs, range(len(pairs)), range(len(pairs)), min(size, 4), key):
        return found
    raise RunError(f"none of the {len(pairs)} pairs can be read; what was said about them stands above.")


def at_least_one(algorithm: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is below one."""
    for name in names:
        if getattr(algorithm, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(algorithm, name)}.")


def positive(algorithm: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is not positive."""
    for name in names:
        if not getattr(algorithm, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(algorithm, name)}.")


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
    initial: Float[Tensor, b * latent] | None = None,
    keep_x0: bool = False,
) -> Episode:
    """Sample one path per prompt and have its image rewarded. `initial` is x_T where it is not the keys', `keep_x0`
    stores the path's x0 estimates."""
    path = rollout(policy, policy.condition(prompts), keys, sampling, reduction, initial=initial, keep_x0=keep_x0)
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
    keep_x0: bool = False,
) -> list[Episode]:
    """`collect`, `batch` prompts at a time."""
    return [
        collect(
            problem, policy, [prompts[i] for i in part], [keys[i] for i in part], sampling, reduction, keep_x0=keep_x0
        )
        for part in chunked(range(len(prompts)), batch)
    ]


def joined(episodes: Sequence[Episode]) -> Episode:
    """Episodes of one sampling as one, without their x0 estimates."""
    paths = [episode.path for episode in episodes]
    whole = replace(
        paths[0],
        latents=torch.cat([path.latents for path in paths], 1),
        log_prob=torch.cat([path.log_prob for path in paths]),
        condition=Condition.cat([path.condition for path in paths]),
        x0=None,
    )
    return Episode(whole, torch.cat([episode.rewards for episode in episodes]))


class Moves(NamedTuple):
    """Moves x_t → x_s of stored paths, each row with its own image and step."""

    latents: Float[Tensor, b * latent]  # x_t
    next_latents: Float[Tensor, b * latent]  # x_s
    actions: Sequence[int]  # the number of each step among the path's actions
    steps: Steps
    condition: Condition
    log_prob: Float[Tensor, " b"]  # of x_s under the policy that drew the path
    sampling: Sampling

    def predict(self, pipeline: Pipeline) -> Prediction:
        """A pipeline's prediction at every x_t, in one forward pass."""
        return pipeline.predict(self.latents, self.steps.t, self.condition, self.sampling.guidance)

    def under(self, prediction: Prediction) -> Transition:
        """The Gaussians of x_s that a prediction makes."""
        return ddim(prediction, self.steps, self.sampling.eta)


def moves_of(path: Trajectory, images: Sequence[int], actions: Sequence[int]) -> Moves:
    """The moves of these images, each at the action of the same row."""
    chosen, numbers = list(images), list(actions)
    steps = [path.actions[number] for number in numbers]
    return Moves(
        path.latents[steps, chosen],
        path.latents[[step + 1 for step in steps], chosen],
        numbers,
        path.steps[steps],
        path.condition[chosen],
        path.log_prob[chosen, numbers],
        path.sampling,
    )


def repeated(prompts: Sequence[Any], times: int, count: int) -> list[Any]:
    """Every prompt `times` times in a row, cut to `count`."""
    return [prompt for prompt in prompts for _ in range(times)][:count]


def drawn(prompts: Prompts, key: Key, count: int, times: int = 1) -> list[Prompt]:
    """`count` prompts drawn from those to train on, each `times` times in a row."""
    return repeated(prompts.sample(key, -(-count // times)), times, count)


def clipped_loss(
    log_prob: Float[Tensor, " b"],  # log p_θ of an action; carries the gradient
    old_log_prob: Float[Tensor, " b"],  # the same under the weights that drew it
    advantage: Float[Tensor, " b"],
    clip: float,
) -> Float[Tensor, " b"]:
    """max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) with ρ = p_θ / p_old (PPO, Schulman et al. 2017)."""
    ratio = (log_prob - old_log_prob).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
