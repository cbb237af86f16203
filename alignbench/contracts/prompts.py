"""What every prompt set promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from alignbench.contracts.contract import Contract, require
from alignbench.errors import InputError, described
from alignbench.interface import PromptSet
from alignbench.plugins import lacking

SPLITS = {"train", "dev", "test"}


def subject(name: str, kind: Callable[[], Any]) -> PromptSet:
    """The prompt set. Raises InputError where it cannot be made or is none."""
    try:
        found = kind()
    except Exception as error:  # somebody's code may raise anything
        raise InputError(f"prompt set {name!r} cannot be made: {described(error)}.") from error
    if absent := lacking(found, PromptSet):
        raise InputError(f"prompt set {name!r} lacks {', '.join(absent)}; see alignbench.PromptSet.")
    return cast(PromptSet, found)


def _splits(subject: PromptSet) -> None:
    require(bool(subject.splits), "it has no splits")
    others = set(subject.splits) - SPLITS
    require(not others, f"its splits are {', '.join(subject.splits)}; expected some of train, dev, test")


def _fixed_order(subject: PromptSet) -> None:
    for split in subject.splits:
        require(subject.prompts(split) == subject.prompts(split), f"two readings of {split} differ")


def _unique(subject: PromptSet) -> None:
    for split in subject.splits:
        prompts = subject.prompts(split)
        require(len(prompts) > 0, f"{split} is empty")
        ids = len({prompt.id for prompt in prompts})
        require(ids == len(prompts), f"{split} has {len(prompts)} prompts and {ids} ids")


def _said(subject: PromptSet) -> None:
    for split in subject.splits:
        empty = [prompt.id for prompt in subject.prompts(split) if not prompt.text.strip()]
        require(not empty, f"prompts of {split} without text: {', '.join(empty[:3])}")


CONTRACTS = (
    Contract("its splits are train, dev or test", _splits),
    Contract("a split is the same each time it is read", _fixed_order),
    Contract("every prompt of a split has an id of its own", _unique),
    Contract("every prompt says something", _said),
)
