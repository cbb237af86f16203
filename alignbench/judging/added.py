"""Scorers on the pictures of finished cells, and their scores as further columns of the results.

A cell's pictures are scored as its run scored them: from the files it kept, in the same order and batches, by the same
code. So a column that is added is the one that the run would have made.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignbench.asking import prompts as prompt_sets
from alignbench.caches import Caches
from alignbench.devices import BATCH, chunked, device_of
from alignbench.errors import AlignbenchError, InputError, RunError, warn
from alignbench.experiment.evaluate import StoredImages
from alignbench.interface import Prompt, Reward, Truncates
from alignbench.judging import score as scoring
from alignbench.judging.options import ScoreOptions
from alignbench.judging.picture_folders import Item
from alignbench.judging.picture_names import refuse_first
from alignbench.judging.score import Report, Scored
from alignbench.locks import exclusive
from alignbench.pictures import PictureError, size_of
from alignbench.plugins import rewards_of
from alignbench.printed import WHOLE, Screen, one_line
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.digests import by_pixels, changed
from alignbench.record.listing import STATE, complete_of
from alignbench.record.pictures import ImageStore, Slot
from alignbench.record.result import Result, identity
from alignbench.scoring.score_cache import ScoreCache
from alignbench.sourced import is_hashed
from alignbench.testbed.exact_problem import info as exact_reward


@dataclass(frozen=True)
class Rescored:
    """What was found on the pictures of one result, and which columns were written into it."""

    path: Path
    report: Report
    saved: Sequence[str] = ()


@dataclass(frozen=True)
class _Cell:
    """A complete result, its pictures in the order of its rows, and the scorers to use on them."""

    path: Path
    result: Result
    wanted: Sequence[Slot]
    prompts: Sequence[Prompt]  # by place
    scorers: Mapping[str, Reward]

    @property
    def folder(self) -> Path:
        return self.path.with_suffix("")

    @property
    def store(self) -> ImageStore:
        return ImageStore(self.folder / "images")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.result.evaluation.model.get("image_shape", ()))


def score_results(
    paths: Sequence[Path], options: ScoreOptions, save: bool = False, force: bool = False, quiet: bool = False
) -> list[Rescored]:
    """Score the pictures of results; with `save`, write the columns into them, atomically and one result after another.

    Everything is checked before anything is scored. Raises InputError where no result is complete, pictures are
    not there or not those that it is of, a scorer cannot score them, or a column is there already and `force` is not
    given. Of several results, those that are not complete are left out, and those that have these very columns already
    are left as they are.
    """
    if options.prompts is not None:
        raise InputError(f"--prompts {options.prompts}: the result {paths[0]} has its own prompts; leave it out.")
    refuse_first(options.first_number, f"the pictures of the result {paths[0]} are named by itself")
    scorers = rewards_of(options.scorers, options.scoring)
    asked = {name: identity(reward.info()) for name, reward in scorers.items()}  # finds its files
    cells = [_cell(path, result, scorers) for path, result in complete_of(paths, warn)]
    if save and not force:
        cells = [cell for cell in (_without_known(cell, asked) for cell in cells) if cell.scorers]
        if not cells:
            raise InputError(
                f"{', '.join(map(str, paths))}: there is a column {', '.join(asked)} already; --force scores it again."
            )
    for cell in cells:
        _check(cell, save)
    device, kept, done = device_of(options.device), Caches.usable(warn).scores, []
    batch = options.batch_size if "batch_size" in options.model_fields_set else None
    with Progress(quiet) as progress:
        for cell in cells:
            with _held(cell, save):
                report = _scored(cell, batch, device, kept, progress)
                if save:
                    results.write(cell.path, _with_columns(cell, report))
            done.append(Rescored(cell.path, report, tuple(cell.scorers) if save else ()))
    for cell in cells if save else ():
        if unmeasured := _unmeasured(cell):
            command = shlex.join(["alignbench", "evaluate", str(cell.path), "--scorers", *unmeasured])
            warn(
                f"{cell.path}: how far {', '.join(unmeasured)} is from its optimum is not told: it takes the sampler, "
                f"not images alone; `{command}` tells it."
            )
    return done


def _unmeasured(cell: _Cell) -> list[str]:
    """The new columns of which a run would also tell how far the images are from the optimum: rewards of the exact
    testbed, which alone gives results metrics."""
    new = {name: reward for name, reward in cell.scorers.items() if name not in cell.result.frontiers}
    return [name for name, reward in new.items() if cell.result.metrics and reward.info() == exact_reward(name)]


def _cell(path: Path, result: Result, scorers: Mapping[str, Reward]) -> _Cell:
    places = {prompt.id: i for i, prompt in enumerate(result.prompts)}
    wanted = [Slot(places[row.prompt], row.sample) for row in result.rows]
    return _Cell(path, result, wanted, _prompts_of(result), scorers)


def _prompts_of(result: Result) -> Sequence[Prompt]:
    """The evaluated prompts: of the set they come from where that is as it was, for scorers that need more than their
    texts."""
    own = [Prompt(p.id, p.text, p.category, p.challenge) for p in result.prompts]
    try:
        whole = prompt_sets.take(result.configuration.prompts, result.configuration.split)
    except (AlignbenchError, OSError):
        return own
    same = prompt_sets.digest(whole) == result.evaluation.prompts_sha256
    return whole[: len(own)] if same and list(whole[: len(own)]) == own else own


def _without_known(cell: _Cell, asked: Mapping[str, results.Scorer]) -> _Cell:
    """The cell without the scorers whose very columns it has. Raises InputError for a column of another scorer."""
    columns = cell.result.scorers
    for name, scorer in asked.items():
        if name in columns and columns[name] != scorer:
            fields = type(scorer).model_fields
            differing = [entry for entry in fields if getattr(scorer, entry) != getattr(columns[name], entry)]
            raise InputError(
                f"{cell.path} has a column {name!r} of another scorer (it differs in {', '.join(differing)}); --force "
                "replaces it."
            )
    return replace(cell, scorers={name: reward for name, reward in cell.scorers.items() if name not in columns})


def _check(cell: _Cell, save: bool) -> None:
    """Raise InputError where the pictures are not there, or not those of the result, or cannot be scored."""
    again = "Bring them back, or make them again: type the cell's command with --force"
    if _is_running(cell.folder / STATE):
        raise InputError(f"{cell.folder} is being made again, or was interrupted; type the cell's command first.")
    for slot in cell.wanted:
        if not cell.store.holds([slot]):
            path = cell.store.path(slot, picture=len(cell.shape) != 1)
            if path.exists():
                raise InputError(f"{path} cannot be read as a picture. {again}.")
            raise InputError(f"{cell.path} has no picture {path}. {again}.")
    for slot, row in zip(cell.wanted, cell.result.rows, strict=True):
        if wrong := changed(cell.path, row, cell.store.path(slot, picture=True)):
            raise InputError(wrong)
    known = cell.result.kept.pictures if cell.result.kept and not by_pixels(cell.result) else None
    if known is not None and cell.store.digest(cell.wanted) != known:
        raise InputError(f"the pictures in {cell.folder} are not those that {cell.path} is of. {again}.")
    for slot, size in zip(cell.wanted, _sizes(cell, cell.wanted), strict=True):
        if save and size != cell.shape[1:]:
            path = cell.store.path(slot, picture=True)
            raise InputError(f"{path} has {size} pixels, and {cell.path} is of pictures of {cell.shape[1:]}. {again}.")
    for name, reward in cell.scorers.items():
        if reason := reward.unsupported(cell.prompts, cell.shape):
            raise InputError(f"scorer {name!r} cannot score the pictures of {cell.path}: {reason}")


def _is_running(state: Path) -> bool:
    """Whether a cell's state says that its pictures are being made."""
    try:
        return bool(json.loads(state.read_text(encoding="utf-8"))["running"])
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or left behind: the pictures decide
        return False


