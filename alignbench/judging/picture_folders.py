"""Folders of pictures that are there already, and which prompt each picture belongs to.

Read are: a folder of pictures; a cell's folder, whose pictures are in `images`; HPSv2's, with a folder for each style;
GenEval's, with a folder for each prompt and the pictures in `samples`; ImageReward's, whose names are a prompt's id and
a number. Within a folder names decide, by the first rule that fits all of them:

1. A prompt's id, or an id and the image's number: 005695-0057_2.png.
2. A prompt's number, perhaps behind what all names begin with, and perhaps the image's number: 00012.png, 00012-1.png,
   image_12.png, p12_s1.png. It counts from 0 or from 1, which shows where the first or the last prompt has a picture.
3. Names without any number: the prompts in their order, one each.

Everything else is refused: a score for the wrong prompt looks like any other.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignbench.asking import prompts as prompt_sets
from alignbench.errors import InputError, shown
from alignbench.interface import Prompt
from alignbench.pictures import SUFFIXES
from alignbench.texts import json_of, text_of

NAMED = 3  # examples in a message
Place = tuple[int, int]  # of a prompt among the prompts, and the number of its image

OWN_NAME = re.compile(r"([0-9]{1,18})(?:[-_]([0-9]{1,18}))?")
BEHIND = re.compile(r"([0-9]{1,18})(.*)", re.DOTALL)
SAMPLE = re.compile(r"([^0-9]*)([0-9]{1,18})([^0-9]*)")


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

    pictures: Sequence[Path]
    folders: Sequence[Path]
    skipped: Sequence[Path]  # files of other kinds, and hidden ones


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
        if any(prompt.category == root.name for prompt in texts):  # one of HPSv2's styles alone
            return _styles(root, {root: here}, texts, first, ())
        slots, how = _numbered(here.pictures, texts, f"prompts of {prompts!r}", first)
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
        f"{root} holds no pictures but folders such as {_names(here.folders)}. Expected one folder of pictures; a "
        "folder for each category of the prompts (HPSv2's styles); or one for each prompt by number (GenEval's). Of "
        "several models, score one folder after the other."
    )


def refuse_first(first: int | None, why: str) -> None:
    """Raise InputError where it was said how numbers count and there are none."""
    if first is not None:
        raise InputError(f"--first-number {first}: {why}; leave it out.")


def listed(folder: Path) -> Listed:
    """What lies in a folder. Raises InputError where it cannot be looked into."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({os.strerror(error.errno or 0)}).") from None
    folders = [path for path in paths if path.is_dir() and not path.name.startswith(".")]
    pictures = [
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path not in folders
    ]
    return Listed(pictures, folders, [path for path in paths if path not in {*folders, *pictures}])


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """What names are sorted by, as people count: image_2 before image_10."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(0, int(number), "") if number else (1, 0, text.casefold()) for number, text in parts], name


# One folder


def _numbered(
    paths: Sequence[Path], texts: Sequence[Prompt], what: str, first: int | None
) -> tuple[dict[Place, Path], str]:
    """Pictures by the place of their prompt and the number of their image, and the rule that was followed."""
    by_id = _by_ids(paths, texts)
    numbers = _by_numbers(paths) if by_id is None else None
    if numbers is None:
        refuse_first(first, f"the pictures in {paths[0].parent} are not named by number")
    if by_id is not None:
        return _slots(paths, by_id), "named by the prompts' ids"
    if numbers is None:
        if len(paths) != len(texts):
            raise InputError(
                f"{paths[0].parent} holds {len(paths)} pictures without a number in their names, and there are "
                f"{len(texts)} {what}; expected as many, or names with the number of their prompt, such as 00012.png."
            )
        return {(i, 0): path for i, path in enumerate(paths)}, "in the natural order of their names"
    start = _start(sorted({number for number, _ in numbers}), len(texts), first, f"{paths[0].parent}", what)
    behind = f" behind {prefix!r}" if (prefix := _prefix(paths)) and not _own(paths) else ""
    return _slots(paths, [(number - start, sample) for number, sample in numbers]), f"numbered from {start}{behind}"


def _by_ids(paths: Sequence[Path], texts: Sequence[Prompt]) -> list[Place] | None:
    """The places of pictures that are named by the prompts' ids; None where none is. Raises InputError where some
    are and others are not."""
    ids = {prompt.id: i for i, prompt in enumerate(texts)}
    if all(name.isascii() and name.isdigit() for name in ids) and len({int(name) for name in ids}) == len(ids):
        ids |= {str(int(name)): i for name, i in ids.items()}
    found = [_by_id(path.stem, ids) for path in paths]
    if not any(place is not None for place in found):
        return None
    named = [place for place in found if place is not None]
    if len(named) < len(found):
        raise InputError(_mixed(paths, [place is not None for place in found], "a prompt's id"))
    return named


def _by_id(stem: str, ids: Mapping[str, int]) -> Place | None:
    plain = str(int(stem)) if stem.isascii() and stem.isdigit() else stem
    for name in (stem, plain):
        if name in ids:
            return ids[name], 0
    numbered = re.fullmatch(r"(.+)[-_]([0-9]{1,18})", stem, re.DOTALL)
    return (ids[numbered[1]], int(numbered[2])) if numbered and numbered[1] in ids else None


def _by_numbers(paths: Sequence[Path]) -> list[Place] | None:
    """Each picture's number and that of its image; None where no name has any number. Raises InputError where they
    are not numbered alike."""
    if own := _own(paths):
        return own
    stems = [path.stem for path in paths]
    if not any(re.search("[0-9]", stem) for stem in stems):
        return None
    prefix = _prefix(paths)
    found = [BEHIND.fullmatch(stem.removeprefix(prefix)) for stem in stems]
    if not all(found):
        has_number = [bool(re.search("[0-9]", stem)) for stem in stems]
        numbered = [match is not None for match in found] if any(found) else has_number
        raise InputError(_mixed(paths, numbered, "a number at the same place"))
    parts = [(int(match[1]), match[2]) for match in found if match]
    if len({rest for _, rest in parts}) == 1:
        return [(number, 0) for number, _ in parts]
    samples = [SAMPLE.fullmatch(rest) for _, rest in parts]
    if all(samples) and len({(match[1], match[3]) for match in samples if match}) == 1:
        return [(number, int(match[2])) for (number, _), match in zip(parts, samples, strict=True) if match]
    return [(number, 0) for number, _ in parts]  # whatever follows, such as the prompt's words


def _own(paths: Sequence[Path]) -> list[Place] | None:
    """Names of nothing but numbers, as a cell's pictures have them."""
    found = [OWN_NAME.fullmatch(path.stem) for path in paths]
    return [(int(match[1]), int(match[2] or 0)) for match in found if match] if all(found) else None


