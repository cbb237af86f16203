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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = ["alignbench.experiment.run", "alignbench.diffusion.loading", "alignbench.cli.app", "warm"]
PRELOADED += ["torch._dynamo"]  # which every optimiser of torch imports, for longer than a short training takes
# What commands that open a network import besides, for seconds.
NETWORKS = ["diffusers.utils.logging", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders"]
NETWORKS += ["transformers.utils.logging", "transformers.models.clip.modeling_clip", "peft", "scipy.stats"]


class Done(NamedTuple):
    """How a command ended; of a killed one, minus the signal."""

    returncode: int
    stdout: str
    stderr: str


class Stop(NamedTuple):
    """The call at which a command is stopped: of this function in this module, by number from 1; by SIGKILL, or by
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


class Begun:
    """A process that was begun, and what it says."""

    def __init__(self, process: BaseProcess, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.process, self._folder = process, folder
        self.out, self.err = (Path(folder.name, name) for name in ("out", "err"))

    def ended(self, seconds: float | None = None) -> Done:
        """How it ended, within so many seconds."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it still runs and said: {self.err.read_text(encoding='utf-8')}"
        return Done(self.process.exitcode, *(path.read_text(encoding="utf-8") for path in (self.out, self.err)))


def preload_networks() -> None:
    """Have what networks need imported before the first process is forked. To be called before that."""
    PRELOADED.extend(name for name in NETWORKS if name not in PRELOADED)


def begin(work: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None) -> Begun:
    """Let a process of its own do some work, in this folder, with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder = tempfile.TemporaryDirectory()
    surroundings = dict(os.environ if environment is None else environment)
    process = context.Process(target=_surrounded, args=(work, arguments, folder.name, surroundings, os.getcwd()))
    begun = Begun(process, folder)
    for path in (begun.out, begun.err):
        path.touch()
    process.start()
    return begun


def begin_command(
    arguments: Sequence[str], stop: Stop | Kill | None = None, environment: Mapping[str, str] | None = None
) -> Begun:
    """Begin a command as `python -m alignbench` would."""
    return begin(_command, list(arguments), stop, environment=environment)


def execute(arguments: Sequence[str], stop: Stop | Kill | None = None) -> Done:
    """Run one command to its end."""
    return begin_command(arguments, stop).ended()


def _surrounded(
    work: Callable[..., None], arguments: Sequence[Any], folder: str, environment: dict[str, str], place: str
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    for target, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY), target)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    work(*arguments)


def _command(arguments: list[str], stop: Stop | Kill | None) -> None:
    seen: list[str] = []
    if isinstance(stop, Stop):
        _arm(stop)
    elif stop is not None:
        _watch(stop, seen)
    from alignbench.__main__ import main

    sys.argv = ["alignbench", *arguments]
    try:
        main()
    finally:
        if isinstance(stop, Kill) and stop.count_into is not None:
            Path(stop.count_into).write_text(str(len(seen)), encoding="ascii")


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
