"""PartiPrompts: 1,632 English prompts in 12 categories and 11 challenges, for evaluation only.

Source      https://github.com/google-research/parti (PartiPrompts.tsv), Yu et al. 2022, https://arxiv.org/abs/2206.10789.
Licence     Apache-2.0.
Looked for  In order: $ALIGNBENCH_DATA/PartiPrompts.tsv, the download cache, the source above.
Parsing     Quotes are text, not quoting: one prompt begins with "G I G G L E". Trailing spaces are kept.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import File, obtain

__all__ = ["Parti"]

FILE = File(
    name="PartiPrompts.tsv",
    url="https://raw.githubusercontent.com/google-research/parti/main/PartiPrompts.tsv",
    sha256="fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
    size=123_107,
)
COUNT = 1632


class Parti:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    counts: ClassVar[Mapping[str, int]] = {"test": COUNT}
    source: ClassVar[str] = "https://github.com/google-research/parti (Yu et al. 2022)"
    licence: ClassVar[str] = "Apache-2.0"
    files: ClassVar[tuple[File, ...]] = (FILE,)

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = obtain(FILE)
        with open(path, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
        if len(rows) != COUNT:
            raise InputError(f"{path} holds {len(rows)} prompts, expected {COUNT}; delete it to download it again.")
        return [
            Prompt(f"parti-{i:04d}", row["Prompt"], row["Category"], row["Challenge"]) for i, row in enumerate(rows)
        ]
