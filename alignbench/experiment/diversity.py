"""Diversity of the pictures of each prompt, and of the latents that they were decoded from.

Latents are kept beside the pictures until the cell is complete, so that a run that is continued finds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from alignbench.files import replace_file
from alignbench.interface import Prompt
from alignbench.record.picture_statistics import DIGITS, diversity
from alignbench.record.pictures import ImageStore, Slot
from alignbench.record.result import Diversity

LATENTS = "latents"  # in the folder of a cell


def keep_latents(folder: Path, chunk: Sequence[Slot], latents: Float[Tensor, b * latent]) -> None:
    """Keep the latents of a chunk of images in a cell's folder."""
    for slot, own in zip(chunk, latents.detach().float().cpu().numpy(), strict=True):
        with replace_file(_path(folder, slot), sync=False) as temporary, open(temporary, "wb") as handle:
            np.save(handle, own, allow_pickle=False)


def holds_latents(folder: Path, chunk: Sequence[Slot]) -> bool:
    """Whether those of a chunk are there and whole."""
    try:
        for slot in chunk:
            _latents(folder, slot)
    except (OSError, ValueError, EOFError):
        return False
    return True


def remove_latents(folder: Path) -> None:
    """Remove them from a cell that is complete."""
    shutil.rmtree(folder / LATENTS, ignore_errors=True)


def diversity_of(folder: Path, store: ImageStore, prompts: Sequence[Prompt], wanted: Sequence[Slot]) -> list[Diversity]:
    """Of each prompt with two pictures or more, in the order of the prompts; its latents have to be kept."""
    own: dict[int, list[Slot]] = {}
    for slot in wanted:
        own.setdefault(slot.place, []).append(slot)
    found = []
    for place, slots in sorted(own.items()):
        if len(slots) > 1:
            latents = diversity([_latents(folder, slot) for slot in slots])
            found.append(
                Diversity(
                    prompt=prompts[place].id,
                    pictures=round(diversity(list(store.read(slots).numpy())), DIGITS),
                    latents=round(latents, DIGITS) if np.isfinite(latents) else None,
                )
            )
    return found


def _latents(folder: Path, slot: Slot) -> NDArray[np.float32]:
    return np.asarray(np.load(_path(folder, slot), allow_pickle=False), dtype=np.float32)


def _path(folder: Path, slot: Slot) -> Path:
    return folder / LATENTS / f"{slot.place:05d}-{slot.sample}.npy"
