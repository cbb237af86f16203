"""Values of a scorer for images, or reasons why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.errors import RunError, Unsupported, described
from alignbench.interface import Prompt, Reward
from alignbench.scoring.shared import ReadsPictures, SharedPictures


def checked(name: str, values: object, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
    """What a reward returned, if it is one real number per prompt. NaN is allowed here: the row could not be scored."""
    if not isinstance(values, Tensor) or values.shape != (len(prompts),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise RunError(f"reward {name!r} returned {got}; expected a tensor of shape ({len(prompts)},), one per prompt.")
    return values


def score_images(
    name: str, reward: Reward, images: Float[Tensor, b * image] | SharedPictures, prompts: Sequence[Prompt]
) -> list[tuple[float, str | None]]:
    """A value, or a reason why there is none, per image. A failure of a batch is narrowed down to its images."""
    try:
        with torch.no_grad():
            returned = _scored(reward, images, prompts)
    except (RunError, Unsupported):
        raise
    except Exception as error:
        if len(prompts) == 1:
            return [(math.nan, described(error, 200))]
        single = (score_images(name, reward, _row(images, i), prompts[i : i + 1]) for i in range(len(prompts)))
        return [row for rows in single for row in rows]
    numbers = checked(name, returned, prompts).double().tolist()
    return [(x, None if math.isfinite(x) else f"the scorer returned {x}") for x in numbers]


def _scored(reward: Reward, images: Float[Tensor, b * image] | SharedPictures, prompts: Sequence[Prompt]) -> object:
    if isinstance(images, Tensor):
        return reward(images, prompts)
    return reward.of_pictures(images, prompts) if isinstance(reward, ReadsPictures) else reward(images.images, prompts)


def _row(images: Float[Tensor, b * image] | SharedPictures, place: int) -> Float[Tensor, b * image] | SharedPictures:
    return images[place : place + 1] if isinstance(images, Tensor) else images.rows([place])
