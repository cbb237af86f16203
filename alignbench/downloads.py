"""Files that are too large or too foreign to ship: found locally, in a cache, or downloaded, and always verified."""

from __future__ import annotations

import functools
import os
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit
from urllib.request import getproxies

from alignbench.errors import InputError, RunError
from alignbench.files import replace_file, sha256_of

COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # of torch's compiler
SECONDS = 20.0  # without an answer before a download is given up
LARGEST = 64 * 2**20  # bytes read of a file whose size is not known and that is not on the hub


@dataclass(frozen=True)
class File:
    """A file known by its content. One of a repository on the model hub is also looked for in the hub's own cache."""

    name: str
    url: str
    sha256: str | None  # None where no published copy could be hashed: its reader then checks what it holds
    size: int | None  # bytes; None where its publisher says it in rounded units only
    repository: str = ""  # on the model hub
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"  # of that repository

    @property
    def place(self) -> str:
        """Where it lies below a folder of data: names such as pytorch_model.bin mean nothing without a repository."""
        return f"{self.repository}/{self.name}" if self.repository else self.name

    @property
    def identity(self) -> str:
        """Size and hash, as messages name them."""
        size = f"{self.size} bytes, " if self.size is not None else ""
        return f"{size}{f'sha256 {self.sha256}' if self.sha256 else 'no sha256 known'}"


@dataclass(frozen=True)
class OwnFile:
    """A file that cannot be downloaded, or must not be passed on: its user brings it."""

    pattern: str  # of its place below a folder of data
    what: str  # it is and where it comes from


@runtime_checkable
class NeedsFiles(Protocol):
    """A plug-in that reads published files."""

    @property
    def files(self) -> Sequence[File]: ...


@runtime_checkable
class NeedsOwnFiles(Protocol):
    """A plug-in that reads files its user brings."""

    @property
    def own_files(self) -> Sequence[OwnFile]: ...


def hub_file(
    repository: str,
    name: str,
    sha256: str | None,
    size: int | None,
    revision: str = "main",
    kind: Literal["model", "dataset"] = "model",
) -> File:
    """A file of a repository on the model hub."""
    url = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{repository}/resolve/{revision}/{name}"
    return File(name, url, sha256, size, repository, revision, kind)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/alignbench, by default ~/.cache/alignbench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignbench"


def look_up(file: File) -> Path | None:
    """Where the file lies on this machine, whatever it holds: $ALIGNBENCH_DATA, the cache, the hub's cache; or None."""
    for folder in _data_folders():
        if (folder / file.place).is_file():
            return folder / file.place
    if not file.repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(file.repository, file.name, revision=file.revision, repo_type=file.kind)
    return Path(cached) if isinstance(cached, str) else None


def look_up_own(file: OwnFile) -> Path | None:
    """Where the user put the file, the first by name where several fit; or None."""
    return next((path for folder in _data_folders() for path in sorted(folder.glob(file.pattern))), None)


def own(file: OwnFile) -> Path:
    """The user's file. Raises RunError saying what it is and where to put it."""
    path = look_up_own(file)
    if path is None:
        raise RunError(
            f"{file.pattern} is not on this machine and cannot be downloaded: {file.what} "
            f"Put it at {cache_folder() / file.pattern}, or at {file.pattern} below a folder named by ALIGNBENCH_DATA."
        )
    return path


def _data_folders() -> list[Path]:
    local = os.environ.get("ALIGNBENCH_DATA")
    return [*([Path(local)] if local else []), cache_folder()]


def obtain(file: File, folder: Path | None = None) -> Path:
    """The path of a verified copy: one that is on this machine, else downloaded, into the folder where one is named.

    Raises InputError for a local file of other content, RunError where there is none and downloading fails.
    """
    path = look_up(file) if folder is None else folder / file.place
    if path is not None and path.is_file():
        return verified(file, path)
    target = (folder or cache_folder()) / file.place
    if file.repository:
        return verified(file, _from_hub(file, target, keep=folder is not None))
    try:
        with urllib.request.urlopen(file.url, timeout=SECONDS) as answer:
            content = answer.read((file.size or LARGEST) + 1)
    except OSError as error:
        raise RunError(_absent(file, f"{file.url} cannot be reached ({error})")) from error
    with replace_file(target) as temporary:
        temporary.write_bytes(content)
        if file.sha256 is not None and sha256_of(temporary) != file.sha256:
            raise RunError(f"{file.url} answered with other content than expected (sha256 {file.sha256}).")
    return target


def verified(file: File, path: Path) -> Path:
    """The path, if the file there is the published one as far as known. Raises InputError naming both hashes."""
    if file.sha256 is None:
        return path
    found = content_of(path)
    if found != file.sha256:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) has sha256 {found}, expected {file.sha256}; delete it or replace it."
        )
    return path


def content_of(path: Path) -> str:
    """The SHA-256 of a file; read once in a process while its size and time stay the same."""
    state = path.stat()
    return _content(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _content(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)


def reachable(endpoint: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at all; asked first, because the hub library retries for a minute."""
    parts = urlsplit(endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    if parts.scheme in getproxies():
        return True  # only the proxy knows
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False


def _from_hub(file: File, target: Path, keep: bool) -> Path:
    """Download a file of the hub, into its cache or to be kept at `target`. An interrupted download is continued."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise RunError(_absent(file, "the model hub cannot be reached"))
    where: dict[str, Any] = {"repo_type": file.kind}
    if keep:
        where["local_dir"] = target.parents[file.name.count("/")]
    try:
        return Path(hf_hub_download(file.repository, file.name, revision=file.revision, **where))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(_absent(file, f"downloading failed: {' '.join(str(error).split())[:200]}")) from error


def _absent(file: File, why: str) -> str:
    """A sentence that says what is missing and where to put it."""
    return (
        f"{file.place} is not on this machine and {why}. Put the file ({file.identity}; from {file.url}) "
        f"at {cache_folder() / file.place}, or at {file.place} below a folder named by ALIGNBENCH_DATA."
    )


def keep_compiled(usual: str) -> None:
    """Have torch keep what it compiles in the folder of caches, where another process finds it; unless a user has
    named another folder. `usual` is torch's own, which torch sets by itself."""
    if os.environ.get(COMPILED) in (None, usual):
        os.environ[COMPILED] = str(cache_folder() / "compiled")
