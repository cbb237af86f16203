"""Votes that were cast elsewhere, as a log: a table of prompt, two methods, choice and rater; Label Studio's export;
Pick-a-Pic's parquet.

    prompt,method_a,method_b,choice,rater
    a red circle,base,refl,a,anna

A row names a prompt by its id or its text, two methods by their label, algorithm or result file, and a choice: a or b
(left or right, or a method's own name), tie, skip. Optional columns are sample (default 0), question and milliseconds.
Label Studio's JSON is read where its tasks have these columns as data, and its raters chose `left`, `right` or `tie`;
an annotation without a choice counts as a pair that its rater skipped.
A parquet file has Pick-a-Pic's columns: the caption is the prompt, model_0 and model_1 are the methods, label_0 is the
choice and user_id the rater; rows that nobody judged are passed over, and its copies of pictures are not read: what is
counted is the result's own picture of that method and prompt. What was shown on which side is as the table says: a is
left. The first row of a rater on a pair counts. What they say of it again is a repeat, which counts for nobody but
tells how far they agree with themselves. One picture of two methods is a tie, whatever was said of it. Everything else
is refused by row.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignbench.errors import InputError, UnknownName, shown
from alignbench.files import canonical_json, replace_file
from alignbench.judging.ballot import Ground, ground_of
from alignbench.judging.voting_asked import now
from alignbench.preferences.columns import OF_JUDGEMENT, check_agreement, is_judged
from alignbench.preferences.parquet import opened
from alignbench.record.votes import (
    LONGEST_NAME,
    Choice,
    Header,
    Identical,
    Log,
    Question,
    Rules,
    Served,
    Shown,
    Vote,
    check_questions,
    folded,
    line_of,
)
from alignbench.texts import json_of, table_rows, text_of

COLUMNS = ("prompt", "method_a", "method_b", "choice", "rater")
OPTIONAL = ("sample", "question", "milliseconds")
CHOICES = {
    "a": "left", "b": "right", "left": "left", "right": "right", "1": "left", "2": "right", "tie": "tie",
    "both": "tie", "neither": "tie", "same": "tie", "skip": "skip", "": "skip",
}  # fmt: skip
PICK_A_PIC = ("caption", "model_0", "model_1", "label_0", "user_id")
SAID = {1.0: "a", 0.0: "b", 0.5: "tie"}  # by label_0
MOST = 1_000_000  # rows
TOGETHER = 4096  # rows of a parquet file that are read at once

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its values


@dataclass(frozen=True)
class Imported:
    """What a log was made from."""

    path: Path
    votes: int
    raters: int
    questions: Sequence[str]
    repeats: int  # of the votes
    identical: int  # rows about one picture of two methods
    unused: Sequence[str]  # columns of a table


def import_votes(source: Path, results: Sequence[Path], path: Path) -> Imported:
    """Write a log of the votes in a .csv, .tsv, .json or .parquet file on these results. Raises InputError by row."""
    if path.exists():
        raise InputError(f"{path} is there already; name a new --votes.")
    rows = list(itertools.islice(_rows(source), MOST + 1))
    if not rows:
        raise InputError(f"{source}: no votes; expected a row for each, or a task with annotations.")
    if len(rows) > MOST:
        raise InputError(f"{source}: more than {MOST} rows, of which no more are read; cut it in two.")
    ground = ground_of(results)
    names = list(dict.fromkeys(_text(row, "question", where) or "overall" for where, row in rows))
    check_questions(names, str(source))
    header = Header(
        schema=1,
        created=now(),
        evaluation=ground.evaluation,
        seed=0,
        source=f"imported from {source.name}",
        questions=[Question(name=name, text=name) for name in names],
        cells=[cell.voted for cell in ground.cells],
        rules=Rules(same=0, other_prompt=0, repeat=0, overlap=0),
        rule="none: imported votes have no checks",
    )
    taken = _Taken(_Finder(ground), Log(header), [line_of(header)], names)
    for number, (where, row) in enumerate(rows):
        taken.take(where, row, number)
    with replace_file(path) as temporary:
        temporary.write_bytes(b"".join(taken.content))
    cast = taken.log.cast
    raters, repeats = len({c.vote.rater for c in cast}), sum(bool(c.pair.check) for c in cast)
    unused = [name for name in rows[0][1] if name not in COLUMNS + OPTIONAL] if _is_table(source) else []
    return Imported(path, len(cast), raters, names, repeats, taken.identical, unused)


class _Finder:
    """Prompts and methods by the names that people give them."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.prompts = {identifier: [identifier] for identifier in ground.texts}
        for identifier, text in ground.texts.items():
            self.prompts.setdefault(text, []).append(identifier)
        self.owner = {i: number for number, cells in enumerate(ground.methods) for i in cells}
        self.cells: dict[str, set[int]] = {}
        for i, cell in enumerate(ground.cells):
            label = cell.voted.method
            for name in (label, label.partition(" ")[0], cell.path.name, cell.path.stem):
                self.cells.setdefault(name, set()).add(i)

    def prompt(self, name: str, where: str) -> str:
        found = self.prompts.get(name, [])
        if len(set(found)) != 1:
            reason = "no prompt of these results" if not found else "the text of several prompts; give its id"
            raise InputError(f"{where}: {shown(name)} is {reason}.")
        return found[0]

    def cell(self, name: str, where: str) -> int:
        found = self.cells.get(name, set())
        if not found:
            raise InputError(f"{where}: {UnknownName('method in these results', name, self.cells)}")
        if len({self.owner[i] for i in found}) > 1:
            raise InputError(f"{where}: {shown(name)} means several methods; give its label or its result file.")
        if len(found) > 1:
            files = ", ".join(self.ground.cells[i].path.name for i in sorted(found))
            raise InputError(f"{where}: {shown(name)} has several seeds; name a result file: {files}.")
        return next(iter(found))

    def picture(self, i: int, prompt: str, sample: int, where: str) -> Shown:
        cell = self.ground.cells[i]
        shown_one = cell.shown(i, prompt, sample)
        if shown_one is None:
            raise InputError(f"{where}: {cell.path} has no picture {sample} of this prompt.")
        return shown_one


