"""What an interval says beside a margin: that a difference does not matter is a claim of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from alignbench.errors import InputError, UnknownName

Equivalence = Literal["equal within", "not worse than", "worse by more than", "open"]


def equivalence(low: float, high: float, margin: float, higher_is_better: bool) -> Equivalence:
    """Of a difference with this 95 % interval: whether it lies inside ± margin, above −margin, or below it. The
    interval's own level is kept, so each side is a test at 2.5 %. Where low values are good the sides change places."""
    if math.isnan(low) or math.isnan(high):
        return "open"
    if not higher_is_better:
        low, high = -high, -low
    if high < -margin:
        return "worse by more than"
    if low <= -margin:
        return "open"
    return "equal within" if high < margin else "not worse than"


def margins_of(words: Sequence[str], scorers: Sequence[str]) -> Mapping[str, float]:
    """`SCORER=AMOUNT` as typed. Raises InputError for what is no such word, no scorer of these files, or no amount."""
    found: dict[str, float] = {}
    for word in words:
        name, separator, amount = word.rpartition("=")
        if not separator:
            raise InputError(
                f"--margin {word!r}: expected SCORER=AMOUNT, such as {scorers[0] if scorers else 'clip'}=0.02."
            )
        if name not in scorers:
            raise UnknownName("scorer in these files", name, scorers)
        try:
            margin = float(amount)
        except ValueError:
            margin = math.nan
        if not (math.isfinite(margin) and margin > 0):
            raise InputError(f"--margin {word!r}: expected a number above 0, in the units of {name}, behind the =.")
        if name in found:
            raise InputError(f"--margin {word!r}: {name} has a margin already; leave one out.")
        found[name] = margin
    return found
