"""Laying scenes out and drawing them: anti-aliased shapes of one colour on a flat background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from alignbench.keys import Key
from alignbench.shapes.scene import BACKGROUNDS, INK, RADII, SIDE, SIZES, Caption, Scene, Thing, holds, tint

GAP = 2  # pixels that stay free around every thing
FINE = 8  # sub-pixels per pixel and axis: coverage is exact to 1/64


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    radii = [1.15 if i % 2 == 0 else inner for i in range(2 * points)]
    angles = [-math.pi / 2 + math.pi * i / points for i in range(2 * points)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_HALF_ARM = 0.34
# Outlines in units of the radius, y downwards.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.05), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(5, 0.5),
    "cross": [
        (-_HALF_ARM, -1.0), (_HALF_ARM, -1.0), (_HALF_ARM, -_HALF_ARM), (1.0, -_HALF_ARM),
        (1.0, _HALF_ARM), (_HALF_ARM, _HALF_ARM), (_HALF_ARM, 1.0), (-_HALF_ARM, 1.0),
        (-_HALF_ARM, _HALF_ARM), (-1.0, _HALF_ARM), (-1.0, -_HALF_ARM), (-_HALF_ARM, -_HALF_ARM),
    ],
}  # fmt: skip
RING_HOLE = 0.5


def coverage(shape: str, x: float, y: float, radius: float, side: int = SIDE) -> Float[np.ndarray, "side side"]:
    """How much of each pixel a shape covers, in [0, 1]. x, y and radius in units of the picture's side."""
    scale = side * FINE
    canvas = Image.new("L", (scale, scale))
    draw = ImageDraw.Draw(canvas)

    if shape in OUTLINES:
        draw.polygon(
            [((x + px * radius) * scale - 0.5, (y + py * radius) * scale - 0.5) for px, py in OUTLINES[shape]], fill=255
        )
    else:
        discs = [(radius, 255), (radius * RING_HOLE, 0)] if shape == "ring" else [(radius, 255)]
        for r, value in discs:
            draw.ellipse([(x - r) * scale, (y - r) * scale, (x + r) * scale - 1, (y + r) * scale - 1], fill=value)
    return np.asarray(canvas.reduce(FINE), np.float64) / 255


def _apart(things: Sequence[Thing]) -> bool:
    """Whether a free pixel separates every two things."""
    taken = np.zeros((SIDE, SIDE), bool)
    for thing in things:
        region = coverage(thing.shape, thing.x, thing.y, thing.radius) > 0
        if (taken & region).any():
            return False
        padded = np.pad(region, GAP)
        for dy in range(2 * GAP + 1):
            for dx in range(2 * GAP + 1):
                taken |= padded[dy : dy + SIDE, dx : dx + SIDE]
    return True


def sample_scene(key: Key, caption: Caption) -> Scene:
    """A random picture of a caption: free attributes, layout, ink and background shade drawn from the key."""
    rng = key.generator()
    shared = SIZES[rng.integers(2)]  # equal things have one size
    for _ in range(100_000):
        sizes = [
            wanted.size
            or ("small" if caption.number == 3 else shared if caption.number == 2 else SIZES[rng.integers(2)])
            for wanted in caption.wanted
        ]
        radii = [rng.uniform(*RADII[size]) for size in sizes]
        margins = [1.1 * radius + 0.5 / SIDE for radius in radii]
        centres = [rng.uniform(margin, 1 - margin, size=2) for margin in margins]
        things = tuple(
            Thing(wanted.shape, wanted.colour, size, float(x), float(y), float(radius), float(rng.uniform(*INK)))
            for wanted, size, (x, y), radius in zip(caption.wanted, sizes, centres, radii, strict=True)
        )
        # A steeper slope than the judge's leaves no picture near a relation's edge.
        if caption.relation:
            dx, dy = centres[0] - centres[1]
            if not holds(caption.relation, dx, dy, slope=1.5):
                continue
        near = any(
            math.hypot(*(centres[i] - centres[j])) < radii[i] + radii[j] for i in range(len(things)) for j in range(i)
        )
        if not near and _apart(things):
            background = caption.background or tuple(BACKGROUNDS)[rng.integers(4)]
            return Scene(things, background, shade=float(rng.uniform(-8, 8)))
    raise AssertionError(f"no layout found for {caption.text!r}")


def render(scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of one scene, 0 to 255."""
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = np.array(BACKGROUNDS[scene.background], float) + scene.shade
    for thing in scene.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
        picture = picture * (1 - alpha) + tint(thing.colour, thing.ink) * alpha
    return picture.round().clip(0, 255).astype(np.uint8)


def render_batch(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "n h w 3"]:
    """The pictures of several scenes."""
    return np.stack([render(scene) for scene in scenes])
