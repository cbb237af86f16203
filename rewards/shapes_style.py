"""The true style axis of the shapes world's simulated human, alone: for evaluation.

Measures    Half contrast of things with the background, half tidiness of the composition (alignbench/shapes/style.py).
Range       [0, 1]. Knows nothing of the caption; an empty picture scores 0.
Needs       Pictures of 32 x 32 pixels; nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Prompt, RewardInfo, Unsupported
from alignbench.shapes.judge import JUDGE_VERSION, read
from alignbench.shapes.scene import unsuitable
from alignbench.shapes.style import STYLE_VERSION, style

__all__ = ["ShapesStyle"]


@dataclass(frozen=True)
class ShapesStyle:
    differentiable: ClassVar[bool] = False

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        return torch.tensor([style(read(picture)) for picture in images.cpu().numpy()])

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported("reward 'shapes_style' measures regions; it has no gradient. Try shapes_preference.")

    def info(self) -> RewardInfo:
        return RewardInfo(id=f"shapes_style-{STYLE_VERSION}.{JUDGE_VERSION}", preprocessing="none", range="0 to 1")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable([prompt.text for prompt in prompts], image_shape)
