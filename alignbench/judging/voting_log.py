"""The file of a log of votes: held by one process, appended to line by line, each on disk before it counts."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from alignbench.errors import InputError
from alignbench.files import cannot_write, make_folder
from alignbench.reading import read_bytes
from alignbench.record.votes import is_whole

BEGINNING = b'{"kind":"header","schema":'  # of every log that was begun here


class Changed(Exception):
    """Another program has moved, replaced or written to the log: what is appended there may be lost."""


@dataclass
class LogFile:
    """An open log."""

    path: Path
    handle: int
    size: int

    def append(self, content: bytes) -> None:
        """Write and sync a line. Raises OSError where that fails; the file is then as it was before. Raises Changed
        where it is no longer the file at its path, or not as long as it was left."""
        own = os.fstat(self.handle)
        try:
            there = os.path.samestat(own, self.path.stat())
        except OSError:
            there = False
        if not there or own.st_size != self.size:
            raise Changed("the file of votes was moved, replaced or written to by another program")
        try:
            if os.write(self.handle, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.handle)
        except OSError:
            os.ftruncate(self.handle, self.size)
            raise
        self.size += len(content)

    @property
    def begun(self) -> bool:
        """Whether there is more than nothing, or than a header that a kill tore: that is no log yet."""
        content = read_bytes(self.path)
        torn = BEGINNING.startswith(content) or content.startswith(BEGINNING)
        return not torn or b"\n" in content or is_whole(content)

    def mend(self) -> None:
        """Cut off a last line that a kill tore: nobody was told that it counts. One that lacks its end alone, as
        editors leave it, gets it. For a file that is known to be a log, or none yet: any other would lose its end."""
        content = read_bytes(self.path)
        end = content.rfind(b"\n") + 1
        if is_whole(content[end:]):
            os.write(self.handle, b"\n")
            end = len(content) + 1
        elif end < len(content):
            os.ftruncate(self.handle, end)
        if end != len(content):
            os.fsync(self.handle)
        self.size = end

    def close(self) -> None:
        os.close(self.handle)


def opened(path: Path) -> LogFile:
    """The file at a path, made where there is none, as it is: whether it is a log is to be seen before it is mended.
    Raises InputError where another process holds it."""
    make_folder(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{path} is in use by another `alignbench vote`; stop it, or name another --votes."
            ) from None
        return LogFile(path, handle, os.fstat(handle).st_size)
    except BaseException:
        os.close(handle)
        raise


def secret_of(log: Path) -> bytes:
    """What the keys in addresses are made with; kept beside the log for its owner alone, so that they stay valid."""
    path = log.with_name(f".{log.name}.key")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    with os.fdopen(handle, "rb+") as stream:
        known = stream.read(64)
        if len(known) < 32:
            known = secrets.token_bytes(32)
            stream.seek(0)
            stream.write(known)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
    return known
