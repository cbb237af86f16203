"""Preference pairs from votes: a folder that `run --pairs`, `train-reward`, `accuracy` and `audit` read.

A pair is two pictures that raters compared; its label is the one that more votes chose, ½ where none of the two has
more.
Raters who fail the checks by the log's own rule have no say; of the same picture twice nothing is to be learned.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.analysis.load import Run, load, methods_of
from alignbench.analysis.vote_entries import Entry, entries_of
from alignbench.errors import InputError, UnknownName, shown
from alignbench.files import LEFTOVER, canonical_json, make_folder, replace_file, sha256_of, write_text
from alignbench.pictures import PictureError, content_of
from alignbench.preferences.lines import FOLDER_FILE
from alignbench.reading import json_of, read_bytes
from alignbench.record.digests import picture_of
from alignbench.record.votes import person, read_log, suspects

MADE = "votes.json"  # what the pairs are from
IMAGES = "images"
SCHEMA = 2


@dataclass(frozen=True)
class FromVotes:
    """A folder of pairs, and what they are from."""

    folder: Path
    pairs: int
    ties: int
    votes: int
    raters: int
    left_out: Sequence[str]  # raters


def pairs_from_votes(
    path: Path, results: Sequence[Path], folder: Path, question: str | None = None, force: bool = False
) -> FromVotes:
    """Make the folder, or go on with it; made already of these votes, it is left as it is. Raises InputError where
    votes are of other pictures, of none of these results, or the folder holds anything else; `force` replaces pairs of
    other votes."""
    log = read_log(path)
    names = [q.name for q in log.header.questions]
    name = names[0] if question is None else question
    if name not in names:
        raise UnknownName(f"question in {path}", name, names)
    groups = load(results).groups
    if log.header.evaluation not in groups:
        raise InputError(f"{path}: its votes are on evaluation {log.header.evaluation}, which no file here is of.")
    runs = groups[log.header.evaluation]
    bad = suspects(log)
    judged = [e for e in entries_of(path, log, runs, name) if e.rater and e.won in (0.0, 0.5, 1.0)]
    no_say = {person(name, 0): name for name in bad}
    entries = [e for e in judged if e.rater not in no_say]
    if not entries:
        failed = sorted({no_say[e.rater] for e in judged})
        left_out = f", but for those of {', '.join(map(shown, failed))}, who failed checks" if failed else ""
        raise InputError(f"{path}: no votes on {name!r} between these results{left_out}.")
    rows = _rows(entries, runs)
    about = {
        "schema": SCHEMA,
        "log": sha256_of(path),
        "question": name,
        "left_out": sorted(bad),
        "pairs": hashlib.sha256(canonical_json([row for row, _ in rows]).encode()).hexdigest(),  # of these results
    }
    _write(folder, rows, about, force)
    ties = sum(row["label"] == 0.5 for row, _ in rows)
    return FromVotes(folder, len(rows), ties, len(entries), len({e.rater for e in entries}), sorted(bad))


def _rows(entries: Sequence[Entry], runs: Sequence[Run]) -> list[tuple[dict[str, Any], list[Path]]]:
    """The line of each pair, and its two pictures."""
    labels = {run.path: method.label for method in methods_of(runs) for run in method.runs}
    texts = {prompt.id: prompt.text for run in runs for prompt in run.result.prompts}
    places = [{prompt.id: i for i, prompt in enumerate(run.result.prompts)} for run in runs]
    counts: dict[tuple[str, int, int, int], Counter[float]] = {}
    for e in entries:
        one, other, won = (e.one, e.other, e.won) if e.one < e.other else (e.other, e.one, 1 - e.won)
        counts.setdefault((e.prompt, e.sample, one, other), Counter())[won] += 1
    found = []
    for (prompt, sample, *pair), votes in sorted(counts.items()):
        pictures = [picture_of(runs[i].path, places[i][prompt], sample) for i in pair]
        row = {
            "prompt": texts[prompt],
            "label": 0.5 if votes[1.0] == votes[0.0] else float(votes[1.0] > votes[0.0]),
            "models": [labels[runs[i].path] for i in pair],
            "id": prompt,
            "votes": [votes[1.0], votes[0.5], votes[0.0]],
        }
        found.append((row, pictures))
    return found


def _write(folder: Path, rows: Sequence[tuple[dict[str, Any], list[Path]]], about: dict[str, Any], force: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(not LEFTOVER.fullmatch(path.name) for path in folder.iterdir())):
        known = _made(folder / MADE)
        if known == about and (folder / FOLDER_FILE).is_file():
            return
        if known is None:
            raise InputError(f"{folder} holds other things than pairs from votes; choose a new folder.")
        if known != about and not force:
            of = "pairs that an older alignbench made" if known["schema"] == 1 else "pairs of other votes or results"
            raise InputError(f"{folder} holds {of}; --force replaces them, or choose a new folder.")
        (folder / FOLDER_FILE).unlink(missing_ok=True)
    make_folder(folder)
    write_text(folder / MADE, json.dumps(about, indent=1) + "\n")  # first, so that what a kill leaves is known
    make_folder(folder / IMAGES)
    lines = []
    for row, pictures in rows:
        names = [_copied(picture, folder) for picture in pictures]
        lines.append(json.dumps({**row, "images": names}, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / FOLDER_FILE, "".join(lines))


def _copied(picture: Path, folder: Path) -> str:
    """The name of a copy of a picture, which its content decides."""
    try:
        content, sha256 = content_of(picture), sha256_of(picture)
    except (PictureError, OSError) as error:
        raise InputError(f"{picture} cannot be read ({error}); pairs need the pictures beside their results.") from None
    name = f"{IMAGES}/{sha256[:24]}.png"
    if not (folder / name).is_file():
        with replace_file(folder / name, sync=False) as temporary:
            temporary.write_bytes(content)
    return name


def _made(path: Path) -> dict[str, Any] | None:
    """What an earlier call says that the pairs are from; None where there is nothing of the kind."""
    try:
        said = json_of(read_bytes(path))
    except ValueError:
        return None
    return said if isinstance(said, dict) and "schema" in said else None
