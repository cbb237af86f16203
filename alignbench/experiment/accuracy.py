"""How often scorers, and aligned models as implicit rewards, agree with the labels of preference pairs.

A policy's implicit reward (Diffusion-DPO, Wallace et al. 2023, https://arxiv.org/abs/2311.12908, table 2): with L its
denoising error ‖ε − ε_θ(x_t, t, c)‖² averaged over the elements of a latent, and R the reference's,
    r(x) = −E_{t, ε}[L(x) − R(x)],
here the mean over a few draws of t and ε that both images of a pair share. The image with the higher one is predicted.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from alignbench import plugins
from alignbench.analysis.statistics import WinRate, win_rate
from alignbench.analysis.tables import Table, percent, plain
from alignbench.diffusion import models
from alignbench.diffusion.adapters import digest, open_policy
from alignbench.diffusion.checkpoints import Options
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.training import chunked, noising, pair_errors
from alignbench.downloads import cache_folder
from alignbench.errors import InputError, Unsupported
from alignbench.experiment.generate import BATCH, score_images
from alignbench.experiment.making import preference
from alignbench.experiment.progress import Progress
from alignbench.experiment.rewarding import identity
from alignbench.experiment.run import environment
from alignbench.experiment.spec import DType, defaults_of, label, reward_of
from alignbench.experiment.trained import adapter_folder, check_model, name_of
from alignbench.interface import Pairs, Pipeline, Prompt, Reward
from alignbench.keys import Key
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import Chosen, Ties, choose
from alignbench.preferences.encoded import FORMATS, Crop, EncodedPairs, fitted
from alignbench.preferences.source import Encoded, open_pairs

SCHEMA = 1
DEFINITIONS = {
    "half": "ties count half: 1 − |label − prediction|, each of which is 1, ½ or 0 (as PickScore counts)",
    "inversions": "over all pairs, only predicting the other image is an error (HPSv2's inversion score)",
    "strict": "over pairs one of whose images was preferred, a predicted tie is an error (ImageReward's accuracy)",
}
HEADS = {"half": "ties half", "inversions": "no inversion", "strict": "strict"}  # of columns
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AccuracySpec:
    """The options of `alignbench accuracy`."""

    pairs: Path
    model: str | None = None
    adapters: Sequence[Path] = ()  # folders of adapters or of cells, or result files of cells
    scorers: Sequence[str] = ()
    timesteps: int = 10  # draws of t and ε for each pair
    pair_ties: Ties = "drop"
    pair_models: str | None = None
    pair_crop: Crop = "centre"
    limit: int | None = None
    batch_size: int | None = None  # images at once
    seed: int = 0
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("timesteps", "limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1.")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: expected 0 or more.")
        if self.model is not None:
            return
        if self.adapters:
            raise InputError(f"--adapter {self.adapters[0]}: name the model it was trained on with --model.")
        if not self.scorers:
            raise InputError(
                "nothing to measure: pass --scorers NAME, or --model NAME for its own scorers, or --model NAME "
                "--adapter FOLDER for an aligned model (see `alignbench list`)."
            )
        if self.pair_crop != "centre":
            raise InputError(f"--pair-crop {self.pair_crop}: without --model images keep their own size; leave it out.")


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


@dataclass(frozen=True)
class Report:
    """Everything that is printed or written."""

    pairs: Mapping[str, Any]
    model: Mapping[str, Any] | None
    spec: AccuracySpec
    rows: Sequence[Row]
    environment: Mapping[str, Any]


def measure(spec: AccuracySpec, quiet: bool = False) -> Report:
    """Judge the pairs and compare with their labels. Raises RunError for an adapter that does not fit the model."""
    model = models.find(spec.model) if spec.model is not None else None
    rewards = _rewards(spec, model)
    folders = [adapter_folder(path) for path in spec.adapters]
    device = models.device_of(spec.device)
    chosen = choose(open_pairs(spec.pairs), spec.pair_ties, spec.pair_models, ())
    n = min(len(chosen), spec.limit or len(chosen))
    batch = max(1, (spec.batch_size or BATCH[3]) // 2)
    with Progress(quiet) as progress:
        pipeline: Pipeline | None = None
        pairs: EncodedPairs | OwnSizes = OwnSizes(chosen, progress.say)
        judged: list[Judgements] = []
        if model is not None:
            pipeline = models.load(model, Meter(), Options(device, spec.dtype))
            for folder in folders:
                check_model(folder, pipeline)
            cache = TensorCache(cache_folder() / "tensors.sqlite", say=progress.say)
            encoded = EncodedPairs(chosen, pipeline, cache, spec.pair_crop, Key("pairs", "crop"), progress.say)
            pairs = encoded
            judged = judge_by_policies(pipeline, encoded, chosen, folders, n, batch, spec, progress)
        shape = pipeline.info()["image_shape"] if pipeline is not None else ()
        judged = judge_by_scorers(rewards, pairs, chosen, n, batch, shape, device, progress) + judged
    return Report(
        pairs=_described(spec, chosen, n, pairs.skipped),
        model=dict(pipeline.info()) if pipeline is not None else None,
        spec=spec,
        rows=[row_of(item, chosen) for item in judged],
        environment=environment(device),
    )


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


def judge_by_policies(
    pipeline: Pipeline,
    pairs: Pairs,
    chosen: Chosen,
    folders: Sequence[Path],
    n: int,
    batch: int,
    spec: AccuracySpec,
    progress: Progress,
) -> list[Judgements]:
    """Each saved policy as an implicit reward, one in memory at a time, against its own reference: that of a fine-tuned
    denoiser computes in float32, as it does."""
    if not folders:
        return []
    keys = [Key("accuracy", spec.seed)("pair", number) for number in chosen.numbers[:n]]
    judged = []
    for name, folder in zip(
        short_names([str(folder) for folder in folders], lambda folder: name_of(Path(folder))), folders, strict=True
    ):
        item = Judgements(name, {"folder": str(folder), "sha256": digest(folder)})
        progress.stage(name, 2 * n)
        policy = open_policy(pipeline, folder)
        own, reference = (errors(p, pairs, keys, batch, spec.timesteps, progress) for p in (policy, policy.reference))
        for i in sorted(own.keys() & reference.keys()):
            z = float(implicit_margin(own[i], reference[i]))
            if math.isfinite(z):
                winner = 0.5 if z == 0 else float(z > 0)
                item.predicted[i] = winner if chosen.pair(i).label else 1 - winner  # label 0: the second is the winner
            else:
                item.failed[i] = f"its implicit reward is {z}"
        judged.append(item)
    return judged


@torch.no_grad()
def errors(
    pipeline: Pipeline, pairs: Pairs, keys: Sequence[Key], batch: int, timesteps: int, progress: Progress
) -> dict[int, Float[Tensor, "2 k"]]:
    """L of winner and loser of each pair that can be read, at `timesteps` draws from the pair's key."""
    found: dict[int, Tensor] = {}
    for part in chunked(range(len(keys)), batch):
        members = pairs.batch(part)
        if len(members):
            own = [keys[part[row]] for row in members.rows]
            draws = [
                pair_errors(
                    pipeline,
                    members,
                    noising([key(k) for key in own], members.winner, members.condition, pipeline.train_timesteps),
                )
                for k in range(timesteps)
            ]
            measured = torch.stack(draws, -1).cpu()
            found |= {part[row]: measured[:, place] for place, row in enumerate(members.rows)}
        progress.advance(len(part))
    return found


