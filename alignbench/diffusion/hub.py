"""Repositories of the model hub: what is fetched of them, what of it is on this machine, and what is said where it is
not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.downloads import reachable
from alignbench.errors import InputError, RunError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, at a commit; None means its newest. The result file names the commit that was used."""

    name: str
    revision: str | None = None
    inside: str = ""  # the folder or file of it that is meant; nothing: all of it


@dataclass(frozen=True)
class Part:
    """The files of a repository that a model is made of."""

    repository: Repository
    patterns: Sequence[str]
    contents: str  # the files in a word or two, as messages name them
    advice: str  # what to do where they cannot be downloaded
    missing: Callable[[Path], Sequence[str]]  # what a snapshot lacks
    instead: Callable[[Sequence[str]], Sequence[Sequence[str]]] = (
        lambda absent: ()
    )  # files in the place of what a repository lacks, in the order in which they are asked for; of nothing none


def files_of(repository: Repository, files: Sequence[str]) -> Part:
    """Single files of a repository, all of which are needed."""

    def missing(snapshot: Path) -> list[str]:
        return [name for name in files if not (snapshot / name).is_file()]

    return Part(repository, files, ", ".join(files), copied(repository), missing)


def copied(repository: Repository) -> str:
    """What to do where a repository cannot be downloaded."""
    return f"Where there is a network, run `hf download {repository.name}`, and copy the hub's cache here."


def offline() -> bool:
    """Whether the model hub cannot be reached, or must not be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or not reachable(constants.ENDPOINT)


def local(part: Part, folder: Path | None = None) -> Path | None:
    """The whole snapshot of a part in the cache or the folder; an interrupted download leaves some of one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(part.repository.name, local_files_only=True, **_where(part, folder)))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise InputError(f"{part.repository.name!r} is neither a folder nor a hub id: {error}") from None
    return None if part.missing(snapshot) else snapshot


def snapshot(part: Part, model: str, folder: Path | None = None) -> Path:
    """The snapshot of a part: from the cache or the folder, else downloaded. Raises RunError naming the model."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if (found := local(part, folder)) is not None:
        return found
    absent = (
        f"model {model!r} is not on this machine: {part.repository.name} ({part.contents}) was looked for in "
        f"{constants.HF_HUB_CACHE}"
    )
    if offline():
        elsewhere = f"Where it can, run `alignbench fetch models {model}`."
        raise RunError(f"{absent}, and the model hub cannot be reached. {elsewhere} {part.advice}")
    try:
        found = Path(snapshot_download(part.repository.name, **_where(part, folder)))
        asked = 0
        while asked < len(ways := part.instead(part.missing(found))):
            found = Path(snapshot_download(part.repository.name, **_where(part, folder, ways[asked])))
            asked += 1
        return found
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{absent}, and downloading failed: {reason} {part.advice}") from error


def placed(part: Part, model: str) -> tuple[Path, str]:
    """Where lies what is meant of a part's repository, and what a result says of it: name, commit and path inside.
    Downloaded where it is not here. Raises RunError naming the model."""
    found = snapshot(part, model)
    said = f"{part.repository.name}@{found.name}"
    return found / part.repository.inside, "/".join(filter(None, (said, part.repository.inside.strip("./"))))


def _where(part: Part, folder: Path | None, others: Sequence[str] = ()) -> dict[str, Any]:
    patterns = [*part.patterns, *others]
    return {"revision": part.repository.revision, "allow_patterns": patterns, "local_dir": folder}
