"""CLIP score with LAION's ViT-H/14: how well an image goes with its prompt.

Paper       Radford et al. 2021, https://arxiv.org/abs/2103.00020; weights Schuhmann et al. 2022, https://arxiv.org/abs/2210.08402.
Measures    cos(f(x), g(c)): unit features, without scale and without clamping at zero.
Range       About 0.2 to 0.4. Elsewhere: torchmetrics reports max(100 cos, 0), Hessel et al. 2021 2.5 max(cos, 0).
Weights     laion/CLIP-ViT-H-14-laion2B-s32B-b79K on the hub, read by open_clip; MIT.
Text        77 tokens of open_clip's tokenizer; what is longer is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import VIT_H_14, ClipArchitecture, ContrastiveScorer, Crop, hub_file

__all__ = ["ClipH14"]


@dataclass(frozen=True)
class ClipH14(ContrastiveScorer):
    architecture: ClipArchitecture = VIT_H_14

    id = "clip_h14"
    range = "-1 to 1, about 0.2 to 0.4"
    files = (
        hub_file(
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "open_clip_pytorch_model.bin",
            sha256="9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
            size=3_944_692_325,
        ),
    )
    library = "open_clip_torch"
    crop = Crop("half-even")  # as torchvision crops
