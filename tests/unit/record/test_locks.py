"""One process at a time in a folder; another waits, says for whom, and can be interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading

import pytest

from alignbench import locks
from alignbench.locks import LOCK, exclusive, in_use


def test_who_waits_says_so_once_and_goes_on(tmp_path):
    said: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(exclusive(tmp_path))
        threading.Timer(0.8, other.close).start()  # after several looks
        with exclusive(tmp_path, said.append):
            assert in_use(tmp_path) is not None
    assert len(said) == 1
    holder = rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\dT\S+"
    assert re.fullmatch(rf"{re.escape(str(tmp_path))} is in use by {holder}; waiting for it", said[0])
    assert in_use(tmp_path) is None
    assert (tmp_path / LOCK).read_text() == ""  # nobody is named who is gone


def test_waiting_can_be_interrupted(tmp_path):
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with exclusive(tmp_path):
        with pytest.raises(KeyboardInterrupt), exclusive(tmp_path, interrupt):
            pass
        assert in_use(tmp_path) is not None
    assert in_use(tmp_path) is None


def test_a_folder_that_its_holder_removed_is_made_again(tmp_path):
    folder = tmp_path / "work"
    with contextlib.ExitStack() as other:
        other.enter_context(exclusive(folder))

        def leave(_: str) -> None:
            (folder / LOCK).unlink()
            folder.rmdir()
            other.close()

        with exclusive(folder, leave):
            assert in_use(folder) is not None


def test_what_a_killed_holder_left_is_nobody(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere since 2026-01-01T00:00:00+00:00")
    assert in_use(tmp_path) is None
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        assert said == []
        assert f"process {os.getpid()}" in (in_use(tmp_path) or "")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_worked_on(code, tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        assert in_use(tmp_path) is None
    assert said == [f"{tmp_path}: no locks here ({os.strerror(code)}); let one process at a time work in it"]
