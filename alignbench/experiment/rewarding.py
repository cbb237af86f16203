"""Rewards as an algorithm meets them: counted, and refused when they return nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.meter import Meter
from alignbench.errors import Diverged, RunError
from alignbench.experiment.result import Scorer
from alignbench.interface import Prompt, Reward, RewardInfo


def checked(name: str, values: object, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
    """What a reward returned, if it is one real number per prompt. NaN is allowed here: the row could not be scored."""
    if not isinstance(values, Tensor) or values.shape != (len(prompts),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise RunError(f"reward {name!r} returned {got}; expected a tensor of shape ({len(prompts)},), one per prompt.")
    return values


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


def identity(info: RewardInfo) -> Scorer:
    """What the result file keeps of a reward."""
    content = asdict(info)
    content["files"], content["versions"] = dict(info.files), dict(info.versions)
    return Scorer(**content)
