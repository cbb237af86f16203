"""Preference pairs in a folder of our own: pairs.jsonl, a line a pair, and pictures that are files of their own.

Of a line, only where it stands is held in memory, some fifty bytes: everything else is read when it is asked for. A
folder of a million pairs so needs seconds to be opened and checked, and no more memory than a small one.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignbench.errors import InputError, shown
from alignbench.files import Folder
from alignbench.preferences.columns import (
    TOGETHER,
    Encoded,
    Models,
    Pair,
    check_agreement,
    check_light,
    digest_of,
    digested,
    prompt_of,
)
from alignbench.texts import json_of, streamed

FOLDER_FILE = "pairs.jsonl"
REMEMBERED = 2**16  # pictures whose files need not be looked at again: neighbouring lines share some


class _Line(NamedTuple):
    """What a line says."""

    text: str
    label: float
    models: Models
    images: tuple[str, str]
    identifier: object


class LinePairs:
    """A line {"prompt": …, "images": [path, path], "label": …}, perhaps with "models" and "id"."""

    unlabelled = 0

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path / FOLDER_FILE, Folder(path)
        self._begins, self._numbers = array("q"), array("i")  # where each pair's line begins, and its number
        self._names, self._sizes, self._times = array("q"), array("q"), array("q")  # of two pictures a pair
        end = 0
        for begins, number, line in streamed(self._path):
            if line.strip():
                self._begins.append(begins)
                self._numbers.append(number)
                self._check(line, f"{self._path}, line {number}")
            end = begins + len(line.encode()) + 4  # the mark and the end of the line, at most
        self._end = end
        if not self._numbers:
            raise InputError(f"{self._path} holds no pairs.")

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        for line in self._lines():
            yield line.text, line.label, line.models

    def pair(self, i: int) -> Pair:
        line = self._line(i)
        return Pair(prompt_of(line.text, line.identifier), line.label, line.models, self._place(i))

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """See `PairSource.images`."""
        for i in dict.fromkeys(indices):
            first, second = self._line(i).images
            yield i, (self._folder.read(first, self._place(i)), self._folder.read(second, self._place(i)))

    @functools.cached_property
    def sha256(self) -> str:
        """See `PairSource.sha256`."""
        with tempfile.TemporaryFile() as rows, tempfile.TemporaryFile() as images:  # so that one pass is enough

            def files() -> Iterator[tuple[str, int]]:
                lines, left = self._lines(), iter(self._firsts)
                wanted, k = next(left, None), 0
                while chunk := list(islice(lines, TOGETHER)):
                    rows.write(json.dumps([line[:3] for line in chunk]).encode())
                    images.write(json.dumps([line.images for line in chunk]).encode())
                    for name in (name for line in chunk for name in line.images):
                        if k == wanted:
                            yield name, self._sizes[k]
                            wanted = next(left, None)
                        k += 1

            digest = digested(files())
            for part in (rows, images):
                part.seek(0)
                while content := part.read(2**20):
                    digest.update(content)
                digest.update(b"\n")
        return digest.hexdigest()

    @functools.cached_property
    def stamp(self) -> str:
        """See `PairSource.stamp`."""
        found = ((self._sizes[k], self._times[k]) for k in self._firsts)
        return digest_of([(str(self._folder.root.resolve()), self.sha256)], found)

    def _check(self, line: str, where: str) -> None:
        """Look at a line and its pictures. Raises InputError saying what is wrong with it."""
        row = json_of(line, where)
        if not isinstance(row, dict):
            raise InputError(
                f'{where}: expected an object such as {{"prompt": …, "images": [path, path], "label": 1}}.'
            )
        if missing := [name for name in ("prompt", "images", "label") if name not in row]:
            raise InputError(f"{where}: no {' and no '.join(missing)}; expected prompt, images and label.")
        models = row.get("models")
        if models is not None and not (_is_two(models) and all(isinstance(name, str) for name in models)):
            raise InputError(f"{where}: models is {shown(models)}; expected two names.")
        if not _is_two(row["images"]):
            raise InputError(f"{where}: images is {shown(row['images'])}; expected two paths.")
        check_light(row["prompt"], row["label"], where, row.get("id"))
        check_agreement(row["label"], row, where)
        files = self._folder.files
        for name in row["images"]:
            size, changed = files[self._folder.find(name, where)]
            self._names.append(hash(name))
            self._sizes.append(size)
            self._times.append(changed)
        if len(files) > REMEMBERED:
            files.clear()

    @functools.cached_property
    def _firsts(self) -> list[int]:
        """Where each picture first stands among those of all pairs, in their order."""
        found: list[int] = np.sort(np.unique(np.frombuffer(self._names, np.int64), return_index=True)[1]).tolist()
        return found

    def _lines(self) -> Iterator[_Line]:
        """All pairs in order, from one pass over the file."""
        with open(self._path, "rb") as handle:
            for i, begins in enumerate(self._begins):
                if handle.tell() != begins:
                    handle.seek(begins)
                yield self._parsed(i, handle.readline())

    def _line(self, i: int) -> _Line:
        begins = self._begins[i]
        ends = self._begins[i + 1] if i + 1 < len(self) else self._end
        with open(self._path, "rb") as handle:
            return self._parsed(i, os.pread(handle.fileno(), ends - begins, begins))

    def _parsed(self, i: int, line: bytes) -> _Line:
        """What was checked as the folder was opened. Raises InputError where it has changed since."""
        try:
            row: dict[str, Any] = json.loads(line.split(b"\n")[0].decode("utf-8-sig"))
            models, (first, second) = row.get("models"), row["images"]
            named = (models[0], models[1]) if models else None
            return _Line(row["prompt"], float(row["label"]), named, (first, second), row.get("id"))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise InputError(
                f"{self._path}, line {self._numbers[i]}: was changed while it was read; begin anew."
            ) from None

    def _place(self, i: int) -> str:
        return f"{FOLDER_FILE}, line {self._numbers[i]}"


def _is_two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
