"""Rewards as an algorithm meets them: counted, and refused when they return nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.errors import Diverged, RunError
from alignbench.interface import Prompt, Reward, RewardInfo
from alignbench.meter import Meter
from alignbench.scoring.values import checked


class MeteredReward:
    """A reward that counts its use and never hands an algorithm a number that is not finite."""

    def __init__(self, name: str, reward: Reward, meter: Meter) -> None:
        self._name, self._reward, self._meter = name, reward, meter

    @property
    def differentiable(self) -> bool:
        return self._reward.differentiable

    def info(self) -> RewardInfo:
        return self._reward.info()

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return self._reward.unsupported(prompts, image_shape)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        self._meter.forward("reward", len(images))
        return self._finite(self._reward(images, prompts), images, prompts).float()

    def with_grad(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        self._meter.forward("reward", len(images))
        values = self._finite(self._reward.with_grad(images, prompts), images, prompts)
        self._meter.watch("reward", values, len(images))
        return values

    def _finite(
        self, values: object, images: Float[Tensor, b * image], prompts: Sequence[Prompt]
    ) -> Float[Tensor, " b"]:
        """The values. Raises Diverged where the images are at fault that are not numbers, else RunError."""
        tensor = checked(self._name, values, prompts)
        bad = (~torch.isfinite(tensor)).nonzero().flatten().tolist()
        if bad and not torch.isfinite(images[bad[0]]).all():
            raise Diverged(f"the image for prompt {prompts[bad[0]].text!r} is not finite")
        if bad:
            raise RunError(
                f"reward {self._name!r} returned {tensor[bad[0]].item()} for prompt {prompts[bad[0]].text!r} "
                f"({len(bad)} of {len(prompts)} images); a reward to optimise must be finite."
            )
        return tensor
