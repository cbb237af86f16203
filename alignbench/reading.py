"""Reading what a user or an earlier run left: within bounds, and in a sentence where it is not what it should be.

What is named may be a pipe, a device without an end, a folder, or hostile text. Every reader of such a file goes
through `read_bytes`, `read_text` and `json_of`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alignbench.errors import InputError, shown, warn

T = TypeVar("T")

LARGEST = 2**30  # bytes of a file that is read whole: the result of a million images has a third of it
CHUNK = 2**20
HUGE = re.compile(r"[eE]\+?\d{3}|\d{300}")  # what a number that is too large for a float has in it


def is_file(path: Path) -> bool:
    """Whether a path names a file; a name that no file can have, such as one of ten thousand letters, names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Likewise whether it names a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All of a file. Raises InputError where there is none, where it is larger, and where it is something that may
    have no end, such as a pipe or a device."""
    content = bytearray()
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: expected a file, and it is {_kind(found.st_mode)}.")
        with open(path, "rb") as handle:
            while max(len(content), found.st_size) <= largest and (part := handle.read(CHUNK)):
                content += part
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}).") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(str(path))}: is no name of a file ({error}).") from None
    if max(len(content), found.st_size) > largest:
        raise InputError(f"{path}: has more than {largest:,} bytes, which is no file of this kind.")
    return bytes(content)


def read_text(path: Path, largest: int = LARGEST) -> str:
    """All of a text file in UTF-8, without the mark some editors begin it with. Raises InputError, as `read_bytes`."""
    try:
        return read_bytes(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text (not UTF-8: {error.reason} at byte {error.start}).") from None


def json_of(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError where it is none, and for what Python's reader lets pass or ends otherwise at:
    NaN and infinite numbers, a name twice in an object, half a character, and nesting without an end."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        float_of = _finite if HUGE.search(text) else None  # the parser's own is twice as fast
        value = json.loads(text, parse_constant=_no_number, parse_float=float_of, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"holds {shown(error.object[error.start])}, half of a character") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"holds {name}, which JSON has no number for")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {shown(text)}, which is no finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"names {shown(next(name for name in names if names.count(name) > 1))} twice in one object")
    return found


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file that end in a newline; none if there is no file."""
    if not is_file(path):
        return []
    whole, _, _ = read_bytes(path).rpartition(b"\n")
    return whole.split(b"\n") if whole else []


def records(path: Path, parse: Callable[[Any], T], say: Callable[[str], None] = warn) -> list[T]:
    """What the whole lines of a journal hold, in order. A line that is no JSON, or not what `parse` takes, is dropped,
    and one line says how many were."""
    lines, found = complete_lines(path), []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            found.append(parse(json_of(line)))
    if bad := len(lines) - len(found):
        say(f"{path}: dropped {bad} of {len(lines)} lines, which cannot be read")
    return found


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
