"""The exact judge: reads what a picture shows and grades it, attribute by attribute, against a caption.

Reading a picture: the background is the median colour of the border; things are the connected regions that differ
from it. Each region's core gives its colour. Area and centroid fix, for every candidate shape, the only radius and
centre it could have; the candidate whose rendering differs least from the region names its shape, if that difference
is small. Nothing is learned, so nothing can be gamed that a person would not also be fooled by.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from alignbench.shapes.render import coverage
from alignbench.shapes.scene import BACKGROUNDS, COLOURS, INK, RADII, SHAPES, SIDE, Caption, Described, holds, tint

JUDGE_VERSION = "1"  # raised whenever a picture could be read or graded differently
FOREGROUND = 30.0  # Euclidean RGB distance (of 255) from the background at which a pixel belongs to a thing
SPECK = 7  # pixels; smaller regions are dirt, not things
BACKGROUND_TOLERANCE = 40.0  # largest RGB distance at which a background still has its name
COLOUR_TOLERANCE = 45.0  # the same for a thing's colour, from the nearest ink strength of the palette
UNIFORM = 0.7  # share of a thing's core that must have the thing's colour
SHAPE_TOLERANCE = 0.3  # largest difference between a region and the rendered candidate, in units of its area
SMALL_BELOW = (RADII["small"][1] + RADII["large"][0]) / 2
OTHER = "other"


class Seen(NamedTuple):
    """One thing as read from a picture. x, y and radius in units of the side; `rgb` is 0 to 255."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    area: int
    rgb: tuple[float, float, float]
    misfit: float  # of the best candidate shape: 0 is a perfect rendering


class Reading(NamedTuple):
    """What a picture shows."""

    background: str
    background_rgb: tuple[float, float, float]
    things: tuple[Seen, ...]


@dataclass(frozen=True)
class Grades:
    """How well a picture meets a caption, each in [0, 1]; None where the caption does not ask."""

    number: float
    shape: float
    colour: float
    size: float | None
    relation: float | None
    background: float | None

    @property
    def asked(self) -> dict[str, float]:
        """The grades of the attributes the caption asks for."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def score(self) -> float:
        """Mean over the attributes asked for."""
        return float(np.mean(list(self.asked.values())))

    @property
    def full(self) -> bool:
        """Whether every attribute asked for is right."""
        return all(value == 1.0 for value in self.asked.values())


@functools.cache
def _outline(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre, both in radii."""
    alpha = coverage(shape, 0.5, 0.5, 0.4, side=256)
    rows = (np.arange(256) + 0.5) / 256
    return float(alpha.sum() / (0.4 * 256) ** 2), float(((rows[:, None] * alpha).sum() / alpha.sum() - 0.5) / 0.4)


@functools.cache
def _palette() -> tuple[tuple[str, ...], np.ndarray]:
    inks = np.linspace(*INK, 8)
    return tuple(name for name in COLOURS for _ in inks), np.concatenate([tint(name, inks) for name in COLOURS])


def _distance(rgb: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(((rgb - reference) ** 2).sum(-1)))


def _best_shape(alpha: np.ndarray) -> tuple[str, float, float]:
    """The shape that best explains a coverage map, its radius and its misfit."""
    area = alpha.sum()
    pixels = (np.arange(SIDE) + 0.5) / SIDE
    x, y = (alpha.sum(0) * pixels).sum() / area, (alpha.sum(1) * pixels).sum() / area
    best = (OTHER, 0.0, np.inf)
    for shape in SHAPES:
        unit_area, drop = _outline(shape)
        radius = float(np.sqrt(area / unit_area)) / SIDE
        misfit = float(np.abs(alpha - coverage(shape, x, y - drop * radius, radius)).sum() / area)
        if misfit < best[2]:
            best = (shape, radius, misfit)
    return best


def read(picture: Float[np.ndarray, "3 h w"]) -> Reading:
    """What a picture (0 to 1, at the world's native size) shows."""
    from scipy import ndimage

    if picture.shape != (3, SIDE, SIDE):
        raise ValueError(f"the judge reads pictures of shape (3, {SIDE}, {SIDE}), got {picture.shape}")
    pixels = picture.transpose(1, 2, 0).astype(np.float64) * 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    names, shades = list(BACKGROUNDS), np.array(list(BACKGROUNDS.values()), float)
    from_names = _distance(shades, ground)
    background = names[int(from_names.argmin())] if from_names.min() < BACKGROUND_TOLERANCE else OTHER

    regions, count = ndimage.label(_distance(pixels, ground) > FOREGROUND, structure=np.ones((3, 3)))
    colours, palette = _palette()
    things = []
    for index in range(1, count + 1):
        region = regions == index
        if region.sum() < SPECK:
            continue
        core = ndimage.binary_erosion(region)
        inside = pixels[core if core.sum() >= 4 else region]
        rgb = np.median(inside, axis=0)
        near = _distance(palette, rgb)
        uniform = (_distance(inside, rgb) < COLOUR_TOLERANCE).mean() >= UNIFORM
        named = uniform and near.min() < COLOUR_TOLERANCE
        # Coverage is how far a pixel has gone from the background's colour to the thing's.
        towards = rgb - ground
        alpha = ((pixels - ground) @ towards / (towards @ towards)).clip(0, 1) * ndimage.binary_dilation(region)
        shape, radius, misfit = _best_shape(alpha)
        rows, columns = np.nonzero(region)
        things.append(
            Seen(
                shape=shape if misfit < SHAPE_TOLERANCE else OTHER,
                colour=colours[int(near.argmin())] if named else OTHER,
                size="small" if radius < SMALL_BELOW else "large",
                x=(float(columns.mean()) + 0.5) / SIDE,
                y=(float(rows.mean()) + 0.5) / SIDE,
                radius=radius,
                area=int(region.sum()),
                rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
                misfit=misfit,
            )
        )
    return Reading(background, (float(ground[0]), float(ground[1]), float(ground[2])), tuple(things))


def _matches(wanted: Sequence[Described], seen: Sequence[Seen | None]) -> dict[str, list[bool]]:
    pairs = list(zip(wanted, seen, strict=True))
    return {
        "shape": [s is not None and s.shape == w.shape for w, s in pairs],
        "colour": [s is not None and s.colour == w.colour for w, s in pairs],
        "size": [s is not None and s.size == w.size for w, s in pairs if w.size is not None],
    }


def _graded(caption: Caption, reading: Reading, chosen: Sequence[Seen | None]) -> Grades:
    """Grades with the chosen thing in place of each wanted one."""
    matches = _matches(caption.wanted, chosen)
    relation = None
    if caption.relation:
        first, second = chosen
        both = first is not None and second is not None
        relation = float(both and holds(caption.relation, first.x - second.x, first.y - second.y))  # type: ignore[union-attr]
    return Grades(
        number=float(len(reading.things) == len(chosen)),
        shape=float(np.mean(matches["shape"])),
        colour=float(np.mean(matches["colour"])),
        size=float(np.mean(matches["size"])) if matches["size"] else None,
        relation=relation,
        background=float(reading.background == caption.background) if caption.background else None,
    )


def grade(caption: Caption, reading: Reading) -> Grades:
    """Grades under the assignment of seen things to wanted things that is best for the picture."""
    count = len(caption.wanted)
    seen: list[Seen | None] = [*sorted(reading.things, key=lambda thing: -thing.area)[:5]]
    seen += [None] * (count - len(seen))
    candidates = (_graded(caption, reading, chosen) for chosen in itertools.permutations(seen, count))
    return max(candidates, key=lambda grades: grades.score)
