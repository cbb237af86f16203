"""The denoising error, of images and of the two images of preference pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor

from alignbench.devices import chunked
from alignbench.errors import RunError
from alignbench.interface import PairBatch, Pairs, Pipeline
from alignbench.keys import Key, normal
from alignbench.quantities import UNGUIDED, Condition


class Noising(NamedTuple):
    """What a denoising error is measured under, drawn from keys."""

    t: Real[Tensor, " b"]
    noise: Float[Tensor, b * latent]
    condition: Condition  # with some prompts dropped


def noising(
    keys: Sequence[Key],
    like: Float[Tensor, b * latent],
    condition: Condition,
    pipeline: Pipeline,
    caption_dropout: float = 0.0,
) -> Noising:
    """t as the pipeline draws timesteps to train at, standard normal noise, and a share of prompts dropped: one draw
    each per key, whatever batch it stands in."""
    uniform = torch.cat([key("timestep", "dropout").uniform(2)[None] for key in keys])
    t = pipeline.training_timesteps(uniform[:, 0])
    noise = normal([key("noise") for key in keys], like.shape[1:]).to(like.device)
    dropped = uniform[:, 1] < caption_dropout
    return Noising(t, noise, condition.drop(dropped) if caption_dropout else condition)


def denoising_error(
    pipeline: Pipeline,
    x0: Float[Tensor, b * latent],
    noise: Float[Tensor, b * latent],
    t: Real[Tensor, " b"],
    condition: Condition,
    guidance: float = UNGUIDED,
) -> Float[Tensor, " b"]:
    """‖ε − ε̂(x_t, t, c)‖² averaged over the elements of a latent, of a flow model ‖(ε − x_0) − v̂(x_t, t, c)‖²; see
    `Prediction.error`.

    A denoiser that is told its scale (FLUX.1 [dev]) is told 1 unless the loss has one of its own, whatever it is
    sampled with. So SimpleTuner and x-flux train it, for a scale to mean what it did; diffusers' and kohya's scripts
    have 3.5 as their default.
    """
    return pipeline.predict(pipeline.add_noise(x0, noise, t), t, condition, guidance).error(x0, noise)


def pair_errors(pipeline: Pipeline, batch: PairBatch, drawn: Noising) -> Float[Tensor, "2 b"]:
    """`denoising_error` of winners and losers in one forward pass, under the same timesteps, noise and prompts."""
    x0, noise, t = (torch.cat(part) for part in ((batch.winner, batch.loser), [drawn.noise] * 2, [drawn.t] * 2))
    return denoising_error(pipeline, x0, noise, t, Condition.cat([drawn.condition] * 2)).reshape(2, len(batch))


def implicit_accuracy(z: Float[Tensor, " b"]) -> float:
    """How often the policy's implicit reward prefers the winner; ties count half."""
    return float((z > 0).float().mean() + (z == 0).float().mean() / 2)


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