@dataclass
class _Taken:
    """The log, row by row."""

    finder: _Finder
    log: Log
    content: list[bytes]  # its lines
    questions: Sequence[str]
    identical: int = 0  # rows about one picture of two methods
    _raters: dict[str, str] = field(default_factory=dict)  # as they were written first
    _judged: set[Hashable] = field(default_factory=set)
    _alike: set[Hashable] = field(default_factory=set)

    def take(self, where: str, row: Mapping[str, Any], number: int) -> None:
        """Take in what a row says. Raises InputError naming it."""
        finder, first, second = self.finder, _text(row, "method_a", where), _text(row, "method_b", where)
        prompt = finder.prompt(_text(row, "prompt", where), where)
        one, other = finder.cell(first, where), finder.cell(second, where)
        if finder.owner[one] == finder.owner[other]:
            raise InputError(f"{where}: {shown(first)} against itself.")
        sample, taken = _whole(row, "sample", where), _whole(row, "milliseconds", where)
        left, right = (finder.picture(i, prompt, sample, where) for i in (one, other))
        rater, choice = self._rater(row, where), _chosen(_text(row, "choice", where), first, second, where)
        pair = (prompt, sample, *sorted((one, other)))
        if finder.ground.alike(left, right):
            self.identical += 1
            if pair not in self._alike:
                self._add(Identical(item=number, prompt=prompt, left=left, right=right, at=now()))
            self._alike.add(pair)
            return
        asked = _text(row, "question", where) or "overall"
        question = self.questions.index(asked)
        place = (rater, question, pair)
        content = canonical_json([number, rater, asked, prompt, left.sha256, right.sha256, choice, taken])
        nonce = hashlib.sha256(content.encode()).hexdigest()[:32]
        self._add(
            Served(
                nonce=nonce,
                rater=rater,
                item=number,
                question=question,
                prompt=prompt,
                left=left,
                right=right,
                check="repeat" if place in self._judged else "",
                at=now(),
            )
        )
        self._add(
            Vote(
                nonce=nonce,
                rater=rater,
                choice=choice,
                left=left.sha256,
                right=right.sha256,
                milliseconds=taken,
                at=now(),
            )
        )
        if choice != "skip":
            self._judged.add(place)

    def _rater(self, row: Mapping[str, Any], where: str) -> str:
        rater = " ".join(_text(row, "rater", where).split())
        if not 0 < len(rater) <= LONGEST_NAME or not rater.isprintable():
            raise InputError(f"{where}: the rater is {shown(rater)}; expected a name of 1 to {LONGEST_NAME} letters.")
        known = self._raters.setdefault(folded(rater), rater)
        if known != rater:
            raise InputError(
                f"{where}: the rater is {shown(rater)}, and above {shown(known)}; write a name in one way."
            )
        return rater

    def _add(self, line: Served | Vote | Identical) -> None:
        self.log.add(line)
        self.content.append(line_of(line))


def _chosen(said: str, first: str, second: str, where: str) -> Choice:
    """A choice by a word of the table, or by a method's name. One that is both, and not of one side, is refused."""
    by_name, by_word = {first: "left", second: "right"}.get(said), CHOICES.get(said.lower())
    choice = by_name or by_word
    if choice is None:
        raise InputError(f"{where}: the choice is {shown(said)}; expected a, b, tie or skip.")
    if by_word in ("left", "right") and by_word != choice:
        raise InputError(
            f"{where}: the choice is {shown(said)}, which is a side and names the method on the other one; write left "
            "or right."
        )
    if by_word not in (None, choice):
        other = next(word or "nothing" for word, meant in CHOICES.items() if meant == by_word and word != said.lower())
        raise InputError(
            f"{where}: the choice is {shown(said)}, which names a method and is a word for a {by_word}; write left or "
            f"right for the method, {other} for a {by_word}."
        )
    return choice  # type: ignore[return-value]


