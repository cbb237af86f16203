"""Human Preference Score v2.0: which image people prefer for a prompt, learned from HPDv2's rankings.

Paper       Wu et al. 2023, "Human Preference Score v2", https://arxiv.org/abs/2306.09341.
Measures    cos(f(x), g(c)): unit features of a ViT-H/14 CLIP that was fine-tuned on HPDv2; no logit scale.
Range       About 0.2 to 0.35. The authors' tables hold a hundred times this.
Weights     xswu/HPSv2 on the hub, HPS_v2_compressed.pt, read by open_clip; Apache-2.0.
Text        77 tokens of open_clip's tokenizer; what is longer is cut off.
Pictures    Padded to a square instead of cropped. The authors' code resizes with or without antialiasing, as its
            torchvision does; with it by default here, and the result says which.
Departures  RGBA, grey and palette pictures are scored, and pictures 224 pixels long that are not square, on which the
            authors' code fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import VIT_H_14, ClipArchitecture, PaddedContrastiveScorer, hub_file

__all__ = ["HPSv2_0"]


@dataclass(frozen=True)
class HPSv2_0(PaddedContrastiveScorer):
    architecture: ClipArchitecture = VIT_H_14

    id = "hpsv2.0"
    range = "-1 to 1, about 0.2 to 0.35"
    files = (
        hub_file(
            "xswu/HPSv2",
            "HPS_v2_compressed.pt",
            sha256="07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
            size=1_972_484_501,
        ),
    )
    library = "open_clip_torch"
