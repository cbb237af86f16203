"""What judges make of preference pairs, and how often they agree with the labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from alignbench.analysis.statistics import WinRate, win_rate
from alignbench.devices import chunked
from alignbench.errors import Unsupported
from alignbench.images import read_image
from alignbench.interface import Prompt, Reward
from alignbench.pictures import Notes, PictureError
from alignbench.preferences.choosing import Chosen, preference
from alignbench.preferences.columns import Encoded
from alignbench.progress import Progress
from alignbench.record.result import identity
from alignbench.scoring.values import score_images

DEFINITIONS = {
    "half": "ties count half: 1 − |label − prediction|, each of which is 1, ½ or 0 (as PickScore counts)",
    "inversions": "over all pairs, only predicting the other image is an error (HPSv2's inversion score)",
    "strict": "over pairs one of whose images was preferred, a predicted tie is an error (ImageReward's accuracy)",
}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Pairs to judge, the first n of those that were chosen, and how."""

    chosen: Chosen
    n: int
    batch: int  # pairs at once
    device: str
    progress: Progress


@runtime_checkable
class PairImages(Protocol):
    """Where the images of pairs come from."""

    def images(self, indices: Sequence[int]) -> list[tuple[int, tuple[Tensor, Tensor] | None]]:
        """See `EncodedPairs.images`."""


@dataclass
class Judgements:
    """What one scorer or policy made of the pairs, by number: P(first preferred), or why there is none."""

    name: str
    identity: Mapping[str, Any]
    predicted: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    unsupported: str | None = None  # why it cannot judge them at all


@dataclass(frozen=True)
class Row:
    """How often one scorer or policy agrees with the labels of the pairs it could judge."""

    name: str
    identity: Mapping[str, Any]
    pairs: int
    ties: int  # predicted
    failed: int
    reason: str | None  # why it judged none, or the first of those that failed
    rates: Mapping[str, WinRate | None]  # by definition; None where it leaves no pair


def agreement(labels: Array, predictions: Array) -> dict[str, Array]:
    """What each pair counts under each definition; NaN where the definition leaves it out. Both arguments are
    P(first preferred): 1, 0.5 or 0."""
    half = 1 - np.abs(labels - predictions)
    return {
        "half": half,
        "inversions": (half > 0).astype(float),
        "strict": np.where(labels == 0.5, math.nan, (half == 1).astype(float)),
    }


def row_of(judged: Judgements, chosen: Chosen) -> Row:
    """The rates of one judge, with intervals that know that a prompt's pairs belong together."""
    numbers = sorted(judged.predicted)
    pairs = [chosen.pair(i) for i in numbers]
    predictions = np.array([judged.predicted[i] for i in numbers], float)
    place = {text: k for k, text in enumerate(dict.fromkeys(pair.prompt.text for pair in pairs))}
    prompts = np.array([place[pair.prompt.text] for pair in pairs], np.int64)
    rates: dict[str, WinRate | None] = {}
    for name, counted in agreement(np.array([pair.label for pair in pairs], float), predictions).items():
        kept = ~np.isnan(counted)
        rates[name] = win_rate(counted[kept], prompts[kept]) if kept.any() else None
    return Row(
        name=judged.name,
        identity=judged.identity,
        pairs=len(pairs),
        ties=int((predictions == 0.5).sum()),
        failed=len(judged.failed),
        reason=judged.unsupported or (judged.failed[min(judged.failed)] if judged.failed else None),
        rates=rates,
    )


def judge_by_scorers(
    rewards: Mapping[str, Reward], pairs: PairImages, task: Task, shape: Sequence[int]
) -> list[Judgements]:
    """Each scorer's reporting path on both images of each pair. `shape` is empty where images differ in size."""
    chosen, n, progress = task.chosen, task.n, task.progress
    prompts = list({pair.prompt: None for pair in map(chosen.pair, range(n))}) if rewards else []
    judged = {name: Judgements(name, identity(reward.info()).model_dump()) for name, reward in rewards.items()}
    for name, reward in rewards.items():
        judged[name].unsupported = reward.unsupported(prompts, shape)
    usable = [name for name in rewards if judged[name].unsupported is None]
    if usable:
        progress.stage("score", n)
    for part in chunked(range(n), task.batch) if usable else []:
        read = [(i, images) for i, images in pairs.images(part) if images is not None]
        for name in usable:
            _judge(judged[name], rewards[name], read, chosen, task.device)
        progress.advance(len(part))
    return list(judged.values())


def _judge(
    judged: Judgements, reward: Reward, read: Sequence[tuple[int, tuple[Tensor, Tensor]]], chosen: Chosen, device: str
) -> None:
    """Add what a scorer prefers among images that were read; those of one shape are scored together."""
    if judged.unsupported is not None:
        return
    scores: dict[tuple[int, int], tuple[float, str | None]] = {}
    try:
        for members, images in by_shape(read):
            prompts = [chosen.pair(i).prompt for i, _ in members]
            scores |= zip(members, scored(judged.name, reward, images.to(device), prompts), strict=True)
    except Unsupported as error:
        judged.unsupported = str(error)
        judged.predicted.clear()
        return
    info = reward.info()
    for i, _ in read:
        (first, why), (second, why_second) = scores[i, 0], scores[i, 1]
        if reason := why or why_second:
            judged.failed[i] = reason
        else:
            judged.predicted[i] = preference(first, second, info)


def by_shape(
    read: Sequence[tuple[int, tuple[Tensor, Tensor]]],
) -> Iterator[tuple[list[tuple[int, int]], Float[Tensor, "b 3 h w"]]]:
    """Images in batches of equal shape, each with its pair's number and its place in it."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    images = {(i, side): image for i, both in read for side, image in enumerate(both)}
    for member, image in images.items():
        groups.setdefault(tuple(image.shape), []).append(member)
    for members in groups.values():
        yield members, torch.stack([images[member] for member in members])


def scored(
    name: str, reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]
) -> list[tuple[float, str | None]]:
    """A score, or a reason why there is none, for each image."""
    if reason := reward.unsupported(prompts, tuple(images.shape[1:])):
        return [(math.nan, reason)] * len(prompts)
    return score_images(name, reward, images, prompts)


class OwnSizes:
    """Images of pairs as they are, where no model says another size."""

    def __init__(self, chosen: Chosen, say: Callable[[str], None]) -> None:
        self.skipped: dict[int, str] = {}  # pairs with an image that cannot be read, and why
        self.notes = Notes(say)
        self._chosen, self._say = chosen, say

    def images(self, indices: Sequence[int]) -> list[tuple[int, tuple[Tensor, Tensor] | None]]:
        """See `EncodedPairs.images`."""
        found = {i: self._decoded(i, contents) for i, contents in self._chosen.images(indices)}
        return [(i, found[i]) for i in indices]

    def _decoded(self, i: int, contents: Encoded) -> tuple[Tensor, Tensor] | None:
        place = self._chosen.pair(i).place
        try:
            first, second = (read_image(content, self.notes, place) for content in contents)
        except PictureError as error:
            self.skipped[i] = str(error)
            self._say(f"pair skipped: {place}: {error}")
            return None
        return first, second


def short_names(names: Sequence[str], shorten: Callable[[str], str]) -> list[str]:
    """Short names, where they are not those of others too."""
    count = Counter(shorten(name) for name in names)
    return [shorten(name) if count[shorten(name)] == 1 else name for name in names]
