"""Folders of pictures that are there already, and which prompt each picture belongs to.

Read are: a folder of pictures; a cell's folder, whose pictures are in `images`; HPSv2's, with a folder for each style;
GenEval's, with a folder for each prompt and the pictures in `samples`; ImageReward's, whose names are a prompt's id and
a number. Within a folder names decide (see `picture_names`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignbench.asking import prompts as prompt_sets
from alignbench.errors import InputError, shown
from alignbench.interface import Prompt
from alignbench.judging.picture_names import (
    NAMED,
    Place,
    by_numbers,
    listing,
    natural,
    placed,
    refuse_first,
    slots_of,
    start_of,
)
from alignbench.pictures import SUFFIXES, UNREAD
from alignbench.printed import how_many
from alignbench.texts import json_of, text_of


@dataclass(frozen=True)
class Item:
    """A picture and what it was made for."""

    path: Path
    prompt: Prompt
    sample: int = 0


@dataclass(frozen=True)
class Found:
    """The pictures of a folder or a result, and what to know of them, in sentences."""

    items: Sequence[Item]
    about: Sequence[str] = ()


@dataclass(frozen=True)
class Listed:
    """What lies in one folder, in natural order."""

    pictures: list[Path]
    folders: list[Path]
    skipped: list[Path]  # files of other kinds, and hidden ones


def find(root: Path, prompts: str | None, split: str, first: int | None) -> Found:
    """The pictures of a folder with their prompts; `first` is the number of the first prompt's pictures, None where it
    is to be seen. Raises InputError where names and prompts do not fit."""
    here = listed(root)
    if not here.pictures and root / "images" in here.folders:  # of a cell
        return find(root / "images", prompts, split, first)
    texts = None if prompts is None else prompt_sets.take(prompts, split)
    if here.pictures:
        if texts is None or prompts is None:
            raise InputError(f"say what the pictures in {root} were made for: --prompts NAME or FILE.")
        if any(prompt.category == _name(root) for prompt in texts):  # one of HPSv2's styles alone
            return _styles(root, {root: here}, texts, first, ())
        slots, how = placed(here.pictures, texts, f"prompts of {prompts!r}", first)
        return _found(root, slots, texts, [how], [*here.skipped, *here.folders])
    if not here.folders:
        raise InputError(f"{root} holds no pictures; expected files ending in {', '.join(SUFFIXES)}.")
    styles = {prompt.category for prompt in texts or ()} - {""}
    if texts is not None and styles and any(folder.name in styles for folder in here.folders):
        return _styles(root, {folder: listed(folder) for folder in here.folders}, texts, first, here.skipped)
    if all(re.fullmatch(r"[0-9]{1,18}", folder.name) for folder in here.folders):
        return _prompt_folders(root, here, texts, first)
    if texts is None:
        raise InputError(f"say what the pictures in {root} were made for: --prompts NAME or FILE.")
    raise InputError(
        f"{root} holds no pictures but folders such as {listing(here.folders)}. Expected one folder of pictures; a "
        "folder for each category of the prompts (HPSv2's styles); or one for each prompt by number (GenEval's). Of "
        "several models, score one folder after the other."
    )


def listed(folder: Path) -> Listed:
    """What lies in a folder. Raises InputError where it cannot be looked into, and for a picture that is not read."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({os.strerror(error.errno or 0)}).") from None
    found = Listed([], [], [])
    for path in paths:
        if path.name.startswith("."):
            found.skipped.append(path)
        elif path.is_dir():
            found.folders.append(path)
        elif path.suffix.lower() in UNREAD:
            raise InputError(
                f"{path} is a picture that is not read; expected files ending in {', '.join(SUFFIXES)}. Convert it, "
                "such as to PNG, or move it away."
            )
        else:
            (found.pictures if path.suffix.lower() in SUFFIXES else found.skipped).append(path)
    return found


def _styles(
    root: Path, folders: Mapping[Path, Listed], texts: Sequence[Prompt], first: int | None, skipped: Sequence[Path]
) -> Found:
    """HPSv2's layout: anime/00000.jpg is the first prompt of the category anime."""
    slots: dict[Place, Path] = {}
    rules, others = set[str](), list(skipped)
    for folder, inside in folders.items():
        members = [i for i, prompt in enumerate(texts) if prompt.category == _name(folder)]
        if not members:
            raise InputError(
                f"{folder} is none of the prompts' categories: {', '.join(sorted({p.category for p in texts}))}."
            )
        others += [*inside.skipped, *inside.folders]
        if not inside.pictures:
            continue
        own, how = placed(inside.pictures, [texts[i] for i in members], f"prompts of {_name(folder)!r}", first)
        slots |= {(members[i], sample): path for (i, sample), path in own.items()}
        rules.add(how)
    if not slots:
        raise InputError(f"{root} holds no pictures; expected files ending in {', '.join(SUFFIXES)} in its folders.")
    return _found(root, slots, texts, ["in folders of the prompts' categories", *sorted(rules)], others)


def _name(folder: Path) -> str:
    """A folder's name, also where it is the one that one is in."""
    return folder.absolute().name


