"""DPOK's four prompts, one for each thing that Stable Diffusion 1.5 gets wrong: colour, count, composition, place.

Source      Fan et al. 2023, https://arxiv.org/abs/2305.16381. The paper trains a model on one prompt and looks at
            new pictures of the same prompt, so these may be trained on and evaluated; the noise differs. One prompt
            alone is alignbench.benchmarks.dpok:Colour, Count, Composition or Place; all four are `dpok`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import Prompt

__all__ = ["DPOKPrompts"]

TEXTS = {
    "Colour": "A green colored rabbit.",
    "Count": "Four wolves in the park.",
    "Composition": "A cat and a dog.",
    "Place": "A dog on the moon.",
}


class DPOKPrompts:
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    counts: ClassVar[Mapping[str, int]] = {"train": 4, "test": 4}
    source: ClassVar[str] = "Fan et al. 2023, https://arxiv.org/abs/2305.16381"
    licence: ClassVar[str] = "four sentences of the paper"
    trains_on_evaluated: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = tuple(TEXTS)

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [Prompt(f"dpok-{name.lower()}", TEXTS[name], name) for name in self.names]


class Colour(DPOKPrompts):
    names = ("Colour",)


class Count(DPOKPrompts):
    names = ("Count",)


class Composition(DPOKPrompts):
    names = ("Composition",)


class Place(DPOKPrompts):
    names = ("Place",)
