"""Preference pairs in Pick-a-Pic's layout: parquet files, one row a pair, the pictures in two heavy columns."""

from __future__ import annotations

import contextlib
import functools
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from alignbench.errors import InputError
from alignbench.preferences.columns import (
    OF_JUDGEMENT,
    Columns,
    Encoded,
    Models,
    Pair,
    check_agreement,
    check_some,
    digest_of,
    is_judged,
)

HEAVY = ("jpg_0", "jpg_1")
NEEDED = (*HEAVY, "label_0", "caption")
OPTIONAL = ("model_0", "model_1", "has_label", *OF_JUDGEMENT)
BINARY = ("binary", "large_binary", "binary_view")
SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?\.parquet")  # how the hub names the files of a split
ROWS, BUFFER = 16, 2**20  # rows taken out, and bytes of a column read, at once: half the memory of a whole row group


class ParquetPairs:
    """Pick-a-Pic's layout: jpg_0 and jpg_1 hold the images, label_0 says P(jpg_0 preferred), caption is the prompt."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.unlabelled = 0
        self._columns = Columns()
        self._files, self._rows = array("q"), array("q")  # where each pair stands
        self._groups: list[list[int]] = []  # the first row of each row group of each file
        for path in paths:
            self._read_light(path)
        check_some(self._columns, paths[0] if len(paths) == 1 else paths[0].parent, self.unlabelled)

    def __len__(self) -> int:
        return len(self._columns)

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        return self._columns.rows()

    def pair(self, i: int) -> Pair:
        return self._columns.pair(i, f"{self.paths[self._files[i]].name}, row {self._rows[i]}")

    @functools.cached_property
    def sha256(self) -> str:
        files = ((path.name, path.stat().st_size) for path in self.paths)
        return digest_of(files, self._columns.rows(), zip(self._files, self._rows, strict=True))

    @functools.cached_property
    def stamp(self) -> str:
        return digest_of([(str(path.resolve()), path.stat().st_mtime_ns) for path in self.paths], [self.sha256])

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """Each row group that holds a wanted row is read once, no further than needed; one is in memory at a time."""
        wanted: dict[tuple[int, int], list[int]] = {}
        for i in dict.fromkeys(indices):
            file = self._files[i]
            wanted.setdefault((file, bisect_right(self._groups[file], self._rows[i]) - 1), []).append(i)
        for (file, group), members in sorted(wanted.items()):
            yield from self._read_group(file, group, sorted(members))

    def _read_group(self, file: int, group: int, members: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """The images of pairs that stand in one row group."""
        first, left = self._groups[file][group], list(reversed(members))
        with opened(self.paths[file]) as handle:
            for part in handle.iter_batches(ROWS, row_groups=[group], columns=list(HEAVY), use_threads=False):
                while left and self._rows[left[-1]] < first + len(part):
                    i = left.pop()
                    images = (_bytes_of(part.column(name)[self._rows[i] - first].as_py()) for name in HEAVY)
                    yield i, (next(images), next(images))
                first += len(part)
                if not left:
                    return

    def _read_light(self, path: Path) -> None:
        number = len(self._groups)
        with opened(path) as handle:
            names = handle.schema_arrow.names
            if missing := [name for name in NEEDED if name not in names]:
                raise InputError(
                    f"{path} has no column {' and no '.join(missing)}; a file of Pick-a-Pic has {', '.join(NEEDED)} "
                    "(its copies without images cannot be learnt from)."
                )
            for name in HEAVY:
                if not _holds_bytes(handle.schema_arrow.field(name).type):
                    kind = str(handle.schema_arrow.field(name).type)[:80]
                    raise InputError(f"{path}: column {name} holds {kind}; expected the bytes of encoded images.")
            sizes = [handle.metadata.row_group(k).num_rows for k in range(handle.num_row_groups)]
            self._groups.append(list(accumulate(sizes, initial=0))[:-1])
            light = [name for name in dict.fromkeys((*NEEDED, *OPTIONAL)) if name in names and name not in HEAVY]
            for group, start in enumerate(self._groups[-1]):
                part = handle.read_row_group(group, columns=light, use_threads=False).to_pylist()
                for row, values in enumerate(part, start):
                    self._append(values, number, row, f"{path}, row {row}")

    def _append(self, values: Mapping[str, Any], file: int, row: int, where: str) -> None:
        """Add a pair by its light columns, or count it where nobody judged it."""
        label = values["label_0"]
        if not is_judged(values, where):
            self.unlabelled += 1
            return
        models = (values.get("model_0"), values.get("model_1"))
        named: Models = (models[0], models[1]) if isinstance(models[0], str) and isinstance(models[1], str) else None
        self._columns.append(values["caption"], label, named, where)
        check_agreement(label, values, where)
        self._files.append(file)
        self._rows.append(row)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column holds encoded images: their bytes, or those and a path, as `datasets` writes them."""
    if str(kind) in BINARY:
        return True
    names = [kind.field(i).name for i in range(kind.num_fields)] if str(kind).startswith("struct") else []
    return "bytes" in names and str(kind.field("bytes").type) in BINARY


def _bytes_of(value: Any) -> bytes:
    """An image's bytes in a row; none where it is only named."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A parquet file, open for reading through a small buffer. Raises InputError for one that is damaged or absent."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{path} needs pyarrow to be read: pip install 'alignbench[parquet]'.") from None
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER) as handle:
            yield handle
    except UnicodeDecodeError:  # a ValueError, as InputError is
        raise InputError(
            f"{path} cannot be read as parquet: it holds a text that is not UTF-8. Copy it again."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (pa.ArrowException, OSError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as parquet: {reason} Copy it again.") from error


def split_files(path: Path) -> list[Path]:
    """The files of a split by the hub's names: data/train stands for data/train-00000-of-00645.parquet and on."""
    if path.exists():
        return []
    files = sorted(path.parent.glob("*.parquet")) if path.parent.is_dir() else []
    return [file for file in files if (named := SPLIT.fullmatch(file.name)) and named[1] == path.name]


def check_splits(path: Path, files: Sequence[Path]) -> None:
    splits = sorted({named[1] for file in files if (named := SPLIT.fullmatch(file.name))})
    if len(splits) > 1:
        raise InputError(
            f"{path} holds several splits ({', '.join(splits)}), and testing on what was trained on shows nothing; "
            f"name one of them, such as {path / splits[0]}."
        )
