"""What to do when the memory is full: know it from other errors, and let go of what is held."""

from __future__ import annotations

import gc

import torch

SAID = ("out of memory", "DefaultCPUAllocator")  # the latter: the processor's, which raises a plain RuntimeError


def is_full(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in SAID)


def release() -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
