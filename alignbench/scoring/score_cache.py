"""Scores that were computed before, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignbench.errors import AlignbenchError, warn
from alignbench.files import append_line, canonical_json, make_folder
from alignbench.interface import Reward
from alignbench.reading import records
from alignbench.sourced import Sourced, identity_of, is_hashed


class ScoreCache:
    """A scorer's scores, one line a score in one file for everything that identifies it, its class included: what a
    server says of itself is not taken for the scorer of that name. One that cannot be written is said once, and what
    it would have kept is computed again another time.

    Nothing is kept of a scorer that names no weights by their hash: it is cheap, or nobody can say that it is what it
    was.
    """

    def __init__(self, folder: Path, reward: Reward, say: Callable[[str], None] = warn) -> None:
        self._known: dict[tuple[str, str], float] = {}
        info = reward.info()
        kind = type(reward.reward if isinstance(reward, Sourced) else reward)
        content = identity_of(info) | {"class": f"{kind.__module__}.{kind.__qualname__}"}
        digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]
        self._path = folder / f"{re.sub(r'[^a-z0-9.]+', '_', info.id.lower())}-{digest}.jsonl"
        self._say, self._writes = say, is_hashed(info)
        if not self._writes:
            return
        try:
            self._known = dict(records(self._path, _entry, say))
        except AlignbenchError as error:
            self._writes = False
            say(f"scores are not kept: {error}")

    def get(self, image: str, text: str) -> float | None:
        """The score of a picture with this hash for this text."""
        return self._known.get((image, text))

    def put(self, scores: Sequence[tuple[str, str, float]]) -> None:
        """Keep scores, as far as there is room; a kill leaves those before it."""
        for image, text, value in scores:
            self._known[image, text] = value
        if not scores or not self._writes:
            return
        try:
            make_folder(self._path.parent)
            append_line(self._path, "\n".join(json.dumps(score, ensure_ascii=False) for score in scores))
        except AlignbenchError as error:
            self._writes = False
            self._say(f"scores are not kept: {error}")


def _entry(line: Any) -> tuple[tuple[str, str], float]:
    image, text, value = line
    return (str(image), str(text)), float(value)
