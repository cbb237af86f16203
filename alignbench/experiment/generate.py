"""Generation and scoring of a cell's images, chunk by chunk, each chunk kept as soon as it is done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.memory import Fitting
from alignbench.diffusion.meter import Cost, Meter
from alignbench.diffusion.training import chunked
from alignbench.errors import RunError, Unsupported
from alignbench.experiment.progress import Progress
from alignbench.experiment.rewarding import checked
from alignbench.experiment.score_cache import ScoreCache
from alignbench.files import append_line, complete_lines, replace_file, sha256_of
from alignbench.images import as_tensor, to_bytes
from alignbench.interface import Prompt, Reward, Sampler, Start
from alignbench.keys import Key

GENERATED = "generated.jsonl"
SCORED = "scored.jsonl"
BATCH = {3: 32, 1: 512}  # images at once by default, for pictures and for points


@dataclass(frozen=True)
class Slot:
    """One image to make: a prompt's place in the evaluation and the number of the image."""

    place: int
    sample: int


def slots(prompts: int, images_per_prompt: int) -> list[Slot]:
    """All images of a cell, the first of every prompt first."""
    return [Slot(place, sample) for sample in range(images_per_prompt) for place in range(prompts)]


def evaluation_key(eval_seed: int, prompt: Prompt, sample: int) -> Key:
    """The key of an evaluation image: every algorithm and every training seed meets the same one."""
    return Key("eval", eval_seed)(prompt.id)(sample)


