"""Names of pictures: which place among the prompts each one says, by the first rule that fits all of them.

1. A prompt's id, or an id and the image's number: 005695-0057_2.png.
2. A prompt's words, and perhaps the image's number: a_red_fox.png.
3. A prompt's number, perhaps behind what all names begin with, and perhaps the image's number: 00012.png, 00012-1.png,
   image_12.png, p12_s1.png. It counts from 0 or from 1, which shows where the first or the last prompt has a picture.
4. Names without any number: the prompts in their order, one each.

Everything else is refused: a score for the wrong prompt looks like any other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignbench.errors import InputError
from alignbench.interface import Prompt

NAMED = 3  # examples in a message
Place = tuple[int, int]  # of a prompt among the prompts, and the number of its image

NUMBER = re.compile("[0-9]{1,18}")
OWN_NAME = re.compile(r"([0-9]{1,18})(?:[-_]([0-9]{1,18}))?")
BEHIND = re.compile(r"([0-9]{1,18})(.*)", re.DOTALL)
SAMPLE = re.compile(r"([^0-9]*)([0-9]{1,18})([^0-9]*)")


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """What names are sorted by, as people count: image_2 before image_10."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(0, int(number), "") if number else (1, 0, text.casefold()) for number, text in parts], name


def refuse_first(first: int | None, why: str) -> None:
    """Raise InputError where it was said how numbers count and there are none."""
    if first is not None:
        raise InputError(f"--first-number {first}: {why}; leave it out.")


def placed(
    paths: Sequence[Path], texts: Sequence[Prompt], what: str, first: int | None
) -> tuple[dict[Place, Path], str]:
    """Pictures by the place of their prompt and the number of their image, and the rule that was followed."""
    by_id, by_words = _by_ids(paths, texts), _by_words(paths, texts)
    numbers = by_numbers(paths) if by_id is None and by_words is None else None
    if numbers is None:
        refuse_first(first, f"the pictures in {paths[0].parent} are not named by number")
    if by_id is not None:
        return slots_of(paths, by_id), "named by the prompts' ids"
    if by_words is not None:
        return slots_of(paths, by_words), "named by the prompts' words"
    if numbers is None:
        if len(paths) != len(texts):
            raise InputError(
                f"{paths[0].parent} holds {len(paths)} pictures without a number in their names, and there are "
                f"{len(texts)} {what}; expected as many, or names with the number of their prompt, such as 00012.png."
            )
        return {(i, 0): path for i, path in enumerate(paths)}, "in the natural order of their names"
    start = start_of(sorted({number for number, _ in numbers}), len(texts), first, f"{paths[0].parent}", what)
    behind = f" behind {prefix!r}" if (prefix := _prefix(paths)) and not _own(paths) else ""
    return slots_of(paths, [(number - start, sample) for number, sample in numbers]), f"numbered from {start}{behind}"


def _by_ids(paths: Sequence[Path], texts: Sequence[Prompt]) -> list[Place] | None:
    """The places of pictures that are named by the prompts' ids; None where none is. Raises InputError where some
    are and others are not."""
    ids = {prompt.id: i for i, prompt in enumerate(texts)}
    if all(map(NUMBER.fullmatch, ids)) and len({int(name) for name in ids}) == len(ids):  # 7 and 007 are one id
        ids |= {str(int(name)): i for name, i in ids.items()}
    return _all_or_none(paths, [_by_id(path.stem, ids) for path in paths], "a prompt's id")


def _by_words(paths: Sequence[Path], texts: Sequence[Prompt]) -> list[Place] | None:
    """The same of pictures that are named by the prompts' words, whatever stands between them."""
    words = {_spoken(prompt.text): i for i, prompt in enumerate(texts)}
    if "" in words or len(words) < len(texts):
        return None  # of no words or of the same ones: names cannot tell them apart
    return _all_or_none(paths, [_by_id(_spoken(path.stem), words) for path in paths], "a prompt's words")


def _spoken(text: str) -> str:
    return "_".join(re.findall(r"\w+", text.replace("_", " ").casefold()))


def _all_or_none(paths: Sequence[Path], found: Sequence[Place | None], what: str) -> list[Place] | None:
    named = [place for place in found if place is not None]
    if 0 < len(named) < len(found):
        raise InputError(_mixed(paths, [place is not None for place in found], what))
    return named or None


def _by_id(stem: str, ids: Mapping[str, int]) -> Place | None:
    plain = str(int(stem)) if NUMBER.fullmatch(stem) else stem
    for name in (stem, plain):
        if name in ids:
            return ids[name], 0
    numbered = re.fullmatch(r"(.+)[-_]([0-9]{1,18})", stem, re.DOTALL)
    return (ids[numbered[1]], int(numbered[2])) if numbered and numbered[1] in ids else None


def by_numbers(paths: Sequence[Path]) -> list[Place] | None:
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
            f"{paths[0].parent}: the pictures' names, such as {listing(paths)}, are not numbered alike; expected their "
            "prompts' numbers behind what all names begin with, such as image_12.png."
        )
    return (
        f"{paths[0].parent}: {len(good)} of {len(paths)} pictures have {what} in their names, such as {listing(good)}, "
        f"and {len(bad)} have not, such as {listing(bad)}; name all by one rule, or move the others away."
    )


def start_of(numbers: Sequence[int], count: int, first: int | None, folder: str, what: str) -> int:
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


def slots_of(paths: Sequence[Path], places: Sequence[Place]) -> dict[Place, Path]:
    """Pictures by their places. Raises InputError where two have one."""
    slots: dict[Place, Path] = {}
    for path, place in zip(paths, places, strict=True):
        other = slots.setdefault(place, path)
        if other is not path:
            raise InputError(
                f"{path.parent}: {other.name} and {path.name} are both image {place[1]} of one prompt; move one away."
            )
    return slots


def listing(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:NAMED]) + (", …" if len(paths) > NAMED else "")
