"""The long lists of a large result, in a file beside it: a line an item, compressed. Imports no torch.

The result names the file and how long each list is. The lines are the JSON that the result's digest is taken of, list
after list in the order of their names, so that reading, checking and parsing are one pass.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alignbench.errors import InputError, ResultFileError, shown
from alignbench.files import replace_file
from alignbench.reading import LARGEST, read_bytes

LISTS: Final = ("diversity", "prompts", "rows")  # in the order of their names
LARGEST_INLINE: Final = 20_000_000  # bytes of these lists that a result file holds itself
NAME: Final = re.compile(r"(.+)\.rows-[0-9a-f]{12}\.jsonl\.gz", re.DOTALL)


class Absent(ResultFileError):
    """The file with the lists is not there. It may be that the result has just been written anew."""


@dataclass(frozen=True)
class Apart:
    """What a result says of its lists."""

    file: str
    schema: int  # of the result, as if it held them itself
    lengths: Mapping[str, int]

    @staticmethod
    def of(value: Any, path: Path) -> Apart:
        """From the entry `apart` of a result file. Raises ResultFileError for what no alignbench writes there."""
        said = isinstance(value, dict) and set(value) == {"file", "schema", *LISTS}
        lengths: dict[str, int] = {name: value[name] for name in LISTS} if said else {}
        if not said or any(type(length) is not int or length < 0 for length in lengths.values()):
            raise ResultFileError(f"{path}: apart: is {shown(value)}, which no alignbench wrote.")
        if not isinstance(value["file"], str) or not NAME.fullmatch(value["file"]) or "/" in value["file"]:
            raise ResultFileError(f"{path}: apart: names {shown(value['file'])}, which is no file of rows.")
        return Apart(value["file"], value["schema"], lengths)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "schema": self.schema, **self.lengths}

    def file_of(self, path: Path) -> Path:
        """The file with the lists of the result at a path. Raises Absent."""
        return _found(path, self.file)

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[dict[str, Iterator[bytes]]]:
        """The lines of each list of the result at a path, which have to be taken in the order of the lists' names.
        Raises Absent where their file is not there, and ValueError, as they are taken, where it is damaged."""
        stream, left = _opened(self.file_of(path)), [LARGEST]
        yield {name: _taken(stream, self.lengths[name], left, self.file) for name in LISTS}
        if stream.read(1):
            raise ValueError(f"{self.file} holds more than it should")


def name_of(stem: str, digest: str) -> str:
    """The file of a result's lists: another one for each content, so that the old pair stays whole until the new is."""
    return f"{stem}.rows-{digest[:12]}.jsonl.gz"


def write(path: Path, name: str, lists: Mapping[str, Sequence[bytes]]) -> None:
    """Write the lists of the result at a path, atomically; the same lists are the same bytes."""
    with (
        replace_file(_folder(path) / name) as temporary,
        open(temporary, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        for of in LISTS:
            packed.writelines(line + b"\n" for line in lists[of])


def files_of(path: Path) -> list[Path]:
    """The files of lists that belong to the result at a path, those of earlier writings included."""
    folder = _folder(path)
    if not folder.is_dir():
        return []
    named = ((NAME.fullmatch(entry.name), entry) for entry in os.scandir(folder))
    return sorted(Path(entry.path) for found, entry in named if found and found[1] == path.stem)


def remove_others(path: Path, name: str | None) -> None:
    """Remove what earlier writings of a result left beside it."""
    for file in files_of(path):
        if file.name != name:
            with contextlib.suppress(OSError):
                file.unlink()


def _folder(path: Path) -> Path:
    """Where a result lies: a link may lead there."""
    return Path(os.path.realpath(path)).parent


def _found(path: Path, name: str) -> Path:
    for folder in dict.fromkeys((path.parent, _folder(path))):
        if (folder / name).exists():
            return folder / name
    raise Absent(f"{path}: its rows are in {name}, which is not beside it; bring that file there too.")


def _opened(file: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(gzip.GzipFile(fileobj=io.BytesIO(read_bytes(file))))
    except InputError as error:
        raise ResultFileError(str(error)) from None


def _taken(stream: io.BufferedReader, length: int, left: list[int], name: str) -> Iterator[bytes]:
    for _ in range(length):
        try:
            line = stream.readline(left[0])
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name} cannot be decompressed ({error})") from None
        if not line.endswith(b"\n"):
            raise ValueError(f"{name} ends too early" if left[0] > len(line) else f"{name} is too large")
        left[0] -= len(line)
        yield line[:-1]
