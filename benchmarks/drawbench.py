"""DrawBench: 200 prompts in 11 categories, for evaluation only, from your own copy of the sheet.

Source      Saharia et al. 2022 (Imagen), https://arxiv.org/abs/2205.11487: a public sheet whose licence nobody states,
            so that the prompts are not redistributed. Save it as CSV with its header `Prompts,Category`.
Looked for  $ALIGNBENCH_DATA/drawbench.csv, then the same in the cache.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import local_file

__all__ = ["DrawBench"]

COUNT, CATEGORIES = 200, 11


class DrawBench:
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = local_file("drawbench.csv", "DrawBench (the sheet as CSV, with columns Prompts and Category)")
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = [{str(name).lower(): value for name, value in row.items()} for row in csv.DictReader(handle)]
        if not rows or not {"prompts", "category"} <= rows[0].keys():
            raise InputError(f"{path} lacks a column Prompts or Category; save the sheet with its header.")
        found = len({row["category"] for row in rows})
        if (len(rows), found) != (COUNT, CATEGORIES):
            raise InputError(
                f"{path} holds {len(rows)} prompts in {found} categories, expected {COUNT} in {CATEGORIES}."
            )
        return [Prompt(f"drawbench-{i:03d}", row["prompts"], row["category"]) for i, row in enumerate(rows)]
