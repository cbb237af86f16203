"""AI feedback: preference pairs that a model makes and a reward labels, kept in a folder that `open_pairs` reads.

Pair i is about prompt i of key("prompts").sample(prompts, count), and its images start from key("image", i, 0) and
key("image", i, 1); of more candidates, the reward's best and worst are the pair: they differ more. The reward sees the
8-bit images that are stored. Every chunk is kept as soon as it is done: a killed call, made again, ends with the same
files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion import models
from alignbench.diffusion.memory import Fitting
from alignbench.diffusion.meter import Cost, Meter
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.diffusion.training import chunked
from alignbench.errors import InputError, RunError
from alignbench.experiment import prompts as prompt_sets
from alignbench.experiment.generate import BATCH, ImageStore, Slot
from alignbench.experiment.problem import exclusive
from alignbench.experiment.progress import Progress
from alignbench.experiment.rewarding import MeteredReward, identity
from alignbench.experiment.spec import Cell, RunSpec, defaults_of, parse_spec
from alignbench.files import append_line, complete_lines, remove_leftovers, write_text
from alignbench.interface import Pipeline, Prompt, Reward, RewardInfo, Sampling
from alignbench.keys import Key
from alignbench.preferences.source import FOLDER_FILE

MADE = "made.json"  # what made the pairs; there once they are complete
JOURNAL = "made.jsonl"  # the same, then what is done, a chunk a line
SCHEMA = 1


@dataclass(frozen=True)
class Made:
    """A folder of pairs, and what they cost over all attempts."""

    folder: Path
    cost: Cost
    seconds: float
    pairs: int
    ties: int


def pairs_spec(given: Mapping[str, Any]) -> RunSpec:
    """What pairs are made of, from options of `alignbench run`: the base model on the prompts that they will be about,
    by default the training prompts of the model's preset. Raises InputError."""
    model = models.find(given.get("model", "tiny"))
    if model.source == "exact":
        raise InputError(
            "model 'mixture' makes its pairs in memory, as many as a run asks for (--pair-count); no folder is needed."
        )
    defaults = defaults_of(model)
    name = given.get("prompts") or defaults.train_prompts or defaults.prompts
    splits = prompt_sets.find(name).splits
    split = given.get("split") or ("train" if "train" in splits else splits[0])
    return parse_spec({**given, "algo": "base", "prompts": name, "split": split, "scorers": ()}, "alignbench pairs")


def make_for(cell: Cell, count: int, candidates: int, folder: Path, quiet: bool = False) -> Made:
    """Load the model of a cell and make pairs for its prompts."""
    if count < 1:
        raise InputError(f"--count {count}: expected at least 1.")
    if candidates < 2:
        raise InputError(f"--candidates {candidates}: a pair needs two.")
    assert cell.reward is not None
    assert cell.configuration.reward is not None
    meter = Meter()
    pipeline = models.load(
        cell.model, meter, cell.options(models.device_of(cell.spec.device)), autoencoder=cell.spec.vae
    )
    if reason := cell.reward.unsupported(cell.evaluated, pipeline.info()["image_shape"]):
        raise InputError(f"reward {cell.configuration.reward!r} cannot score images of {cell.model.name!r}: {reason}")
    with Progress(quiet) as progress:
        return make_pairs(
            pipeline=pipeline,
            reward=cell.reward,
            reward_name=cell.configuration.reward,
            model_name=cell.model.name,
            prompts=cell.evaluated,
            count=count,
            candidates=candidates,
            folder=folder,
            key=Key("pairs", cell.spec.seed),
            sampling=cell.sampling,
            batch=cell.spec.batch_size or BATCH[3],
            meter=meter,
            progress=progress,
        )


