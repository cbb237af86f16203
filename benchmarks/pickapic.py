"""Pick-a-Pic's unique prompts: dev is validation_unique, test is test_unique, 500 each; from files of your own.

Source      Kirstain et al. 2023, https://arxiv.org/abs/2305.01569. Its copies on the hub were removed in 2025: whoever
            has the files brings them. Diffusion-DPO chose its checkpoints on validation_unique; others report on it.
Licence     MIT by its paper, not verified; the prompts are users' own words, some not safe for work.
Looked for  In order: $ALIGNBENCH_DATA/pickapic/<split>*.parquet, the same in the download cache; v1's or v2's, with
            images or without. Only the column `caption` is read, which needs `pip install 'alignbench[parquet]'`.
Checked     500 rows. Training prompts of the same users are in pickapic_train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import OwnFile, own

__all__ = ["PickAPic"]

COUNT = 500
FILES = {
    split: OwnFile(
        f"pickapic/{name}*.parquet",
        f"Pick-a-Pic is gone from the hub; it is a copy of its {name}-00000-of-00001-….parquet.",
    )
    for split, name in (("dev", "validation_unique"), ("test", "test_unique"))
}


class PickAPic:
    splits: ClassVar[tuple[str, ...]] = tuple(FILES)
    counts: ClassVar[Mapping[str, int]] = dict.fromkeys(FILES, COUNT)
    source: ClassVar[str] = "Pick-a-Pic (Kirstain et al. 2023), removed from the hub"
    licence: ClassVar[str] = "MIT by its paper, not verified"
    own_files: ClassVar[tuple[OwnFile, ...]] = tuple(FILES.values())

    def prompts(self, split: str) -> Sequence[Prompt]:
        path = own(FILES[split])
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise InputError(f"{path} needs pyarrow to be read: pip install 'alignbench[parquet]'.") from None
        try:
            captions = pq.read_table(path, columns=["caption"])["caption"].to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} cannot be read: {reason} Expected parquet with a column caption.") from None
        if len(captions) != COUNT or not all(isinstance(text, str) and text.strip() for text in captions):
            raise InputError(f"{path} holds {len(captions)} captions, some maybe empty; expected {COUNT} of text.")
        return [Prompt(f"pickapic-{split}-{i:03d}", text) for i, text in enumerate(captions)]
