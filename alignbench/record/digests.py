"""Which pictures a result is of. Imports no torch.

A row keeps the SHA-256 of what its picture shows, so that a picture that was changed after the run is found and named.
Rows of older results keep none: there the files count, as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.pictures import PictureError, content_of, pixels_sha256, read
from alignbench.record.result import Result, Row

AGAIN = "bring it back, or type the cell's command again with --force"


def picture_of(path: Path, place: int, sample: int) -> Path:
    """The file of a cell's picture."""
    return path.with_suffix("") / "images" / f"{place:05d}-{sample}.png"


def by_pixels(result: Result) -> bool:
    """Whether a result's digests are of pixels; else they are of files."""
    return any(row.sha256 for row in result.rows)


def digest(picture: bytes | Path, pixels: bool) -> str:
    """Of a picture's file, or of what it shows. Raises PictureError for one that is not there or shows nothing."""
    if pixels:
        return pixels_sha256(read(picture, formats=("PNG",)).image)
    return hashlib.sha256(content_of(picture) if isinstance(picture, Path) else picture).hexdigest()


def changed(path: Path, row: Row, file: Path) -> str:
    """What is wrong with the file of a row's picture, in a sentence; "" where it is the row's, or nobody can tell.
    `path` is the result's."""
    try:
        if row.sha256 is None or row.sha256 == digest(file, pixels=True):
            return ""
    except PictureError:
        return f"{file} cannot be read as a picture; {AGAIN}."
    return f"{file} was changed after {path} was written, and is not the picture its scores are of; {AGAIN}."


def digests(path: Path, result: Result) -> dict[tuple[int, int], str]:
    """SHA-256 of every picture of a cell, by place of its prompt and number. Raises InputError where one is missing, or
    they are not those that the result is of."""
    places = {prompt.id: i for i, prompt in enumerate(result.prompts)}
    found = {}
    for row in result.rows:
        slot = places[row.prompt], row.sample
        file = picture_of(path, *slot)
        if not file.exists():
            raise InputError(f"{path} has no picture {file}; keep its folder beside it, or run the cell again.")
        if wrong := changed(path, row, file):
            raise InputError(wrong)
        found[slot] = row.sha256 or sha256_of(file)
    if result.kept is not None and result.kept.pictures != digest_of(found):
        raise InputError(f"the pictures beside {path} are not those that it is of; run the cell again.")
    return found


def digest_of(pictures: Mapping[tuple[int, int], str]) -> str:
    """Of all pictures in order, by place and number, as a result keeps it."""
    lines = (f"{place:05d}-{sample}.png {sha256}\n" for (place, sample), sha256 in pictures.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
