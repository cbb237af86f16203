"""Pick-a-Pic's unique prompts: 500 of the validation split (dev) and 500 of the test split, from your own files.

Source      The files validation_unique and test_unique of Pick-a-Pic v1 or v2, Kirstain et al. 2023,
            https://arxiv.org/abs/2305.01569. The hub's copies are gone, so a file of one's own is the only road; the
            one without images is enough (validation_unique-00000-of-00001-c2396290184ff49d.parquet, 149 kB).
Licence     Not verified; the prompts are not redistributed.
Looked for  $ALIGNBENCH_DATA/pickapic/validation_unique*.parquet and test_unique*.parquet, then the same in the cache.
Splits      Diffusion-DPO's authors chose checkpoints on validation_unique, and others report on it (`--split dev`).
            For prompts to train on see pickapic_train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from alignbench import InputError, Prompt
from alignbench.downloads import local_file

__all__ = ["PickAPic"]

COUNT = 500
FILES = {"dev": "validation_unique", "test": "test_unique"}


class PickAPic:
    splits: ClassVar[tuple[str, ...]] = ("dev", "test")

    def prompts(self, split: str) -> Sequence[Prompt]:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise InputError("Pick-a-Pic is read from parquet; run `pip install 'alignbench[parquet]'`.") from None
        name = FILES[split]
        path = local_file(f"pickapic/{name}*.parquet", f"Pick-a-Pic's {name} (parquet, with a column `caption`)")
        try:
            captions = parquet.read_table(path, columns=["caption"])["caption"].to_pylist()
        except (ArrowException, OSError, KeyError) as error:
            raise InputError(f"{path} cannot be read as parquet ({' '.join(str(error).split())[:200]}).") from None
        texts = list(dict.fromkeys(captions))
        if len(texts) != COUNT or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path} holds {len(texts)} different captions, expected {COUNT}; is it {name}?")
        return [Prompt(f"pickapic-{split}-{i:03d}", text) for i, text in enumerate(texts)]