@contextlib.contextmanager
def _held(cell: _Cell, save: bool) -> Iterator[None]:
    """While a column is written, nobody else works on the cell, and it is what it was when it was read."""
    if not save:
        yield
        return
    with exclusive(cell.folder):
        if results.read(cell.path) != cell.result:
            raise RunError(f"{cell.path} has just been written by another process; type the same command again.")
        yield


def _scored(cell: _Cell, batch: int | None, device: str, kept: Path, progress: Progress) -> Report:
    """Every scorer on every picture, as a run scores them."""
    pictures = len(cell.shape) != 1
    size = batch or BATCH[3 if pictures else 1]
    rows = [
        Scored(Item(cell.store.path(slot, pictures), cell.prompts[slot.place], slot.sample)) for slot in cell.wanted
    ]
    places = {slot: place for place, slot in enumerate(cell.wanted)}
    keeps = [name for name, reward in cell.scorers.items() if pictures and is_hashed(reward.info())]
    caches = {name: ScoreCache(kept, cell.scorers[name]) for name in keeps}
    known = zip(cell.wanted, cell.result.rows, strict=True)
    digests = {slot: row.sha256 for slot, row in known if row.sha256 is not None}
    stored = StoredImages(cell.scorers, cell.prompts, cell.store, caches, device, digests)
    parts = [part for slots in chunked(cell.wanted, size) for part in _alike(cell, slots)]
    progress.stage("score", len(rows) * len(cell.scorers))
    try:
        for name, slots, found in stored.scores([dict.fromkeys(cell.scorers, part) for part in parts]):
            for slot, (value, reason) in zip(slots, found, strict=True):
                row = rows[places[slot]]
                row.scores[name] = value if reason is None else None
                if reason is not None:
                    row.failures[name] = reason
            progress.advance(len(slots))
    except (OSError, ValueError) as error:
        raise InputError(f"a picture of {cell.path} cannot be read ({error}).") from None
    scorers = cell.scorers.items()
    texts = [row.item.prompt for row in rows]
    truncated = {name: sum(r.truncated(texts)) for name, r in scorers if isinstance(r, Truncates)}
    return Report(rows, {name: reward.info() for name, reward in scorers}, truncated)


