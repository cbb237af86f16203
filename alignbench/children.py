"""This program once more, as a child process: what surrounds it, and that it ends with who started it.

Beside `processes`, the command line and downloads, the only file that reads the environment. Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

OPTIONS = "ALIGNBENCH_RUN_"  # options of a run that somebody typed into the environment: a child's are all in its file
PARENT = "ALIGNBENCH_PARENT"  # the process that a child ends with
CARDS = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ON_DEATH = 1  # PR_SET_PDEATHSIG of Linux


def command(words: Sequence[str], safe_path: bool) -> list[str]:
    """`alignbench` with these words, as a command. With `safe_path` the current folder does not come first where
    modules are looked for."""
    return [*_python(safe_path), "-m", "alignbench", *words]


def calling(module: str, safe_path: bool) -> list[str]:
    """The function `main` of a module of ours, as a command, to which words may be added."""
    return [*_python(safe_path), "-c", f"from {module} import main; main()"]


def _python(safe_path: bool) -> list[str]:
    return [sys.executable, *(["-P"] if safe_path else [])]


def has_safe_path() -> bool:
    """Whether this program looks for modules elsewhere than in the current folder, as its children should too."""
    here = os.path.realpath(os.getcwd())
    return here not in {os.path.realpath(place) for place in sys.path}


def environment(threads: int | None = None, cards: Sequence[str] | None = None) -> dict[str, str]:
    """What surrounds a child of this process: so many threads, unless somebody has said how many, and these GPUs alone.
    None leaves either as it is."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(OPTIONS)}
    if threads is not None:
        found = dict.fromkeys(THREADS, str(threads)) | found
    if cards is not None:
        found[CARDS] = ",".join(cards)
    return found | {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}


def follow_parent() -> None:
    """End at once when the process that started this one ends, however it does, if it asked for that. The launcher of
    several processes leaves them running otherwise."""
    parent = os.environ.pop(PARENT, None)  # no child of this one follows the same
    if parent is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(ON_DEATH, signal.SIGKILL)
    if parent is not None and str(os.getppid()) != parent:  # it has ended before
        os._exit(128 + signal.SIGKILL)


def cores() -> int:
    """Processor cores that this process may use."""
    with contextlib.suppress(AttributeError):  # no Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_spare_core() -> bool:
    """Whether a thread beside those of a network has a core to itself. Where a network computes with all cores, each
    of its steps would wait for the one whose core was taken."""
    import torch

    return torch.cuda.is_initialized() or torch.get_num_threads() < cores()


def cards() -> tuple[str, ...]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(CARDS)
    return tuple(map(str, range(count))) if named is None else tuple(named.split(","))[:count]


def set_defaults(values: Mapping[str, str]) -> None:
    """Set variables of the environment that a library reads when it is imported, unless they are set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
