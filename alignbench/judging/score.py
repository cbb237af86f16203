"""Scores of images that are there already: a folder of pictures with prompts, or a result's own images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignbench import plugins
from alignbench.analysis.formats import Table, plain, remarks
from alignbench.asking import prompts as prompt_sets
from alignbench.caches import Caches
from alignbench.devices import chunked, device_of
from alignbench.errors import InputError
from alignbench.images import read_pixels
from alignbench.interface import Prompt, Reward, RewardInfo, Truncates
from alignbench.judging import picture_folders
from alignbench.judging.options import ScoreOptions
from alignbench.judging.picture_folders import Found, Item
from alignbench.judging.picture_names import refuse_first
from alignbench.pictures import READING, Notes, PictureError, counted
from alignbench.printed import WHOLE, Screen
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.digests import changed
from alignbench.record.pictures import ImageStore, Slot, pixels_digest
from alignbench.scoring.score_cache import ScoreCache
from alignbench.scoring.shared import SharedPictures, ahead
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
    infos = {}
    for name, reward in scorers.items():
        if reason := reward.unsupported([item.prompt for item in items], ()):
            raise InputError(f"scorer {name!r} cannot score these prompts: {reason}")
        infos[name] = reward.info()  # finds its files before anything is scored
    rows, notes = [Scored(item) for item in items], Notes()
    caches = {name: ScoreCache(kept, reward, progress.say) for name, reward in scorers.items()}
    broken: dict[Path, PictureError] = {}
    progress.stage("score", len(items))
    for read in ahead(_Reader(items, scorers, caches, notes, device), chunked(range(len(items)), batch)):
        for place, error in read.broken.items():
            broken[items[place].path] = error
            rows[place].scores |= dict.fromkeys(scorers)
            rows[place].failures |= dict.fromkeys(scorers, f"it cannot be read: {error}")
        for name, reward in scorers.items():
            _score(name, reward, caches[name], rows, read)
        progress.advance(len(read.digests) + len(read.broken))
    if rows and len(broken) == len({item.path for item in items}):
        path, why = next(iter(broken.items()))
        raise InputError(f"not one of {len(rows)} pictures can be read; the first, {path}: {why}.")
    prompts = [item.prompt for item in items]
    truncated = {name: sum(r.truncated(prompts)) for name, r in scorers.items() if isinstance(r, Truncates)}
    return Report(rows, infos, truncated, pictures=notes.counts)


class _Read(NamedTuple):
    """What was read for a chunk: what identifies each picture to the caches, by its place, or why it cannot be read;
    and the pictures that lack a score, those of one size together."""

    digests: dict[int, str]
    broken: dict[int, PictureError]
    groups: list[tuple[list[int], SharedPictures]]


@dataclass(frozen=True)
class _Reader:
    """Reads the pictures of a chunk, each once for all scorers."""

    items: Sequence[Item]
    scorers: Mapping[str, Reward]
    caches: Mapping[str, ScoreCache]
    notes: Notes
    device: str

    def __call__(self, places: Sequence[int]) -> _Read:
        digests: dict[int, str] = {}
        broken: dict[int, PictureError] = {}
        groups: dict[tuple[int, ...], tuple[list[int], SharedPictures]] = {}
        for place in places:
            item = self.items[place]
            try:
                pixels = read_pixels(item.path, self.notes, str(item.path))
            except PictureError as error:
                broken[place] = error
                continue
            digests[place] = digest = f"{READING}:{pixels_digest(pixels)}"
            if any(cache.get(digest, item.prompt.text) is None for cache in self.caches.values()):
                alike = groups.setdefault(pixels.shape, ([], SharedPictures(self.scorers.values(), self.device)))
                alike[0].append(place)
                alike[1].add(pixels)
        return _Read(digests, broken, list(groups.values()))


def _score(name: str, reward: Reward, cache: ScoreCache, rows: Sequence[Scored], read: _Read) -> None:
    """One scorer's scores of a chunk: those that the cache knows, and those that it will know."""
    prompts = {place: rows[place].item.prompt for place in read.digests}
    known = {place: cache.get(digest, prompts[place].text) for place, digest in read.digests.items()}
    for place, value in known.items():
        rows[place].scores[name] = value
    for places, pictures in read.groups:
        own = [k for k, place in enumerate(places) if known[place] is None]
        if not own:
            continue
        texts = [prompts[places[k]] for k in own]
        for k, (value, reason) in zip(own, score_images(name, reward, pictures.rows(own), texts), strict=True):
            row = rows[places[k]]
            row.scores[name] = value if reason is None else None
            if reason is not None:
                row.failures[name] = reason
    fresh = [(place, rows[place].scores[name]) for place, value in known.items() if value is None]
    cache.put([(read.digests[p], prompts[p].text, value) for p, value in fresh if value is not None])


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
