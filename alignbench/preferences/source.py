"""Preference pairs on disk, in one of three layouts: Pick-a-Pic's parquet files, HPDv2's JSON, a folder of our own.

Only the light columns (text, label, source models) are held in memory. Images are read when asked for, stay encoded,
and come in the order the disk has them. Nothing in a file is trusted: paths stay in their folder, and what is not as
the layout says is an InputError naming the file and the row (from 0, as parquet readers count), entry (from 0) or line
(from 1).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alignbench.errors import InputError, shown
from alignbench.files import Folder
from alignbench.interface import Prompt

Encoded = tuple[bytes, bytes]  # the two images of a pair, as JPEG, PNG or WebP
Models = tuple[str, str] | None

FOLDER_FILE = "pairs.jsonl"
LAYOUTS = (
    "Pick-a-Pic's .parquet file or a folder of them, HPDv2's train.json or test.json beside its images, "
    f"or a folder with {FOLDER_FILE}"
)
HEAVY = ("jpg_0", "jpg_1")
NEEDED = (*HEAVY, "label_0", "caption")
OPTIONAL = ("model_0", "model_1", "has_label")
SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?\.parquet")  # how the hub names the files of a split
ROWS, BUFFER = 16, 2**20  # rows taken out, and bytes of a column read, at once: half the memory of a whole row group


@dataclass(frozen=True)
class Pair:
    """Two images for one prompt, without the images."""

    prompt: Prompt
    label: float  # P(first preferred): 0, 0.5 or 1
    models: Models  # what made them
    place: str  # such as "train-00003.parquet, row 17"


@runtime_checkable
class PairSource(Protocol):
    """Pairs in a fixed order."""

    @property
    def unlabelled(self) -> int:
        """How many more pairs the files have that nobody judged."""

    @property
    def sha256(self) -> str:
        """Of the light columns in their order, and of the files' names and sizes; images are not read for it."""

    @property
    def stamp(self) -> str:
        """Changes with every change of a file (its time counts): what may be remembered of images not read again."""

    def __len__(self) -> int: ...

    def pair(self, i: int) -> Pair:
        """Pair number i, without touching its images."""

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """Number and images of each of these pairs, once, in whatever order is cheapest to read."""


def open_pairs(path: Path) -> PairSource:
    """The pairs at a path. Raises InputError where there are none or the layout is not one of the three."""
    if path.name == FOLDER_FILE:
        path = path.parent
    files = sorted(path.glob("*.parquet")) if path.is_dir() else _split(path)
    if not path.exists() and not files:
        raise InputError(
            f"there are no preference pairs at {path}. The copies of Pick-a-Pic on the hub are gone, so local files "
            f"are the road: {LAYOUTS}; `alignbench pairs` makes such a folder."
        )
    if (path / FOLDER_FILE).is_file():
        return _read_folder(path)
    if path.suffix == ".json":
        return _read_hpd(path)
    if path.is_dir() and files:
        _check_splits(path, files)
    if path.suffix == ".parquet" or files:
        return ParquetPairs(files or [path])
    raise InputError(f"{path} holds no preference pairs; expected {LAYOUTS}.")


