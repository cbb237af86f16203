"""The name of a cell's result file: <model>-<prompts>-<algo>[-<reward>][-<name or hash>][-seed<k>]."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from alignbench.asking import prompts as prompt_sets
from alignbench.asking.options import RunOptions
from alignbench.errors import InputError
from alignbench.files import canonical_json
from alignbench.plugins import label
from alignbench.record.result import Configuration


def stem(options: RunOptions, model: str, default_reward: str, configuration: Configuration) -> str:
    """The file name without its ending. The hash is of the options that are not at their default."""
    parts = [model, prompt_sets.label(configuration.prompts), label(configuration.algorithm)]
    if configuration.reward != default_reward and configuration.reward is not None:
        parts.append(label(configuration.reward))
    if options.name is not None:
        if not re.fullmatch(r"[\w.=-]+", options.name):
            raise InputError(f"--name {options.name!r}: expected letters, digits, '.', '_', '=' and '-'.")
        parts.append(options.name)
    else:
        changed = options.changed
        if configuration.train_prompts is None:  # nothing is trained on them: a suite's defaults give them to all cells
            changed.pop("train_prompts", None)
        if configuration.adapter:  # what it holds, wherever it lies
            changed["adapter"] = configuration.adapter
        if configuration.code:  # what it is, wherever it lies
            changed["code"] = sorted(set(configuration.code.values()))
        if changed:
            parts.append(hashlib.sha256(canonical_json(_text(changed)).encode()).hexdigest()[:6])
    if configuration.seed is not None:
        parts.append(f"seed{configuration.seed}")
    return "-".join(parts)


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a user may write them, so that --set n=4 and `set: {n: 4}` name the same file."""
    return {k: {n: str(x) for n, x in v.items()} if isinstance(v, dict) else str(v) for k, v in values.items()}