def implicit_margin(error: Float[Tensor, "2 k"], reference: Float[Tensor, "2 k"]) -> Float[Tensor, ""]:
    """r(winner) − r(loser), the mean over k draws: Diffusion-DPO's z up to β / 2."""
    winner, loser = error - reference
    return -(winner - loser).double().mean()


def judge_by_scorers(
    rewards: Mapping[str, Reward],
    pairs: EncodedPairs | OwnSizes,
    chosen: Chosen,
    n: int,
    batch: int,
    shape: Sequence[int],
    device: str,
    progress: Progress,
) -> list[Judgements]:
    """Each scorer's reporting path on both images of each pair. `shape` is empty where images differ in size."""
    prompts = list({pair.prompt: None for pair in map(chosen.pair, range(n))}) if rewards else []
    judged = {name: Judgements(name, identity(reward.info()).model_dump()) for name, reward in rewards.items()}
    for name, reward in rewards.items():
        judged[name].unsupported = reward.unsupported(prompts, shape)
    usable = [name for name in rewards if judged[name].unsupported is None]
    if usable:
        progress.stage("score", n)
    for part in chunked(range(n), batch) if usable else []:
        read = [(i, images) for i, images in pairs.images(part) if images is not None]
        for name in usable:
            _judge(judged[name], rewards[name], read, chosen, device)
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
        self._chosen, self._say = chosen, say

    def images(self, indices: Sequence[int]) -> list[tuple[int, tuple[Tensor, Tensor] | None]]:
        """See `EncodedPairs.images`."""
        found = {i: self._decoded(i, contents) for i, contents in self._chosen.images(indices)}
        return [(i, found[i]) for i in indices]

    def _decoded(self, i: int, contents: Encoded) -> tuple[Tensor, Tensor] | None:
        try:
            first, second = (fitted(content, _size(content), None) for content in contents)
        except Exception as error:  # decoders raise all kinds for broken files, from SyntaxError to struct.error
            self.skipped[i] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._say(f"pair skipped: {self._chosen.pair(i).place}: {self.skipped[i]}")
            return None
        return first, second


