"""AI feedback: preference pairs that a model makes and a reward labels, kept in a folder that `open_pairs` reads.

Pair i is about prompt i of key("prompts").sample(prompts, count), and its images start from key("image", i, 0) and
key("image", i, 1); of more candidates, the reward's best and worst are the pair: they differ more. The reward sees the
8-bit images that are stored. Every chunk is kept as soon as it is done: a killed call, made again, ends with the same
files. Processes share the chunks, and each writes a log of its own.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignbench.asking import prompts as prompt_sets
from alignbench.asking.options import PairsOptions
from alignbench.asking.presets import defaults_of
from alignbench.asking.resolve import sampling_of, under_one_name
from alignbench.choices import NO_REWARD
from alignbench.devices import BATCH, chunked
from alignbench.diffusion import registry
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError
from alignbench.experiment import cut_off
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.ready import check_pipeline
from alignbench.files import append_line, write_text
from alignbench.interface import Pipeline, Prompt, Reward, Sampling
from alignbench.keys import Key
from alignbench.memory import Fitting, Measured, Memory, to_measure
from alignbench.meter import Cost, Meter
from alignbench.plugins import reward_of
from alignbench.preferences.choosing import preference
from alignbench.preferences.lines import FOLDER_FILE
from alignbench.processes import ALONE, Processes, logs
from alignbench.progress import Progress
from alignbench.reading import json_of, read_bytes, records
from alignbench.record.pictures import ImageStore, Slot
from alignbench.record.result import identity
from alignbench.record.resumable import Resumable

MADE = "made.json"  # what made the pairs; there once they are complete
JOURNAL = "made.jsonl"  # what is done, a chunk a line
LOGS = "made-*.jsonl"  # the same, of other processes than the first
STATE = "making.json"
IMAGES = "images"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Whose images are compared, by whom, and how many."""

    pipeline: Pipeline
    model: str
    reward: Reward
    reward_name: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    key: Key
    count: int
    candidates: int = 2

    @property
    def configuration(self) -> dict[str, Any]:
        """All that the pairs depend on, as JSON holds it."""
        content = {
            "model": dict(self.pipeline.info()),
            "model_name": self.model,
            "reward": identity(self.reward.info()).model_dump(),
            "prompts_sha256": prompt_sets.digest(self.prompts),
            "count": self.count,
            "candidates": self.candidates,
            "sampling": self.sampling.as_dict(),
            "key": list(self.key.path),
        }
        normal: dict[str, Any] = json.loads(json.dumps(content))
        return normal


@dataclass(frozen=True)
class Made:
    """A folder of pairs, and what they cost over all attempts."""

    folder: Path
    cost: Cost
    seconds: float
    pairs: int
    ties: int


def make_for(options: PairsOptions, force: bool = False) -> tuple[str, Made]:
    """What `alignbench pairs` does: a line on whose pairs they are, and the folder of them."""
    model = registry.find(options.model)
    options = under_one_name(model, options)
    family = registry.family_of(model)
    if family.own_pairs is not None:
        raise InputError(
            f"model {model.name!r} makes its pairs in memory, as many as a run asks for (--pair-count); no folder is "
            "needed."
        )
    if options.reward == NO_REWARD:
        raise InputError(f"--reward {NO_REWARD}: a reward says which image of a pair is preferred; name one.")
    defaults = defaults_of(model)
    name = options.prompts or defaults.train_prompts or defaults.prompts
    splits = prompt_sets.find(name).splits
    split = options.split or ("train" if "train" in splits else splits[0])
    prompts = prompt_sets.take(name, split)
    reward_name = options.reward or defaults.reward(prompts)
    reward = reward_of(reward_name)
    if reason := reward.unsupported(prompts, ()):
        raise InputError(f"reward {reward_name!r} cannot score these prompts: {reason}")
    meter = Meter()
    device = family.device(options.device)
    hold = Hold(device, options.dtype, sigmas=options.sigmas, tokens=options.text_length)
    sampling = sampling_of(model, options)
    pipeline = family.load(model, meter, hold, prompts)
    if reason := reward.unsupported(prompts, pipeline.info()["image_shape"]):
        raise InputError(f"reward {reward_name!r} cannot score images of {model.name!r}: {reason}")
    feedback = Feedback(
        pipeline=pipeline,
        model=model.name,
        reward=reward,
        reward_name=reward_name,
        prompts=prompts,
        sampling=sampling,
        key=Key("pairs", options.seed),
        count=options.count,
        candidates=options.candidates,
    )
    with Progress() as progress:
        progress.follow(meter)
        for line in prompt_sets.notes_on(name):
            progress.say(line)
        check_pipeline(pipeline, feedback.sampling, progress.say)
        used = {"training": prompts}
        if cut := cut_off.counted(cut_off.reader_of(pipeline), used):
            progress.say(cut_off.sentence(model.name, cut, used))
        batch = options.batch_size or BATCH[3]
        memory = to_measure(Memory(device), pipeline.info()["image_shape"], batch, options.batch_size is not None)
        made = make_pairs(feedback, options.output, batch, meter, progress, force, memory=memory)
    return f"{model.name} on {name}/{split}, labelled by {reward_name}", made


