"""Image-to-image evaluation: every prompt comes with an image that sampling starts from (SDEdit).

A `.jsonl` file names them, a prompt and its image a line: {"prompt": "a red circle", "image": "images/0.png"}.
Paths are relative to the file's folder and stay inside of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alignbench.asking.prompts import lines_of
from alignbench.errors import InputError
from alignbench.files import Folder, canonical_json
from alignbench.images import fitted
from alignbench.interface import Pipeline, Start
from alignbench.record.result import Scalar


@dataclass(frozen=True)
class Sources:
    """The images of an editing task, in the order of its prompts, and the share of the steps that is run."""

    folder: Folder
    names: tuple[str, ...]
    sha256: str  # over the files in order
    strength: float

    @property
    def task(self) -> dict[str, Scalar]:
        """What a configuration keeps of the task."""
        return {"name": "sdedit", "strength": self.strength, "images_sha256": self.sha256}

    def start(self, pipeline: Pipeline, places: Sequence[int]) -> Start:
        """The images of some prompts, resized until they cover the model's size and cut to it. Raises InputError."""
        _, height, width = pipeline.info()["image_shape"]
        images = []
        for place in places:
            try:
                content = self.folder.read(self.names[place], "--images")
                images.append(fitted(content, (height, width), None))
            except Exception as error:  # decoders raise all kinds of them on broken files
                raise InputError(f"the image {self.names[place]} cannot be read: {error}.") from None
        return Start(torch.stack(images), self.strength)


def read_sources(path: Path, strength: float) -> Sources:
    """The images of a file whose prompts `alignbench.asking.prompts` reads. Raises InputError naming the line."""
    if path.suffix != ".jsonl":
        raise InputError(f"--images {path}: expected a .jsonl file with a prompt and an image a line.")
    folder, names, hashes = Folder(path.parent), [], []
    try:
        lines = lines_of(path)
    except OSError as error:
        raise InputError(f"--images {path} cannot be read ({error}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}).") from None
        image = (
            {str(name).lower(): value for name, value in row.items()}.get("image") if isinstance(row, dict) else None
        )
        if image is None:
            raise InputError(f'{where}: expected an object such as {{"prompt": "a red circle", "image": "0.png"}}.')
        names.append(folder.find(image, where))
        hashes.append(hashlib.sha256(folder.read(names[-1], where)).hexdigest())
    if not names:
        raise InputError(f"--images {path} holds no images.")
    digest = hashlib.sha256(canonical_json(hashes).encode()).hexdigest()
    return Sources(folder, tuple(names), digest, strength)
