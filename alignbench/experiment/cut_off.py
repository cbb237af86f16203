"""Prompts that the model's text encoders cut off: counted and said in one way, before a run and before a dry run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from alignbench.asking.resolve import Cell
from alignbench.diffusion.registry import TellsTruncated
from alignbench.interface import Pipeline, Prompt, Truncates

Reader = Callable[[Sequence[Prompt]], Sequence[bool] | None]  # which prompts are cut off; None where it is not known


def reader_of(pipeline: Pipeline) -> Reader:
    """What a loaded model cuts off: nothing where it has no encoder of texts."""
    return pipeline.truncated if isinstance(pipeline, Truncates) else lambda prompts: [False] * len(prompts)


def reader_before_loading(cell: Cell) -> Reader:
    """The same of a model whose networks are not loaded."""
    family = cell.family
    if not isinstance(family, TellsTruncated):
        return lambda prompts: [False] * len(prompts)
    tokens = cell.options.text_length or cell.model.tokens
    model = dataclasses.replace(cell.model, tokens=tokens)
    return lambda prompts: family.truncated(model, prompts)


def prompts_of(cell: Cell) -> dict[str, list[Prompt]]:
    """The prompts that a cell's model reads, by their use."""
    used = {"evaluated": list(cell.evaluated)}
    if cell.configuration.train_prompts is not None:
        used["training"] = list(cell.training)
    if cell.chosen is not None:
        prompts = (cell.chosen.pair(i).prompt for i in range(len(cell.chosen)))
        used["pair"] = list({prompt.text: prompt for prompt in prompts}.values())
    return used


def counted(read: Reader, used: Mapping[str, Sequence[Prompt]]) -> dict[str, int] | None:
    """How many prompts of each use are cut off, where any are; None where it is not known."""
    found = {}
    for use, prompts in used.items():
        if (cut := read(prompts)) is None:
            return None
        found[use] = sum(cut)
    return {use: n for use, n in found.items() if n}


def sentence(model: str, cut: Mapping[str, int], used: Mapping[str, Sequence[Prompt]]) -> str:
    """One line, in the words of what is said of scorers."""
    shares = " and ".join(f"{n} of {len(used[use])} {use} prompts" for use, n in cut.items())
    return f"{model} reads {shares} cut off at its longest"