def _alike(cell: _Cell, slots: Sequence[Slot]) -> list[list[Slot]]:
    """The slots, those whose pictures have one size together."""
    groups: dict[tuple[int, ...], list[Slot]] = {}
    for slot, size in zip(slots, _sizes(cell, slots), strict=True):
        groups.setdefault(size, []).append(slot)
    return list(groups.values())


def _sizes(cell: _Cell, slots: Sequence[Slot]) -> list[tuple[int, ...]]:
    """Height and width of pictures; nothing of points. Raises InputError for a file that is no picture."""
    found: list[tuple[int, ...]] = []
    for slot in slots:
        path = cell.store.path(slot, picture=True)
        if not path.exists():
            found.append(cell.shape[1:])
            continue
        try:
            found.append(size_of(path))
        except PictureError as error:
            raise InputError(f"{path} cannot be read as a picture ({error}); replace it.") from None
    return found


def _with_columns(cell: _Cell, report: Report) -> Result:
    """The result with the columns of a report, in the place of those of the same names."""
    old, now = cell.result, datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        replace(
            row,
            scores={**row.scores, **scored.scores},
            failures={
                **{name: reason for name, reason in row.failures.items() if name not in cell.scorers},
                **scored.failures,
            },
        )
        for row, scored in zip(old.rows, report.rows, strict=True)
    ]
    cut = {name: sum(r.truncated(cell.prompts)) for name, r in cell.scorers.items() if isinstance(r, Truncates)}
    return old.model_copy(
        update={
            "rows": rows,
            "scorers": {**old.scorers, **{name: identity(info) for name, info in report.scorers.items()}},
            "truncated": {**{n: c for n, c in old.truncated.items() if n not in cell.scorers}, **cut},
            "added": {**old.added, **dict.fromkeys(cell.scorers, now)},
        }
    )


def as_values(found: Sequence[Rescored], alone: bool) -> dict[str, Any]:
    """What --json prints: of one result its report, of several one by result file."""
    each = [scoring.as_values(item.report) | ({"saved": list(item.saved)} if item.saved else {}) for item in found]
    return each[0] if alone else {"results": {str(item.path): values for item, values in zip(found, each, strict=True)}}


def text(found: Sequence[Rescored], alone: bool, screen: Screen = WHOLE) -> str:
    """The summaries as tables, and what was written where."""
    parts = []
    for item in found:
        parts += [] if alone else [f"{one_line(str(item.path))}\n"]
        parts.append(scoring.text(item.report, screen))
        parts += [one_line(f"written into {item.path}: {', '.join(item.saved)}") + "\n"] if item.saved else []
    return "".join(parts)