def _prefix(paths: Sequence[Path]) -> str:
    """What all names begin with, up to a number."""
    if len(paths) == 1:
        return re.sub(r"[0-9]+[^0-9]*$", "", paths[0].stem)
    first, last = min(path.stem for path in paths), max(path.stem for path in paths)  # which differ the most
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return re.sub(r"[0-9]+$", "", "".join(character for character, _ in same))


def _mixed(paths: Sequence[Path], fits: Sequence[bool], what: str) -> str:
    good, bad = ([path for path, fit in zip(paths, fits, strict=True) if fit is wanted] for wanted in (True, False))
    if not bad or not good:
        return (
            f"{paths[0].parent}: the pictures' names, such as {_names(paths)}, are not numbered alike; expected their "
            "prompts' numbers behind what all names begin with, such as image_12.png."
        )
    return (
        f"{paths[0].parent}: {len(good)} of {len(paths)} pictures have {what} in their names, such as {_names(good)}, "
        f"and {len(bad)} have not, such as {_names(bad)}; name all by one rule, or move the others away."
    )


def _start(numbers: Sequence[int], count: int, first: int | None, folder: str, what: str) -> int:
    """Whether pictures count from 0 or from 1, by their smallest and largest number. Raises InputError where that is
    not to be seen, and for numbers beyond the prompts."""
    low, high = numbers[0], numbers[-1]
    if first is None and low > 0 and high < count:
        raise InputError(
            f"{folder}: the pictures are numbered {low} to {high} and there are {count} {what}, so that they may count "
            "from 0 or from 1; say which: --first-number 0, or --first-number 1."
        )
    start = first if first is not None else 0 if low == 0 else 1
    if low < start or high >= count + start:
        wrong = low if low < start else high
        raise InputError(
            f"{folder}: a picture has number {wrong}, but there are {count} {what}: from {start} on, the last is "
            f"{count + start - 1}."
        )
    return start