class Columns:
    """The light columns. Equal prompts and models are one object: Pick-a-Pic has sixteen pairs a caption."""

    def __init__(self) -> None:
        self.labels = array("d")
        self.prompts: list[Prompt] = []
        self.models: list[Models] = []
        self._prompts: dict[tuple[str, str | None], Prompt] = {}
        self._models: dict[Models, Models] = {None: None}

    def __len__(self) -> int:
        return len(self.labels)

    def append(self, text: object, label: object, models: Models, where: str, identifier: object = None) -> None:
        """Add a pair. Raises InputError saying what is wrong with it."""
        if isinstance(label, bool) or not isinstance(label, int | float) or label not in (0, 0.5, 1):
            raise InputError(f"{where}: the label is {shown(label)}; expected 1, 0 or 0.5 (P(first preferred)).")
        if not isinstance(text, str):
            raise InputError(f"{where}: the prompt is {shown(text)}; expected text.")
        if identifier is not None and not isinstance(identifier, str):
            raise InputError(f"{where}: the id is {shown(identifier)}; expected text.")
        prompt = self._prompts.get((text, identifier))
        if prompt is None:
            try:
                hashed = hashlib.sha256(text.encode()).hexdigest()[:16]
            except UnicodeEncodeError:  # JSON can hold halves of characters
                raise InputError(f"{where}: the prompt is {shown(text)}; expected text.") from None
            prompt = self._prompts[text, identifier] = Prompt(hashed if identifier is None else identifier, text)
        self.prompts.append(prompt)
        self.labels.append(label)
        self.models.append(self._models.setdefault(models, models))

    def pair(self, i: int, place: str) -> Pair:
        return Pair(self.prompts[i], self.labels[i], self.models[i], place)

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        for prompt, label, models in zip(self.prompts, self.labels, self.models, strict=True):
            yield prompt.text, label, models


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
        _check_some(self._columns, paths[0] if len(paths) == 1 else paths[0].parent, self.unlabelled)

    def __len__(self) -> int:
        return len(self._columns)

    def pair(self, i: int) -> Pair:
        return self._columns.pair(i, f"{self.paths[self._files[i]].name}, row {self._rows[i]}")

    @functools.cached_property
    def sha256(self) -> str:
        files = ((path.name, path.stat().st_size) for path in self.paths)
        return _digest(files, self._columns.rows(), zip(self._files, self._rows, strict=True))

    @functools.cached_property
    def stamp(self) -> str:
        return _digest([(str(path.resolve()), path.stat().st_mtime_ns) for path in self.paths], [self.sha256])

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
        with _parquet(self.paths[file]) as handle:
            for part in handle.iter_batches(ROWS, row_groups=[group], columns=list(HEAVY), use_threads=False):
                while left and self._rows[left[-1]] < first + len(part):
                    i = left.pop()
                    images = (part.column(name)[self._rows[i] - first].as_py() or b"" for name in HEAVY)
                    yield i, (next(images), next(images))
                first += len(part)
                if not left:
                    return

    def _read_light(self, path: Path) -> None:
        number = len(self._groups)
        with _parquet(path) as handle:
            names = handle.schema_arrow.names
            if missing := [name for name in NEEDED if name not in names]:
                raise InputError(
                    f"{path} has no column {' and no '.join(missing)}; a file of Pick-a-Pic has {', '.join(NEEDED)} "
                    "(its copies without images cannot be learnt from)."
                )
            for name in HEAVY:
                if (kind := str(handle.schema_arrow.field(name).type)) not in ("binary", "large_binary"):
                    raise InputError(f"{path}: column {name} holds {kind}; expected the bytes of encoded images.")
            sizes = [handle.metadata.row_group(k).num_rows for k in range(handle.num_row_groups)]
            self._groups.append(list(accumulate(sizes, initial=0))[:-1])
            light = [name for name in (*NEEDED, *OPTIONAL) if name in names and name not in HEAVY]
            table = handle.read(columns=light, use_threads=False).to_pydict()
        nothing = [None] * sum(sizes)
        columns = (table.get(name, nothing) for name in ("caption", "label_0", "model_0", "model_1", "has_label"))
        for row, (text, label, *models, judged) in enumerate(zip(*columns, strict=True)):
            if label is None if judged is None else not judged:
                self.unlabelled += 1
                continue
            both = isinstance(models[0], str) and isinstance(models[1], str)
            named: Models = (models[0], models[1]) if both else None
            self._columns.append(text, label, named, f"{path}, row {row}")
            self._files.append(number)
            self._rows.append(row)


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

    def pair(self, i: int) -> Pair:
        return self.columns.pair(i, self.places[i])

    @functools.cached_property
    def sha256(self) -> str:
        files = ((name, size) for name, (size, _) in self.folder.files.items())
        return _digest(files, self.columns.rows(), self.images_of)

    @functools.cached_property
    def stamp(self) -> str:
        return _digest([(str(self.folder.root.resolve()), self.sha256)], self.folder.files.values())

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        for i in dict.fromkeys(indices):
            first, second = self.images_of[i]
            yield i, (self.folder.read(first, self.places[i]), self.folder.read(second, self.places[i]))