def make_pairs(
    feedback: Feedback,
    folder: Path,
    batch: int,
    meter: Meter,
    progress: Progress,
    force: bool = False,
    processes: Processes = ALONE,
    memory: Measured | None = None,
) -> Made:
    """Make pairs, or go on making them; a finished folder of this configuration is returned as it is. Another process
    that makes them is waited for.

    Raises InputError where the folder holds anything else, unless `force` replaces pairs that are there, RunError where
    an image or a reward is not finite.
    """
    if len(feedback.pipeline.info()["image_shape"]) != 3:
        raise InputError(f"model {feedback.model!r} makes points; pairs in a folder are of pictures.")
    work = Resumable(
        folder,
        feedback.configuration,
        STATE,
        elsewhere="choose an empty or a new folder",
        replace="use --force to replace what is there",
        own=(MADE, JOURNAL, LOGS, FOLDER_FILE, IMAGES),
    )
    maker = _Maker(feedback, MeteredReward(feedback.reward_name, feedback.reward, meter), folder, meter)
    done = _finished(work, force) if processes.first else None
    leads = processes.first and done is None
    with work.alone() if leads else contextlib.nullcontext():
        lines: list[dict[str, Any]] = []
        if leads and not (done := _finished(work, force)):  # by a process that was waited for
            work.begin(force)
            lines = _resumed(folder, maker.store, progress.say)
        done, known = processes.told((done, _pairs_of(lines)))
        if done:
            return done
        missing = [i for i in range(feedback.count) if i not in known]
        chunks = processes.shard(chunked(missing, max(1, batch // feedback.candidates)))
        progress.stage("pairs", len(known) + sum(map(len, chunks)), len(known))
        fitting = Fitting(meter, progress.say, memory, feedback.candidates)
        log, own = processes.log(folder, JOURNAL), list[dict[str, Any]]()
        for chunk in chunks:
            own.append(maker.made(chunk, fitting))
            append_line(log, json.dumps(own[-1], allow_nan=False))
            progress.advance(len(chunk))
        lines += processes.gather(own)
        made: Any = _finish(work, maker, lines) if processes.first else None
        return processes.told(made)


class _Maker:
    """Makes and labels the images of pairs."""

    def __init__(self, feedback: Feedback, reward: MeteredReward, folder: Path, meter: Meter) -> None:
        self.feedback, self.reward, self.meter = feedback, reward, meter
        self.sampler = PipelineSampler(feedback.pipeline, feedback.sampling)
        self.prompts = feedback.key("prompts").sample(feedback.prompts, feedback.count)  # of each pair
        self.store = ImageStore(folder / IMAGES)

    def made(self, numbers: Sequence[int], fitting: Fitting) -> dict[str, Any]:
        """A line of the log."""
        before, started = self.meter.total, time.monotonic()
        rows = [row for some in fitting(lambda part: list(self.make(part)), numbers) for row in some]
        spent = {"cost": (self.meter.total - before).as_dict(), "seconds": round(time.monotonic() - started, 4)}
        return {"pairs": rows, **spent}

    def make(self, numbers: Sequence[int]) -> Iterator[tuple[int, float, float, float, int, int]]:
        """Make the images of some pairs; of each the number, the label, both scores, and which candidates they are."""
        key, candidates = self.feedback.key, self.feedback.candidates
        wanted = [Slot(i, which) for i in numbers for which in range(candidates)]
        prompts = [self.prompts[slot.place] for slot in wanted]
        images = self.sampler(prompts, [key("image", slot.place, slot.sample) for slot in wanted]).images
        if not torch.isfinite(images).all():
            raise RunError(f"the model made images that are not finite, first for prompt {prompts[0].text!r}.")
        self.store.write(wanted, images)
        scores = self.reward(self.store.read(wanted).to(images.device), prompts).double().tolist()
        info = self.reward.info()
        for i, own in zip(numbers, chunked(scores, candidates), strict=True):
            ranked = sorted(range(candidates), key=lambda which: own[which])
            a, b = sorted((ranked[0], ranked[-1]))
            yield i, preference(own[a], own[b], info), own[a], own[b], a, b


def _pairs_of(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of the pairs that lines of the log are about."""
    return {row[0] for line in lines for row in line["pairs"]}


def _finished(work: Resumable, force: bool) -> Made | None:
    """What a complete folder says of itself. Raises InputError where it is of another configuration, unless `force`
    replaces it."""
    path = work.folder / MADE
    if not path.exists() or not (work.folder / FOLDER_FILE).exists():
        return None
    try:
        content = json_of(read_bytes(path))
        cost, seconds = Cost(**content["cost"]), float(content["seconds"])
        made = Made(work.folder, cost, seconds, int(content["configuration"]["count"]), int(content["ties"]))
        same = content["configuration"] == work.configuration
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        if force:
            return None
        raise InputError(
            f"{path} cannot be read ({error}); use --force to make them anew, or choose another folder."
        ) from error
    if force and not same:
        return None
    work.check_same(content["configuration"], work.folder)
    return made


def _resumed(folder: Path, store: ImageStore, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What any number of processes did before, without chunks whose line or images cannot be read; one journal then
    says just that."""
    kept: list[dict[str, Any]] = []
    known: set[int] = set()
    for line in [line for log in logs(folder, JOURNAL) for line in records(log, _made, say)]:
        numbers = _pairs_of([line])
        is_new = not numbers & known  # or it was merged before, and its own log not yet removed
        if is_new and store.holds([Slot(row[0], k) for row in line["pairs"] for k in row[4:]]):
            kept.append(line)
            known |= numbers
    _merge(folder, kept)
    return kept


def _made(line: Any) -> dict[str, Any]:
    """A line of the journal, if it is one."""
    for i, label, a, b, *which in line["pairs"]:
        int(i), float(label), float(a), float(b), [int(k) for k in which]
    return {"pairs": line["pairs"], "cost": Cost(**line["cost"]).as_dict(), "seconds": float(line["seconds"])}


def _merge(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Make one log of all."""
    journal, *others = logs(folder, JOURNAL)
    write_text(journal, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    for log in others:
        log.unlink()


def _finish(work: Resumable, maker: _Maker, lines: Sequence[Mapping[str, Any]]) -> Made:
    _merge(work.folder, lines)
    rows = sorted(row for line in lines for row in map(tuple, line["pairs"]))
    model = maker.feedback.model
    content = [
        {
            "prompt": maker.prompts[i].text,
            "images": [str(maker.store.path(Slot(i, k), True).relative_to(work.folder)) for k in which],
            "label": label,
            "models": [model, model],
            "id": maker.prompts[i].id,
        }
        for i, label, _, _, *which in rows
    ]
    write_text(work.folder / FOLDER_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    cost = sum((Cost(**line["cost"]) for line in lines), Cost())
    seconds, ties = round(sum(line["seconds"] for line in lines), 3), sum(row[1] == 0.5 for row in rows)
    spent = {"cost": cost.as_dict(), "seconds": seconds}
    record = {"schema": SCHEMA, "configuration": work.configuration, "ties": ties, **spent}
    write_text(work.folder / MADE, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return Made(work.folder, cost, seconds, len(rows), ties)
