"""Writing files so that a kill at any moment leaves either the old content or the new one, never half of it.

What is written ends up where links lead; a device, a pipe or an open file such as /dev/stdout is written to as it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alignbench.errors import AlignbenchError, InputError, RunError, shown

LINKS = 40  # that are followed from one path, as the kernel does
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXT = ("no space left", "os error 28", "disk quota", "pytorchstreamwriter", "unexpected pos", "iostream error")
WRONG_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENXIO, errno.EBADF, errno.ENOENT,
)  # fmt: skip
LEFTOVER = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)  # `replace_file`'s temporary names, with the process that writes
OPEN_FILE = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Hexadecimal SHA-256 over the names and contents of files, in this order. Raises OSError where one is missing."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.name} {sha256_of(path)}\n".encode())
    return found.hexdigest()


def canonical_json(content: Any) -> str:
    """JSON with sorted keys and no spaces: the form that digests are taken of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


@contextlib.contextmanager
def replace_file(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path; on success sync it and rename it over `path`, else remove it. What dead processes left
    of earlier tries goes. Raises InputError for a place that cannot be written, RunError for a full disk.

    Without `sync` the content survives a killed process but perhaps not a power cut: for files that can be made again.
    """
    with explained(path):
        end, stream = _end_of(path)
        if stream is not None:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / (path.name or "content")
                _pour(Path(folder) / (path.name or "content"), end, stream)
            return
        temporary = end.with_name(f".{end.name}.{os.getpid()}.tmp")
        try:
            make_folder(end.parent)
            if sync:
                remove_leftovers_of(end)
            temporary.touch()
            permissions = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(permissions)  # safetensors makes it anew, for its owner alone
            if sync:
                with open(temporary, "rb+") as handle:
                    os.fsync(handle.fileno())
            os.replace(temporary, end)
            if sync:
                _sync_folder(end.parent)
        finally:
            with contextlib.suppress(OSError):  # a name that no file can have
                temporary.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether a path names a device, a pipe or an open file, which have no name that a file would replace."""
    return _end_of(path)[1] is not None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it, and the folder of a new file. A kill may tear the line; `complete_lines` drops a
    torn one, and so does the next append, which would otherwise be written onto it."""
    with explained(path):
        new = not path.exists()
        with open(path, "ab+") as handle:
            _alone(handle.fileno())
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.seek(0)
                    handle.truncate(handle.read().rfind(b"\n") + 1)
            handle.write(f"{line}\n".encode())
            handle.flush()
            os.fsync(handle.fileno())
        if new:
            _sync_folder(path.parent)


def remove_leftovers_of(path: Path) -> None:
    """Remove what dead processes left beside a path while they wrote it."""
    for entry in os.scandir(path.parent):
        found = LEFTOVER.fullmatch(entry.name)
        if found and entry.name.startswith(f".{path.name}.") and _is_dead(int(found[1])):
            Path(entry.path).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files from a folder that nobody else works in."""
    for path in folder.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that a power cut leaves them. Raises InputError or RunError saying why it
    cannot be."""
    with explained(path):
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:
            _sync_folder(folder.parent)


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether a disk is full: some libraries say so in words of their own, some not at all."""
    if getattr(error, "errno", None) in FULL:
        return True
    if error.__context__ is not None and is_full(error.__context__, folder):
        return True
    if isinstance(error, OSError) or not any(words in str(error).lower() for words in FULL_TEXT):
        return False
    try:
        return "space" in str(error).lower() or shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


def cannot_write(path: Path, error: OSError) -> AlignbenchError:
    """A wrong place is wrong input; a full disk is a failed run."""
    if error.errno in FULL:
        return _no_room(path)
    kind = InputError if error.errno in WRONG_PLACE else RunError
    return kind(f"cannot write {path}: {_reason(error)}; choose another place.")


def _no_room(path: Path) -> RunError:
    return RunError(f"cannot write {path}: the disk is full; free some space, then type the same command again.")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of writing to a path, also by a library that does it by itself, as sentences: InputError for a place that
    cannot be written, RunError for a full disk."""
    try:
        yield
    except (AlignbenchError, BrokenPipeError):
        raise
    except Exception as error:
        if is_full(error, path.parent):
            raise _no_room(path) from error
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def _end_of(path: Path) -> tuple[Path, int | None]:
    """Where writing to a path ends, once links are followed; and, if that is to be written to as it is, its open file
    descriptor, or -1 where it has none."""
    end = path
    for _ in range(LINKS):
        found = OPEN_FILE.fullmatch(os.path.abspath(end))
        descriptor = int(found[1]) if found else STANDARD.get(os.path.abspath(end))
        if descriptor is not None:
            return end, descriptor
        if not end.is_symlink():
            break
        end = end.parent / os.readlink(end)
    try:
        mode = end.stat().st_mode
    except FileNotFoundError:
        return end, None
    return end, None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else -1


def _pour(temporary: Path, stream: Path, descriptor: int) -> None:
    """Write a file's content to a device, a pipe or an open file."""
    sys.stdout.flush()
    with open(temporary, "rb") as source, open(os.dup(descriptor) if descriptor >= 0 else stream, "wb") as target:
        shutil.copyfileobj(source, target)


def _alone(descriptor: int) -> None:
    """Wait until no other process appends to a file; caches are shared. Without locks a torn line is dropped later."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _sync_folder(folder: Path) -> None:
    """A rename lasts once its folder is written. Some file systems cannot do that, and need not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


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