def _rows(source: Path) -> Iterator[Row]:
    if _is_table(source):
        yield from table_rows(source, tabs=source.suffix.lower() == ".tsv", needed=COLUMNS)
    elif source.suffix.lower() == ".json":
        yield from _label_studio(source)
    elif source.suffix.lower() == ".parquet":
        yield from _pick_a_pic(source)
    else:
        raise InputError(f"{source}: expected a .csv, .tsv, Label Studio's .json, or Pick-a-Pic's .parquet.")


def _is_table(source: Path) -> bool:
    return source.suffix.lower() in (".csv", ".tsv")


def _pick_a_pic(source: Path) -> Iterator[Row]:
    """Rows that somebody judged, without the pictures."""
    with opened(source) as handle:
        names = handle.schema_arrow.names
        if missing := [name for name in PICK_A_PIC if name not in names]:
            raise InputError(f"{source} has no column {' and no '.join(missing)}; votes need {', '.join(PICK_A_PIC)}.")
        light = [name for name in dict.fromkeys((*PICK_A_PIC, "has_label", *OF_JUDGEMENT)) if name in names]
        number = 0
        for part in handle.iter_batches(TOGETHER, columns=light, use_threads=False):
            for values in part.to_pylist():
                where, number = f"{source}, row {number}", number + 1
                if not is_judged(values, where):
                    continue
                if empty := [name for name in PICK_A_PIC if values[name] is None]:
                    raise InputError(f"{where}: no {empty[0]}; correct the row, or leave it out.")
                label = values["label_0"]
                if not isinstance(label, Hashable) or label not in SAID:
                    raise InputError(f"{where}: label_0 is {shown(label)}; expected 1, 0 or 0.5.")
                check_agreement(label, values, where)
                yield where, {
                    "prompt": values["caption"], "method_a": values["model_0"], "method_b": values["model_1"],
                    "choice": SAID[label], "rater": values["user_id"],
                }  # fmt: skip


def _label_studio(source: Path) -> Iterator[Row]:
    """Tasks with `data` and `annotations`, each with `completed_by` and a result of <Pairwise> or <Choices>."""
    tasks = json_of(text_of(source), str(source))
    if not isinstance(tasks, list):
        raise InputError(f"{source}: expected Label Studio's export, a list of tasks.")
    for number, task in enumerate(tasks):
        where = f"{source}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise InputError(f"{where}: expected data and annotations; export it as JSON, not as JSON-MIN.")
        annotations = task.get("annotations") or []
        if not isinstance(annotations, list):
            raise InputError(f"{where}: annotations is {shown(annotations)}; expected a list.")
        for k, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise InputError(f"{where}, annotation {k}: expected an object.")
            if annotation.get("was_cancelled"):
                continue
            seconds = annotation.get("lead_time")
            taken = round(1000 * seconds) if isinstance(seconds, int | float) and 0 <= seconds < 10**6 else 0
            own = {
                "rater": _by(annotation.get("completed_by")),
                "choice": _choice(annotation, f"{where}, annotation {k}"),
            }
            yield f"{where}, annotation {k}", {**task["data"], **own, "milliseconds": taken}


def _by(value: Any) -> str:
    """Who annotated: a number, or an object with an e-mail address or a number, which a long address leaves to tell."""
    if isinstance(value, dict):
        mail = value.get("email")
        value = mail if isinstance(mail, str) and 0 < len(mail) <= LONGEST_NAME else value.get("id")
    return str(value) if isinstance(value, str | int) else ""


def _choice(annotation: Mapping[str, Any], where: str) -> str:
    results = annotation.get("result")
    if results == []:  # sent without a choice
        return "skip"
    said = []
    for result in results if isinstance(results, list) else ():
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("selected"), str):
            said.append(value["selected"])
        elif isinstance(value.get("choices"), list) and len(value["choices"]) == 1:
            said.append(str(value["choices"][0]))
    if len(said) != 1:
        raise InputError(f"{where}: {len(said)} choices; expected one of a Pairwise or a Choices tag.")
    return said[0]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name, "" if name not in COLUMNS else None)
    if value is None:
        raise InputError(f"{where}: no {name}; expected {', '.join(COLUMNS)}.")
    if isinstance(value, float) and value.is_integer():  # a column of numbers, of which some row had none
        value = int(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{where}: the {name} is {shown(value)}; expected text.")
    return str(value).strip()


def _whole(row: Mapping[str, Any], name: str, where: str) -> int:
    value = row.get(name, 0)
    text = str(value).strip() or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"{where}: the {name} is {shown(value)}; expected a whole number.")
    return int(text)
