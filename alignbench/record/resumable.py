"""The one protocol of work that a folder keeps until it is done: cells, preference pairs, trained rewards.

A folder belongs to a configuration, which stands in its state file. The same call, made again, goes on with the work;
one of another configuration is refused, with the names of what differs, unless it may replace what is there. Files that
are not the work's own are never touched, and one process works in a folder at a time: others wait for it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignbench.errors import CannotContinue, InputError, warn
from alignbench.files import remove_leftovers, write_text
from alignbench.locks import LOCK, exclusive, in_use
from alignbench.reading import json_of, read_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Resumable:
    """Work in a folder, below a configuration that JSON can hold."""

    folder: Path
    configuration: Mapping[str, Any]
    state: str  # name of the state file
    elsewhere: str  # where else it could go, such as "choose another --output"
    replace: str  # how what is there gives way, such as "use --force to replace it"
    own: Collection[str] | None = None  # what the work makes, as patterns; None: the folder is the work's alone

    @property
    def _remedy(self) -> str:
        return f"{self.elsewhere[0].upper()}{self.elsewhere[1:]}, or {self.replace}."

    def check_same(self, found: Mapping[str, Any], where: Path) -> None:
        """Raise InputError where a configuration that was found is not this one."""
        if different := list(differences(found, self.configuration)):
            raise InputError(
                f"{where} holds another configuration; it differs in {', '.join(different)}. {self._remedy}"
            )

    @contextlib.contextmanager
    def held(self, force: bool = False) -> Iterator[int]:
        """`alone`, and at once `begin`: for work of which nothing is to be asked in between."""
        with self.alone():
            yield self.begin(force)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process, once no other one works in it: it may be finished then, so ask again before
        `begin`. Raises InputError where it holds files of somebody else."""
        self._check_foreign()
        with exclusive(self.folder):
            yield

    def begin(self, force: bool = False) -> int:
        """Begin or continue the work in a folder that is held. Returns the number of this attempt. Raises InputError
        where the folder is of another configuration, which `force` replaces."""
        attempt = self._attempt(force)
        remove_leftovers(self.folder)
        self._mark(attempt, running=True)
        return attempt

    def attempted(self, do: Callable[[int], T], force: bool, say: Callable[[str], None] = warn) -> T:
        """What the work gives, begun or continued in a folder that is held; it is handed the number of the attempt.
        What cannot be continued is cleared under `force`, and the work begun anew. Raises CannotContinue."""
        attempt = self.begin(force)
        try:
            return do(attempt)
        except CannotContinue as error:
            if not force:
                raise
            say(f"{error.what}; beginning anew")
        self.clear()
        return do(self.begin())

    def finish(self, attempt: int) -> None:
        """Say that the work is done and what is here belongs to it: a call that finds no result begins anew."""
        self._mark(attempt, running=False)

    def settle(self, passing: str | None = None) -> None:
        """Say that the work is done where its process died between its last file and saying so, and remove what that
        one left, the folder `passing` with it, which finished work does not need. Nothing happens while another process
        holds the folder, or where it is of other work."""
        try:
            saved = dict(json_of(read_bytes(self.folder / self.state)))
            same = not list(differences(dict(saved["configuration"]), self.configuration))
            attempt, running = int(saved["attempts"]), bool(saved["running"])
        except (ValueError, KeyError, TypeError, OverflowError):
            return
        if running and same and in_use(self.folder) is None:
            with exclusive(self.folder):
                remove_leftovers(self.folder)
                if passing is not None:
                    shutil.rmtree(self.folder / passing, ignore_errors=True)
                self.finish(attempt)

    def clear(self) -> None:
        """Remove what the work made."""
        for path in self.folder.iterdir():
            if path.name == LOCK or not self._is_own(path.name):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _is_own(self, name: str) -> bool:
        return self.own is None or any(fnmatch.fnmatchcase(name, own) for own in (self.state, *self.own))

    def remove(self) -> None:
        """Remove the folder, once nothing is held and the work is elsewhere, unless somebody keeps something in it."""
        (self.folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _check_foreign(self) -> None:
        """Refuse a folder of something else: what it holds would be overwritten."""
        if not self.folder.is_dir() or os.path.lexists(self.folder / self.state):
            return
        if others := sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")):
            raise InputError(
                f"{self.folder} holds other files ({', '.join(others[:3])}); {self.elsewhere}, or delete it."
            )

    def _attempt(self, force: bool) -> int:
        path = self.folder / self.state
        if not os.path.lexists(path):
            return 1
        try:
            saved = dict(json_of(read_bytes(path)))
            found, attempts, running = dict(saved["configuration"]), int(saved["attempts"]), bool(saved["running"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if not force:
                raise InputError(
                    f"{path} is damaged, or of an older alignbench ({type(error).__name__}: {error}). {self._remedy}"
                ) from error
            found, attempts, running = {}, 0, False
        if running and not list(differences(found, self.configuration)):  # an older file lacks what was added since
            return attempts + 1
        if not force:
            self.check_same(found, self.folder)
        self.clear()
        return 1

    def _mark(self, attempt: int, running: bool) -> None:
        content = {"configuration": dict(self.configuration), "attempts": attempt, "running": running}
        write_text(self.folder / self.state, json.dumps(content, indent=1) + "\n")


def differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The names of the entries in which two configurations differ, nested ones as `outer.inner`."""
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{above}{name}.")
        elif a != b:
            yield above + name
