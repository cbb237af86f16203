"""How often scorers, and aligned models as implicit rewards, agree with the labels of preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignbench.analysis.formats import Table, percent, plain, remarks
from alignbench.asking.adapter_folders import adapter_folder, check_model
from alignbench.asking.presets import defaults_of
from alignbench.caches import Caches
from alignbench.devices import BATCH, device_of
from alignbench.diffusion import registry
from alignbench.diffusion.registry import Hold, Model
from alignbench.interface import Pipeline, Reward
from alignbench.judging.implicit import judge_by_policies
from alignbench.judging.judgements import (
    DEFINITIONS,
    Judgements,
    OwnSizes,
    Row,
    Task,
    judge_by_scorers,
    row_of,
)
from alignbench.judging.options import AccuracyOptions
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.pictures import counted
from alignbench.plugins import rewards_of
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import Chosen, choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs
from alignbench.printed import WHOLE, Screen
from alignbench.progress import Progress
from alignbench.record.environment import environment

SCHEMA = 1
INTERVALS = "intervals: Tango's score interval (Wilson's without ties), prompts drawn at random"
FEW_PROMPTS = 6  # below which they say little
HEADS = {"half": "ties half", "inversions": "no inversion", "strict": "strict"}  # of columns


@dataclass(frozen=True)
class Report:
    """Everything that is printed or written."""

    pairs: Mapping[str, Any]
    model: Mapping[str, Any] | None
    options: AccuracyOptions
    rows: Sequence[Row]
    environment: Mapping[str, Any]


def measure(options: AccuracyOptions, quiet: bool = False) -> Report:
    """Judge the pairs and compare with their labels. Raises RunError for an adapter that does not fit the model."""
    model = registry.find(options.model) if options.model is not None else None
    rewards = _rewards(options, model)
    folders = [adapter_folder(path) for path in options.adapter]
    adapters = {folder: registry.family_of(model).adapter_digest(folder) for folder in folders} if model else {}
    device = device_of(options.device)
    chosen = choose(open_pairs(options.pairs), options.pair_ties, options.pair_models, ())
    n = min(len(chosen), options.limit or len(chosen))
    with Progress(quiet) as progress:
        task = Task(chosen, n, max(1, (options.batch_size or BATCH[3]) // 2), device, progress)
        pipeline: Pipeline | None = None
        pairs: EncodedPairs | OwnSizes = OwnSizes(chosen, progress.say)
        judged: list[Judgements] = []
        if model is not None:
            family = registry.family_of(model)
            meter = Meter()
            progress.follow(meter)
            pipeline = family.load(model, meter, Hold(device, options.dtype))
            for folder in folders:
                check_model(folder, pipeline)
            cache = TensorCache(Caches.usable(progress.say).tensors, say=progress.say)
            encoded = EncodedPairs(chosen, pipeline, cache, options.pair_crop, Key("pairs", "crop"), progress.say)
            pairs = encoded
            judged = judge_by_policies(pipeline, family, adapters, encoded, task, options.timesteps, options.seed)
        shape = pipeline.info()["image_shape"] if pipeline is not None else ()
        judged = judge_by_scorers(rewards, pairs, task, shape) + judged
    return Report(
        pairs=_described(options, chosen, n, pairs),
        model=dict(pipeline.info()) if pipeline is not None else None,
        options=options,
        rows=[row_of(item, chosen) for item in judged],
        environment=environment(device),
    )


def _rewards(options: AccuracyOptions, model: Model | None) -> dict[str, Reward]:
    """The scorers that were named; where nothing is to be measured yet, those of the model's preset."""
    names = options.scorers
    if not names and not options.adapter and model is not None:
        names = defaults_of(model).scorers
    return rewards_of(names)


def _described(options: AccuracyOptions, chosen: Chosen, n: int, source: EncodedPairs | OwnSizes) -> dict[str, Any]:
    pairs = [chosen.pair(i) for i in range(n)]
    return {
        "path": str(options.pairs),
        "sha256": chosen.sha256,
        "counts": dict(chosen.counts),
        "used": n,
        "prompts": len({pair.prompt.text for pair in pairs}),
        "ties": sum(pair.label == 0.5 for pair in pairs),
        "skipped": {chosen.pair(i).place: why for i, why in sorted(source.skipped.items())},
        "pictures": source.notes.counts,
        "summary": chosen.summary(n),
    }


def as_values(report: Report) -> dict[str, Any]:
    """The report as JSON holds it."""
    options = report.options
    asked = ("timesteps", "pair_ties", "pair_models", "pair_crop", "limit", "seed", "dtype")
    return {
        "schema": SCHEMA,
        "pairs": {name: value for name, value in report.pairs.items() if name != "summary"},
        "model": report.model,
        "options": {name: getattr(options, name) for name in asked},
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


def text(report: Report, screen: Screen = WHOLE) -> str:
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
    notes = about_pairs(pairs)
    notes += [f"{row.name} judges none: {row.reason}" for row in report.rows if not row.pairs]
    notes += [
        f"{row.name} fails on {row.failed} pairs, first: {row.reason}"
        for row in report.rows
        if row.pairs and row.failed
    ]
    if report.options.adapter:
        notes.append(
            f"aligned models: implicit reward over {report.options.timesteps} draws of timestep and noise, seed "
            f"{report.options.seed}"
        )
    notes += [f"{head}: {DEFINITIONS[name]}" for name, head in HEADS.items()]
    notes.append(INTERVALS + few_prompts(pairs["prompts"]))
    return plain(Table(title, header, rows), screen) + remarks(notes, screen)


def about_pairs(pairs: Mapping[str, Any]) -> list[str]:
    """Which pairs a report is of, and which it is not."""
    notes = [f"pairs: {pairs['summary']}"]
    if pairs["pictures"]:
        notes.append(f"pairs with pictures: {'; '.join(counted(pairs['pictures']))}")
    if pairs["skipped"]:
        place, why = next(iter(pairs["skipped"].items()))
        notes.append(f"skipped: {len(pairs['skipped'])} with an image that cannot be read, first {place}: {why}")
    return notes


def few_prompts(count: int) -> str:
    """What has to be said of intervals over so few prompts; '' for many."""
    if count == 1:
        return "; on one prompt, so that its pairs are what is drawn: they say nothing of other prompts"
    return f"; {count} prompts are few: they say little of others" if count < FEW_PROMPTS else ""


def _cells(row: Row) -> list[str]:
    cells = []
    for name in DEFINITIONS:
        rate = row.rates[name]
        cells += ["–", ""] if rate is None else [percent(rate.rate), f"{percent(rate.low)} to {percent(rate.high)}"]
    return cells
