"""What a result file holds as JSON, before it is known to be a result: its schema, and its digest. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from alignbench.errors import InputError, ResultFileError, shown
from alignbench.files import canonical_json
from alignbench.reading import json_of, read_bytes

SCHEMA: Final = 2  # before, nothing was kept of single pictures; such a file is written again under its number
SCHEMA_APART: Final = 3  # of a file whose long lists lie beside it: see `alignbench.record.apart`
READ: Final = (1, SCHEMA, SCHEMA_APART)


def content_of(path: Path) -> dict[str, Any]:
    """What a result file itself holds. Raises ResultFileError for what is no JSON, and for an unknown schema."""
    try:
        content = json_of(read_bytes(path))
    except InputError as error:
        raise ResultFileError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ResultFileError(f"{path}: cannot be read as text ({error}).") from None
    except ValueError as error:
        raise ResultFileError(f"{path}: not valid JSON ({error}); truncated, or not a result file.") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise ResultFileError(f"{path}: not an alignbench result (no 'schema').")
    if type(content["schema"]) is not int or content["schema"] not in READ:
        newer = isinstance(content["schema"], int) and content["schema"] > max(READ)
        advice = "it was written by a newer alignbench; upgrade to read it" if newer else "the file is damaged"
        known = f"{', '.join(map(str, READ[:-1]))} and {READ[-1]}"
        raise ResultFileError(f"{path}: schema {shown(content['schema'])}, this version reads {known}: {advice}.")
    if ("apart" in content) != (content["schema"] == SCHEMA_APART):
        raise ResultFileError(f"{path}: schema {content['schema']} with or without apart: no alignbench wrote it.")
    return content


def digest_of(content: dict[str, Any], lists: Mapping[str, Iterable[bytes]] | None = None) -> str:
    """SHA-256 of the content in canonical JSON, without the digest and where lists lie. `lists` have the canonical JSON
    of each item, in the place of what the content has under their names."""
    found, lists = hashlib.sha256(), lists or {}
    for place, name in enumerate(sorted({*content, *lists} - {"digest", "apart"})):
        found.update(f"{',' if place else '{'}{canonical_json(name)}:".encode())
        if name in lists:
            _hash_list(found, lists[name])
        else:
            found.update(canonical_json(content[name]).encode())
    found.update(b"}")
    return found.hexdigest()


def _hash_list(found: hashlib._Hash, lines: Iterable[bytes]) -> None:
    before = b"["
    for line in lines:
        found.update(before + line)
        before = b","
    found.update(b"]" if before == b"," else b"[]")
