"""Scores that were computed before, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from alignbench.files import append_line, canonical_json, complete_lines, make_folder
from alignbench.interface import Reward
from alignbench.sourced import Sourced, identity_of, is_hashed


class ScoreCache:
    """A scorer's scores, one line a score in one file for everything that identifies it, its class included: what a
    server says of itself is not taken for the scorer of that name.

    Nothing is kept of a scorer that names no weights by their hash: it is cheap, or nobody can say that it is what it
    was.
    """

    def __init__(self, folder: Path, reward: Reward) -> None:
        self._known: dict[tuple[str, str], float] = {}
        info = reward.info()
        self._keeps = is_hashed(info)
        kind = type(reward.reward if isinstance(reward, Sourced) else reward)
        content = identity_of(info) | {"class": f"{kind.__module__}.{kind.__qualname__}"}
        digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]
        self._path = folder / f"{re.sub(r'[^a-z0-9.]+', '_', info.id.lower())}-{digest}.jsonl"
        if self._keeps:
            lines = map(json.loads, complete_lines(self._path))
            self._known = {(image, text): value for image, text, value in lines}

    def get(self, image: str, text: str) -> float | None:
        """The score of a picture with this hash for this text."""
        return self._known.get((image, text))

    def put(self, scores: Sequence[tuple[str, str, float]]) -> None:
        """Keep scores; a kill leaves those before it."""
        if not self._keeps:
            return
        for image, text, value in scores:
            self._known[image, text] = value
        if scores:
            make_folder(self._path.parent)
            append_line(self._path, "\n".join(json.dumps(score, ensure_ascii=False) for score in scores))
