"""DrawBench: 200 prompts in 11 categories, for evaluation only; from a file of your own.

Source      The sheet published with Imagen, Saharia et al. 2022, https://arxiv.org/abs/2205.11487.
Licence     Not stated, so that it is not passed on: export the sheet as CSV, with columns Prompts and Category.
Looked for  In order: $ALIGNBENCH_DATA/drawbench.csv, drawbench.csv in the download cache.
Checked     200 prompts, 11 categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import OwnFile, own
from alignbench.texts import table_rows

__all__ = ["DrawBench"]

FILE = OwnFile("drawbench.csv", "Imagen's sheet states no licence. Export it as CSV with columns Prompts and Category.")
COUNT, CATEGORIES = 200, 11


class DrawBench:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    counts: ClassVar[Mapping[str, int]] = {"test": COUNT}
    source: ClassVar[str] = "the sheet published with Imagen (Saharia et al. 2022)"
    licence: ClassVar[str] = "not stated"
    own_files: ClassVar[tuple[OwnFile, ...]] = (FILE,)

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = own(FILE)
        rows = [row for _, row in table_rows(path)]
        texts = [(row.get("prompts", ""), row.get("category", "").strip()) for row in rows]
        categories = {category for _, category in texts if category}
        filled = sum(bool(text.strip()) for text, _ in texts)
        if not filled == len(texts) == COUNT or len(categories) != CATEGORIES:
            raise InputError(
                f"{path} holds {filled} prompts in {len(categories)} categories, expected {COUNT} in {CATEGORIES} "
                "under the columns Prompts and Category; export the sheet again."
            )
        return [Prompt(f"drawbench-{i:03d}", text, category) for i, (text, category) in enumerate(texts)]
