"""What can be pictured and described: things, captions, scenes, and the splits of their compositions.

A `Caption` is what a prompt asks for; every caption has one text and every text of the grammar one caption. A `Scene`
is one picture that satisfies a caption: attributes the caption leaves open are chosen, and so is the layout.

Grammar
    caption     object | object "and" object | object relation object | number [size] colour plural,
                each optionally followed by "on a" background "background"
    object      ("a" | "an") [size] colour shape
    relation    "left of" | "right of" | "above" | "below"
    number      "two" | "three"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from alignbench.errors import InputError
from alignbench.keys import Key

SIDE = 32  # pixels; the model's native size

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 90, 230),
    "yellow": (245, 220, 40),
    "purple": (150, 45, 200),
    "orange": (245, 130, 20),
    "cyan": (50, 205, 220),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (15, 15, 15), "beige": (232, 212, 170)}
SIZES = ("small", "large")
RADII = {"small": (0.135, 0.155), "large": (0.205, 0.235)}  # of the picture's side
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"two": 2, "three": 3}
INK = (0.65, 1.0)  # how strongly a thing is coloured: 1 is the palette's colour, 0 middle grey
MIDDLE_GREY = (128.0, 128.0, 128.0)

Kind = Literal["single", "pair", "relation", "count"]
Split = Literal["train", "dev", "test"]
KINDS: tuple[Kind, ...] = ("single", "pair", "relation", "count")


@dataclass(frozen=True)
class Described:
    """One thing as a caption names it; `size` is None where the caption leaves it open."""

    shape: str
    colour: str
    size: str | None = None

    def words(self, noun: str) -> str:
        return " ".join(word for word in (self.size, self.colour, noun) if word)

    def text(self) -> str:
        words = self.words(self.shape)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Caption:
    """What a prompt asks for. `things` has one entry per kind of thing; `number` counts equal things."""

    things: tuple[Described, ...]
    number: int = 1
    relation: str | None = None
    background: str | None = None

    @property
    def kind(self) -> Kind:
        if len(self.things) == 1:
            return "single" if self.number == 1 else "count"
        return "relation" if self.relation else "pair"

    @property
    def wanted(self) -> tuple[Described, ...]:
        """Every thing that should be in the picture, equal ones repeated."""
        return self.things * self.number

    @property
    def composition(self) -> str:
        """What the splits keep apart: which colour goes with which shape, and how many; not size, order or place."""
        names = sorted(f"{thing.colour} {thing.shape}" for thing in self.things)
        return f"{self.number} {' + '.join(names)}"

    @property
    def text(self) -> str:
        if self.number > 1:
            number = next(word for word, n in NUMBERS.items() if n == self.number)
            text = f"{number} {self.things[0].words(PLURALS[self.things[0].shape])}"
        else:
            text = f" {self.relation or 'and'} ".join(thing.text() for thing in self.things)
        return text + (f" on a {self.background} background" if self.background else "")


_THING = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)})"
_OBJECT = rf"an? {_THING} ({'|'.join(SHAPES)})"
_BACKGROUND = rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?"
_ONE = re.compile(rf"{_OBJECT}{_BACKGROUND}")
_TWO = re.compile(rf"{_OBJECT} (and|{'|'.join(RELATIONS)}) {_OBJECT}{_BACKGROUND}")
_MANY = re.compile(rf"({'|'.join(NUMBERS)}) {_THING} ({'|'.join(PLURALS.values())}){_BACKGROUND}")


def parse(text: str) -> Caption:
    """The caption that a text of the grammar states. Raises InputError for any other text."""
    words = " ".join(text.lower().split()).rstrip(".")
    if match := _ONE.fullmatch(words):
        size, colour, shape, background = match.groups()
        return Caption((Described(shape, colour, size),), background=background)
    if match := _TWO.fullmatch(words):
        size, colour, shape, link, size2, colour2, shape2, background = match.groups()
        things = (Described(shape, colour, size), Described(shape2, colour2, size2))
        return Caption(things, relation=None if link == "and" else link, background=background)
    if match := _MANY.fullmatch(words):
        number, size, colour, plural, background = match.groups()
        shape = next(shape for shape, name in PLURALS.items() if name == plural)
        return Caption((Described(shape, colour, size),), number=NUMBERS[number], background=background)
    raise InputError(
        f"{text!r} is not a caption of the shapes world; "
        "expected for example 'a large red circle left of a blue star on a white background'."
    )


def first_foreign(texts: Iterable[str]) -> str | None:
    """Why these texts are not all captions of the world, or None."""
    for text in texts:
        try:
            parse(text)
        except InputError as error:
            return str(error)
    return None


def unsuitable(texts: Iterable[str], image_shape: Sequence[int]) -> str | None:
    """Why pictures of this shape (empty: not known yet) for these texts cannot be read, or None."""
    if image_shape and tuple(image_shape) != (3, SIDE, SIDE):
        return f"it reads pictures of 3 x {SIDE} x {SIDE}, not {' x '.join(map(str, image_shape))}."
    return first_foreign(texts)


@dataclass(frozen=True)
class Thing:
    """One thing as drawn: centre and radius in units of the picture's side, y downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    ink: float = 1.0