def _read_folder(path: Path) -> FilePairs:
    """Our own layout: a line {"prompt": …, "images": [path, path], "label": …}, perhaps with "models" and "id"."""
    source = path / FOLDER_FILE
    columns, folder = Columns(), Folder(path)
    images, places = [], []
    for number, line in enumerate(_text(source).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        row = _json(line, where)
        if not isinstance(row, dict):
            raise InputError(
                f'{where}: expected an object such as {{"prompt": …, "images": [path, path], "label": 1}}.'
            )
        if missing := [name for name in ("prompt", "images", "label") if name not in row]:
            raise InputError(f"{where}: no {' and no '.join(missing)}; expected prompt, images and label.")
        models = row.get("models")
        if models is not None and not (_is_list(models, 2) and all(isinstance(name, str) for name in models)):
            raise InputError(f"{where}: models is {shown(models)}; expected two names.")
        if not _is_list(row["images"], 2):
            raise InputError(f"{where}: images is {shown(row['images'])}; expected two paths.")
        columns.append(row["prompt"], row["label"], models and (models[0], models[1]), where, row.get("id"))
        first, second = (folder.find(name, where) for name in row["images"])
        images.append((first, second))
        places.append(f"{FOLDER_FILE}, line {number}")
    _check_some(columns, source)
    return FilePairs(columns, folder, images, places)


def _read_hpd(path: Path) -> FilePairs:
    """HPDv2's layout: train.json has two images an entry with human_preference, 1 for the one that was preferred;
    test.json has several with their rank, 1 for the best, and every two of them are a pair."""
    entries = _json(_text(path), str(path))
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
    _check_some(columns, path)
    assert folder is not None
    return FilePairs(columns, folder, images, places)


def _comparisons(entry: dict[str, Any], n: int, where: str) -> Iterator[tuple[tuple[int, int], float]]:
    """The pairs of an entry of n images, and P(first preferred) of each."""
    preference, rank = entry.get("human_preference"), entry.get("rank")
    if preference is not None:
        if n != 2 or preference not in ([1, 0], [0, 1]):
            raise InputError(f"{where}: human_preference is {shown(preference)}; expected [1, 0] or [0, 1].")
        yield (0, 1), float(preference[0])
        return
    if not isinstance(rank, list) or len(rank) != n or not all(isinstance(r, int | float) and r == r for r in rank):
        raise InputError(f"{where}: rank is {shown(rank)}; expected {n} numbers, one per image, the best lowest.")
    for a, b in combinations(range(n), 2):
        yield (a, b), 0.5 if rank[a] == rank[b] else float(rank[a] < rank[b])


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


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """A parquet file, open for reading through a small buffer. Raises InputError for one that is damaged or absent."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{path} needs pyarrow to be read: pip install 'alignbench[parquet]'.") from None
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER) as handle:
            yield handle
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as parquet: {reason} Copy it again.") from error


def _split(path: Path) -> list[Path]:
    """The files of a split by the hub's names: data/train stands for data/train-00000-of-00645.parquet and on."""
    if path.exists():
        return []
    files = sorted(path.parent.glob("*.parquet")) if path.parent.is_dir() else []
    return [file for file in files if (named := SPLIT.fullmatch(file.name)) and named[1] == path.name]


def _check_splits(path: Path, files: Sequence[Path]) -> None:
    splits = sorted({named[1] for file in files if (named := SPLIT.fullmatch(file.name))})
    if len(splits) > 1:
        raise InputError(
            f"{path} holds several splits ({', '.join(splits)}), and testing on what was trained on shows nothing; "
            f"name one of them, such as {path / splits[0]}."
        )


def _check_some(columns: Columns, path: Path, unlabelled: int = 0) -> None:
    if not len(columns):
        raise InputError(f"{path} holds no pairs{f' with a label ({unlabelled} without)' if unlabelled else ''}.")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}).") from None


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _digest(*parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in map(iter, parts):
        while rows := list(islice(part, 4096)):
            digest.update(json.dumps(rows).encode())
        digest.update(b"\n")
    return digest.hexdigest()
