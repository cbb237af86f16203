"""What the page carries of the result files: their exact content, so that a reader's browser can check it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from alignbench.files import canonical_json
from alignbench.reading import json_of, read_bytes

LARGEST = 3_000_000  # bytes of all results, compressed; beyond it the digests alone stand there


@dataclass(frozen=True)
class Embedded:
    """One result file. `content` is the text that the digest is of, compressed and in base64; None where it would make
    the page too large."""

    file: str
    digest: str
    content: str | None


def embedded(paths: Sequence[Path]) -> list[Embedded]:
    """All files that fit. Browsers do not write numbers as Python does, so that the text itself is needed."""
    found, room = [], LARGEST
    for path in paths:
        content = json_of(read_bytes(path))
        digest = content.pop("digest")
        if room < 0 or "apart" in content:  # the latter have more than fits
            found.append(Embedded(path.name, digest, None))
            continue
        packed = gzip.compress(canonical_json(content).encode(), compresslevel=9, mtime=0)
        room -= len(packed)
        found.append(Embedded(path.name, digest, base64.b64encode(packed).decode() if room >= 0 else None))
    return found


def as_values(items: Sequence[Embedded]) -> list[dict[str, str | None]]:
    """For JSON."""
    return [asdict(item) for item in items]
