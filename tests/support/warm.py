"""The command line in processes of its own, forked from one that has imported what takes seconds to import.

A child may be killed for real, which a call in the tests' own process cannot.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = ["alignbench.experiment.run", "alignbench.diffusion.loading", "alignbench.cli.app", "warm"]


class Done(NamedTuple):
    """How a command ended; of a killed one, minus the signal."""

    returncode: int
    stdout: str
    stderr: str


class Stop(NamedTuple):
    """The call at which a command is stopped: of this function in this module, by number from 1; by SIGKILL, or by$
    KeyboardInterrupt."""

    module: str
    name: str
    call: int
    by: str = "SIGKILL"


class Kill(NamedTuple):
    """When a command is killed: before it writes for the n-th time below a folder, or after so many seconds. With
    neither, its writes are counted into a file."""

    folder: str
    write: int | None = None
    seconds: float | None = None
    count_into: str | None = None


def execute(arguments: Sequence[str], stop: Stop | Kill | None = None) -> Done:
    """Run one command as `python -m alignbench` would, with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        child = context.Process(
            target=_run, args=(list(arguments), stop, list(map(str, files)), dict(os.environ), os.getcwd())
        )
        child.start()
        child.join()
        assert child.exitcode is not None
        return Done(child.exitcode, *(path.read_text(encoding="utf-8") for path in files))


def _run(
    arguments: list[str], stop: Stop | Kill | None, files: list[str], environment: dict[str, str], folder: str
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for target, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), target)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    seen: list[str] = []
    if isinstance(stop, Stop):
        _arm(stop)
    elif stop is not None:
        _watch(stop, seen)
    from alignbench.cli.app import run_command_line

    code = run_command_line(arguments)
    sys.stdout.flush()
    if isinstance(stop, Kill) and stop.count_into is not None:
        Path(stop.count_into).write_text(str(len(seen)), encoding="ascii")
    sys.exit(code)


def _arm(stop: Stop) -> None:
    """Put a counting function in the place of the one to be stopped at."""
    holder: Any = importlib.import_module(stop.module)
    *owners, last = stop.name.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    real, calls = getattr(holder, last), []

    def deadly(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == stop.call:
            if stop.by == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return real(*arguments, **named)

    setattr(holder, last, deadly)


WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def _watch(kill: Kill, seen: list[str]) -> None:
    """Note what is written below a folder by the interpreter's audit events."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            writing = (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
        elif event in WRITING:
            path, writing = given[0], True
        else:
            return
        if not writing or not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(kill.folder):
            return
        seen.append(event)
        if len(seen) == kill.write:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill.seconds is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, kill.seconds)
        return
    sys.addaudithook(hook)
