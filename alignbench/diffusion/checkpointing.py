"""Activation checkpointing that can be seen to work: what is computed again in the backward pass is counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import checkpoint


class Recomputation:
    """Runs a module without keeping its activations. `count` says how often one was computed again.

    A backward pass may come after the network was put to another use (the reference's forward pass switches adapters
    off). `remember` is asked at the forward pass for a function that puts things back as they are then; `around` is
    what both passes are computed in.
    """

    def __init__(
        self,
        remember: Callable[[], Callable[[], None]] = lambda: lambda: None,
        around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.count = 0
        self._remember, self._around = remember, around

    def __call__(self, module: Callable[..., Any], *inputs: Any) -> Any:
        restore, before = self._remember(), list[bool]()

        def run(*again: Any) -> Any:
            if before:
                self.count += 1
                restore()
            before.append(True)
            with self._around():
                return module(*again)

        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
