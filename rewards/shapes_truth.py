"""The truth of the shapes world: how well a picture meets its caption, by an exact judge.

Measures    The mean grade over the attributes the caption asks for: number, shape, colour, size, relation, background.
Range       [0, 1]; 1 means everything is right. Ties are exact.
Needs       Captions of the shapes world and pictures of 32 x 32 pixels; nothing is learned (shapes/judge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported
from alignbench.shapes.judge import JUDGE_VERSION, grade, read
from alignbench.shapes.scene import parse, unsuitable

__all__ = ["ShapesTruth"]


@dataclass(frozen=True)
class ShapesTruth:
    differentiable: ClassVar[bool] = False

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        pictures = images.cpu().numpy()
        return torch.tensor(
            [grade(parse(prompt.text), read(picture)).score for picture, prompt in zip(pictures, prompts, strict=True)]
        )

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported("reward 'shapes_truth' counts and compares; it has no gradient. Try shapes_preference.")

    def info(self) -> RewardInfo:
        return RewardInfo(id=f"shapes_truth-{JUDGE_VERSION}", preprocessing="none", range="0 to 1")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable([prompt.text for prompt in prompts], image_shape)
