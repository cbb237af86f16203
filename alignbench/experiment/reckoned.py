"""What an algorithm costs whose counts are too large to be counted one by one.

Cost grows evenly with a count, such as images of a round or candidates of a step, once it is not small. So a large
count v is taken at a base b and at 2 b, and
    cost(v) = cost(b) + (cost(2 b) − cost(b)) (v − b)/b,
for several counts one after another, which is exact for their products as well. That cost grows evenly from b on is
seen at a third place of each count, and at 3 b of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from alignbench.errors import InputError
from alignbench.interface import Algorithm
from alignbench.meter import Cost

BASES = ((4, 10), (100, 3))  # b, and the third place in units of it: past the 32 images of a round that are watched
SMALL = 300  # no count up to here is lowered
MOST = 10_000  # no count beyond is tried as it is
PATIENCE = 5.0  # seconds

Numbers = tuple[Fraction, ...]


class TooLong(Exception):
    """Counting takes longer than it may."""


def reckoned(count: Callable[[Any, float], tuple[Cost, Cost]], algorithm: Algorithm) -> tuple[Cost, Cost]:
    """`count` of an algorithm, which is given seconds and raises TooLong after them; then, and where a count is above
    MOST, of lower counts. Raises InputError naming one above MOST with which cost does not grow evenly."""
    names = [field.name for field in dataclasses.fields(algorithm) if field.name != "steps"]  # type: ignore[arg-type]
    counts = {name: value for name in names if type(value := getattr(algorithm, name)) is int}
    beyond = {name: value for name, value in counts.items() if value > MOST}
    if not beyond:
        with contextlib.suppress(TooLong):
            return count(algorithm, PATIENCE)
    large = {name: value for name, value in counts.items() if value > SMALL}
    for lowered in (large, beyond) if beyond else (large,):
        with contextlib.suppress(ValueError):  # lowered counts do not fit each other: fewer may
            if (found := _lowered(count, algorithm, lowered)) is not None:
                return found
    for name, value in beyond.items():
        raise InputError(f"{name}={value}: expected at most {MOST} for a dry run, which cannot reckon beyond it.")
    return count(algorithm, math.inf)


def _lowered(
    count: Callable[[Any, float], tuple[Cost, Cost]], algorithm: Algorithm, large: Mapping[str, int]
) -> tuple[Cost, Cost] | None:
    """`count` of an algorithm from lower ones of these counts, or None where cost does not grow evenly with each, or
    with all together."""

    def asked(lowered: Sequence[int]) -> Any:
        return dataclasses.replace(algorithm, **dict(zip(large, lowered, strict=True)))  # type: ignore[type-var]

    @functools.cache
    def at(*lowered: int) -> Numbers:
        return tuple(Fraction(n) for cost in count(asked(lowered), math.inf) for n in cost.as_dict().values())

    least = _least(asked, len(large))
    if least is None or (bases := _bases(at, least)) is None:
        return None
    if len(bases) > 1 and at(*(3 * base for base in bases)) != _along(at, [(3 * base, base) for base in bases], ()):
        return None
    found = [round(n) for n in _along(at, list(zip(large.values(), bases, strict=True)), ())]
    kinds = list(Cost().as_dict())
    halves = found[: len(kinds)], found[len(kinds) :]
    alignment, sampling = (Cost(**dict(zip(kinds, half, strict=True))) for half in halves)
    return alignment, sampling


def _least(asked: Callable[[Sequence[int]], Any], counts: int) -> Sequence[int] | None:
    """The lowest bases with which there is such an algorithm; a count may have to be as large as another."""
    for lowered in sorted(itertools.product([base for base, _ in BASES], repeat=counts), key=sum):
        with contextlib.suppress(ValueError):
            asked(lowered)
            return lowered
    return None


def _bases(at: Callable[..., Numbers], least: Sequence[int]) -> list[int] | None:
    """For each count where it is lowered to, the others at their least: from there on cost grows evenly with it. None
    where one nowhere does."""
    found: list[int] = []
    for place in range(len(least)):
        for base, third in BASES:
            with contextlib.suppress(ValueError):  # it may not fit other counts
                one, two, more = (at(*least[:place], k * base, *least[place + 1 :]) for k in (1, 2, third))
                if all(c - a == (b - a) * (third - 1) for a, b, c in zip(one, two, more, strict=True)):
                    found.append(base)
                    break
        if len(found) == place:
            return None
    return found


def _along(at: Callable[..., Numbers], left: list[tuple[int, int]], lowered: tuple[int, ...]) -> Numbers:
    """The cost at the values that are left, each with its base."""
    if not left:
        return at(*lowered)
    (value, base), *others = left
    low, high = (_along(at, others, (*lowered, k * base)) for k in (1, 2))
    return tuple(a + (b - a) * Fraction(value - base, base) for a, b in zip(low, high, strict=True))