class ImageStore:
    """A cell's images on disk: 8-bit PNG for pictures, float32 arrays for points. Scoring reads them from here, so
    that a score is always about the file that is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, slot: Slot, picture: bool) -> Path:
        return self.folder / f"{slot.place:05d}-{slot.sample}.{'png' if picture else 'npy'}"

    def write(self, chunk: Sequence[Slot], images: Float[Tensor, b * image]) -> None:
        from PIL import Image

        for slot, image in zip(chunk, images, strict=True):
            picture = image.dim() == 3
            with replace_file(self.path(slot, picture), sync=False) as temporary:
                if picture:
                    Image.fromarray(to_bytes(image[None])[0].numpy()).save(temporary, format="PNG")
                else:
                    with open(temporary, "wb") as handle:
                        np.save(handle, image.cpu().numpy(), allow_pickle=False)

    def read(self, chunk: Sequence[Slot]) -> Float[Tensor, b * image]:
        """The stored images, in [0, 1]. Raises OSError or ValueError where one is missing or damaged."""
        from PIL import Image

        images = []
        for slot in chunk:
            path = self.path(slot, picture=True)
            if path.exists():
                with Image.open(path) as image:
                    images.append(as_tensor(image))
            else:
                images.append(torch.from_numpy(np.load(self.path(slot, picture=False), allow_pickle=False)))
        return torch.stack(images)

    def holds(self, chunk: Sequence[Slot]) -> bool:
        """Whether every image of a chunk is there."""
        return all(self.path(slot, True).exists() or self.path(slot, False).exists() for slot in chunk)


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
) -> tuple[Cost, float]:
    """Make every image that is not there yet; `start` gives the images that those of some prompts start from. Returns
    the cost and the seconds of all of them, over all attempts. A batch that does not fit into memory is halved."""
    store, log = ImageStore(folder / "images"), folder / GENERATED
    known = {tuple(map(tuple, line["slots"])): line for line in map(json.loads, complete_lines(log))}
    size = max(1, batch // sampler.particles)
    total, seconds = Cost(), 0.0
    fitting = Fitting(meter, progress.say)
    progress.stage("generate", len(wanted))
    for chunk in chunked(wanted, size):
        line = known.get(tuple((slot.place, slot.sample) for slot in chunk))
        if line is None or not store.holds(chunk):
            line = _generate_chunk(sampler, prompts, chunk, eval_seed, meter, store, start, fitting)
            append_line(log, json.dumps(line))
        total, seconds = total + Cost(**line["cost"]), seconds + line["seconds"]
        progress.advance(len(chunk))
    return total, seconds


def _generate_chunk(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    chunk: Sequence[Slot],
    eval_seed: int,
    meter: Meter,
    store: ImageStore,
    start: Callable[[Sequence[int]], Start] | None,
    fitting: Fitting,
) -> dict[str, Any]:
    before = meter.total

    def make(slots: Sequence[Slot]) -> float:
        """The seconds that it took."""
        started = time.monotonic()
        chosen = [prompts[slot.place] for slot in slots]
        keys = [evaluation_key(eval_seed, prompt, slot.sample) for prompt, slot in zip(chosen, slots, strict=True)]
        images = sampler(chosen, keys, start([slot.place for slot in slots]) if start else None).images
        if not torch.isfinite(images).all():
            raise RunError(f"the sampler made images that are not finite, first for prompt {chosen[0].text!r}.")
        store.write(slots, images)
        return time.monotonic() - started

    seconds = sum(fitting(make, chunk))
    return {
        "slots": [[slot.place, slot.sample] for slot in chunk],
        "cost": (meter.total - before).as_dict(),
        "seconds": round(seconds, 4),
    }


def score(
    scorers: Mapping[str, Reward],
    prompts: Sequence[Prompt],
    wanted: Sequence[Slot],
    batch: int,
    folder: Path,
    progress: Progress,
    device: str = "cpu",
    kept: Path | None = None,
) -> tuple[dict[str, dict[Slot, float]], dict[str, dict[Slot, str]]]:
    """Scores and reasons of failed scores, by scorer and image.

    With `kept`, scores of scorers that read files of weights are looked for there and kept there: those are the
    expensive ones, and their files say that they are what they were. The code of others may have changed.
    """
    store, log = ImageStore(folder / "images"), folder / SCORED
    values: dict[str, dict[Slot, float]] = {name: {} for name in scorers}
    failures: dict[str, dict[Slot, str]] = {name: {} for name in scorers}
    for line in map(json.loads, complete_lines(log)):
        for place, sample, value, reason in line["scores"] if line["scorer"] in scorers else []:
            known = values if reason is None else failures
            known[line["scorer"]][Slot(place, sample)] = value if reason is None else reason
    progress.stage("score", len(scorers) * len(wanted))
    for name, reward in scorers.items():
        cache = ScoreCache(kept, reward) if kept is not None and reward.info().files else None
        for chunk in chunked(wanted, batch):
            missing = [slot for slot in chunk if slot not in values[name] and slot not in failures[name]]
            if missing:
                texts = [prompts[slot.place] for slot in missing]
                scored = _scored(name, reward, store, missing, texts, cache, device)
                rows = []
                for slot, (value, reason) in zip(missing, scored, strict=True):
                    if reason is None:
                        values[name][slot] = value
                    else:
                        failures[name][slot] = reason
                    rows.append([slot.place, slot.sample, value if reason is None else None, reason])
                append_line(log, json.dumps({"scorer": name, "scores": rows}, allow_nan=False))
            progress.advance(len(chunk))
    return values, failures


def _scored(
    name: str,
    reward: Reward,
    store: ImageStore,
    chunk: Sequence[Slot],
    prompts: Sequence[Prompt],
    cache: ScoreCache | None,
    device: str,
) -> list[tuple[float, str | None]]:
    """A value, or a reason why there is none, per stored image; those that were scored before are not scored again."""
    if cache is None:
        return score_images(name, reward, store.read(chunk).to(device), prompts)
    hashes = [sha256_of(store.path(slot, picture=True)) for slot in chunk]
    known = [cache.get(digest, prompt.text) for digest, prompt in zip(hashes, prompts, strict=True)]
    fresh = [place for place, value in enumerate(known) if value is None]
    found: list[tuple[float, str | None]] = [(math.nan if value is None else value, None) for value in known]
    if fresh:
        images = store.read([chunk[place] for place in fresh]).to(device)
        scored = score_images(name, reward, images, [prompts[place] for place in fresh])
        for place, row in zip(fresh, scored, strict=True):
            found[place] = row
        cache.put([(hashes[p], prompts[p].text, found[p][0]) for p in fresh if found[p][1] is None])
    return found


def score_images(
    name: str, reward: Reward, images: Float[Tensor, b * image], prompts: Sequence[Prompt]
) -> list[tuple[float, str | None]]:
    """A value, or a reason why there is none, per image. A failure of a batch is narrowed down to its images."""
    try:
        with torch.no_grad():
            returned = reward(images, prompts)
    except (RunError, Unsupported):
        raise
    except Exception as error:
        if len(prompts) == 1:
            return [(math.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]
        single = (score_images(name, reward, images[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts)))
        return [row for rows in single for row in rows]
    numbers = checked(name, returned, prompts).double().tolist()
    return [(x, None if math.isfinite(x) else f"the scorer returned {x}") for x in numbers]