@dataclass(frozen=True)
class Scene:
    """One picture to draw. `shade` is added to the background's three channels (of 255)."""

    things: tuple[Thing, ...]
    background: str
    shade: float = 0.0


def split_of(composition: str) -> Split:
    """The split a composition belongs to: 70 % train, 15 % dev, 15 % test, by hash."""
    place = Key("shapes", "split", composition).integer % 100
    return "train" if place < 70 else "dev" if place < 85 else "test"


def holds(relation: str, dx: float, dy: float, slope: float = 1.0) -> bool:
    """Whether a thing offset by (dx, dy) from another (y downwards) stands in `relation` to it."""
    along, across = {
        "left of": (-dx, dy),
        "right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]
    return bool(along > slope * abs(across))


def sample_caption(key: Key, split: Split, kind: Kind | None = None) -> Caption:
    """A random caption of a split: a size is stated for 60 % of things, a background in 75 % of captions."""
    rng = key.generator()
    while True:
        chosen = kind or KINDS[int(rng.choice(4, p=(0.3, 0.15, 0.3, 0.25)))]
        things = tuple(
            Described(
                SHAPES[rng.integers(len(SHAPES))],
                tuple(COLOURS)[rng.integers(len(COLOURS))],
                SIZES[rng.integers(2)] if rng.random() < 0.6 else None,
            )
            for _ in range(2 if chosen in ("pair", "relation") else 1)
        )
        caption = Caption(
            things,
            number=int(rng.integers(2, 4)) if chosen == "count" else 1,
            relation=RELATIONS[rng.integers(4)] if chosen == "relation" else None,
            background=tuple(BACKGROUNDS)[rng.integers(4)] if rng.random() < 0.75 else None,
        )
        if caption.number == 3:  # three large things do not fit
            caption = replace(caption, things=(replace(things[0], size="small" if things[0].size else None),))
        twins = len(things) == 2 and things[0].shape == things[1].shape and things[0].colour == things[1].colour
        if not twins and split_of(caption.composition) == split:
            return caption


ATTRIBUTES = ("number", "shape", "colour", "size", "relation", "background")


def one_wrong(caption: Caption, attribute: str, key: Key) -> Caption | None:
    """The caption with one attribute changed, so that no picture satisfies both; None if it does not state it."""
    rng = key.generator()

    def other(current: str, names: Sequence[str]) -> str:
        return [name for name in names if name != current][int(rng.integers(len(names) - 1))]

    if attribute == "background":
        return (
            replace(caption, background=other(caption.background, tuple(BACKGROUNDS))) if caption.background else None
        )
    if attribute == "relation":
        return replace(caption, relation=other(caption.relation, RELATIONS)) if caption.relation else None
    if attribute == "number":
        if len(caption.things) == 2:
            return replace(caption, things=caption.things[:1], relation=None)
        return replace(caption, number=int(other(str(caption.number), ("1", "2", "3"))))
    which = int(rng.integers(len(caption.things)))
    current = getattr(caption.things[which], attribute)
    if current is None:
        return None
    names = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES}[attribute]
    changed = replace(caption.things[which], **{attribute: other(current, names)})
    return replace(caption, things=(*caption.things[:which], changed, *caption.things[which + 1 :]))


def tint(colour: str, ink: float | np.ndarray) -> np.ndarray:
    """The RGB value (0 to 255) of a palette colour at an ink strength."""
    grey = np.array(MIDDLE_GREY)
    return grey + np.asarray(ink)[..., None] * (np.array(COLOURS[colour], float) - grey)
