"""GenEval: 553 prompts about objects, counts, colours and positions, for evaluation only.

Source      https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl), Ghosh et al. 2023,
            https://arxiv.org/abs/2310.11513. The tag is the category; `metadata` keeps what an object detector would
            check, which alignbench does not.
Licence     MIT.
Looked for  In order: $ALIGNBENCH_DATA/geneval/evaluation_metadata.jsonl, the download cache, the source above.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
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
COUNTS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}


class GenEval:
    splits: ClassVar[tuple[str, ...]] = ("test",)
    files: ClassVar[tuple[File, ...]] = (FILE,)

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = obtain(FILE)
        with open(path, encoding="utf-8") as handle:
            prompts = parsed(handle)
        if (found := Counter(prompt.category for prompt in prompts)) != COUNTS:
            raise InputError(f"{path} holds {dict(found)}, expected {COUNTS}; delete it to download it again.")
        return prompts


def parsed(lines: Iterable[str]) -> list[Prompt]:
    """One JSON object a line: prompt, tag, and what must and must not be seen."""
    rows = [json.loads(line) for line in lines]
    return [
        Prompt(
            f"geneval-{i:03d}",
            row["prompt"],
            row["tag"],
            metadata={name: row[name] for name in ("include", "exclude") if name in row},
        )
        for i, row in enumerate(rows)
    ]
