"""The gallery: the same prompt and noise side by side across methods, as small pictures with their scores."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from alignbench.analysis.comparison import Group
from alignbench.analysis.load import Method, Run
from alignbench.analysis.votes import Counts, VoteColumn
from alignbench.keys import Key
from alignbench.printed import visible
from alignbench.record.first_pictures import FirstPictures, first_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELLED = 64  # pixels of the longer side up to which a picture is kept as it is
SIDE = 256  # to which larger ones are made smaller
QUALITY = 75
BUDGET = 12_000_000  # bytes of all pictures of a page; base64 makes 16 MB of it, and results take up to 4
SHOWN = 6  # methods that are shown at first
FIRST = 12  # prompts of the first page
NAMED = 3  # pictures that a note names; others are counted


@dataclass(frozen=True)
class Shot:
    """One picture: its place in the gallery, its data URI, its scores and votes."""

    method: int
    source: str
    scores: list[float | None]
    votes: list[Counts | None]  # by question to people; None where nobody chose about it


@dataclass(frozen=True)
class Card:
    """One prompt with the pictures of all methods that have one."""

    prompt: str
    text: str
    category: str
    file: str  # the name that its pictures have in every folder
    shots: list[Shot]


@dataclass
class Gallery:
    """All cards that fit, and what is to be said of them."""

    methods: list[str]
    shown: list[int]  # methods that are shown at first
    baseline: int | None
    scorers: list[str]
    short: list[str]  # names of scorers without what all of them begin with
    votes: list[VoteColumn] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    bytes: int = 0
    folders: list[str | None] = field(default_factory=list)  # of full pictures, seen from the page
    pixelled: bool = False
    lossy: bool = False
    notes: list[str] = field(default_factory=list)
    draw: list[int] = field(default_factory=list)  # the cards in an order drawn by key

    @property
    def first(self) -> list[Card]:
        return self.cards[:FIRST]


def gallery(group: Group, methods: Sequence[Method], output: Path, images: int | None, room: int) -> Gallery:
    """The pictures of one evaluation, of `images` prompts or of as many as fit in so many bytes. Without pictures it
    has no cards, and its notes say why."""
    base = group.methods.index(group.baseline) if group.baseline else None
    found = Gallery(group.methods, [], base, group.scorers, short_names(group.scorers), group.votes)
    if images == 0:
        found.notes.append("No pictures were asked for (--images 0).")
        return found
    unchecked: list[str] = []
    sources: dict[int, FirstPictures] = {}
    for place, method in enumerate(methods):
        if (source := _source(method.label, method.runs[0], found.notes, unchecked)) is not None:
            sources[place] = source
    if not sources:
        found.notes.append(
            "No folder of pictures lies beside these results, nor a sprite of them, so there is nothing to look at."
        )
        return found
    if unchecked:
        who = "all" if len(unchecked) == len(sources) else ", ".join(unchecked)
        found.notes.append(f"Not checked against results, which keep no digest of pictures or lack some: {who}.")
    if lacking := [method.label for place, method in enumerate(methods) if place not in sources]:
        found.notes.append(f"Without pictures beside the result: {', '.join(lacking)}.")
    found.shown = _first_shown(group, sources)
    found.folders = [_link(sources.get(place), output) for place in range(len(methods))]
    about = {row.id: row for method in methods for row in method.first.prompts}
    common = dict.fromkeys(prompt for source in sources.values() for prompt in source.prompts)
    found.notes += _few(sources, methods, len(common))
    order = Key("report", "gallery").permutation(len(common))
    names = list(common)
    cards: dict[int, Card] = {}
    altered: dict[str, list[Path]] = {}
    for place in order if images is None else order[:images]:
        row = about[names[place]]
        shots, size = _shots(sources, methods, row.id, found, altered)
        if images is None and found.bytes + size > room:
            break
        found.bytes += size
        file = next((source.files[row.id].name for source in sources.values() if row.id in source.files), "")
        cards[place] = Card(row.id, visible(row.text), visible(row.category), file, shots)
    found.cards = [cards[place] for place in sorted(cards)]
    found.draw = Key("report", "order").permutation(len(cards))
    found.notes += [_altered(label, files) for label, files in altered.items()]
    if len(cards) < len(common):
        found.notes.append(
            f"{len(cards)} of {len(common)} prompts, drawn at random, the same in every report; --images takes more."
        )
    if found.lossy:
        found.notes.append(f"Pictures are made smaller, to {SIDE} pixels, and lossy; scores are of the full ones.")
    return found


def _first_shown(group: Group, sources: Collection[int]) -> list[int]:
    """The baseline, and the best of each algorithm on the first scorer, of those that have pictures."""
    having = [group.methods[place] for place in sources]
    first = [item for item in group.versus if item.scorer == group.scorers[0] and item.method in having]
    best: dict[str, str] = {}
    for item in sorted(first, key=lambda item: -item.rate.rate):
        best.setdefault(item.method.partition(" ")[0], item.method)
    chosen = [name for name in having if name == group.baseline]
    chosen += list(best.values()) or [name for name in having if name not in chosen]
    return sorted(group.methods.index(name) for name in chosen[:SHOWN])


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the first word where all have the same: `truth` and `style` for `shapes_truth`, `shapes_style`."""
    words = {name.partition("_")[0] for name in names}
    return [name.partition("_")[2] or name for name in names] if len(names) > 1 and len(words) == 1 else list(names)


