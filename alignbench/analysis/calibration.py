"""What 95 % intervals are worth where the truth is known (results/statistics), by the number of training seeds.

The figures are those of the committed simulation; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Coverage(NamedTuple):
    """In how many of 100 tables the truth lay within the interval: the fewest and the most of all settings."""

    of_rates: tuple[float, float]
    of_differences: tuple[float, float]


COVERAGE = {
    1: Coverage((93.45, 99.95), (92.35, 97.07)),
    3: Coverage((90.4, 98.85), (88.25, 98.91)),
    5: Coverage((90.0, 99.15), (87.35, 100.0)),
}


def said(seeds: Iterable[int]) -> str | None:
    """A sentence for the foot of a table whose methods have so many training seeds, about the fewest of several; None
    where that was not simulated."""
    several = [count for count in seeds if count > 1]
    simulated = max((count for count in COVERAGE if 1 < count <= min(several, default=0)), default=None)
    if simulated is None:
        return None
    rates, differences = (f"{low:.0f} to {high:.0f} %" for low, high in COVERAGE[simulated])
    return (
        f"Simulated with {simulated} seeds, a 95 % interval held the true win rate in {rates} of tables, the true "
        f"difference in {differences}: least where nearly every pair is won or ties and seeds differ by 6 points "
        "(results/statistics)."
    )
