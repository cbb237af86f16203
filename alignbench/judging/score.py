"""Scores of images that are there already: a folder of pictures with prompts, or a result's own images."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import plugins
from alignbench.analysis.formats import Table, plain, remarks
from alignbench.asking import prompts as prompt_sets
from alignbench.caches import Caches
from alignbench.devices import chunked, device_of
from alignbench.errors import InputError, RunError
from alignbench.images import read_image
from alignbench.interface import Prompt, Reward, RewardInfo, Truncates
from alignbench.judging import picture_folders
from alignbench.judging.options import ScoreOptions
from alignbench.judging.picture_folders import Found, Item
from alignbench.judging.picture_names import refuse_first
from alignbench.pictures import READING, Notes, PictureError, content_of, counted, read
from alignbench.printed import WHOLE, Screen
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.digests import changed
from alignbench.record.pictures import ImageStore, Slot
from alignbench.scoring.score_cache import ScoreCache
from alignbench.scoring.values import score_images
from alignbench.sourced import identity_of


@dataclass
class Scored:
    """A picture's scores by scorer; one that failed is None and has a reason."""

    item: Item
    scores: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Every row, and each scorer's identity and number of truncated prompts."""

    rows: Sequence[Scored]
    scorers: Mapping[str, RewardInfo]
    truncated: Mapping[str, int]  # images whose prompt was longer than the scorer reads
    about: Sequence[str] = ()  # what to know of the pictures and their prompts, in sentences
    pictures: Mapping[str, int] = field(default_factory=dict)  # what was done to how many more than reading them


def score_place(place: Path, options: ScoreOptions, quiet: bool = False) -> Report:
    """What `alignbench score` does: every scorer on the pictures of a folder or of a result."""
    rewards = plugins.rewards_of(options.scorers, options.scoring)
    found = items_of(place, options.prompts, options.split, options.first_number)
    with Progress(quiet) as progress:
        kept = Caches.usable(progress.say).scores
        report = score_items(found.items, rewards, options.batch_size, device_of(options.device), kept, progress)
    notes = prompt_sets.notes_on(options.prompts) if options.prompts is not None else []
    return replace(report, about=[*found.about, *notes])


def items_of(place: Path, prompts: str | None, split: str = "test", first_number: int | None = None) -> Found:
    """The pictures of a folder (see `picture_folders`) or of a result file, with their prompts. Raises InputError where
    they do not fit, and for a picture that is not the one that its result is of."""
    if place.suffix == ".json" and place.is_file():
        if prompts is not None:
            raise InputError(f"--prompts {prompts}: the result {place} has its own prompts; leave it out.")
        refuse_first(first_number, f"the result {place} knows its pictures")
        return Found(_items_of_result(place))
    if not place.is_dir():
        raise InputError(f"{place} is neither a folder of pictures nor a result file.")
    return picture_folders.find(place, prompts, split, first_number)


def _items_of_result(place: Path) -> list[Item]:
    result = results.read(place)
    store = ImageStore(place.with_suffix("") / "images")
    places = {prompt.id: i for i, prompt in enumerate(result.prompts)}
    texts = [Prompt(p.id, p.text, p.category, p.challenge) for p in result.prompts]
    items = []
    for row in result.rows:
        path = store.path(Slot(places[row.prompt], row.sample), picture=True)
        if not path.is_file():
            raise InputError(
                f"{place} has no picture {path}; keep the folder beside the result, or run the cell again."
            )
        if wrong := changed(place, row, path):
            raise InputError(wrong)
        items.append(Item(path, texts[places[row.prompt]], row.sample))
    return items


def score_items(
    items: Sequence[Item],
    scorers: Mapping[str, Reward],
    batch: int,
    device: str,
    kept: Path,
    progress: Progress,
) -> Report:
    """Every scorer on every picture. Below the folder `kept`, scores of those that name their weights are kept as soon
    as they are there, and found again by picture, prompt and all that identifies the scorer. A picture that cannot be
    read has no score, and a reason.

    Raises InputError where none can be read, and for a scorer that cannot score these prompts.
    """
    infos, truncated = {}, {}
    for name, reward in scorers.items():
        if reason := reward.unsupported([item.prompt for item in items], ()):
            raise InputError(f"scorer {name!r} cannot score these prompts: {reason}")
        infos[name] = reward.info()  # finds its files before anything is scored
    rows, notes = [Scored(item) for item in items], Notes()
    digests = _looked_at(rows, list(scorers), notes, progress)
    for name, reward in scorers.items():
        cache = ScoreCache(kept, reward, progress.say)
        progress.stage(name, len(items))
        for chunk in chunked(range(len(items)), batch):
            fresh = []
            for place in chunk:
                value = cache.get(digests[place], items[place].prompt.text) if place in digests else None
                if value is not None:
                    rows[place].scores[name] = value
                elif place in digests:
                    fresh.append(place)
            for places, images in _alike(items, fresh):
                scored = score_images(name, reward, images.to(device), [items[place].prompt for place in places])
                for place, (value, reason) in zip(places, scored, strict=True):
                    rows[place].scores[name] = value if reason is None else None
                    if reason is not None:
                        rows[place].failures[name] = reason
            found = [(digests[p], items[p].prompt.text, rows[p].scores[name]) for p in fresh]
            cache.put([(digest, text, value) for digest, text, value in found if value is not None])
            progress.advance(len(chunk))
        if isinstance(reward, Truncates):
            truncated[name] = sum(reward.truncated([item.prompt for item in items]))
    return Report(rows, infos, truncated, pictures=notes.counts)