def _source(label: str, run: Run, notes: list[str], unchecked: list[str]) -> FirstPictures | None:
    """A run's pictures; None where there are none, or where they are not those that the result is of."""
    found = first_pictures(run.path, run.result)
    if found is not None and found.wrong:
        notes.append(f"{label}: {found.wrong}; they are left out.")
        return None
    if found is not None and not found.checked:
        unchecked.append(label)
    return found


def _altered(label: str, files: Sequence[Path]) -> str:
    """Which pictures of a method are no longer those of its result."""
    named = sorted(set(files))  # those of a sprite are in one file
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"{label}: changed after the run, so not the pictures its scores are of, and left out: "
        f"{', '.join(map(str, named[:NAMED]))}{more}."
    )


def _few(sources: Mapping[int, FirstPictures], methods: Sequence[Method], common: int) -> list[str]:
    """Whose pictures are of some prompts alone, in a line."""
    few = [f"{methods[place].label} ({len(s.prompts)})" for place, s in sources.items() if len(s.prompts) < common]
    rows = max(len(source.rows) for source in sources.values())
    lines = [f"Of {rows} prompts, {common} have pictures beside these results."] if common < rows else []
    return [*lines, f"Pictures of fewer prompts than others have: {', '.join(few)}."] if few else lines


def _shots(
    sources: Mapping[int, FirstPictures],
    methods: Sequence[Method],
    prompt: str,
    found: Gallery,
    altered: dict[str, list[Path]],
) -> tuple[list[Shot], int]:
    """The pictures of one prompt, and their bytes. One that was changed after its run is among `altered` instead."""
    shots, size = [], 0
    for place, source in sources.items():
        if prompt not in source.prompts:
            continue
        row = source.rows[prompt]
        if source.changed(prompt):
            altered.setdefault(methods[place].label, []).append(source.place(prompt))
            continue
        content = _thumbnail(source.picture(prompt), found)
        size += len(content)
        uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        votes = [column.pictures.get((source.path, prompt, row.sample)) for column in found.votes]
        shots.append(Shot(place, uri, [row.scores.get(name) for name in found.scorers], votes))
    return shots, size


def _thumbnail(picture: Image, found: Gallery) -> bytes:
    """A picture as WebP: small ones as they are, larger ones made smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    if max(picture.size) <= PIXELLED:
        found.pixelled = True
        picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    else:
        found.lossy = True
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _link(source: FirstPictures | None, output: Path) -> str | None:
    """The folder of full pictures as the page links it: only where it lies below the page's own folder, so that both
    are moved together."""
    if source is None or not source.files:
        return None
    folder = next(iter(source.files.values())).parent
    relative = os.path.relpath(folder.resolve(), output.resolve().parent)
    return None if relative.startswith("..") else quote(Path(relative).as_posix())
