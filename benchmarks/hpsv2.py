"""HPSv2's benchmark: 3,200 prompts, 800 in each of four styles, for evaluation only.

Source      benchmark/{anime,concept-art,paintings,photo}.json of the dataset zhwang/HPDv2; Wu et al. 2023,
            https://arxiv.org/abs/2306.09341. The styles are the categories.
Licence     Apache-2.0, as its copy ymhao/HPDv2 says.
Looked for  In order: $ALIGNBENCH_DATA/hpsv2/<style>.json, the download cache, the source above. No hash is published:
            the counts are checked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import File, obtain

__all__ = ["HPSv2"]

STYLES = ("anime", "concept-art", "paintings", "photo")
COUNT = 800  # of each
SOURCE = "https://huggingface.co/datasets/zhwang/HPDv2/resolve/main/benchmark"


class HPSv2:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    files: ClassVar[tuple[File, ...]] = tuple(
        File(f"hpsv2/{style}.json", f"{SOURCE}/{style}.json", sha256=None, size=None) for style in STYLES
    )

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [
            Prompt(f"hpsv2-{style}-{i:03d}", text, style)
            for style, file in zip(STYLES, self.files, strict=True)
            for i, text in enumerate(texts_of(obtain(file)))
        ]


def texts_of(path: Path) -> list[str]:
    """The prompts of a style. Raises InputError unless the file is a list of 800 texts."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); delete it to download it again.") from None
    if not isinstance(texts, list) or len(texts) != COUNT or not all(isinstance(text, str) for text in texts):
        found = f"{len(texts)} entries" if isinstance(texts, list) else type(texts).__name__
        raise InputError(f"{path} holds {found}, expected a list of {COUNT} prompts; delete it to download it again.")
    return texts
