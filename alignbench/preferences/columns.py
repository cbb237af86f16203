"""A pair without its pictures, and what a file of pairs offers: light columns in memory, pictures when asked for."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alignbench.errors import InputError, shown
from alignbench.interface import Prompt

Encoded = tuple[bytes, bytes]  # the two images of a pair, as JPEG, PNG or WebP
Models = tuple[str, str] | None


@dataclass(frozen=True)
class Pair:
    """Two images for one prompt, without the images."""

    prompt: Prompt
    label: float  # P(first preferred): 0, 0.5 or 1
    models: Models  # what made them
    place: str  # such as "train-00003.parquet, row 17"


@runtime_checkable
class PairSource(Protocol):
    """Pairs in a fixed order."""

    @property
    def unlabelled(self) -> int:
        """How many more pairs the files have that nobody judged."""

    @property
    def sha256(self) -> str:
        """Of the light columns in their order, and of the files' names and sizes; images are not read for it."""

    @property
    def stamp(self) -> str:
        """Changes with every change of a file (its time counts): what may be remembered of images not read again."""

    def __len__(self) -> int: ...

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        """Text, label and models of every pair in order."""

    def pair(self, i: int) -> Pair:
        """Pair number i, without touching its images."""

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """Number and images of each of these pairs, once, in whatever order is cheapest to read."""


class Columns:
    """The light columns. Equal prompts and models are one object: Pick-a-Pic has sixteen pairs a caption."""

    def __init__(self) -> None:
        self.labels = array("d")
        self.prompts: list[Prompt] = []
        self.models: list[Models] = []
        self._prompts: dict[tuple[str, object], Prompt] = {}
        self._models: dict[Models, Models] = {None: None}

    def __len__(self) -> int:
        return len(self.labels)

    def append(self, text: object, label: object, models: Models, where: str, identifier: object = None) -> None:
        """Add a pair. Raises InputError saying what is wrong with it."""
        check_light(text, label, where, identifier)
        assert isinstance(text, str)
        assert isinstance(label, int | float)
        prompt = self._prompts.get((text, identifier))
        if prompt is None:
            prompt = self._prompts[text, identifier] = prompt_of(text, identifier)
        self.prompts.append(prompt)
        self.labels.append(label)
        self.models.append(self._models.setdefault(models, models))

    def pair(self, i: int, place: str) -> Pair:
        return Pair(self.prompts[i], self.labels[i], self.models[i], place)

    def rows(self) -> Iterator[tuple[str, float, Models]]:
        for prompt, label, models in zip(self.prompts, self.labels, self.models, strict=True):
            yield prompt.text, label, models


def check_light(text: object, label: object, where: str, identifier: object = None) -> None:
    """Raise InputError saying what is wrong with a pair's text, label or id."""
    if isinstance(label, bool) or not isinstance(label, int | float) or label not in (0, 0.5, 1):
        raise InputError(f"{where}: the label is {shown(label)}; expected 1, 0 or 0.5 (P(first preferred)).")
    if not isinstance(text, str):
        raise InputError(f"{where}: the prompt is {shown(text)}; expected text.")
    if identifier is not None and not isinstance(identifier, str):
        raise InputError(f"{where}: the id is {shown(identifier)}; expected text.")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold halves of characters
        raise InputError(f"{where}: the prompt is {shown(text)}; expected text.") from None


def prompt_of(text: str, identifier: object) -> Prompt:
    """The prompt of a pair: one without an id has that of its text."""
    return Prompt(hashlib.sha256(text.encode()).hexdigest()[:16] if identifier is None else str(identifier), text)


def is_judged(row: Mapping[str, Any], where: str) -> bool:
    """Whether somebody judged a row in Pick-a-Pic's layout. Raises InputError where its `has_label` says neither."""
    judged = row.get("has_label")
    if judged not in (None, True, False):
        raise InputError(f"{where}: has_label is {shown(judged)}; expected true or false.")
    return row["label_0"] is not None if judged is None else bool(judged)


NO_IMAGE = (None, "", "none", "tie")  # what names no image as the best
OF_JUDGEMENT = ("label_0", "label_1", "best_image_uid", "image_0_uid", "image_1_uid")


def check_agreement(label: float, row: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a row says in another place that another image was preferred: one of the two is wrong, and
    nothing says which."""
    for name, expected in (("label_0", label), ("label_1", 1 - label)):
        other = row.get(name)
        if other is not None and (isinstance(other, bool) or other != expected):
            raise InputError(
                f"{where}: the label is {shown(label)} and {name} is {shown(other)}, which contradict each other: they "
                "are P(preferred) of one image and of the other. Correct the row, or leave it out."
            )
    best, images = row.get("best_image_uid"), (row.get("image_0_uid"), row.get("image_1_uid"))
    if best in NO_IMAGE or None in images or images[0] == images[1]:
        return
    preferred = images[0] if label == 1 else images[1] if label == 0 else None
    if best != preferred and (preferred is not None or best in images):
        raise InputError(
            f"{where}: the label is {shown(label)} and best_image_uid is {shown(best)}, which contradict each other: "
            f"the images are {shown(images[0])} and {shown(images[1])}. Correct the row, or leave it out."
        )


def check_some(columns: Columns, path: Path, unlabelled: int = 0) -> None:
    if not len(columns):
        raise InputError(f"{path} holds no pairs{f' with a label ({unlabelled} without)' if unlabelled else ''}.")


TOGETHER = 4096  # rows that a digest is fed with at once


def digest_of(*parts: Iterable[Any]) -> str:
    """SHA-256 of rows that JSON can hold, part after part."""
    return digested(*parts).hexdigest()


def digested(*parts: Iterable[Any]) -> hashlib._Hash:
    """The same, to go on with: each part is the JSON of its rows, so many at once, and a line's end."""
    digest = hashlib.sha256()
    for part in map(iter, parts):
        while rows := list(islice(part, TOGETHER)):
            digest.update(json.dumps(rows).encode())
        digest.update(b"\n")
    return digest
