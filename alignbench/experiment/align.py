"""Aligning a cell's model: the algorithm meets its problem, and goes on after it diverged or memory was full."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignbench import devices
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.resolve import Cell
from alignbench.caches import Caches
from alignbench.devices import chunked
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import Diverged, RunError
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.pairs import Feedback, Made, make_pairs
from alignbench.experiment.problem import CellProblem
from alignbench.files import canonical_json, write_text
from alignbench.interface import Algorithm, Pipeline, Prompt, Sampler
from alignbench.keys import Key
from alignbench.memory import Fitting, Measured
from alignbench.meter import Meter
from alignbench.plugins import served
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import Chosen, choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs
from alignbench.processes import Processes
from alignbench.progress import Progress
from alignbench.reading import json_of, read_bytes
from alignbench.sourced import identity_of, is_hashed

FORWARD_BATCH = "forward_batch.json"
HELD_OUT_PROMPTS = 24
OWN_PAIRS = "pairs"  # in the cell's folder


def problem_of(
    cell: Cell,
    pipeline: Pipeline,
    meter: Meter,
    batch: int,
    progress: Progress,
    processes: Processes,
    memory: Measured | None,
) -> CellProblem:
    """The problem that the algorithm will meet, without pairs."""
    return CellProblem(
        pipeline=pipeline,
        reward=MeteredReward(cell.reward_name, cell.reward, meter),
        prompts=cell.training,
        sampling=cell.sampling,
        key=Key("align", cell.options.seed),
        meter=meter,
        folder=cell.folder,
        progress=progress,
        probe=_probe(cell, batch, Fitting(meter, progress.say, memory)) if cell.held_out else None,
        processes=processes,
    )


def add_pairs(cell: Cell, problem: CellProblem, batch: int, caches: Caches, memory: Measured | None) -> Made | None:
    """Give the problem its preference pairs and say what they are: the family's own, of a file, or made now and kept
    for later."""
    wanted = cell.configuration.pairs
    if wanted is None:
        return None
    if cell.family.own_pairs is not None:
        key, count = problem.key("pairs"), int(wanted["count"] or 0)
        problem.pairs = cell.family.pairs(problem.pipeline, cell.reward_name, cell.training, key, count)
        return None
    made, chosen = None, cell.chosen
    if chosen is None:
        made, chosen = _make_pairs(cell, problem, wanted, batch, caches.pairs, memory)
    say = problem.progress.say
    say(chosen.summary())
    cache = TensorCache(caches.tensors, say=say)
    problem.pairs = EncodedPairs(chosen, problem.pipeline, cache, cell.options.pair_crop, Key("pairs", "crop"), say)
    return made


def folder_of_pairs(cell: Cell, pipeline: Pipeline, count: int, candidates: int, kept: Path) -> Path:
    """Where the pairs that a cell makes are kept: shared by all that ask for the same ones, unless a server labels them
    that names no weights. What it says of itself, another scorer may say tomorrow."""
    info = cell.reward.info()
    if served(cell.reward_name) and not is_hashed(info):
        return cell.folder / OWN_PAIRS
    asked = [dict(pipeline.info()), identity_of(info), prompt_sets.digest(cell.training)]
    content = canonical_json([*asked, count, candidates, cell.sampling.as_dict()])
    return kept / hashlib.sha256(content.encode()).hexdigest()[:16]


def _make_pairs(
    cell: Cell, problem: CellProblem, wanted: Mapping[str, Any], batch: int, kept: Path, memory: Measured | None
) -> tuple[Made, Chosen]:
    """Pairs of the base model on the training prompts, labelled by the reward: one set for all seeds. The folder is
    ours, so that what cannot be continued in it is made anew."""
    count, candidates = int(wanted["count"] or 0), int(wanted["candidates"] or 0)
    folder = folder_of_pairs(cell, problem.pipeline, count, candidates, kept)
    problem.progress.say(
        f"no --pairs: {count} pairs of {cell.model.name} on {cell.configuration.train_prompts}/train, "
        f"labelled by {cell.reward_name}, are made or found in {folder}"
    )
    feedback = Feedback(
        pipeline=problem.pipeline,
        model=cell.model.name,
        reward=cell.reward,
        reward_name=cell.reward_name,
        prompts=cell.training,
        sampling=cell.sampling,
        key=Key("pairs", 0),
        count=count,
        candidates=candidates,
    )
    before = problem.meter.total
    made = make_pairs(
        feedback,
        folder,
        batch,
        problem.meter,
        problem.progress,
        force=True,
        processes=problem.processes,
        memory=memory,
    )
    problem.meter.total = before  # what they cost stands in their folder, whoever made them
    return made, choose(open_pairs(made.folder), cell.options.pair_ties, None, ())


def align(algorithm: Algorithm, problem: CellProblem) -> tuple[Sampler, int | None]:
    """The sampler of the aligned model, and how many images a forward pass had if they were fewer than asked for.

    A run that diverges once goes on from its last checkpoint; one whose forward passes do not fit into memory, with
    half as many images in each, which changes no gradient but for rounding.
    """
    kept, processes = problem.folder / FORWARD_BATCH, problem.processes
    # A run that is continued does not try the larger ones again.
    batch = processes.told(_fitted_before(kept) if processes.first else None)
    while True:
        fitting = algorithm if batch is None else dataclasses.replace(algorithm, batch=batch)  # type: ignore[type-var]
        failed: BaseException
        try:
            return fitting.align(problem), batch
        except Exception as error:
            failed = processes.common(error)
            if isinstance(failed, Diverged):
                if not problem.roll_back(failed):
                    raise failed from error
            elif isinstance(failed, RuntimeError | MemoryError) and devices.is_full(failed):
                batch = getattr(fitting, "batch", 1) // 2
                if batch < 1:
                    raise RunError(
                        "out of memory with one image in a forward pass; try --checkpointing, --dtype bfloat16, a "
                        "smaller --resolution, or --set tuning=lora where there is a choice."
                    ) from error
                problem.start_again()
                if processes.first:
                    write_text(kept, json.dumps(batch))
                problem.progress.say(f"out of memory: going on with {batch} images in a forward pass")
            elif failed is error:
                raise
            else:
                raise failed from error
        del failed
        devices.release()  # outside of the handler, whose error holds the policy that failed and what did not fit


def _fitted_before(kept: Path) -> int | None:
    """How many images a forward pass had when memory was full before; None where it was not, or nobody can read it."""
    try:
        return max(1, int(json_of(read_bytes(kept)))) if kept.exists() else None
    except (ValueError, TypeError):
        return None


def _probe(cell: Cell, batch: int, fitting: Fitting) -> Any:
    """Mean held-out scores of a policy on the first prompts of the dev split, with the same noise each time."""
    prompts = Key("probe", "prompts").sample(cell.held_out, min(HELD_OUT_PROMPTS, len(cell.held_out)))
    usable = {name: s for name, s in cell.scorers.items() if s.unsupported(prompts, ()) is None}

    def probe(policy: Pipeline) -> Mapping[str, float]:
        sampler = PipelineSampler(policy, cell.sampling)

        def make(part: Sequence[Prompt]) -> torch.Tensor:
            return sampler(part, [Key("probe")(p.id) for p in part]).images

        images = torch.cat([image for part in chunked(prompts, batch) for image in fitting(make, part)])
        return {name: float(scorer(images, prompts).nanmean()) for name, scorer in usable.items()}

    return probe
