"""Prompt sets by name or from a user's file, and what a result file keeps of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from alignbench import plugins
from alignbench.errors import InputError, UnknownName
from alignbench.files import canonical_json

if TYPE_CHECKING:
    from alignbench.interface import Prompt, PromptSet

SUFFIXES = (".txt", ".tsv", ".csv", ".jsonl")
LONGEST = 5000  # characters; a longer line is a file of another kind
TEXT_COLUMNS = ("prompt", "text", "caption")


class FilePrompts:
    """A user's file of prompts, for evaluation only. See `read_file` for the formats."""

    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def prompts(self, split: str) -> Sequence[Prompt]:
        return read_file(self._path)


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


def label(name: str) -> str:
    """A prompt set's name as it stands in a result's file name."""
    return Path(name).stem if is_file(name) else name.rpartition(":")[2]


def take(name: str, split: str) -> Sequence[Prompt]:
    """The prompts of a split. Raises InputError where the set has no such split or an id stands twice."""
    prompt_set = find(name)
    if split not in prompt_set.splits:
        raise InputError(f"prompt set {name!r} has no split {split!r}; it has {', '.join(prompt_set.splits)}.")
    prompts = prompt_set.prompts(split)
    if len({prompt.id for prompt in prompts}) != len(prompts):
        raise InputError(f"prompt set {name!r}: the ids of split {split!r} are not unique.")
    return prompts


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids and texts in order."""
    return hashlib.sha256(canonical_json([[prompt.id, prompt.text] for prompt in prompts]).encode()).hexdigest()


def is_file(name: str) -> bool:
    """Whether a name is that of a user's file."""
    return Path(name).suffix in SUFFIXES


def source(name: str) -> str | None:
    """What tells this prompt set from another of its name: of a plug-in its code, of a file what it holds; None of
    alignbench's own."""
    if is_file(name):
        return digest(read_file(Path(name)))
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


def read_file(path: Path) -> list[Prompt]:
    """Prompts from a file: `.txt`, one a line; `.tsv` (quotes are text) and `.csv` with a header naming a column
    prompt, text or caption, optionally id, category and challenge; `.jsonl` with the same names.

    Raises InputError for an empty file, bytes that are not UTF-8, an over-long line, or a missing column.
    """
    from alignbench.interface import Prompt

    lines = lines_of(path)
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST:
            raise InputError(f"{path}, line {number}: {len(line)} characters; a prompt has at most {LONGEST}.")
    if path.suffix == ".txt":
        rows = [{"prompt": line} for line in lines if line.strip()]
    elif path.suffix == ".jsonl":
        rows = [_json_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    else:
        source = io.StringIO(_text(path), newline="")
        if path.suffix == ".tsv":
            reader = csv.DictReader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.DictReader(source)
        rows = [{(k or "").strip().lower(): v or "" for k, v in row.items() if isinstance(v, str)} for row in reader]
    if not rows:
        raise InputError(f"{path} holds no prompts.")
    column = next((name for name in TEXT_COLUMNS if name in rows[0]), None)
    if column is None:
        raise InputError(f"{path}: no column named {', '.join(TEXT_COLUMNS)}; found {', '.join(rows[0]) or 'none'}.")
    prompts = []
    for i, row in enumerate(rows):
        if not row.get(column, "").strip():
            raise InputError(f"{path}: prompt number {i + 1} is empty.")
        identifier = row.get("id") or f"{path.stem}-{i:05d}"
        prompts.append(Prompt(identifier, row[column], row.get("category", ""), row.get("challenge", "")))
    return prompts


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Raises InputError where it is not, and OSError."""
    return _text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")  # no other character ends a prompt


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {place}: not UTF-8 ({error.reason}); save the file as UTF-8.") from None


def _json_row(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise InputError(f'{path}, line {number}: expected an object such as {{"prompt": "a red circle"}}.')
    return {str(name).lower(): str(value) for name, value in row.items()}
