"""Preference pairs in HPDv2's JSON, whose pictures are files of their own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from alignbench.errors import InputError, shown
from alignbench.files import Folder
from alignbench.preferences.columns import Columns, Encoded, Models, Pair, check_some, digest_of
from alignbench.texts import json_of, text_of


@dataclass(frozen=True)
class FilePairs:
    """Pairs whose images are files of their own, below one folder."""

    columns: Columns
    folder: Folder
    images_of: Sequence[tuple[str, str]]
    places: Sequence[str]
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.columns)

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        return self.columns.rows()

    def pair(self, i: int) -> Pair:
        return self.columns.pair(i, self.places[i])

    @functools.cached_property
    def sha256(self) -> str:
        files = ((name, size) for name, (size, _) in self.folder.files.items())
        return digest_of(files, self.columns.rows(), self.images_of)

    @functools.cached_property
    def stamp(self) -> str:
        return digest_of([(str(self.folder.root.resolve()), self.sha256)], self.folder.files.values())

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        for i in dict.fromkeys(indices):
            first, second = self.images_of[i]
            yield i, (self.folder.read(first, self.places[i]), self.folder.read(second, self.places[i]))


def read_hpd(path: Path) -> FilePairs:
    """HPDv2's layout: train.json has two images an entry with human_preference, 1 for the one that was preferred;
    test.json has several with their rank, 1 for the best, and every two of them are a pair."""
    entries = json_of(text_of(path), str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of objects with prompt, image_path and human_preference or rank.")
    columns, images, places = Columns(), [], []
    folder: Folder | None = None
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or "prompt" not in entry:
            raise InputError(f"{where}: expected an object with prompt, image_path and human_preference or rank.")
        names = entry.get("image_path", entry.get("file_path"))
        if not isinstance(names, list) or len(names) < 2:
            raise InputError(f"{where}: image_path is {shown(names)}; expected the paths of two images or more.")
        folder = folder or _image_folder(path, names)
        found = [folder.find(name, where) for name in names]
        for (a, b), label in _comparisons(entry, len(names), where):
            columns.append(entry["prompt"], label, None, where)
            images.append((found[a], found[b]))
            places.append(f"{path.name}, entry {number}" + (f", images {a} and {b}" if len(names) > 2 else ""))
    check_some(columns, path)
    assert folder is not None
    return FilePairs(columns, folder, images, places)


def _comparisons(entry: dict[str, Any], n: int, where: str) -> Iterator[tuple[tuple[int, int], float]]:
    """The pairs of an entry of n images, and P(first preferred) of each."""
    preference, rank = entry.get("human_preference"), entry.get("rank")
    ranked = {} if rank is None and preference is not None else _by_rank(rank, n, where)
    if preference is None:
        yield from ranked.items()
        return
    if n != 2 or not _are_numbers(preference, 2) or preference not in ([1, 0], [0, 1]):
        raise InputError(f"{where}: human_preference is {shown(preference)}; expected [1, 0] or [0, 1].")
    if ranked and ranked[0, 1] != preference[0]:
        raise InputError(
            f"{where}: human_preference is {shown(preference)} and rank is {shown(rank)}, which contradict each other. "
            "Correct the entry, or leave it out."
        )
    yield (0, 1), float(preference[0])


def _by_rank(rank: Any, n: int, where: str) -> dict[tuple[int, int], float]:
    if not _are_numbers(rank, n):
        raise InputError(f"{where}: rank is {shown(rank)}; expected {n} numbers, one per image, the best lowest.")
    return {(a, b): 0.5 if rank[a] == rank[b] else float(rank[a] < rank[b]) for a, b in combinations(range(n), 2)}


def _are_numbers(values: Any, n: int) -> bool:
    return _is_list(values, n) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value == value for value in values
    )


def _image_folder(path: Path, names: Sequence[object]) -> Folder:
    """Where the images of an HPDv2 file are: beside it, or in the sub-folder of its split."""
    places = list(dict.fromkeys([path.parent, *(path.parent / name for name in (path.stem, "train", "test"))]))
    for place in places:
        with contextlib.suppress(ValueError):  # a path with a null byte; it is refused below
            if all(isinstance(name, str) and (place / name).is_file() for name in names):
                return Folder(place)
    present = [str(place) for place in places if place.is_dir()]
    if all(isinstance(name, str) and name and not name.startswith("/") and ".." not in name for name in names):
        raise InputError(
            f"{path}: its first images, {' and '.join(map(str, names[:2]))}, are not beside it; looked in "
            f"{', '.join(present)}. Unpack the image archive there."
        )
    return Folder(path.parent)  # which says what is wrong with the paths


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length
