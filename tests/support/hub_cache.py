"""A download in the hub's cache."""

from __future__ import annotations

from pathlib import Path


def in_cache(cache: Path, repository: str, commit: str) -> Path:
    """Where the hub's cache keeps what was downloaded of a repository: a folder for the caller to make and to fill."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit
