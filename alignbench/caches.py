"""What alignbench keeps on this machine for later runs, how large it is, and how to let go of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alignbench.choices import KeptKind
from alignbench.downloads import cache_folder

WHAT: dict[KeptKind, str] = {
    "scores": "scores of learned scorers, by picture and prompt",
    "pairs": "preference pairs that runs made for themselves",
    "tensors": "latents and text embeddings of preference pairs",
    "files": "downloaded weights of scorers and files of prompts",
}


def scores_folder() -> Path:
    return cache_folder() / "scores"


def pairs_folder() -> Path:
    return cache_folder() / "pairs"


def tensors_file() -> Path:
    return cache_folder() / "tensors.sqlite"


@dataclass(frozen=True)
class Kept:
    """One kind of what is kept."""

    kind: KeptKind
    what: str
    files: int
    bytes: int


def kept() -> list[Kept]:
    """What is kept, by kind."""
    return [Kept(kind, WHAT[kind], *_size(kind)) for kind in get_args(KeptKind)]


def clear(kind: KeptKind) -> int:
    """Delete one kind of what is kept; what a run needs is made or fetched again. Returns the bytes that this freed."""
    _, freed = _size(kind)
    for path in _places(kind):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return freed


def _size(kind: KeptKind) -> tuple[int, int]:
    files = [p for place in _places(kind) for p in (place.rglob("*") if place.is_dir() else [place]) if p.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def _places(kind: KeptKind) -> Iterator[Path]:
    """The entries of the cache's folder that are of a kind; everything that is not named otherwise was downloaded."""
    folder = cache_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        own: KeptKind = "tensors" if path.name.startswith(tensors_file().name) else "files"
        if path in (scores_folder(), pairs_folder()):
            own = "scores" if path == scores_folder() else "pairs"
        if own == kind:
            yield path
