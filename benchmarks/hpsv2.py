"""HPSv2's benchmark: 800 prompts in each of 4 styles, for evaluation only; the style is the category.

Source      https://huggingface.co/datasets/ymhao/HPDv2 (benchmark/*.json), Wu et al. 2023, https://arxiv.org/abs/2306.09341.
Licence     Apache-2.0, as the dataset's card says.
Looked for  In order: $ALIGNBENCH_DATA/ymhao/HPDv2/benchmark/*.json, the download cache, the hub's cache, the source.
Checked     No hash is known: 800 texts in each file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import File, hub_file, obtain

__all__ = ["HPSv2"]

STYLES = ("anime", "concept-art", "paintings", "photo")
COUNT = 800  # of each style
FILES = tuple(hub_file("ymhao/HPDv2", f"benchmark/{style}.json", None, None, kind="dataset") for style in STYLES)


class HPSv2:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    counts: ClassVar[Mapping[str, int]] = {"test": COUNT * len(STYLES)}
    source: ClassVar[str] = "https://huggingface.co/datasets/ymhao/HPDv2 (Wu et al. 2023)"
    licence: ClassVar[str] = "Apache-2.0"
    files: ClassVar[tuple[File, ...]] = FILES

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [
            Prompt(f"hpsv2-{style}-{i:03d}", text, style)
            for style, file in zip(STYLES, FILES, strict=True)
            for i, text in enumerate(_texts(obtain(file)))
        ]


def _texts(path: Path) -> list[str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); delete it to download it again.") from None
    if not isinstance(texts, list) or len(texts) != COUNT or not all(isinstance(t, str) and t.strip() for t in texts):
        found = f"{len(texts)} entries" if isinstance(texts, list) else type(texts).__name__
        raise InputError(f"{path} holds {found}, expected a list of {COUNT} prompts; delete it to download it again.")
    return texts
