"""LAION's aesthetic predictor, version 1: how people would rate an image, whatever its prompt.

Source      https://github.com/LAION-AI/aesthetic-predictor, 2022; the head's weights are MIT.
Measures    w · f(x) + b with the unit features of OpenAI's ViT-L/14, trained on ratings of SAC's pictures.
Range       About 2 to 8; unit features cannot leave b ± ‖w‖, -24.9 to 32.0.
Weights     sa_0_4_vit_l_14_linear.pth of that repository, and the tower of clip_l14.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import OPENAI_VIT_L_14, AestheticScorer, File, LinearMap

__all__ = ["AestheticV1"]

HEAD = File(
    name="sa_0_4_vit_l_14_linear.pth",
    url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth",
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    size=4_071,
)


@dataclass(frozen=True)
class AestheticV1(AestheticScorer):
    id = "aesthetic_v1"
    range = "-24.9 to 32.0, about 2 to 8"
    files = (OPENAI_VIT_L_14, HEAD)
    layers = LinearMap
