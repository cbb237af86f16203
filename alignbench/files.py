"""Writing files so that a kill at any moment leaves either the old content or the new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alignbench.errors import AlignbenchError, InputError, RunError, shown

LOOKS = 5  # `in_use` holds a folder for an instant: times that a lock is asked for before it counts as held
LOCK = ".lock"  # in a folder that a process may hold


@contextlib.contextmanager
def replace_file(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it over `path`, else remove it.

    Without `sync` the content survives a killed process but perhaps not a power cut: for files that can be made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(permissions)  # what wrote it may have made it anew, as safetensors does, for its owner alone
        if sync:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _explained(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes left beside a path while they wrote it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it. A kill may tear the line; `complete_lines` drops a torn one, and so does the next
    append, which would otherwise be written onto it."""
    try:
        with open(path, "ab+") as handle:
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.seek(0)
                    handle.truncate(handle.read().rfind(b"\n") + 1)
            handle.write(f"{line}\n".encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise _explained(path, error) from error


def complete_lines(path: Path) -> list[str]:
    """The lines of a file that end in a newline; none if there is no file."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # a kill may tear a character, too
    return whole.decode("utf-8").split("\n") if whole else []


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed run left in a folder."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises InputError or RunError saying why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: OSError) -> AlignbenchError:
    """A wrong place is wrong input; a full disk is a failed run."""
    if error.errno == errno.ENOSPC:
        return RunError(f"cannot write {path}: the disk is full; free some space, then type the same command again.")
    reason = os.strerror(error.errno) if error.errno else str(error)
    wrong_place = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
    kind = InputError if error.errno in wrong_place else RunError
    return kind(f"cannot write {path}: {reason}; choose another folder with --output.")


def canonical_json(content: Any) -> str:
    """JSON with sorted keys and no spaces: the form that digests are taken of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises RunError while another process works in it."""
    import fcntl

    make_folder(folder)
    with open(folder / LOCK, "w", encoding="utf-8") as handle:
        for tries_left in reversed(range(LOOKS)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not tries_left:
                    raise RunError(
                        f"{folder} is in use by another alignbench process; wait for it or choose --name."
                    ) from None
                time.sleep(0.02)
        yield


@dataclass(frozen=True)
class Folder:
    """Files of a folder by relative name. One that lies outside, be it through a link, is refused."""

    root: Path
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # size and time of what was found
    _folders: dict[str, bool] = field(default_factory=dict)

    def find(self, name: object, where: str) -> str:
        """The name of a file that is there. Raises InputError, naming `where` it was named."""
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: an image is {shown(name)}; expected a path relative to {self.root}.")
        if name not in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"{where}: the image path {name!r} leaves {self.root}; expected one inside of it.")
            try:
                if not self._inside(path):
                    raise InputError(f"{where}: the image {name!r} is a link out of {self.root}; copy the file there.")
                found = (self.root / name).stat()
            except (OSError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
                raise InputError(f"{where}: the image {name!r} is not in {self.root} ({reason}).") from None
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{where}: the image {name!r} in {self.root} is not a file.")
            self.files[name] = (found.st_size, found.st_mtime_ns)
        return name

    def read(self, name: str, where: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: the image {self.root / name} can no longer be read ({error}).") from error

    def _inside(self, path: PurePosixPath) -> bool:
        """Whether a path stays below the root once links are followed; a folder of many files is looked at once."""
        parent = str(path.parent)
        if parent not in self._folders:
            self._folders[parent] = (self.root / parent).resolve().is_relative_to(self.root.resolve())
        whole = self.root / path
        return self._folders[parent] and (not whole.is_symlink() or whole.resolve().is_relative_to(self.root.resolve()))


def in_use(folder: Path) -> bool:
    """Whether another process holds a folder at this moment."""
    import fcntl

    try:
        with open(folder / LOCK, encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such folder, or one that cannot be read
        return False
    return False
