"""The whole utility of the shapes world's simulated human, as a scorer: for judging what was learned from its votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported
from alignbench.shapes.judge import JUDGE_VERSION, read
from alignbench.shapes.scene import parse, unsuitable
from alignbench.shapes.style import STYLE_VERSION, utility

__all__ = ["Human"]


@dataclass(frozen=True)
class Human:
    differentiable: ClassVar[bool] = False

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        pictures = images.cpu().numpy()
        return torch.tensor(
            [utility(parse(prompt.text), read(picture)) for picture, prompt in zip(pictures, prompts, strict=True)]
        )

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported("the simulated human counts and compares; it has no gradient.")

    def info(self) -> RewardInfo:
        return RewardInfo(id=f"human-{STYLE_VERSION}.{JUDGE_VERSION}", preprocessing="none", range="0 to 18")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable([prompt.text for prompt in prompts], image_shape)