def make_pairs(
    *,
    pipeline: Pipeline,
    reward: Reward,
    reward_name: str,
    model_name: str,
    prompts: Sequence[Prompt],
    count: int,
    candidates: int = 2,
    folder: Path,
    key: Key,
    sampling: Sampling,
    batch: int,
    meter: Meter,
    progress: Progress,
) -> Made:
    """Make pairs, or go on making them; a finished folder of this configuration is returned as it is.

    Raises InputError where the folder holds anything else, RunError where an image or a reward is not finite.
    """
    configuration = {
        "model": dict(pipeline.info()),
        "model_name": model_name,
        "reward": identity(reward.info()).model_dump(),
        "prompts_sha256": prompt_sets.digest(prompts),
        "count": count,
        "candidates": candidates,
        "sampling": sampling.as_dict(),
        "key": list(key.path),
    }
    configuration = json.loads(json.dumps(configuration))  # as it is read back
    if len(pipeline.info()["image_shape"]) != 3:
        raise InputError(f"model {model_name!r} makes points; pairs in a folder are of pictures.")
    if done := _finished(folder, configuration):
        return done
    _check_free(folder)
    with exclusive(folder):
        remove_leftovers(folder)
        maker = _Maker(
            PipelineSampler(pipeline, sampling),
            MeteredReward(reward_name, reward, meter),
            key("prompts").sample(prompts, count),
            key,
            ImageStore(folder / "images"),
            candidates,
        )
        lines = _resumed(folder / JOURNAL, configuration, maker.store)
        known = {row[0] for line in lines for row in line["pairs"]}
        missing = [i for i in range(count) if i not in known]
        progress.stage("pairs", count, len(known))
        size, fitting = max(1, batch // candidates), Fitting(meter, progress.say)
        for first in range(0, len(missing), size):
            before, started = meter.total, time.monotonic()
            made = fitting(lambda numbers: list(maker.make(numbers)), missing[first : first + size])
            rows = [row for part in made for row in part]
            spent = {"cost": (meter.total - before).as_dict(), "seconds": round(time.monotonic() - started, 4)}
            lines.append({"pairs": rows, **spent})
            append_line(folder / JOURNAL, json.dumps(lines[-1], allow_nan=False))
            progress.advance(len(rows))
        return _finish(folder, configuration, maker, lines, model_name)


@dataclass(frozen=True)
class _Maker:
    sampler: PipelineSampler
    reward: MeteredReward
    prompts: Sequence[Prompt]  # of each pair
    key: Key
    store: ImageStore
    candidates: int

    def make(self, numbers: Sequence[int]) -> Iterator[tuple[int, float, float, float, int, int]]:
        """Make the images of some pairs; of each the number, the label, both scores, and which candidates they are."""
        wanted = [Slot(i, which) for i in numbers for which in range(self.candidates)]
        prompts = [self.prompts[slot.place] for slot in wanted]
        images = self.sampler(prompts, [self.key("image", slot.place, slot.sample) for slot in wanted]).images
        if not torch.isfinite(images).all():
            raise RunError(f"the model made images that are not finite, first for prompt {prompts[0].text!r}.")
        self.store.write(wanted, images)
        scores = self.reward(self.store.read(wanted).to(images.device), prompts).double().tolist()
        info = self.reward.info()
        for i, own in zip(numbers, chunked(scores, self.candidates), strict=True):
            ranked = sorted(range(self.candidates), key=lambda which: own[which])
            a, b = sorted((ranked[0], ranked[-1]))
            yield i, preference(own[a], own[b], info), own[a], own[b], a, b


def preference(first: float, second: float, info: RewardInfo) -> float:
    """P(first preferred) by a reward: 1, 0, or 0.5 where the scores tie."""
    if abs(first - second) <= info.tie_epsilon:
        return 0.5
    return float((first > second) == info.higher_is_better)


def _finished(folder: Path, configuration: Mapping[str, Any]) -> Made | None:
    """What a complete folder says of itself. Raises InputError where it is of another configuration."""
    path = folder / MADE
    if not path.exists() or not (folder / FOLDER_FILE).exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cost, seconds = Cost(**content["cost"]), float(content["seconds"])
        made = Made(folder, cost, seconds, int(content["configuration"]["count"]), int(content["ties"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete {folder}, or choose another folder.") from error
    _check_same(folder, content["configuration"], configuration)
    return made


def _check_free(folder: Path) -> None:
    """Refuse a folder of something else: its images would be overwritten."""
    if not folder.is_dir() or (folder / JOURNAL).exists():
        return
    if others := sorted(path.name for path in folder.iterdir() if path.name != ".lock"):
        raise InputError(f"{folder} holds other files ({', '.join(others[:3])}); choose an empty or a new folder.")


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if different := list(_differences(found, wanted)):
        raise InputError(
            f"{folder} holds pairs of another configuration; it differs in {', '.join(different)}. "
            "Choose another folder, or delete this one."
        )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{above}{name}.")
        elif a != b:
            yield above + name


def _resumed(journal: Path, configuration: Mapping[str, Any], store: ImageStore) -> list[dict[str, Any]]:
    """What was done before, without chunks whose images are gone; the journal then says just that."""
    try:
        lines = [json.loads(line) for line in complete_lines(journal)]
    except ValueError as error:
        raise RunError(f"{journal} cannot be continued ({error}); delete {journal.parent} to start again.") from error
    if lines:
        _check_same(journal.parent, lines[0]["configuration"], configuration)
    kept = [line for line in lines[1:] if store.holds([Slot(row[0], k) for row in line["pairs"] for k in row[4:]])]
    content = [{"configuration": configuration}, *kept]
    write_text(journal, "".join(json.dumps(line, allow_nan=False) + "\n" for line in content))
    return kept


def _finish(
    folder: Path, configuration: Mapping[str, Any], maker: _Maker, lines: Sequence[Mapping[str, Any]], model_name: str
) -> Made:
    rows = sorted(row for line in lines for row in map(tuple, line["pairs"]))
    content = [
        {
            "prompt": maker.prompts[i].text,
            "images": [str(maker.store.path(Slot(i, k), True).relative_to(folder)) for k in which],
            "label": label,
            "models": [model_name, model_name],
            "id": maker.prompts[i].id,
        }
        for i, label, _, _, *which in rows
    ]
    write_text(folder / FOLDER_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    cost = sum((Cost(**line["cost"]) for line in lines), Cost())
    seconds, ties = round(sum(line["seconds"] for line in lines), 3), sum(row[1] == 0.5 for row in rows)
    spent = {"cost": cost.as_dict(), "seconds": seconds}
    record = {"schema": SCHEMA, "configuration": configuration, "ties": ties, **spent}
    write_text(folder / MADE, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return Made(folder, cost, seconds, len(rows), ties)
