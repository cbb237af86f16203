"""Generation and scoring of a cell's images, chunk by chunk, each chunk kept as soon as it is done."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignbench.devices import chunked
from alignbench.errors import RunError
from alignbench.experiment.behind import Behind
from alignbench.experiment.diversity import holds_latents, keep_latents
from alignbench.files import append_line
from alignbench.interface import Prompt, Reward, Sampler, Start
from alignbench.keys import Key
from alignbench.memory import Fitting, Measured
from alignbench.meter import Cost, Meter
from alignbench.processes import ALONE, Processes, logs
from alignbench.progress import Progress
from alignbench.reading import records
from alignbench.record.pictures import ImageStore, PictureFacts, Slot, pixels_digest
from alignbench.scoring.score_cache import ScoreCache
from alignbench.scoring.shared import SharedPictures, ahead
from alignbench.scoring.values import score_images
from alignbench.sourced import is_hashed

GENERATED = "generated.jsonl"
SCORED = "scored.jsonl"


def evaluation_key(eval_seed: int, prompt: Prompt, sample: int) -> Key:
    """The key of an evaluation image: every algorithm and every training seed meets the same one."""
    return Key("eval", eval_seed)(prompt.id)(sample)


@dataclass(frozen=True)
class Generated:
    """What making all images took, over all attempts, and what is kept of those that are pictures."""

    cost: Cost
    seconds: float
    pictures: Mapping[Slot, PictureFacts]


def generate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    wanted: Sequence[Slot],
    eval_seed: int,
    batch: int,
    meter: Meter,
    folder: Path,
    progress: Progress,
    start: Callable[[Sequence[int]], Start] | None = None,
    about: Mapping[str, str] | None = None,
    processes: Processes = ALONE,
    memory: Measured | None = None,
) -> Generated:
    """Make every image that is not there yet, cannot be read, or is not what was made; `start` gives the images that
    those of some prompts start from, `about` is said of every picture in its metadata. A batch that does not fit into
    memory is halved; with `memory` it is measured what fits. Where a prompt has several images, the latents of all are
    kept beside them. The files of a batch are written while the next one is made. Processes share the batches, and each
    writes a log of its own, so that any number of them goes on where others stopped."""
    log = processes.log(folder, GENERATED)
    maker = _Maker(sampler, prompts, eval_seed, meter, folder, start, about or {}, wanted)
    known = dict(line for kept in logs(folder, GENERATED) for line in records(kept, _generated, progress.say))
    size = max(1, batch // sampler.particles)
    lines: list[Generated] = []
    fitting = Fitting(meter, progress.say, memory, sampler.particles)
    chunks = processes.shard(chunked(wanted, size))
    progress.stage("generate", sum(map(len, chunks)))

    def keep(made: _Made) -> Generated:
        line = maker.kept(made)
        append_line(log, json.dumps(line))
        return _generated(line)[1]

    with Behind(keep) as later:
        for chunk in chunks:
            line = known.get(tuple((slot.place, slot.sample) for slot in chunk))
            if line is not None and maker.holds(chunk, line.pictures):
                lines.append(line)
                progress.skip(len(chunk))
            else:
                later(maker.made(chunk, fitting))
                progress.advance(len(chunk))
    shares = processes.gather([_together([*lines, *later.results])])
    return _together(shares)


def _together(parts: Sequence[Generated]) -> Generated:
    return Generated(
        sum((part.cost for part in parts), Cost()),
        sum(part.seconds for part in parts),
        _merged(part.pictures for part in parts),
    )


def _generated(line: Any) -> tuple[tuple[tuple[int, int], ...], Generated]:
    """The images that a line of the log is about, what they cost, and what is kept of pictures: nothing in a line that
    an older version wrote, so that they are made again."""
    slots = tuple((int(place), int(sample)) for place, sample in line["slots"])
    cost = {str(name): int(count) for name, count in line["cost"].items()}
    kept = {
        Slot(place, sample): PictureFacts(str(sha256), {str(name): float(value) for name, value in statistics.items()})
        for place, sample, sha256, statistics in line.get("pictures", ())
    }
    return slots, Generated(Cost(**cost), float(line["seconds"]), kept)


class _Drawn(NamedTuple):
    """Images that were drawn at once, on the processor."""

    slots: Sequence[Slot]
    images: Tensor
    latents: Tensor | None  # where they are kept
    seconds: float


class _Made(NamedTuple):
    """The images of a chunk, before they are written, and what they cost."""

    slots: Sequence[Slot]
    parts: Sequence[_Drawn]
    cost: Cost


@dataclass(frozen=True)
class _Maker:
    """Makes images and looks at those that are there."""

    sampler: Sampler
    prompts: Sequence[Prompt]
    eval_seed: int
    meter: Meter
    folder: Path
    start: Callable[[Sequence[int]], Start] | None
    about: Mapping[str, str]
    wanted: Sequence[Slot]

    @property
    def store(self) -> ImageStore:
        return ImageStore(self.folder / "images")

    @functools.cached_property
    def several(self) -> bool:
        """Whether a prompt has more than one image."""
        return any(slot.sample for slot in self.wanted)

    def holds(self, chunk: Sequence[Slot], kept: Mapping[Slot, PictureFacts]) -> bool:
        """Whether the images of a chunk are there and what was made, with their latents where they are needed."""
        if not self.store.path(chunk[0], picture=True).exists():
            return self.store.holds(chunk)
        if set(kept) != set(chunk) or not self.store.are(chunk, [kept[slot] for slot in chunk]):
            return False
        return not self.several or holds_latents(self.folder, chunk)

    def made(self, chunk: Sequence[Slot], fitting: Fitting) -> _Made:
        """The images of a chunk, and what they took."""
        before = self.meter.total
        parts = fitting(self._make, chunk)
        return _Made(chunk, parts, self.meter.total - before)

    def _make(self, slots: Sequence[Slot]) -> _Drawn:
        started = time.monotonic()
        chosen = [self.prompts[slot.place] for slot in slots]
        keys = [evaluation_key(self.eval_seed, p, slot.sample) for p, slot in zip(chosen, slots, strict=True)]
        starts = self.start([slot.place for slot in slots]) if self.start else None
        drawn = self.sampler(chosen, keys, starts)
        if not torch.isfinite(drawn.images).all():
            raise RunError(f"the sampler made images that are not finite, first for prompt {chosen[0].text!r}.")
        latents = drawn.latents.cpu() if self.several and drawn.images.dim() == 4 else None
        return _Drawn(slots, drawn.images.cpu(), latents, time.monotonic() - started)

    def kept(self, made: _Made) -> dict[str, Any]:
        """Write the files of a chunk. Returns a line of the log."""
        pictures: dict[Slot, PictureFacts] = {}
        for drawn in made.parts:
            texts = [
                {"prompt": self.prompts[slot.place].text, **self.about, "sample": str(slot.sample)}
                for slot in drawn.slots
            ]
            self.store.write(drawn.slots, drawn.images, texts)
            if drawn.images.dim() == 4:
                pictures |= {slot: PictureFacts.of(one) for slot, one in zip(drawn.slots, drawn.images, strict=True)}
            if drawn.latents is not None:
                keep_latents(self.folder, drawn.slots, drawn.latents)
        line = {
            "slots": [[slot.place, slot.sample] for slot in made.slots],
            "cost": made.cost.as_dict(),
            "seconds": round(sum(drawn.seconds for drawn in made.parts), 4),
        }
        rows = [[slot.place, slot.sample, one.sha256, one.statistics] for slot, one in pictures.items()]
        return line | ({"pictures": rows} if rows else {})


class Scores(NamedTuple):
    """Scores, and reasons of failed ones, by scorer and image."""

    values: dict[str, dict[Slot, float]]
    failures: dict[str, dict[Slot, str]]


def score(
    scorers: Mapping[str, Reward],
    prompts: Sequence[Prompt],
    wanted: Sequence[Slot],
    batch: int,
    folder: Path,
    progress: Progress,
    device: str = "cpu",
    kept: Path | None = None,
    processes: Processes = ALONE,
    pictures: Mapping[Slot, PictureFacts] | None = None,
) -> Scores:
    """The scores of every image. Processes share them, and all get all of them.

    With `kept`, scores of scorers that name their weights are looked for there and kept there (see `ScoreCache`).
    `pictures` says which pictures they are: a score that was logged of another one, made before it, does not count.
    """
    digests = {slot: one.sha256 for slot, one in (pictures or {}).items()}
    store, log = ImageStore(folder / "images"), processes.log(folder, SCORED)
    values: dict[str, dict[Slot, float]] = {name: {} for name in scorers}
    failures: dict[str, dict[Slot, str]] = {name: {} for name in scorers}
    for scorer, logged in [line for found in logs(folder, SCORED) for line in records(found, _logged, progress.say)]:
        for slot, value, reason, sha256 in logged if scorer in scorers else []:
            if slot in digests and sha256 != digests[slot]:
                continue
            if reason is None:
                values[scorer][slot] = value
            else:
                failures[scorer][slot] = reason
    asked = [
        {name: [s for s in chunk if s not in values[name] and s not in failures[name]] for name in scorers}
        for chunk in processes.shard(chunked(wanted, batch))
    ]
    keeps = {name for name, reward in scorers.items() if kept is not None and is_hashed(reward.info())}
    caches = {name: ScoreCache(kept, scorers[name], progress.say) for name in keeps if kept is not None}
    progress.stage("score", sum(len(slots) for own in asked for slots in own.values()))
    for name, slots, scored in StoredImages(scorers, prompts, store, caches, device, digests).scores(asked):
        rows: list[list[Any]] = []
        for slot, (value, reason) in zip(slots, scored, strict=True):
            if reason is None:
                values[name][slot] = value
            else:
                failures[name][slot] = reason
            rows.append([slot.place, slot.sample, value if reason is None else None, reason, digests.get(slot)])
        append_line(log, json.dumps({"scorer": name, "scores": rows}, allow_nan=False))
        progress.advance(len(slots))
    shares = processes.gather([Scores(values, failures)])
    return Scores(*({name: _merged(share[k][name] for share in shares) for name in scorers} for k in (0, 1)))


def _merged(parts: Iterable[Mapping[Slot, Any]]) -> dict[Slot, Any]:
    return {slot: value for part in parts for slot, value in part.items()}


def _logged(line: Any) -> tuple[str, list[tuple[Slot, float, str | None, str | None]]]:
    """What a line of the log says of one scorer: images, values, why there is none, and of which picture; older
    versions did not say that."""
    rows = [
        (
            Slot(int(place), int(sample)),
            math.nan if reason is not None else float(value),
            reason and str(reason),
            str(of[0]) if of else None,
        )
        for place, sample, value, reason, *of in line["scores"]
    ]
    return str(line["scorer"]), rows


Found = list[tuple[float, str | None]]  # a value, or a reason why there is none, per image


class _Read(NamedTuple):
    """What was read for a chunk: which images each scorer is to score, and those that no cache knows."""

    asked: Mapping[str, Sequence[Slot]]
    hashes: Mapping[Slot, str]
    places: Mapping[Slot, int]  # in what follows
    images: SharedPictures | Tensor


@dataclass(frozen=True)
class StoredImages:
    """Stored images and their scorers. Each is read once for all of them, and the next ones while these are scored."""

    scorers: Mapping[str, Reward]
    prompts: Sequence[Prompt]  # by place
    store: ImageStore
    caches: Mapping[str, ScoreCache]  # of those whose scores are kept
    device: str
    digests: Mapping[Slot, str]  # SHA-256 of pixels, where it is known; of others it is taken

    def scores(self, chunks: Sequence[Mapping[str, Sequence[Slot]]]) -> Iterator[tuple[str, Sequence[Slot], Found]]:
        """Scorer after scorer, chunk after chunk, of the images that each is to score. Where the cache lacks one, all
        are scored: a batch of the missing ones alone would round differently, and a value would depend on what happened
        to be scored before. Raises OSError or ValueError for an image that cannot be read."""
        for read in ahead(self._read, chunks):
            for name, slots in read.asked.items():
                if slots:
                    yield name, slots, self._known(name, slots, read.hashes) or self._scored(name, slots, read)

    def _read(self, asked: Mapping[str, Sequence[Slot]]) -> _Read:
        hashed = dict.fromkeys(slot for name in self.caches for slot in asked[name])
        pixels = {slot: self.store.pixels(slot) for slot in hashed if slot not in self.digests}
        hashes = {slot: self.digests[slot] if slot in self.digests else pixels_digest(pixels[slot]) for slot in hashed}
        needed = {name: slots for name, slots in asked.items() if slots and not self._known(name, slots, hashes)}
        wanted = list(dict.fromkeys(slot for slots in needed.values() for slot in slots))
        places = {slot: place for place, slot in enumerate(wanted)}
        if wanted and not self.store.path(wanted[0], picture=True).exists():
            return _Read(asked, hashes, places, self.store.read(wanted).to(self.device))
        pictures = SharedPictures([self.scorers[name] for name in needed], self.device)
        for slot in wanted:
            pictures.add(pixels[slot] if slot in pixels else self.store.pixels(slot))
        return _Read(asked, hashes, places, pictures)

    def _known(self, name: str, slots: Sequence[Slot], hashes: Mapping[Slot, str]) -> Found:
        """The scores where the cache knows all of them; otherwise nothing."""
        cache = self.caches.get(name)
        known = [cache.get(hashes[slot], self.prompts[slot.place].text) for slot in slots] if cache is not None else []
        return [] if None in known else [(value, None) for value in known if value is not None]

    def _scored(self, name: str, slots: Sequence[Slot], read: _Read) -> Found:
        prompts, places = [self.prompts[slot.place] for slot in slots], [read.places[slot] for slot in slots]
        images = read.images[places] if isinstance(read.images, Tensor) else read.images.rows(places)
        found = score_images(name, self.scorers[name], images, prompts)
        if (cache := self.caches.get(name)) is not None:
            keys = [(read.hashes[slot], prompt.text) for slot, prompt in zip(slots, prompts, strict=True)]
            scored = zip(keys, found, strict=True)
            cache.put([(*key, x) for key, (x, reason) in scored if reason is None and cache.get(*key) is None])
        return found
