"""Prompts to train real models on: 25,432 captions of Pick-a-Pic v1's training split, and 2,048 for development.

Source      https://github.com/yifan123/flow_grpo (dataset/pickscore/train.txt and test.txt): training captions with at
            least five spaces, without repetition, shuffled. What people typed: not filtered for offensive content.
Licence     MIT, of that repository.
Looked for  In order: $ALIGNBENCH_DATA/pickapic_train/{train,test}.txt, the download cache, the source above.
Use         The default training prompts of models without any of their own. None of the evaluation sets shares a split
            with it; a prompt that is evaluated all the same is left out of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import File, obtain

__all__ = ["PickAPicTrain"]

SOURCE = "https://raw.githubusercontent.com/yifan123/flow_grpo/main/dataset/pickscore"
FILES = {
    "train": File(
        "pickapic_train/train.txt",
        f"{SOURCE}/train.txt",
        sha256="2f425adcbb9a6d0feee7c6c448e1cb83a1f71deca9434b803907e2578eca837f",
        size=None,
    ),
    "dev": File(
        "pickapic_train/test.txt",
        f"{SOURCE}/test.txt",
        sha256="d75c025fa451866e70f7e36243f7cdd93095523cb51f5f9651f2ce3236d20262",
        size=None,
    ),
}
COUNTS = {"train": 25_432, "dev": 2_048}


class PickAPicTrain:
    splits: ClassVar[tuple[str, ...]] = ("train", "dev")
    counts: ClassVar[Mapping[str, int]] = COUNTS
    source: ClassVar[str] = "https://github.com/yifan123/flow_grpo (captions of Pick-a-Pic v1, Kirstain et al. 2023)"
    licence: ClassVar[str] = "MIT, of that repository"
    files: ClassVar[tuple[File, ...]] = tuple(FILES.values())

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = obtain(FILES[split])
        texts = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        if len(texts) != COUNTS[split]:
            raise InputError(f"{path} holds {len(texts)} prompts, expected {COUNTS[split]}; delete it to get it again.")
        return [Prompt(f"pickapic-train-{split}-{i:05d}", text) for i, text in enumerate(texts)]
