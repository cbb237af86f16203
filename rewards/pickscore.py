"""PickScore v1: which image people would pick for their prompt, learned from half a million such choices.

Paper       Kirstain et al. 2023, "Pick-a-Pic", https://arxiv.org/abs/2305.01569.
Measures    exp(τ) cos(f(x), g(c)): unit features and logit scale τ of a ViT-H/14 CLIP, fine-tuned on Pick-a-Pic.
Range       About 16 to 25. The softmax over the images of one prompt is the probability that each is picked.
Weights     yuvalkirstain/PickScore_v1 on the hub, read by transformers. The code is MIT, the weights carry no licence.
Text        77 tokens of transformers' CLIP tokenizer, as in the authors' code; what is longer is cut off.
Elsewhere   flow_grpo and DiffusionNFT report this divided by 26, Diffusion-DPO's selector the cosine alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignbench import VIT_H_14, ClipArchitecture, ContrastiveScorer, Crop, hub_file

__all__ = ["PickScore"]


@dataclass(frozen=True)
class PickScore(ContrastiveScorer):
    architecture: ClipArchitecture = VIT_H_14

    id = "pickscore"
    range = "real, about 16 to 25"
    files = (
        hub_file(
            "yuvalkirstain/PickScore_v1",
            "pytorch_model.bin",
            sha256="3f0cf1c6e533f478534404cb3ca6938103becbfe4312c6affc077c274a757972",
            size=None,  # 3.94 GB, the hub says
        ),
    )
    library = "transformers"
    crop = Crop("down")  # as transformers' image processor crops
    scaled = True
