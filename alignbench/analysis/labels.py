"""Labels of figures: where they go, so that none covers another label, a point or a line, and what matplotlib reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from alignbench.analysis.load import Array
from alignbench.printed import one_line

DISTANCES = (6, 9, 13, 18, 24, 31, 40, 50, 62, 76, 92, 110, 130, 155)  # of a label's nearest edge from its point
DIRECTIONS = 24
ROOM = 1.5  # about every label


class Box(NamedTuple):
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        return across > 0 and min(self.top, other.top) > max(self.bottom, other.bottom)

    def inside(self, other: Box) -> bool:
        level = other.left <= self.left and self.right <= other.right
        return level and other.bottom <= self.bottom and self.top <= other.top

    def holds(self, points: Array) -> int:
        """How many of these points lie in it."""
        x, y = points.T
        return int(((x > self.left) & (x < self.right) & (y > self.bottom) & (y < self.top)).sum())

    def wider(self, by: float) -> Box:
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)


def place(
    points: Array, sizes: Sequence[tuple[float, float]], frame: Box, avoid: Array, taken: Sequence[Box] = ()
) -> list[Box]:
    """A box for the label of each point, of these sizes (width, height), all in one unit.

    Each gets the nearest place that is inside the frame, covers no other label, none of the boxes that are taken and
    none of the points to avoid; where there is none, one that covers little. The most crowded points choose first.
    """
    crowd = [float((1 / (1 + np.hypot(*(points - point).T))).sum()) for point in points]
    placed: dict[int, Box] = {}
    for i in sorted(range(len(points)), key=lambda i: -crowd[i]):
        others = [*taken, *placed.values()]

        def cost(candidate: tuple[Box, float], others: Sequence[Box] = others) -> float:
            box, away = candidate
            wide = box.wider(ROOM)
            covered = sum(wide.overlaps(other) for other in others)
            return 1e6 * (not box.inside(frame)) + 1e5 * covered + 1e3 * wide.holds(avoid) + away

        placed[i], _ = min(_candidates(points[i], sizes[i]), key=cost)
    return [placed[i] for i in range(len(points))]


def _candidates(point: Array, size: tuple[float, float]) -> Iterator[tuple[Box, float]]:
    """Boxes about a point, and how far each is from it; to the right counts as nearer."""
    (x, y), (width, height) = point, size
    for away in DISTANCES:
        for k in range(DIRECTIONS):
            right, up = math.cos(2 * math.pi * k / DIRECTIONS), math.sin(2 * math.pi * k / DIRECTIONS)
            left = float(x + away * right - width * (1 - right) / 2)
            bottom = float(y + away * up - height * (1 - up) / 2)
            yield Box(left, bottom, left + width, bottom + height), away - 2 * right


def written_out(text: str) -> str:
    """Text as matplotlib draws it letter by letter: in one line, with nothing hidden, and without formulas, which it
    looks for between dollars."""
    return one_line(text).replace("$", r"\$")
