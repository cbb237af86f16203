"""Image-to-image evaluation: every prompt comes with an image that sampling starts from (SDEdit).

A `.jsonl` file names them, a prompt and its image a line: {"prompt": "a red circle", "image": "images/0.png"}.
Paths are relative to the file's folder and stay inside of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alignbench.errors import InputError
from alignbench.files import Folder, canonical_json
from alignbench.images import fitted
from alignbench.interface import Pipeline, Start
from alignbench.pictures import Notes, PictureError, counted, read
from alignbench.record.result import Scalar
from alignbench.texts import json_of, lines_of

IMAGE = "image"  # the column of a line that prompts make no use of


@dataclass(frozen=True)
class Sources:
    """The images of an editing task, in the order of its prompts, and the share of the steps that is run."""

    folder: Folder
    names: tuple[str, ...]
    sha256: str  # over the files in order
    strength: float
    notes: Sequence[str] = ()  # what was done to images more than reading them

    @property
    def task(self) -> dict[str, Scalar]:
        """What a configuration keeps of the task."""
        return {"name": "sdedit", "strength": self.strength, "images_sha256": self.sha256}

    def start(self, pipeline: Pipeline, places: Sequence[int]) -> Start:
        """The images of some prompts, resized until they cover the model's size and cut to it. Raises InputError."""
        _, height, width = pipeline.info()["image_shape"]
        images = []
        for place in places:
            content = self.folder.read(self.names[place], "--images")
            try:
                images.append(fitted(content, (height, width), None))
            except PictureError as error:
                raise InputError(f"the image {self.names[place]} cannot be read: {error}.") from None
        return Start(torch.stack(images), self.strength)


def read_sources(path: Path, strength: float) -> Sources:
    """The images of a file whose prompts `prompt_files` reads; each is looked at, so that none ends a run once a model
    was aligned. Raises InputError naming the line."""
    if path.suffix != ".jsonl":
        raise InputError(f"--images {path}: expected a .jsonl file with a prompt and an image a line.")
    folder, names, hashes, notes = Folder(path.parent), [], [], Notes()
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = json_of(line, where)
        image = {str(name).lower(): value for name, value in row.items()}.get(IMAGE) if isinstance(row, dict) else None
        if image is None:
            raise InputError(f'{where}: expected an object such as {{"prompt": "a red circle", "image": "0.png"}}.')
        names.append(folder.find(image, where))
        hashes.append(_identity(folder.read(names[-1], where), names[-1], where, notes))
    if not names:
        raise InputError(f"--images {path} holds no images; expected a line for each.")
    digest = hashlib.sha256(canonical_json(hashes).encode()).hexdigest()
    return Sources(folder, tuple(names), digest, strength, counted(notes.counts))


def _identity(content: bytes, name: str, where: str, notes: Notes) -> str:
    """The hash of an image's bytes and, where it takes more than reading it, of what that is: it has changed."""
    try:
        picture = read(content)
    except PictureError as error:
        raise InputError(f"{where}: the image {name} cannot be read: {error}.") from None
    notes.add(picture.notes, name)
    return " ".join([hashlib.sha256(content).hexdigest(), *picture.notes])
