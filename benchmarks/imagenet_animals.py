"""The 398 animals among ImageNet's classes, on which DDPO trained compressibility, and others to evaluate on.

Source      The first 398 of ImageNet's 1000 class names, as torchvision ships them; prompts of the compressibility run
            of https://github.com/kvablack/ddpo-pytorch, Black et al. 2023, https://arxiv.org/abs/2305.13301. `test` is
            ours: the names of ddpo_animals that are no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import Prompt
from alignbench.benchmarks.ddpo_animals import NAMES

__all__ = ["ImageNetAnimals"]

COUNT = 398


class ImageNetAnimals:
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    counts: ClassVar[Mapping[str, int]] = {"train": COUNT, "test": 39}
    source: ClassVar[str] = "ImageNet's class names, as torchvision ships them (Black et al. 2023)"
    licence: ClassVar[str] = "BSD-3-Clause, of torchvision"

    def prompts(self, split: str) -> Sequence[Prompt]:
        from torchvision.models import ResNet50_Weights

        names = list(dict.fromkeys(ResNet50_Weights.DEFAULT.meta["categories"][:COUNT]))
        chosen = names if split == "train" else [name for name in NAMES["train"] + NAMES["test"] if name not in names]
        return [Prompt(f"imagenet-animals-{split}-{i:03d}", name) for i, name in enumerate(chosen)]
