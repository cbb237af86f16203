"""What can be voted on: every two methods on the same prompt and noise, and which pair a rater gets next.

A rater's k-th item is decided by the key (rater, k) and by what was voted so far: a new pair, one that somebody else
has had, one that the rater has had with sides swapped, or a check. New pairs are of the two methods that met least
often, or, adaptively, of those whose interval is widest; of their prompts, one that was asked about least often.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from alignbench.analysis.load import Run, load, methods_of
from alignbench.analysis.statistics import score_interval
from alignbench.errors import InputError
from alignbench.keys import Key
from alignbench.pictures import PictureError
from alignbench.record.digests import AGAIN, by_pixels, digest, digest_of, digests, picture_of
from alignbench.record.votes import Check, Rules, Shown, VotedCell, cell_id

APART = 8  # items before a pair may come again
QUANTILE = 1.96


class Unit(NamedTuple):
    """Two methods on one prompt and noise."""

    duel: int
    prompt: str
    sample: int


class Item(NamedTuple):
    """Two pictures for a rater, in the order they are shown."""

    prompt: str
    left: Shown
    right: Shown
    check: Check = ""
    wrong: Literal["", "left", "right"] = ""

    def swapped(self) -> Item:
        return Item(self.prompt, self.right, self.left, "repeat")


@dataclass(frozen=True)
class Cell:
    """A cell's pictures."""

    path: Path
    voted: VotedCell
    places: Mapping[str, int]  # of prompts by id
    pictures: Mapping[tuple[int, int], str]  # SHA-256 by place and sample
    by_pixels: bool  # of what they show; else of their files
    looks: Mapping[tuple[int, int], str]  # what tells pictures of all cells apart: as above, or of what they show

    def shown(self, number: int, prompt: str, sample: int) -> Shown | None:
        """A picture of this cell, whose place among the cells is `number`."""
        place = self.places.get(prompt, -1)
        sha256 = self.pictures.get((place, sample))
        return None if sha256 is None else Shown(cell=number, place=place, sample=sample, sha256=sha256)


@dataclass(frozen=True)
class Ground:
    """All that can be voted on."""

    evaluation: str
    cells: Sequence[Cell]
    methods: Sequence[Sequence[int]]  # the cells of each, one per training seed
    texts: Mapping[str, str]  # of prompts by id

    def alike(self, one: Shown, other: Shown) -> bool:
        """Whether two pictures are one: of results that keep digests of files beside some that keep those of pixels,
        digests do not tell it."""
        first, second = (self.cells[x.cell].looks[x.place, x.sample] for x in (one, other))
        return first == second

    @functools.cached_property
    def duels(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(len(self.methods)), 2))


def ground_of(paths: Sequence[Path]) -> Ground:
    """The pictures of finished cells. Raises InputError where they are not of one evaluation, fewer than two methods,
    or not there."""
    groups = load(paths).groups
    if len(groups) != 1:
        raise InputError(f"votes are about one evaluation; these files hold {len(groups)}: choose some of them.")
    ((evaluation, runs),) = groups.items()
    methods = methods_of(runs)
    if len(methods) < 2:
        raise InputError("these files hold one method; votes are between two or more.")
    if len(next(iter(runs)).result.evaluation.model.get("image_shape", ())) != 3:
        raise InputError("these cells are of points; votes are about pictures.")
    mixed = len({by_pixels(run.result) for run in runs}) > 1
    cells: list[Cell] = []
    places: list[list[int]] = []
    texts: dict[str, str] = {}
    for method in methods:
        places.append(list(range(len(cells), len(cells) + len(method.runs))))
        cells += [_cell(run, method.label, mixed) for run in method.runs]
        texts |= {prompt.id: prompt.text for run in method.runs for prompt in run.result.prompts}
    first: dict[str, Path] = {}
    for cell in cells:
        if (other := first.setdefault(cell.voted.id, cell.path)) != cell.path:
            raise InputError(f"{other} and {cell.path} are one cell with other scorers; leave one out.")
    return Ground(evaluation, cells, places, texts)