def _slots(paths: Sequence[Path], places: Sequence[Place]) -> dict[Place, Path]:
    """Pictures by their places. Raises InputError where two have one."""
    slots: dict[Place, Path] = {}
    for path, place in zip(paths, places, strict=True):
        other = slots.setdefault(place, path)
        if other is not path:
            raise InputError(
                f"{path.parent}: {other.name} and {path.name} are both image {place[1]} of one prompt; move one away."
            )
    return slots


# Several folders


def _styles(
    root: Path, folders: Mapping[Path, Listed], texts: Sequence[Prompt], first: int | None, skipped: Sequence[Path]
) -> Found:
    """HPSv2's layout: anime/00000.jpg is the first prompt of the category anime."""
    slots: dict[Place, Path] = {}
    rules, others = set[str](), list(skipped)
    for folder, inside in folders.items():
        members = [i for i, prompt in enumerate(texts) if prompt.category == folder.name]
        if not members:
            raise InputError(
                f"{folder} is none of the prompts' categories: {', '.join(sorted({p.category for p in texts}))}."
            )
        others += [*inside.skipped, *inside.folders]
        if not inside.pictures:
            continue
        own, how = _numbered(inside.pictures, [texts[i] for i in members], f"prompts of {folder.name!r}", first)
        slots |= {(members[i], sample): path for (i, sample), path in own.items()}
        rules.add(how)
    if not slots:
        raise InputError(f"{root} holds no pictures; expected files ending in {', '.join(SUFFIXES)} in its folders.")
    return _found(root, slots, texts, ["in folders of the prompts' categories", *sorted(rules)], others)


def _prompt_folders(root: Path, here: Listed, texts: Sequence[Prompt] | None, first: int | None) -> Found:
    """GenEval's layout: 00012/samples/0000.png, with the prompt in 00012/metadata.jsonl; or 00012/0.png."""
    counts = Counter(int(folder.name) for folder in here.folders)
    if twice := [number for number, times in counts.items() if times > 1]:
        both = [folder for folder in here.folders if int(folder.name) == twice[0]]
        raise InputError(f"{root}: {_names(both)} are both folders of prompt number {twice[0]}; move one away.")
    said = {int(folder.name): _metadata(folder / "metadata.jsonl") for folder in here.folders}
    if texts is None:
        refuse_first(first, f"the folders in {root} have their own prompts")
        if missing := [folder for folder in here.folders if said[int(folder.name)] is None]:
            raise InputError(f"{missing[0]} has no metadata.jsonl with its prompt; name the prompts with --prompts.")
        known = {number: prompt for number, prompt in said.items() if prompt is not None}
        chosen, places = list(known.values()), {number: i for i, number in enumerate(known)}
        how = "a folder for each prompt, with its prompt"
    else:
        start = _start(sorted(counts), len(texts), first, str(root), "prompts")
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
    numbers = _by_numbers(inner.pictures) if inner.pictures else []
    if numbers is None:
        samples = list(range(len(inner.pictures)))
    else:
        own = all(second == 0 for _, second in numbers)
        samples = [number if own else second for number, second in numbers]
    slots = _slots(inner.pictures, [(0, sample) for sample in samples])
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
    pictures = f"{len(places)} picture{'s' if len(places) > 1 else ''}{times}"
    first, last = min(each) + 1, max(each) + 1
    missing = [i + 1 for i in range(first - 1, last) if i not in each]
    whole = f"prompts {first} to {last} of {count}" if last > first else f"prompt {first} of {count}"
    if not missing:
        return f"{pictures} of {whole}"
    few = ", ".join(map(str, missing[:NAMED])) + (", …" if len(missing) > NAMED else "")
    return f"{pictures} of {whole}, without {len(missing)} between ({few})"


def _skipped(paths: Sequence[Path]) -> str:
    hidden = [path for path in paths if path.name.startswith(".")]
    folders = [path for path in paths if path not in hidden and path.is_dir()]
    others = [path for path in paths if path not in hidden and path not in folders]
    kinds = {"hidden": hidden, "folders": folders, "no pictures": others}
    return "; ".join(f"{len(found)} {kind} ({_names(found)})" for kind, found in kinds.items() if found)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:NAMED]) + (", …" if len(paths) > NAMED else "")
