"""Devices and their memory: how much was used, how work is cut into parts, and what to do when it is full."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from alignbench.errors import AlignbenchError, InputError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT, LARGEST_ON_HEAP = 2**30, 2**25  # bytes; the latter is the most that glibc takes
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SAID = ("out of memory", "DefaultCPUAllocator")  # the latter: the processor's, which raises a plain RuntimeError


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; never one of our own, which say what they mean."""
    if isinstance(error, AlignbenchError):
        return False
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in SAID)


def release() -> None:
    """Give back what no tensor holds any more, to the kernel too, whatever `keep_freed` keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> bool:
    """Let glibc's allocator use freed memory again, in place of giving it back to the kernel, which fills each page
    with zeros when it is next touched: a fifth of the time of a small denoiser on a processor. Up to `KEPT` bytes more
    than are in use may stay with the process; its peak is what it was. Returns whether the C library knows how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP))


def reset_peak(device: str) -> None:
    """Begin to look for the peak anew: one process may run several cells."""
    if device.startswith("cuda"):
        if torch.cuda.is_initialized():  # before, nothing can have been held
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # no Linux; the peak is then that of the process
            CLEAR.write_text("5", encoding="ascii")


def peak(device: str) -> int:
    """The most bytes that were held since: of a GPU by tensors, else by the whole process."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resident("VmHWM:")


def resident(entry: str) -> int:
    """Bytes that this process holds, by what Linux calls them; on another system the most that it held."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(entry))
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


BATCH = {3: 32, 1: 512}  # images at once by default, for pictures and for points


def device_of(name: str) -> str:
    """The device a user's word means. Raises InputError where it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:<number>.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name!r}: this machine has no CUDA device; use cpu.")
    return name


def kind_of(device: torch.device) -> str:
    """What a device is, whichever of its kind: a GPU's model, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def chunked(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in runs of `size`; the last may be shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]