def _prompt_folders(root: Path, here: Listed, texts: Sequence[Prompt] | None, first: int | None) -> Found:
    """GenEval's layout: 00012/samples/0000.png, with the prompt in 00012/metadata.jsonl; or 00012/0.png."""
    counts = Counter(int(folder.name) for folder in here.folders)
    if twice := [number for number, times in counts.items() if times > 1]:
        both = [folder for folder in here.folders if int(folder.name) == twice[0]]
        raise InputError(f"{root}: {listing(both)} are both folders of prompt number {twice[0]}; move one away.")
    said = {int(folder.name): _metadata(folder / "metadata.jsonl") for folder in here.folders}
    if texts is None:
        refuse_first(first, f"the folders in {root} have their own prompts")
        if missing := [folder for folder in here.folders if said[int(folder.name)] is None]:
            raise InputError(f"{missing[0]} has no metadata.jsonl with its prompt; name the prompts with --prompts.")
        known = {number: prompt for number, prompt in said.items() if prompt is not None}
        chosen, places = list(known.values()), {number: i for i, number in enumerate(known)}
        how = "a folder for each prompt, with its prompt"
    else:
        start = start_of(sorted(counts), len(texts), first, str(root), "prompts")
        chosen, places = list(texts), {number: number - start for number in counts}
        how = f"a folder for each prompt, numbered from {start}"
    slots: dict[Place, Path] = {}
    skipped = list(here.skipped)
    for folder in here.folders:
        number = int(folder.name)
        prompt = said[number]
        if prompt is not None and prompt.text != chosen[places[number]].text:
            raise InputError(
                f"{folder / 'metadata.jsonl'}: the prompt is {shown(prompt.text)}, but number {number} of the prompts "
                f"is {shown(chosen[places[number]].text)}; score it with the prompts it was made for."
            )
        pictures, others = _of_a_prompt(folder)
        slots |= {(places[number], sample): path for sample, path in pictures.items()}
        skipped += others
    if not slots:
        raise InputError(f"{root} holds no pictures; expected files ending in {', '.join(SUFFIXES)} in its folders.")
    return _found(root, slots, chosen, [how], skipped)


def _of_a_prompt(folder: Path) -> tuple[dict[int, Path], list[Path]]:
    """The pictures in a prompt's folder by their numbers, and what is skipped beside them."""
    outer = listed(folder)
    skipped = [path for path in outer.skipped if path.name != "metadata.jsonl"]
    inner, places = outer, outer.folders
    if folder / "samples" in outer.folders:
        inner = listed(folder / "samples")
        places = [*(path for path in outer.folders if path.name != "samples"), *inner.folders]
        skipped += [*outer.pictures, *inner.skipped]  # GenEval's grid.png stands beside the samples
    numbers = by_numbers(inner.pictures) if inner.pictures else []
    if numbers is None:
        samples = list(range(len(inner.pictures)))
    else:
        own = all(second == 0 for _, second in numbers)
        samples = [number if own else second for number, second in numbers]
    slots = slots_of(inner.pictures, [(0, sample) for sample in samples])
    return {sample: path for (_, sample), path in slots.items()}, [*skipped, *places]


def _metadata(path: Path) -> Prompt | None:
    """The prompt in GenEval's file; None where there is no file."""
    if not path.is_file():
        return None
    lines = [line for line in text_of(path).split("\n") if line.strip()]
    row = json_of("\n".join(lines), str(path))
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{path}: the prompt is {shown(text)}; expected text.")
    tag = row.get("tag")
    return Prompt(path.parent.name, text, tag if isinstance(tag, str) else "")


# What is said


def _found(
    root: Path, slots: Mapping[Place, Path], texts: Sequence[Prompt], how: Sequence[str], skipped: Sequence[Path]
) -> Found:
    order = sorted(slots)
    items = [Item(slots[place], texts[place[0]], place[1]) for place in order]
    about = [f"{coverage([place for place, _ in order], len(texts))}; {', '.join(how)}"]
    if skipped:
        about.append(f"skipped in {root}: {_skipped(skipped)}")
    return Found(items, about)


def coverage(places: Sequence[int], count: int) -> str:
    """How many pictures there are, and of which prompts: 12 pictures of prompts 1 to 12 of 12."""
    each = Counter(places)
    low, high = min(each.values()), max(each.values())
    times = "" if high == 1 else f", {low} each," if low == high else f", {low} to {high} each,"
    pictures = f"{how_many(len(places), 'picture')}{times}"
    first, last = min(each) + 1, max(each) + 1
    missing = [i + 1 for i in range(first - 1, last) if i not in each]
    whole = f"prompts {first} to {last} of {count}" if last > first else f"prompt {first} of {count}"
    if not missing:
        return f"{pictures} of {whole}"
    few = ", ".join(map(str, missing[:NAMED])) + (", …" if len(missing) > NAMED else "")
    return f"{pictures} of {whole}, without {len(missing)} between ({few})"


def _skipped(paths: Sequence[Path]) -> str:
    kinds: dict[str, list[Path]] = {"hidden": [], "folders": [], "no pictures": []}
    for path in paths:
        hidden = path.name.startswith(".")
        kinds["hidden" if hidden else "folders" if path.is_dir() else "no pictures"].append(path)
    return "; ".join(f"{len(found)} {kind} ({listing(found)})" for kind, found in kinds.items() if found)
