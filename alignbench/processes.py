"""Processes of one run. The only place that asks how many there are."""

from __future__ import annotations

import os

from alignbench.errors import InputError


def refuse_several() -> None:
    """Raise InputError under a launcher of several processes, each of which would run everything."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes are not supported yet: run without `accelerate launch` or torchrun.")
