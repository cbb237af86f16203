"""LAION's aesthetic predictor, version 2: how people would rate an image, whatever its prompt.

Source      https://github.com/christophschuhmann/improved-aesthetic-predictor, 2022; the head's weights are Apache-2.0.
Measures    Five linear layers on the unit features of OpenAI's ViT-L/14, trained on ratings of SAC, LOGOS and AVA.
            Nothing but dropout stood between the layers, so it is one affine map.
Range       About 3 to 8; unit features cannot leave -12.8 to 23.2.
Weights     sac+logos+ava1-l14-linearMSE.pth of that repository, and the tower of clip_l14.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import OPENAI_VIT_L_14, AestheticScorer, File, LinearChain

__all__ = ["AestheticV2"]

HEAD = File(
    name="sac+logos+ava1-l14-linearMSE.pth",
    url="https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    size=3_714_759,
)


@dataclass(frozen=True)
class AestheticV2(AestheticScorer):
    id = "aesthetic_v2"
    range = "-12.8 to 23.2, about 3 to 8"
    files = (OPENAI_VIT_L_14, HEAD)
    layers = LinearChain
