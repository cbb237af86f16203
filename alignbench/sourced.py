"""Scorers with the source of their code: what identifies a reward that is not alignbench's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from alignbench.interface import Prompt, Reward, RewardInfo, Truncates


@dataclass(frozen=True)
class SourcedInfo(RewardInfo):
    """The identity of a plug-in: what it says of itself, and what code it is (see `provenance`)."""

    source: str = ""


def is_hashed(info: RewardInfo) -> bool:
    """Whether a scorer names files of weights by their SHA-256: what it says is then what it was, on any day. Others
    are their code, or what a server says of itself."""
    return bool(info.files) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in info.files.values())


def identity_of(info: RewardInfo) -> dict[str, Any]:
    """All that identifies a scorer, as JSON holds it."""
    return dataclasses.asdict(info) | {"files": dict(info.files), "versions": dict(info.versions)}


@dataclass(frozen=True)
class Sourced:
    """A reward that is not alignbench's own: the same, and its identity says what code it is."""

    reward: Reward
    source: str

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    def __call__(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Any:
        return self.reward(images, prompts)  # whatever it is: who asks checks it

    def with_grad(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Any:
        return self.reward.with_grad(images, prompts)

    def info(self) -> RewardInfo:
        info = self.reward.info()
        return SourcedInfo(**vars(info), source=self.source) if isinstance(info, RewardInfo) else info

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return self.reward.unsupported(prompts, image_shape)


@dataclass(frozen=True)
class SourcedReader(Sourced):
    """One that reads so many words of a prompt and no more."""

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        counted: Sequence[bool] = self.reward.truncated(prompts)  # type: ignore[attr-defined]
        return counted


def sourced(reward: Reward, source: str | None) -> Reward:
    """The reward, with an identity that holds its source where it has one."""
    if source is None:
        return reward
    return SourcedReader(reward, source) if isinstance(reward, Truncates) else Sourced(reward, source)
