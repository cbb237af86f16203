"""Files that are too large or too foreign to ship: found locally, in the cache, or downloaded, and always verified."""

from __future__ import annotations

import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from alignbench.errors import InputError, RunError
from alignbench.files import replace_file, sha256_of

SECONDS = 20.0  # without an answer before a download is given up


@dataclass(frozen=True)
class File:
    """A file known by its content."""

    name: str
    url: str
    sha256: str
    size: int  # bytes


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/alignbench, by default ~/.cache/alignbench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignbench"


def obtain(file: File) -> Path:
    """The path of a verified copy: from $ALIGNBENCH_DATA, else the cache, else downloaded into the cache.

    Raises InputError for a local file of other content, RunError where there is none and downloading fails.
    """
    local = os.environ.get("ALIGNBENCH_DATA")
    places = [*([Path(local)] if local else []), cache_folder()]
    for folder in places:
        path = folder / file.name
        if path.is_file():
            found = sha256_of(path)
            if found != file.sha256:
                raise InputError(f"{path} has sha256 {found}, expected {file.sha256}; delete it or replace it.")
            return path
    target = cache_folder() / file.name
    try:
        with urllib.request.urlopen(file.url, timeout=SECONDS) as answer:
            content = answer.read(file.size + 1)
    except OSError as error:
        raise RunError(
            f"{file.name} is not on this machine and {file.url} cannot be reached ({error}). Put the file "
            f"({file.size} bytes, sha256 {file.sha256}) into {target.parent} or a folder named by ALIGNBENCH_DATA."
        ) from error
    with replace_file(target) as temporary:
        temporary.write_bytes(content)
        if sha256_of(temporary) != file.sha256:
            raise RunError(f"{file.url} answered with other content than expected (sha256 {file.sha256}).")
    return target