def _cell(run: Run, label: str, mixed: bool) -> Cell:
    pictures = digests(run.path, run.result)
    voted = VotedCell(id=cell_id(run.result), result=run.path.name, method=label, pictures=digest_of(pictures))
    places = {prompt.id: i for i, prompt in enumerate(run.result.prompts)}
    pixels = by_pixels(run.result)
    looks = pictures
    if mixed and not pixels:
        looks = {slot: _look(picture_of(run.path, *slot)) for slot in pictures}
    return Cell(run.path, voted, places, pictures, pixels, looks)


def _look(file: Path) -> str:
    try:
        return digest(file, pixels=True)
    except PictureError as error:
        raise InputError(f"{file} cannot be read as a picture ({error}); {AGAIN}.") from None


@dataclass
class _Met:
    """What is known of two methods: items that were shown or are, and what came out."""

    items: int = 0
    wins: float = 0.0
    losses: float = 0.0
    votes: int = 0

    @property
    def width(self) -> float:
        """Of the interval of a win rate from these votes, with half of what is still open."""
        n = max(1.0, self.votes + 0.5 * max(0, self.items - self.votes))
        low, high = score_interval(self.wins + 0.5, self.losses + 0.5, n + 1, QUANTILE)
        return high - low


@dataclass
class Chooser:
    """Chooses items; all that it remembers follows from the log."""

    ground: Ground
    rules: Rules
    key: Key
    adaptive: bool = False
    _orders: list[list[Unit]] = field(default_factory=list)
    _met: list[_Met] = field(default_factory=list)
    _asked: dict[Unit, list[str]] = field(default_factory=dict)  # raters, "" where nobody was
    _had: dict[str, list[Item]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = [self._shared(duel) for duel in self.ground.duels]
        for number, units in enumerate(shared):
            order = self.key("order", number).permutation(len(units))
            self._orders.append([Unit(number, *units[i]) for i in order])
        self._met = [_Met() for _ in shared]
        if not any(shared):
            raise InputError("these methods have no picture of the same prompt and noise; nothing can be voted on.")

    def _shared(self, duel: tuple[int, int]) -> list[tuple[str, int]]:
        """Prompts and samples of which both methods have a picture in every cell."""
        cells = [self.ground.cells[i] for method in duel for i in self.ground.methods[method]]
        return sorted(set.intersection(*map(_slots, cells)))

    @functools.cached_property
    def size(self) -> int:
        """How many pairs of different pictures there are, by each method's first seed."""
        found = 0
        for order in self._orders:
            for unit in order:
                cells = [self.ground.methods[method][0] for method in self.ground.duels[unit.duel]]
                one, other = (self.ground.cells[i].shown(i, unit.prompt, unit.sample) for i in cells)
                found += one is not None and other is not None and not self.ground.alike(one, other)
        return found

    def shown(self, item: Item, rater: str) -> None:
        """Remember an item that a rater was shown, or, of the rater "", one that nobody needs to be asked about."""
        self._had.setdefault(rater, []).append(item)
        unit = self._unit(item)
        if unit is not None:
            self._asked.setdefault(unit, []).append(rater)
            self._met[unit.duel].items += 1

    def voted(self, item: Item, choice: str, sign: int = 1) -> None:
        """Remember a vote, or, with sign -1, forget one that was taken back."""
        unit = self._unit(item)
        if unit is None or choice == "skip":
            return
        met, first = self._met[unit.duel], self.ground.duels[unit.duel][0]
        met.votes += sign
        if choice != "tie":
            chosen = item.left if choice == "left" else item.right
            if chosen.cell in self.ground.methods[first]:
                met.wins += sign
            else:
                met.losses += sign

    def _unit(self, item: Item) -> Unit | None:
        """What an item says something about; None of a check or a repeat."""
        if item.check:
            return None
        owner = {cell: m for m, cells in enumerate(self.ground.methods) for cell in cells}
        duel = tuple(sorted((owner[item.left.cell], owner[item.right.cell])))
        return Unit(self.ground.duels.index(duel), item.prompt, item.left.sample)  # type: ignore[arg-type]

    def next(self, rater: str) -> Item | None:
        """The next item for a rater; None where there is no pair left that is new to them. Where two methods made the
        same picture, the item's pictures are equal: a tie that needs no rater."""
        had = self._had.get(rater, [])
        key = self.key("item", rater, len(had))
        u, v, side = (float(x) for x in key.generator().random(3))
        rules = self.rules
        for share, make in ((rules.same, self._same), (rules.other_prompt, self._other), (rules.repeat, self._repeat)):
            if u < share:
                special = make(rater, key)
                if special is not None:
                    return special
                break
            u -= share
        unit = (self._shared_with_others(rater) if v < rules.overlap else None) or self._new(rater)
        if unit is None:
            return None
        return self._item(unit, key, swapped=side < 0.5)

    def _item(self, unit: Unit, key: Key, swapped: bool) -> Item:
        cells = [self._cell_of(method, unit, key) for method in self.ground.duels[unit.duel]]
        shown = [self.ground.cells[i].shown(i, unit.prompt, unit.sample) for i in cells]
        assert shown[0] is not None
        assert shown[1] is not None
        left, right = (shown[1], shown[0]) if swapped else (shown[0], shown[1])
        return Item(unit.prompt, left, right)

    def _cell_of(self, method: int, unit: Unit, key: Key) -> int:
        """The training seed of a method, in turn."""
        cells = self.ground.methods[method]
        return cells[int(key("seed", method).integer % len(cells))]

    def _new(self, rater: str) -> Unit | None:
        """Of the duels in turn, the first unit that was asked about least often, and not this rater."""

        def wanted(duel: int) -> tuple[float, int, int]:
            met = self._met[duel]
            return (-met.width if self.adaptive and met.votes else 0.0 if not self.adaptive else -1.0, met.items, duel)

        for duel in sorted(range(len(self._met)), key=wanted):
            fresh = [unit for unit in self._orders[duel] if not self._knows(rater, unit)]
            if fresh:
                return min(fresh, key=lambda unit: len(self._asked.get(unit, ())))
        return None

    def _shared_with_others(self, rater: str) -> Unit | None:
        """A unit that others have had, the one asked about least often."""
        known = [unit for unit, raters in self._asked.items() if any(raters) and not self._knows(rater, unit)]
        return min(known, key=lambda unit: (len(self._asked[unit]), unit), default=None)

    def _knows(self, rater: str, unit: Unit) -> bool:
        """Whether a rater has had a unit, or nobody needs to be asked about it again."""
        asked = self._asked.get(unit, ())
        return rater in asked or "" in asked

    def _repeat(self, rater: str, key: Key) -> Item | None:
        """A pair of a while ago with sides swapped, once each."""
        had = self._had.get(rater, [])
        again = {_pictures(item) for item in had if item.check == "repeat"}
        old = [item for item in had[:-APART] if not item.check and _pictures(item) not in again]
        return old[key("repeat").integer % len(old)].swapped() if old else None

    def _same(self, _: str, key: Key) -> Item | None:
        """One picture twice."""
        unit = self._any(key("same"))
        item = self._item(unit, key, swapped=False)
        return Item(unit.prompt, item.left, item.left, "same")

    def _other(self, _: str, key: Key) -> Item | None:
        """A method's picture beside that of another prompt by the same method."""
        unit = self._any(key("other"))
        own = self._item(unit, key, swapped=False).left
        cell = self.ground.cells[own.cell]
        others = [
            prompt
            for prompt in cell.places
            if self.ground.texts[prompt] != self.ground.texts[unit.prompt]
            and (found := cell.shown(own.cell, prompt, own.sample)) is not None
            and found.sha256 != own.sha256
        ]
        if not others:
            return None
        other = cell.shown(own.cell, others[key("which").integer % len(others)], own.sample)
        assert other is not None
        if key("side").integer % 2:
            return Item(unit.prompt, own, other, "other prompt", "right")
        return Item(unit.prompt, other, own, "other prompt", "left")

    def _any(self, key: Key) -> Unit:
        units = [unit for order in self._orders for unit in order[:1000]]
        return units[key.integer % len(units)]


def _slots(cell: Cell) -> set[tuple[str, int]]:
    prompts = {place: prompt for prompt, place in cell.places.items()}
    return {(prompts[place], sample) for place, sample in cell.pictures}


def _pictures(item: Item) -> frozenset[str]:
    return frozenset((item.left.sha256, item.right.sha256))
