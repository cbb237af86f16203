"""What counts of a log of votes for the cells that are compared, once it is sure that they are of these pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.load import Run
from alignbench.analysis.vote_statistics import NOBODY
from alignbench.errors import InputError, shown
from alignbench.pictures import PictureError
from alignbench.record.digests import by_pixels, digest, digests, picture_of
from alignbench.record.votes import Identical, Log, Served, cell_id, person, read_log

Numbers = NDArray[np.int64]


class Entry(NamedTuple):
    """What one rater, or nobody, says of two cells on a prompt."""

    one: int  # row of a run
    other: int
    won: float  # of the first; NaN: skipped
    prompt: str
    sample: int
    rater: str  # who it is among all logs (`person`); "" where nobody was asked


def entries_of(path: Path, log: Log, runs: Sequence[Run], name: str) -> list[Entry]:
    """What counts of a log on one question, skipped pairs too. Raises InputError for votes on other pictures."""
    known = {cell_id(run.result): i for i, run in enumerate(runs)}
    rows = {c: known[cell.id] for c, cell in enumerate(log.header.cells) if cell.id in known}
    check_pictures(path, log, runs, rows)
    return counted(log, rows, name, 0)


def read_logs(paths: Sequence[Path]) -> list[tuple[Path, Log]]:
    """Several logs. Raises InputError where two hold one vote, as a log and its copy do: it would count twice."""
    logs = [(path, read_log(path)) for path in paths]
    holder: dict[str, Path] = {}
    for path, log in logs:
        for nonce in log.served:
            if nonce in holder:
                raise InputError(f"{holder[nonce]} and {path} hold the same votes; leave one out.")
        holder |= dict.fromkeys(log.served, path)
    return logs


def check_pictures(path: Path, log: Log, runs: Sequence[Run], rows: Mapping[int, int]) -> None:
    """Raise InputError where a cell, or a picture of it that was voted on, is another than when votes were cast."""
    for number, row in rows.items():
        run, cell = runs[row], log.header.cells[number]
        kept = run.result.kept.pictures if run.result.kept else None
        if kept is None:
            digests(run.path, run.result)  # they have to be there
        if kept is not None and kept != cell.pictures:
            raise InputError(
                f"{path}: its votes are on other pictures of {run.path}, which was made again since; vote anew."
            )
    seen: dict[tuple[int, int, int], str] = {}
    pairs: list[Served | Identical] = [*log.served.values(), *log.identical]
    prompts = {row: [prompt.id for prompt in runs[row].result.prompts] for row in rows.values()}
    for pair in pairs:
        checked = isinstance(pair, Served) and pair.check in ("same", "other prompt")
        for one in (pair.left, pair.right):
            if one.cell not in rows:
                continue
            result = runs[rows[one.cell]].path
            if seen.setdefault((one.cell, one.place, one.sample), one.sha256) != one.sha256:
                raise InputError(f"{path}: one picture of {result} has two sums; the log was edited.")
            if not checked and prompts[rows[one.cell]][one.place : one.place + 1] != [pair.prompt]:
                raise InputError(
                    f"{path}: a picture of {result} is not of prompt {shown(pair.prompt)}; the log was edited."
                )
    pixels = {number: by_pixels(runs[row].result) for number, row in rows.items()}
    for (number, place, sample), sha256 in seen.items():
        file = picture_of(runs[rows[number]].path, place, sample)
        if not file.exists():  # not beside the result, which says by itself which pictures it is of
            continue
        try:
            same = digest(file, pixels[number]) == sha256
        except PictureError:
            same = False
        if not same:
            raise InputError(f"{path}: {file} is another picture than was voted on; bring it back, or vote anew.")


def counted(log: Log, rows: Mapping[int, int], name: str, k: int) -> list[Entry]:
    """What counts of a log, the k-th of those that are taken together, on one question."""
    numbers = [i for i, question in enumerate(log.header.questions) if question.name == name]
    if not numbers:
        return []
    found = [
        _entry(cast.pair, rows, {"left": 1.0, "right": 0.0, "tie": 0.5, "skip": np.nan}[cast.vote.choice], k)
        for cast in log.cast
        if cast.pair.question == numbers[0] and not cast.pair.check
    ]
    found += [_entry(line, rows, 0.5, k) for line in log.identical]
    return [entry for entry in found if entry is not None]


def _entry(pair: Served | Identical, rows: Mapping[int, int], won: float, k: int) -> Entry | None:
    if pair.left.cell not in rows or pair.right.cell not in rows:
        return None
    rater = person(pair.rater, k) if isinstance(pair, Served) else ""
    return Entry(rows[pair.left.cell], rows[pair.right.cell], won, pair.prompt, pair.left.sample, rater)


@dataclass(frozen=True)
class Votes:
    """The votes on two methods, from the first one's side."""

    entries: list[Entry]

    def numbers(self, values: Sequence[object]) -> Numbers:
        order = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return np.array([order[value] for value in values], dtype=np.int64)

    @property
    def won(self) -> NDArray[np.float64]:
        return np.array([e.won for e in self.entries])

    @property
    def prompts(self) -> Numbers:
        """What is drawn at random: prompts, or, of one prompt alone, its images."""
        prompts = [e.prompt for e in self.entries]
        return self.numbers(prompts if len(set(prompts)) > 1 else [e.sample for e in self.entries])

    @property
    def raters(self) -> Numbers:
        numbers = self.numbers([e.rater for e in self.entries])
        return np.where([not e.rater for e in self.entries], NOBODY, numbers)

    @property
    def seeds(self) -> list[Numbers]:
        return [self.numbers([e.one for e in self.entries]), self.numbers([e.other for e in self.entries])]

    @property
    def units(self) -> Numbers:
        return self.numbers([(e.one, e.other, e.prompt, e.sample) for e in self.entries])
