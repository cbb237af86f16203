"""Folders that one process works in at a time: another one says so once, waits, and goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TextIO

from alignbench.errors import warn
from alignbench.files import cannot_write, make_folder

LOCK = ".lock"  # in a folder that a process may hold; says who holds it
LOOKS = 5  # `in_use` holds a folder for an instant: times that a lock is asked for before it counts as held
PATIENCE = 0.02, 0.5  # seconds between two looks, while it may be an instant and later


@contextlib.contextmanager
def exclusive(folder: Path, say: Callable[[str], None] = warn) -> Iterator[None]:
    """Hold a folder for this process, once no other one does. An interrupt ends the waiting."""
    with _acquired(folder, say) as handle:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}")
            handle.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                handle.truncate(0)


def in_use(folder: Path) -> str | None:
    """Who holds a folder at this moment; None where nobody does, or it cannot be told."""
    try:
        with open(folder / LOCK, encoding="utf-8", errors="replace") as handle:
            return None if _is_free(handle, fcntl.LOCK_SH) else _holder(handle)
    except OSError:  # no such folder, one that cannot be read, or no locks
        return None


def claim(handle: IO[Any]) -> bool:
    """Lock an open file, unless somebody has, until it is closed: by a child process that inherits it, too. True also
    where the file system has no locks."""
    try:
        return _is_free(handle, fcntl.LOCK_EX)
    except OSError:
        return True


def _acquired(folder: Path, say: Callable[[str], None]) -> TextIO:
    """The open lock file of a folder, locked."""
    looks = 0
    while True:
        handle = _opened(folder)
        try:
            free = _is_free(handle, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{folder}: no locks here ({os.strerror(error.errno or 0)}); let one process at a time work in it")
            return handle
        except BaseException:
            handle.close()
            raise
        if free and _is_there(handle, folder / LOCK):
            return handle
        with handle:
            looks += not free
            if looks == LOOKS:
                say(f"{folder} is in use by {_holder(handle)}; waiting for it")
        time.sleep(PATIENCE[looks >= LOOKS])


def _opened(folder: Path) -> TextIO:
    make_folder(folder)
    try:
        return open(folder / LOCK, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from error


def _is_free(handle: IO[Any], kind: int) -> bool:
    """Lock an open file if nobody has. Raises OSError where the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_there(handle: TextIO, path: Path) -> bool:
    """Whether an open file still has its name: who held it may have removed the folder."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: TextIO) -> str:
    handle.seek(0)
    return handle.read(200).strip() or "another alignbench process"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
