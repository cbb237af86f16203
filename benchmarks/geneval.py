"""GenEval's prompts: 553 about objects, counts, colours and positions, for evaluation only; the tag is the category.

Source      https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl), Ghosh et al. 2023,
            https://arxiv.org/abs/2310.11513.
Licence     MIT.
Looked for  In order: $ALIGNBENCH_DATA/geneval/evaluation_metadata.jsonl, the download cache, the source above.
Departures  GenEval's score is an object detector's and is not part of alignbench: these are its prompts, with what must
            be in the picture as their metadata. GenEval draws four images a prompt: --images-per-prompt 4.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import File, obtain

__all__ = ["GenEval"]

FILE = File(
    name="geneval/evaluation_metadata.jsonl",
    url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    size=None,
)
TAGS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


class GenEval:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    counts: ClassVar[Mapping[str, int]] = {"test": sum(TAGS.values())}
    source: ClassVar[str] = "https://github.com/djghosh13/geneval (Ghosh et al. 2023)"
    licence: ClassVar[str] = "MIT"
    files: ClassVar[tuple[File, ...]] = (FILE,)

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = obtain(FILE)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = Counter(row["tag"] for row in rows)
        if found != TAGS:
            raise InputError(f"{path} holds {dict(found)}, expected {TAGS}; delete it to download it again.")
        return [Prompt(f"geneval-{i:03d}", row["prompt"], row["tag"], metadata=row) for i, row in enumerate(rows)]
