"""Scores that were computed before, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alignbench.files import append_line, canonical_json, complete_lines, make_folder
from alignbench.interface import Reward


class ScoreCache:
    """A scorer's scores, one line a score in one file for everything that identifies it, its class included: what a
    server says of itself is not taken for the scorer of that name."""

    def __init__(self, folder: Path, reward: Reward) -> None:
        info = reward.info()
        content = asdict(info) | {"class": f"{type(reward).__module__}.{type(reward).__qualname__}"}
        content["files"], content["versions"] = dict(info.files), dict(info.versions)
        digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]
        self._path = folder / f"{re.sub(r'[^a-z0-9.]+', '_', info.id.lower())}-{digest}.jsonl"
        lines = map(json.loads, complete_lines(self._path))
        self._known: dict[tuple[str, str], float] = {(image, text): value for image, text, value in lines}

    def get(self, image: str, text: str) -> float | None:
        """The score of a picture with this hash for this text."""
        return self._known.get((image, text))

    def put(self, scores: Sequence[tuple[str, str, float]]) -> None:
        """Keep scores; a kill leaves those before it."""
        for image, text, value in scores:
            self._known[image, text] = value
        if scores:
            make_folder(self._path.parent)
            append_line(self._path, "\n".join(json.dumps(score, ensure_ascii=False) for score in scores))
