"""Prompt sets by name or from a user's file, and what a result file keeps of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from alignbench import plugins
from alignbench.asking import prompt_files
from alignbench.asking.prompt_files import SUFFIXES
from alignbench.errors import InputError, UnknownName, shown
from alignbench.files import canonical_json
from alignbench.texts import is_text

if TYPE_CHECKING:
    from alignbench.interface import Prompt, PromptSet


class FilePrompts:
    """A user's file of prompts, for evaluation only. See `prompt_files` for the formats."""

    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def prompts(self, split: str) -> Sequence[Prompt]:
        return prompt_files.read(self._path).prompts


def find(name: str) -> PromptSet:
    """The prompt set a name or a file path means. Raises UnknownName or InputError."""
    from alignbench.interface import PromptSet

    check(name)
    if is_file(name):
        return FilePrompts(Path(name))
    prompt_set = plugins.load("benchmarks", name)()
    if absent := plugins.lacking(prompt_set, PromptSet):
        raise InputError(f"prompt set {name!r} lacks {', '.join(absent)}; see alignbench.PromptSet.")
    return prompt_set


def check(name: str) -> None:
    """Raise InputError where a name is that of no prompt set and of no file. Imports no plug-in."""
    if not is_file(name):
        try:
            plugins.check("benchmarks", name)
        except UnknownName as error:
            raise InputError(
                f"{error} A file works too: --prompts FILE with the ending {', '.join(SUFFIXES)}."
            ) from None
    elif not Path(name).is_file():
        raise InputError(f"there is no prompt file {name!r}; expected a {', '.join(SUFFIXES)} file.")


def is_file(name: str) -> bool:
    """Whether a name is that of a file of prompts, by its ending."""
    return Path(name).suffix.lower() in SUFFIXES


def label(name: str) -> str:
    """A prompt set's name as it stands in a result's file name."""
    return Path(name).stem if is_file(name) else name.rpartition(":")[2]


def take(name: str, split: str) -> Sequence[Prompt]:
    """The prompts of a split. Raises InputError where the set has no such split or an id stands twice."""
    prompt_set = find(name)
    if split not in prompt_set.splits:
        raise InputError(f"prompt set {name!r} has no split {split!r}; it has {', '.join(prompt_set.splits)}.")
    prompts = prompt_set.prompts(split)
    if wrong := next((prompt for prompt in prompts if not is_text(prompt.text)), None):
        raise InputError(f"prompt set {name!r}: the prompt {wrong.id!r} is {shown(wrong.text)}; expected text.")
    counts = Counter(prompt.id for prompt in prompts)
    if twice := next((identifier for identifier, count in counts.items() if count > 1), None):
        raise InputError(
            f"prompt set {name!r}: the ids of split {split!r} are not unique: {twice!r} stands twice; rename one."
        )
    return prompts


def notes_on(name: str, used: Sequence[str] = ()) -> list[str]:
    """What to know of a prompt set, in sentences: the columns of a file that nothing uses, besides those `used`."""
    if not is_file(name):
        return []
    unused = [column or "one without a name" for column in prompt_files.read(Path(name)).unused if column not in used]
    return [f"{name}: columns that are not used: {', '.join(unused)}"] if unused else []


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids and texts in order."""
    return hashlib.sha256(canonical_json([[prompt.id, prompt.text] for prompt in prompts]).encode()).hexdigest()


def source(name: str) -> str | None:
    """What tells this prompt set from another of its name: of a plug-in its code, of a file what it holds; None of
    alignbench's own."""
    if is_file(name):
        return digest(prompt_files.read(Path(name)).prompts)
    return plugins.source("benchmarks", name, plugins.load("benchmarks", name))


def overlap(training: Sequence[Prompt], evaluation: Sequence[Prompt]) -> list[str]:
    """Texts that would be both trained on and evaluated, ignoring case and spacing."""
    seen = {_plain(prompt) for prompt in training}
    return [prompt.text for prompt in evaluation if _plain(prompt) in seen]


def without(training: Sequence[Prompt], evaluation: Sequence[Prompt]) -> list[Prompt]:
    """The training prompts that are not evaluated, ignoring case and spacing."""
    seen = {_plain(prompt) for prompt in evaluation}
    return [prompt for prompt in training if _plain(prompt) not in seen]


def _plain(prompt: Prompt) -> str:
    return " ".join(prompt.text.lower().split())
