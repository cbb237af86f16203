"""Which pairs of a source are learnt from: ties, the models the images come from, prompts that are evaluated."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignbench.errors import InputError
from alignbench.interface import RewardInfo
from alignbench.preferences.columns import Encoded, Pair, PairSource

Ties = Literal["drop", "keep"]

WORDS = {
    "ties_dropped": "ties dropped",
    "ties_kept": "ties kept",
    "other_models": "of other models",
    "evaluated": "of evaluated prompts",
    "unlabelled": "without a label",
}


@dataclass(frozen=True)
class Chosen:
    """Pairs of a source, numbered anew from 0. `numbers` are theirs in the source."""

    source: PairSource
    numbers: Sequence[int]
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.numbers)

    def pair(self, i: int) -> Pair:
        return self.source.pair(self.numbers[i])

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """See `PairSource.images`."""
        own = {self.numbers[i]: i for i in indices}
        for number, images in self.source.images(list(own)):
            yield own[number], images

    @functools.cached_property
    def sha256(self) -> str:
        """Of the source and of which of its pairs these are."""
        return hashlib.sha256(f"{self.source.sha256} {array('q', self.numbers).tolist()}".encode()).hexdigest()

    def summary(self, first: int | None = None) -> str:
        """One line: how many pairs are used, perhaps the first of them alone, and what became of the others."""
        few = f", the first {first} of them (--limit)" if first is not None and first < len(self) else ""
        return f"{len(self)} of {self.counts['total']} pairs used{_rest(self.counts)}{few}"


def choose(source: PairSource, ties: Ties, models: str | None, exclude: Collection[str]) -> Chosen:
    """Without ties (label 0.5) unless they are kept; with `models`, only pairs both of whose images come from models
    whose name contains it; without prompts that are evaluated (`exclude`), whatever their case and spacing. A pair that
    is left out is counted under the first reason that holds: unlabelled, other models, evaluated, tie.

    Raises InputError where the source names no models but some are asked for, and where no pair is left.
    """
    excluded = {_plain(text) for text in exclude}
    counts = dict.fromkeys(("total", "used", *WORDS), 0)
    counts["total"], counts["unlabelled"] = len(source) + source.unlabelled, source.unlabelled
    numbers, named = array("q"), False
    for i, (text, label, made_by) in enumerate(source.rows()):
        named = named or made_by is not None
        if models is not None and not _both(made_by, models.lower()):
            counts["other_models"] += 1
        elif excluded and _plain(text) in excluded:
            counts["evaluated"] += 1
        elif label == 0.5 and ties == "drop":
            counts["ties_dropped"] += 1
        else:
            counts["ties_kept"] += label == 0.5
            numbers.append(i)
    if models is not None and not named:
        raise InputError(f"pairs of models {models!r} were asked for, but the file does not say which model made what.")
    counts["used"] = len(numbers)
    if not numbers:
        raise InputError(f"no preference pair is left of {counts['total']}{_rest(counts)}.")
    return Chosen(source, numbers, counts)


def _both(names: tuple[str, str] | None, wanted: str) -> bool:
    return names is not None and all(wanted in name.lower() for name in names)


def _plain(text: str) -> str:
    """A prompt as it is compared with those that are evaluated."""
    return " ".join(text.lower().split())


def _rest(counts: Mapping[str, int]) -> str:
    parts = [f"{counts[name]} {words}" for name, words in WORDS.items() if counts[name]]
    return f" ({', '.join(parts)})" if parts else ""


def preference(first: float, second: float, info: RewardInfo) -> float:
    """P(first preferred) by a reward: 1, 0, or 0.5 where the scores tie."""
    if abs(first - second) <= info.tie_epsilon:
        return 0.5
    return float((first > second) == info.higher_is_better)