def _looked_at(rows: Sequence[Scored], names: Sequence[str], notes: Notes, progress: Progress) -> dict[int, str]:
    """What identifies each picture to the cache, by its place. One that cannot be read has none, and fails in all
    columns. Raises InputError where that is so for all of them."""
    digests: dict[int, str] = {}
    broken: dict[Path, PictureError] = {}
    progress.stage("read", len(rows))
    for place, row in enumerate(rows):
        try:
            content = content_of(row.item.path)
            notes.add(read(content).notes, str(row.item.path))
            digests[place] = f"{READING}:{hashlib.sha256(content).hexdigest()}"
        except PictureError as error:
            broken[row.item.path] = error
            row.scores |= dict.fromkeys(names)
            row.failures |= dict.fromkeys(names, f"it cannot be read: {error}")
        progress.advance()
    if rows and not digests:
        path, why = next(iter(broken.items()))
        raise InputError(f"not one of {len(rows)} pictures can be read; the first, {path}: {why}.")
    return digests


def _alike(items: Sequence[Item], places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """The pictures of the places, those of one size together."""
    groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for place in places:
        try:
            tensor = read_image(items[place].path)
        except PictureError as error:  # it could be read a moment ago
            raise RunError(f"{items[place].path} can no longer be read ({error}); type the same again.") from None
        groups.setdefault(tuple(tensor.shape), []).append((place, tensor))
    for group in groups.values():
        yield [place for place, _ in group], torch.stack([tensor for _, tensor in group])


def summary(report: Report) -> dict[str, dict[str, Any]]:
    """Count, mean, deviation and range of each scorer, what failed and what was truncated."""
    found = {}
    for name in report.scorers:
        values = [value for row in report.rows if (value := row.scores.get(name)) is not None]
        found[name] = {
            "images": len(values),
            "failed": len(report.rows) - len(values),
            "truncated": report.truncated.get(name),
            "mean": statistics.fmean(values) if values else None,
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values, default=None),
            "max": max(values, default=None),
        }
    return found


def as_values(report: Report) -> dict[str, Any]:
    """What --json prints."""
    return {
        "scorers": {name: identity_of(info) for name, info in report.scorers.items()},
        "about": list(report.about),
        "pictures": dict(report.pictures),
        "summary": summary(report),
        "rows": [
            {
                "image": str(row.item.path),
                "prompt": row.item.prompt.id,
                "text": row.item.prompt.text,
                "sample": row.item.sample,
                "scores": row.scores,
                **({"failures": row.failures} if row.failures else {}),
            }
            for row in report.rows
        ],
    }


def text(report: Report, screen: Screen = WHOLE) -> str:
    """The summary as a table, and what to know of the pictures."""
    rows = []
    for name, s in summary(report).items():
        mean, deviation = (math.nan if s[key] is None else s[key] for key in ("mean", "deviation"))
        cut = "-" if s["truncated"] is None else str(s["truncated"])
        rows.append([name, str(s["images"]), str(s["failed"]), cut, f"{mean:.4g}", f"{deviation:.4g}"])
    header = ["scorer", "images", "failed", "truncated", "mean", "deviation"]
    title, *about = report.about or [f"{len(report.rows)} pictures"]
    about += [f"pictures: {'; '.join(counted(report.pictures))}"] if report.pictures else []
    failed = next(((row, why) for row in report.rows for why in row.failures.values()), None)
    if failed is not None:
        count = sum(bool(row.failures) for row in report.rows)
        about.append(f"without a score: {count}, the first {failed[0].item.path}: {failed[1]}")
    about += [f"{name}: {info.id}; {info.preprocessing}" for name, info in report.scorers.items()]
    return plain(Table(title, header, rows), screen) + remarks(about, screen)
