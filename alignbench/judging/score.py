"""Scores of images that are there already: a folder of pictures with prompts, or a result's own images."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import plugins
from alignbench.asking import prompts as prompt_sets
from alignbench.caches import Caches
from alignbench.devices import chunked, device_of
from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.images import as_tensor
from alignbench.interface import Prompt, Reward, RewardInfo, Truncates
from alignbench.judging.options import ScoreOptions
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.pictures import ImageStore, Slot
from alignbench.scoring.score_cache import ScoreCache
from alignbench.scoring.values import score_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NUMBERED = re.compile(r"(\d+)(?:-(\d+))?")  # a prompt's place, and the number of its image


@dataclass(frozen=True)
class Item:
    """A picture and what it was made for."""

    path: Path
    prompt: Prompt
    sample: int = 0


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


def score_place(place: Path, options: ScoreOptions, quiet: bool = False) -> Report:
    """What `alignbench score` does: every scorer on the pictures of a folder or of a result."""
    names = [plugins.full_name("rewards", name) for name in options.scorers]
    rewards = {plugins.label(name): plugins.reward_of(name, options.scoring) for name in names}
    items = items_of(place, options.prompts, options.split)
    with Progress(quiet) as progress:
        kept = Caches.usable(progress.say).scores
        return score_items(items, rewards, options.batch_size, device_of(options.device), kept, progress)


def items_of(place: Path, prompts: str | None, split: str = "test") -> list[Item]:
    """The pictures of a folder or of a result file, with their prompts.

    Pictures named by number (00012.jpg, or 00012-1.png for the second of a prompt) belong to the prompt of that place;
    others belong to the prompts in the order of their names, one each. Raises InputError where that does not fit.
    """
    if place.suffix == ".json" and place.is_file():
        if prompts is not None:
            raise InputError(f"--prompts {prompts}: the result {place} has its own prompts; leave it out.")
        return _items_of_result(place)
    if not place.is_dir():
        raise InputError(f"{place} is neither a folder of pictures nor a result file.")
    if prompts is None:
        raise InputError(f"say what the pictures in {place} were made for: --prompts NAME or FILE.")
    texts = prompt_sets.take(prompts, split)
    paths = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{place} holds no pictures; expected files ending in {', '.join(SUFFIXES)}.")
    numbers = [NUMBERED.fullmatch(path.stem) for path in paths]
    if all(numbers):
        found = []
        for path, number in zip(paths, numbers, strict=True):
            assert number is not None
            index = int(number[1])
            if index >= len(texts):
                raise InputError(f"{path} is of prompt number {index}, but {prompts!r} has {len(texts)}, from 0 on.")
            found.append(Item(path, texts[index], int(number[2] or 0)))
        return found
    if len(paths) != len(texts):
        raise InputError(
            f"{place} holds {len(paths)} pictures and {prompts!r} {len(texts)} prompts; expected as many, or pictures "
            "named by the place of their prompt, such as 00012.png."
        )
    return [Item(path, text) for path, text in zip(paths, texts, strict=True)]


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
    """Every scorer on every picture. Scores are kept below the folder `kept` as soon as they are there, and found again
    by picture, prompt and all that identifies the scorer."""
    rows = [Scored(item) for item in items]
    hashes = [sha256_of(item.path) for item in items]
    infos, truncated = {}, {}
    for name, reward in scorers.items():
        if reason := reward.unsupported([item.prompt for item in items], ()):
            raise InputError(f"scorer {name!r} cannot score these prompts: {reason}")
        infos[name] = reward.info()  # finds its files before anything is scored
    for name, reward in scorers.items():
        cache = ScoreCache(kept, reward, progress.say)
        progress.stage(name, len(items))
        for chunk in chunked(range(len(items)), batch):
            fresh = []
            for place in chunk:
                value = cache.get(hashes[place], items[place].prompt.text)
                if value is None:
                    fresh.append(place)
                else:
                    rows[place].scores[name] = value
            for places, images in _alike(items, fresh):
                scored = score_images(name, reward, images.to(device), [items[place].prompt for place in places])
                for place, (value, reason) in zip(places, scored, strict=True):
                    rows[place].scores[name] = value if reason is None else None
                    if reason is not None:
                        rows[place].failures[name] = reason
            found = [(hashes[p], items[p].prompt.text, rows[p].scores[name]) for p in fresh]
            cache.put([(digest, text, value) for digest, text, value in found if value is not None])
            progress.advance(len(chunk))
        if isinstance(reward, Truncates):
            truncated[name] = sum(reward.truncated([item.prompt for item in items]))
    return Report(rows, infos, truncated)


def _alike(items: Sequence[Item], places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """The pictures of the places, those of one size together."""
    from PIL import Image

    groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for place in places:
        try:
            with Image.open(items[place].path) as image:
                tensor = as_tensor(image)
        except OSError as error:
            raise InputError(f"{items[place].path} cannot be read as a picture ({error}); replace it.") from None
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
        "scorers": {name: asdict(info) for name, info in report.scorers.items()},
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


def text(report: Report) -> str:
    """The summary as a table."""
    lines = [f"{'scorer':24} {'images':>7} {'failed':>7} {'truncated':>10} {'mean':>10} {'deviation':>10}"]
    for name, s in summary(report).items():
        mean, deviation = (math.nan if s[key] is None else s[key] for key in ("mean", "deviation"))
        cut = "-" if s["truncated"] is None else s["truncated"]
        lines.append(f"{name:24} {s['images']:7} {s['failed']:7} {cut:>10} {mean:10.4g} {deviation:10.4g}")
        lines.append(f"  {report.scorers[name].id}; {report.scorers[name].preprocessing}")
    return "\n".join(lines) + "\n"
