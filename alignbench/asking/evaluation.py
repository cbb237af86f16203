"""A finished cell asked for once more, with another evaluation and everything else as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench import plugins
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.options import EvaluateOptions, RunOptions
from alignbench.asking.presets import build_algorithm, defaults_of
from alignbench.asking.resolve import Cell, resolve
from alignbench.diffusion import registry
from alignbench.errors import InputError
from alignbench.record.listing import complete_of
from alignbench.record.result import Configuration, Result

CHANGES = ("prompts", "split", "limit", "images_per_prompt", "eval_seed", "scorers")  # what an evaluation may choose
BESIDE = ("device", "batch_size", "name")  # and where and how it is made


@dataclass(frozen=True)
class Again:
    """A finished cell, and the one that is asked for."""

    path: Path
    result: Result
    cell: Cell


def ask_again(paths: Sequence[Path], wanted: EvaluateOptions, say: Callable[[str], None]) -> list[Again]:
    """The cells that `alignbench run` makes of results' options with another evaluation, each once.

    Of several results, those that are not complete or have this evaluation already are left out, and said. Raises
    InputError where none is left, where a file does not say its options, where something that made its pictures has
    changed since, or where prompts would be evaluated that the method was trained on.
    """
    found: dict[Path, Again] = {}
    theirs: list[Path] = []
    for path, result in complete_of(paths, say):
        cell = _asked_again(path, result, wanted)
        if cell.path.resolve() == path.resolve():
            theirs.append(path)
        else:
            found.setdefault(cell.path.resolve(), Again(path, result, cell))
    if not found:
        raise InputError(
            f"{', '.join(map(str, theirs))}: there is this evaluation already; choose another --images-per-prompt, "
            "--prompts, --split, --limit, --eval-seed or --scorers."
        )
    for path in theirs:
        say(f"left out: {path} has this evaluation already")
    return list(found.values())


def _asked_again(path: Path, result: Result, wanted: EvaluateOptions) -> Cell:
    """The cell of one result's options with another evaluation."""
    given = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    values = {name: given[name] for name in (*CHANGES, *BESIDE) if given.get(name) is not None}
    old = result.asked if result.asked is not None else _asked_before(path, result.configuration)
    asked: dict[str, Any] = {**old, "reward": result.configuration.reward}  # the default depends on prompts
    output = wanted.output or path.parent
    cell = _resolved({**asked, **values, "output": output}, path)
    if _training_prompts(cell.configuration) != _training_prompts(result.configuration):  # so does this one
        asked["train_prompts"] = _training_prompts(result.configuration)
        cell = _resolved({**asked, **values, "output": output}, path)
    _check_same_method(path, result, cell)
    if cell.algorithm.trains:
        _check_same_training(path, cell, _resolved({**asked, "output": output}, path))
    return cell


def _resolved(values: dict[str, Any], path: Path) -> Cell:
    return resolve(RunOptions.parse(values, str(path)))


def _training_prompts(configuration: Configuration) -> str | None:
    """What was trained on: with pairs that were made, their prompts."""
    made = (configuration.pairs or {}).get("prompts")
    return configuration.train_prompts or (str(made) if made else None)


def _check_same_method(path: Path, result: Result, cell: Cell) -> None:
    """Raise InputError where what made the old pictures is not what it was: code, a preset, a file of pairs."""
    old, new = result.configuration, cell.configuration
    makers = {new.algorithm, new.reward, new.train_prompts}
    parts = [
        configuration.model_copy(update={"code": {k: v for k, v in (configuration.code or {}).items() if k in makers}})
        for configuration in (old, new)
    ]
    if changed := [name for name in parts[0].differences(parts[1]) if name not in CHANGES]:
        raise InputError(
            f"{path} cannot be evaluated once more as it was: {', '.join(changed)} would be another now; bring that "
            "back, or run the method anew."
        )


def _check_same_training(path: Path, cell: Cell, before: Cell) -> None:
    """Raise InputError where the evaluation has prompts that the method was trained on: a run of it leaves them out of
    its training."""
    if prompt_sets.digest(cell.training) == prompt_sets.digest(before.training):
        return
    kept = {prompt.text for prompt in cell.training}
    example = next((prompt.text for prompt in before.training if prompt.text not in kept), "")
    raise InputError(
        f"{path} was trained on prompts that would be evaluated, such as {example!r}; choose other --prompts, or run "
        "the method anew without them."
    )


def _asked_before(path: Path, was: Configuration) -> dict[str, Any]:
    """Options that give a configuration, for results of before they were kept. Raises InputError where it holds
    something of which only the content is known, and not where it lies."""
    lost = {
        "--adapter": was.adapter,
        "--vae": was.vae,
        "--images": was.task,
        "--pairs": (was.pairs or {}).get("sha256"),
        "a plug-in or server as a scorer": [name for name in was.scorers if not plugins.known("rewards", name)],
    }
    if unknown := [name for name, value in lost.items() if value]:
        raise InputError(
            f"{path} was written before results kept their options, and had {', '.join(unknown)}; type its `alignbench "
            "run` with the new ones."
        )
    model = registry.find(was.model)
    algorithm, _ = build_algorithm(was.algorithm, plugins.load("algorithms", was.algorithm), model.preset, {})
    usual = json.loads(json.dumps(dataclasses.asdict(algorithm)))  # type: ignore[call-overload]
    fields = {name: value for name, value in was.fields.items() if name not in usual or usual[name] != value}
    asked: dict[str, Any] = {
        "algo": was.algorithm,
        "model": was.model,
        "prompts": was.prompts,
        "reward": was.reward,
        "set": {name: "none" if value is None else value for name, value in fields.items()},
        "seed": was.seed or 0,
        "budget": was.budget,
        **{name: getattr(was, name) for name in ("split", "limit", "images_per_prompt", "dtype", "eval_seed")},
        **{name: getattr(was, name) for name in ("vae_tiling", "resolution")},
        **{name: value for name, value in was.sampling.items() if getattr(model, name, None) != value},
    }
    defaults = defaults_of(model)
    pairs = {
        "count": registry.family_of(model).own_pairs or defaults.pair_count,
        "candidates": defaults.pair_candidates,
    }
    for name, default in pairs.items():
        if (made := (was.pairs or {}).get(name)) not in (None, default):
            asked[f"pair_{name}"] = made
    if _resolved({**asked, "output": path.parent}, path).configuration.scorers != was.scorers:
        asked["scorers"] = [name for name in was.scorers if name != was.reward]
    return asked
