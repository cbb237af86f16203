"""CLIP score with OpenAI's ViT-L/14: how well an image goes with its prompt.

Paper       Radford et al. 2021, https://arxiv.org/abs/2103.00020.
Measures    cos(f(x), g(c)): unit features, without scale and without clamping at zero.
Range       About 0.15 to 0.35. Elsewhere: torchmetrics reports max(100 cos, 0), Hessel et al. 2021 2.5 max(cos, 0).
Weights     timm/vit_large_patch14_clip_224.openai on the hub, OpenAI's weights in open_clip's layout; MIT.
Activation  QuickGELU, which these weights were trained with; with GELU the features are wrong.
Text        77 tokens of open_clip's tokenizer; what is longer is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import OPENAI_VIT_L_14, VIT_L_14, ClipArchitecture, ContrastiveScorer, Crop

__all__ = ["ClipL14"]


@dataclass(frozen=True)
class ClipL14(ContrastiveScorer):
    architecture: ClipArchitecture = VIT_L_14

    id = "clip_l14"
    range = "-1 to 1, about 0.15 to 0.35"
    files = (OPENAI_VIT_L_14,)
    library = "open_clip_torch"
    crop = Crop("half-even")  # as torchvision crops
