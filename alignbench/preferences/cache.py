"""Tensors on disk under the hash of what they were computed from, in one SQLite file of bounded size.

Not diskcache: it unpickles what it finds, so that a file somebody else wrote would run code. Here values are
safetensors and the rest is the standard library. Keys are the caller's: everything a value depends on, hashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from alignbench.errors import AlignbenchError, warn
from alignbench.files import is_full, make_folder

T = TypeVar("T")

VERSION = 1
SCHEMA = (
    # Apart, so that noting a use rewrites some forty bytes and not the value.
    "CREATE TABLE entry (key BLOB PRIMARY KEY, id INTEGER NOT NULL, size INTEGER NOT NULL, used INTEGER NOT NULL) "
    "WITHOUT ROWID",
    "CREATE INDEX entry_used ON entry (used)",
    "CREATE TABLE content (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL)",
    f"PRAGMA user_version = {VERSION}",
)
SETTINGS = (
    "PRAGMA auto_vacuum = INCREMENTAL",  # before the first table: a smaller limit can then shrink the file
    "PRAGMA journal_mode = WAL",  # one process writes while others read; a kill leaves whole transactions
    "PRAGMA synchronous = NORMAL",  # a power cut may lose the last ones, which are computed again
    "PRAGMA journal_size_limit = 67108864",
)
PATIENCE = 60.0  # seconds to wait for another process's transaction
FULL = 0.9  # of the limit that is kept when it was exceeded, so that not every write evicts
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class _Damaged(Exception):
    """What was read is not what was written."""


class TensorCache:
    """A least-recently-used cache of named tensors, safe for several processes at once and against a kill at any
    moment. A damaged file is moved aside, and an empty one started; one that cannot be used, on a full disk or without
    permission, is said once and left: nothing in it cannot be computed again."""

    def __init__(self, path: Path, limit: int = 20 * 2**30, say: Callable[[str], None] = warn) -> None:
        self.path, self.limit, self._say = path, limit, say
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which file on disk it is connected to
        self._left = False  # it could not be used

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Tensor]]:
        """The values of those keys that are there, on the CPU."""
        return (self._attempt(lambda db: self._get(db, list(dict.fromkeys(keys)))) or {}) if keys else {}

    def put_many(self, values: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        """Keep these values, in place of the least recently used ones, as far as there is room on the disk."""
        if self._left:
            return
        encoded = {
            key: safetensors.torch.save({name: tensor.detach().contiguous().cpu() for name, tensor in value.items()})
            for key, value in values.items()
        }
        if encoded:
            self._attempt(lambda db: self._put(db, encoded))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _get(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, dict[str, Tensor]]:
        query = "SELECT crc, value FROM entry JOIN content USING (id) WHERE key = ?"
        rows = {key: db.execute(query, (key,)).fetchone() for key in keys}
        found = {key: _decoded(*row) for key, row in rows.items() if row is not None}
        if found:
            with _transaction(db):
                now = _clock(db)
                db.executemany("UPDATE entry SET used = ? WHERE key = ?", [(now, key) for key in found])
        return found

    def _put(self, db: sqlite3.Connection, values: Mapping[bytes, bytes]) -> None:
        with _transaction(db):
            now, room = _clock(db), FULL * self.limit
            for key, value in values.items():
                known = db.execute("SELECT 1 FROM entry WHERE key = ?", (key,)).fetchone()
                room -= len(value)
                if known is not None or room < 0:  # equal keys mean equal values; what cannot fit is not kept
                    continue
                self._evict(db, len(value))
                made = db.execute("INSERT INTO content (crc, value) VALUES (?, ?)", (zlib.crc32(value), value))
                db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (key, made.lastrowid, len(value), now))

    def _evict(self, db: sqlite3.Connection, coming: int) -> None:
        """Make room for so many bytes. Counts whole pages, so that it is the file that stays below the limit."""
        if _bytes_used(db) + coming <= self.limit:
            return
        while (excess := _bytes_used(db) + coming - int(FULL * self.limit)) > 0:
            doomed = []
            for key, number, size in db.execute("SELECT key, id, size FROM entry ORDER BY used"):
                doomed.append((key, number))
                excess -= size
                if excess <= 0:
                    break
            if not doomed:
                return
            db.executemany("DELETE FROM entry WHERE key = ?", [(key,) for key, _ in doomed])
            db.executemany("DELETE FROM content WHERE id = ?", [(number,) for _, number in doomed])

    def _attempt(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        """Use the database; if it turns out to be damaged, a new one instead; if there can be none, None."""
        if self._left:
            return None
        try:
            try:
                return use(self._connection or self._connect(None))
            except (sqlite3.DatabaseError, _Damaged) as error:
                if not _is_damage(error):
                    raise
                return use(self._connect(error))
        except (sqlite3.Error, _Damaged, OSError, AlignbenchError) as error:
            self._left = True
            self._say(f"{self._explained(error)}; going on without it")
            return None

    def _connect(self, damage: Exception | None) -> sqlite3.Connection:
        """Open the file, or a new one after damage. The lock is for making and moving files: SQLite has its own."""
        self.close()
        make_folder(self.path.parent)
        with open(self.path.with_name(f"{self.path.name}.lock"), "w", encoding="utf-8") as lock:
            with contextlib.suppress(OSError):  # a file system without locks, where SQLite's own are not safe either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if damage is not None and self._on_disk() == self._file:  # else another process has moved it already
                self._move_aside(damage)
            try:
                self._connection = self._opened()
            except (sqlite3.DatabaseError, _Damaged) as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error)
                self._connection = self._opened()
            self._file = self._on_disk()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            for setting in SETTINGS:
                db.execute(setting)
            with _transaction(db):
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    for statement in SCHEMA:
                        db.execute(statement)
                elif version != VERSION:
                    raise _Damaged(f"its layout is {version}, not {VERSION}")
                self._evict(db, 0)
            db.executescript("PRAGMA incremental_vacuum")  # `execute` takes one step of it, a page
        except BaseException:
            db.close()
            raise
        return db

    def _on_disk(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _move_aside(self, damage: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._say(f"the cache {self.path} is damaged ({damage}); moved to {aside.name}, what it held is made again")

    def _explained(self, error: Exception) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or is_full(error, self.path.parent):
            return f"cannot write the cache {self.path}: the disk is full"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return f"another process has held the cache {self.path} for {PATIENCE:.0f} s"
        return f"the cache {self.path} cannot be used ({error})"


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # SQLite rolls back by itself where the disk is full
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _clock(db: sqlite3.Connection) -> int:
    """A time later than every use so far."""
    return int(db.execute("SELECT coalesce(max(used), 0) + 1 FROM entry").fetchone()[0])


def _bytes_used(db: sqlite3.Connection) -> int:
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
    return (pages - free) * size


def _decoded(crc: int, value: bytes) -> dict[str, Tensor]:
    if zlib.crc32(value) != crc:
        raise _Damaged("a value's checksum does not match")
    try:
        return safetensors.torch.load(value)
    except SafetensorError as error:
        raise _Damaged(str(error)) from error


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Damaged) or getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED
