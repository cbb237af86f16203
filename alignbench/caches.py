"""What alignbench keeps on this machine for later runs, how large it is, and how to let go of it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alignbench.choices import KeptKind
from alignbench.downloads import cache_folder
from alignbench.errors import AlignbenchError
from alignbench.files import make_folder

WHAT: dict[KeptKind, str] = {
    "scores": "scores of learned scorers, by picture and prompt",
    "pairs": "preference pairs that runs made for themselves",
    "tensors": "latents and text embeddings of preference pairs",
    "compiled": "denoisers that --compile has compiled",
    "files": "downloaded weights of scorers and files of prompts",
}


@dataclass(frozen=True)
class Caches:
    """Where each kind lies. Nothing that is kept is needed: what is not there is made again."""

    folder: Path

    @classmethod
    def usable(cls, say: Callable[[str], None], instead: Path | None = None) -> Caches:
        """This machine's, or, where that cannot be written, which is said, those in the folder `instead`: by default
        one that lasts as long as this process."""
        try:
            folder = cache_folder()
            make_folder(folder)
            with tempfile.TemporaryFile(dir=folder):
                return cls(folder)
        except (AlignbenchError, OSError) as error:
            if instead is None:
                instead = Path(tempfile.mkdtemp(prefix="alignbench-"))
                atexit.register(shutil.rmtree, instead, ignore_errors=True)
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(error)
            say(f"no cache in {folder} ({reason}); using {instead}; XDG_CACHE_HOME can name another folder")
            return cls(instead)

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    @property
    def tensors(self) -> Path:
        return self.folder / "tensors.sqlite"


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
    own_places = Caches(cache_folder())
    for path in sorted(own_places.folder.iterdir()) if own_places.folder.is_dir() else ():
        own: KeptKind = "tensors" if path.name.startswith(own_places.tensors.name) else "files"
        for known in ("scores", "pairs", "compiled"):
            own = known if path == own_places.folder / known else own
        if own == kind:
            yield path