def _size(content: bytes) -> tuple[int, int]:
    """Height and width of an encoded image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        raise ValueError(f"{len(content)} bytes that are no {', '.join(FORMATS)}") from None


def _rewards(spec: AccuracySpec, model: models.Model | None) -> dict[str, Reward]:
    """The scorers that were named; where nothing is to be measured yet, those of the model's preset."""
    names = list(dict.fromkeys(plugins.canonical("rewards", name) for name in spec.scorers))
    if not names and not spec.adapters and model is not None:
        names = list(defaults_of(model).scorers)
    return {short: reward_of(name) for short, name in zip(short_names(names, label), names, strict=True)}


def short_names(names: Sequence[str], shorten: Callable[[str], str]) -> list[str]:
    """Short names, where they are not those of others too."""
    count = Counter(shorten(name) for name in names)
    return [shorten(name) if count[shorten(name)] == 1 else name for name in names]


def _described(spec: AccuracySpec, chosen: Chosen, n: int, skipped: Mapping[int, str]) -> dict[str, Any]:
    pairs = [chosen.pair(i) for i in range(n)]
    return {
        "path": str(spec.pairs),
        "sha256": chosen.sha256,
        "counts": dict(chosen.counts),
        "used": n,
        "prompts": len({pair.prompt.text for pair in pairs}),
        "ties": sum(pair.label == 0.5 for pair in pairs),
        "skipped": {chosen.pair(i).place: why for i, why in sorted(skipped.items())},
        "summary": chosen.summary(),
    }


def as_values(report: Report) -> dict[str, Any]:
    """The report as JSON holds it."""
    spec = report.spec
    asked = ("timesteps", "pair_ties", "pair_models", "pair_crop", "limit", "seed", "dtype")
    return {
        "schema": SCHEMA,
        "pairs": {name: value for name, value in report.pairs.items() if name != "summary"},
        "model": report.model,
        "options": {name: getattr(spec, name) for name in asked},
        "definitions": DEFINITIONS,
        "rows": [
            {
                "name": row.name,
                "pairs": row.pairs,
                "ties": row.ties,
                "failed": row.failed,
                "reason": row.reason,
                "accuracy": {name: rate and rate._asdict() for name, rate in row.rates.items()},
                "identity": row.identity,
            }
            for row in report.rows
        ],
        "environment": report.environment,
    }


def text(report: Report) -> str:
    """The report for people."""
    pairs = report.pairs
    header = ["", "pairs", "ties %"]
    for head in HEADS.values():
        header += [f"{head} %", "95 % interval"]
    rows = [
        [row.name, str(row.pairs), percent(row.ties / row.pairs) if row.pairs else "–", *_cells(row)]
        for row in report.rows
    ]
    title = f"agreement with the labels of {pairs['path']}: {pairs['used']} pairs, {pairs['prompts']} prompts"
    notes = [f"pairs: {pairs['summary']}"]
    if pairs["used"] < pairs["counts"]["used"]:
        notes[0] += f", the first {pairs['used']} of them (--limit)"
    if pairs["skipped"]:
        place, why = next(iter(pairs["skipped"].items()))
        notes.append(f"skipped: {len(pairs['skipped'])} with an image that cannot be read, first {place}: {why}")
    notes += [f"{row.name} judges none: {row.reason}" for row in report.rows if not row.pairs]
    notes += [
        f"{row.name} fails on {row.failed} pairs, first: {row.reason}"
        for row in report.rows
        if row.pairs and row.failed
    ]
    if report.spec.adapters:
        notes.append(
            f"aligned models: implicit reward over {report.spec.timesteps} draws of timestep and noise, seed "
            f"{report.spec.seed}"
        )
    notes += [f"{head}: {DEFINITIONS[name]}" for name, head in HEADS.items()]
    notes.append("intervals: Wilson at the prompt-clustered effective sample size")
    return plain(Table(title, header, rows)) + "".join(f"  {note}\n" for note in notes)


def _cells(row: Row) -> list[str]:
    cells = []
    for name in DEFINITIONS:
        rate = row.rates[name]
        cells += ["–", ""] if rate is None else [percent(rate.rate), f"{percent(rate.low)} to {percent(rate.high)}"]
    return cells
