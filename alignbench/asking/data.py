"""What a cell is evaluated on and trained on: prompts, preference pairs, images to edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignbench import plugins
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.needs import Needs, needs_of
from alignbench.asking.options import RunOptions
from alignbench.asking.presets import Defaults
from alignbench.asking.rewarded import reward_needs
from alignbench.asking.sources import Sources, read_sources
from alignbench.declared import TrainsOnEvaluated
from alignbench.diffusion.registry import Family, Model
from alignbench.errors import InputError, RunError
from alignbench.interface import Algorithm, PairAlgorithm, Prompt, Prompts
from alignbench.preferences.choosing import Chosen, choose
from alignbench.preferences.source import open_pairs

OF_A_FILE = ("pair_models", "pair_crop")  # options that only pairs of a file have
OF_MAKING = ("pair_count", "pair_candidates")  # and only pairs that are made


@dataclass(frozen=True)
class CellPrompts:
    """The prompts of a cell."""

    name: str
    whole: Sequence[Prompt]
    evaluated: Sequence[Prompt]
    train_name: str | None
    training: Prompts
    held_out: Sequence[Prompt]
    sources: Sources | None
    needs: Needs


def prompts_of(
    options: RunOptions, model: Model, family: Family, defaults: Defaults, algorithm: Algorithm
) -> CellPrompts:
    """What is evaluated and trained on, and what a run will need and has not. Raises RunError naming all of that where
    a file of prompts is missing, InputError where evaluated prompts would be trained on."""
    trains = algorithm.trains and options.pairs is None
    sources = _sources(options)
    name = str(options.images) if sources else options.prompts or defaults.prompts
    needs = _needs(options, model, defaults, algorithm, trains)
    try:
        whole = prompt_sets.take(name, options.split)
        train_name, training = _training_prompts(options, defaults, name, trains)
    except RunError:  # a file is missing: say what else is
        needs.check()
        raise
    evaluated = whole[: options.limit]
    family.refuse_prompts([*evaluated[:1], *(training[:1] if algorithm.trains else ())])
    if trains:
        training = _disjoint(options, training, whole, train_name, name)
    held_out_set = prompt_sets.find(train_name) if train_name else None
    held_out = held_out_set.prompts("dev") if held_out_set and "dev" in held_out_set.splits else ()
    return CellPrompts(name, whole, evaluated, train_name, training, held_out, sources, needs)


def _needs(options: RunOptions, model: Model, defaults: Defaults, algorithm: Algorithm, trains: bool) -> Needs:
    """What a run will need and is not on this machine."""
    evaluated = options.prompts or defaults.prompts
    prompts = [] if options.task == "sdedit" else [evaluated]
    own = plugins.known("benchmarks", evaluated) and "train" in plugins.load("benchmarks", evaluated).splits
    if trains and (name := options.train_prompts or (None if own else defaults.train_prompts)):
        prompts.append(name)
    rewards = reward_needs(options, defaults, algorithm)
    scorers = defaults.scorers if options.scorers is None else options.scorers
    return needs_of(model, prompts, [*rewards, *scorers])


def _sources(options: RunOptions) -> Sources | None:
    """The images to edit, or None where images are made from noise."""
    if options.task == "generate":
        for name in ("images", "strength"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: only --task sdedit starts from images; add it, or leave this out.")
        return None
    if options.budget:
        raise InputError("--budget counts whole chains, and --task sdedit runs a part of one; leave one of them out.")
    if options.images is None or options.strength is None:
        raise InputError("--task sdedit needs --images FILE.jsonl and --strength, such as 0.6.")
    if options.prompts is not None or options.split != "test":
        raise InputError("--task sdedit: the prompts are those of --images; leave --prompts and --split out.")
    return read_sources(options.images, options.strength)


def _training_prompts(
    options: RunOptions, defaults: Defaults, prompts_name: str, needed: bool
) -> tuple[str | None, Prompts]:
    """The training split of --train-prompts, else of the evaluated set, else, where prompts are needed, of the model's
    own default."""
    if options.train_prompts:
        prompt_set = prompt_sets.find(options.train_prompts)
        split = "train" if "train" in prompt_set.splits else prompt_set.splits[0]
        return options.train_prompts, Prompts(prompt_set.prompts(split))
    for name in (prompts_name, defaults.train_prompts if needed else None):
        if name and "train" in prompt_sets.find(name).splits:
            return name, Prompts(prompt_sets.find(name).prompts("train"))
    return None, Prompts(())


def _disjoint(
    options: RunOptions, training: Prompts, evaluated: Sequence[Prompt], train_name: str | None, prompts_name: str
) -> Prompts:
    """The training prompts without those that are evaluated. Raises InputError where a user named sets that share
    some, unless the set is one that is meant to be trained on and evaluated."""
    shared = prompt_sets.overlap(training, evaluated)
    if not shared:
        return training
    if train_name == prompts_name and isinstance(prompt_sets.find(prompts_name), TrainsOnEvaluated):
        return training
    if options.train_prompts or train_name == prompts_name:
        raise InputError(
            f"{len(shared)} prompts would be both trained on and evaluated, such as {shared[0]!r}; "
            "choose another --train-prompts or --split."
        )
    return Prompts(prompt_sets.without(training, evaluated))


def pairs_of(
    options: RunOptions,
    defaults: Defaults,
    algorithm: Algorithm,
    family: Family,
    asked: CellPrompts,
    reward_name: str | None,
) -> tuple[Chosen | None, dict[str, Any] | None]:
    """The pairs of a file, and what the configuration keeps of them or of pairs that the base model will make."""
    changed = [name for name in options.changed if name.partition("_")[0] in ("pairs", "pair")]
    if not (isinstance(algorithm, PairAlgorithm) and algorithm.learns_from_pairs):
        _refuse(changed, f"{options.algo!r} learns from no pairs")
        return None, None
    if family.own_pairs is not None:
        _refuse([name for name in changed if name != "pair_count"], f"model {options.model!r} makes its own pairs")
        return None, {"source": "exact", "count": options.pair_count or family.own_pairs}
    if options.pairs is None:
        _refuse([name for name in changed if name in OF_A_FILE], "only pairs of a file (--pairs) have a choice of it")
        if asked.train_name is None:
            return None, None
        count = options.pair_count or defaults.pair_count
        candidates = options.pair_candidates or defaults.pair_candidates
        made = {"source": "made", "count": count, "candidates": candidates, "ties": options.pair_ties}
        return None, made | {"reward": reward_name, "prompts": asked.train_name}
    _refuse([name for name in changed if name in OF_MAKING], "--pairs has its own")
    evaluated = {prompt.text for prompt in asked.whole}
    chosen = choose(open_pairs(options.pairs), options.pair_ties, options.pair_models, evaluated)
    kept: dict[str, Any] = {"source": options.pairs.name, "sha256": chosen.sha256, "count": len(chosen)}
    return chosen, kept | {"ties": options.pair_ties, "models": options.pair_models, "crop": options.pair_crop}


def _refuse(names: Sequence[str], why: str) -> None:
    for name in names:
        raise InputError(f"--{name.replace('_', '-')}: {why}; leave it out.")
