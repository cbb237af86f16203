"""Captions of the embedded shapes world: 600 to train on, 100 for development, 200 to report on.

Source      Drawn from the caption grammar by key (alignbench/shapes/scene.py); nothing is downloaded.
Splits      No composition (which colours go with which shapes, and how many) occurs in two splits, and the embedded
            model was itself trained on the train split's compositions alone.
Categories  single, pair, relation, count: the kind of caption.
Challenges  What is hardest in the caption: Relation, Counting, Binding (two things), Size, Background, Basic.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

from alignbench import Key, Prompt
from alignbench.shapes.scene import Caption, Split, sample_caption

__all__ = ["Shapes"]

COUNTS: dict[str, int] = {"train": 600, "dev": 100, "test": 200}


class Shapes:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")

    def prompts(self, split: str) -> Sequence[Prompt]:
        return _drawn(split)


@functools.cache
def _drawn(split: str) -> Sequence[Prompt]:
    """The captions of a split, drawn once in a process."""
    name: Split = "train" if split == "train" else "dev" if split == "dev" else "test"
    key, i = Key("benchmarks", "shapes", split), 0
    chosen: dict[str, Caption] = {}
    while len(chosen) < COUNTS[split]:
        caption = sample_caption(key(i), name)
        chosen.setdefault(caption.text, caption)
        i += 1
    return tuple(
        Prompt(f"{split}-{n:03d}", text, caption.kind, challenge(caption))
        for n, (text, caption) in enumerate(chosen.items())
    )


def challenge(caption: Caption) -> str:
    """The hardest thing a caption asks for."""
    if caption.relation:
        return "Relation"
    if caption.number > 1:
        return "Counting"
    if len(caption.things) > 1:
        return "Binding"
    if caption.things[0].size:
        return "Size"
    return "Background" if caption.background else "Basic"
