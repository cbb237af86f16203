"""A user's file of prompts: text, tables and JSON, each read in one way or refused by line.

    .txt                  one prompt a line
    .csv                  a header, quotes as RFC 4180 has them; every row has as many fields as the header
    .tsv                  the same with tabs, and quotes are text
    .jsonl                an object a line
    .json                 a list of texts, or of objects
    .parquet              columns of text

A prompt's column is called prompt, text or caption; id, category and challenge are read where they are there, and all
others are named. Nothing is turned into text that is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import InputError, shown
from alignbench.texts import check_names, is_text, json_of, lines_of, table_rows, text_of

if TYPE_CHECKING:
    from alignbench.interface import Prompt

SUFFIXES = (".txt", ".tsv", ".csv", ".jsonl", ".json", ".parquet")
LONGEST = 5000  # characters of a prompt; a longer one is a file of another kind
TEXT_COLUMNS = ("prompt", "text", "caption")
OWN_COLUMNS = ("id", "category", "challenge")

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its values by column, in small letters


@dataclass(frozen=True)
class PromptFile:
    """What a file holds, and the columns of it that nothing uses."""

    prompts: Sequence[Prompt]
    unused: Sequence[str]


def read(path: Path) -> PromptFile:
    """The prompts of a file. Raises InputError naming the line for whatever is not as its format says."""
    rows = list(READERS[path.suffix.lower()](path))
    if not rows:
        raise InputError(f"{path} holds no prompts; expected at least one.")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        found = ", ".join(columns) or "none"
        raise InputError(
            f"{path}: no column named {', '.join(TEXT_COLUMNS)}; found {found}. Rename that of the prompts."
        )
    prompts = [_prompt(where, row, column, f"{path.stem}-{i:05d}") for i, (where, row) in enumerate(rows)]
    return PromptFile(prompts, [name for name in columns if name not in (column, *OWN_COLUMNS)])


def _prompt(where: str, row: Mapping[str, Any], column: str, number: str) -> Prompt:
    from alignbench.interface import Prompt

    text = row.get(column)
    if not isinstance(text, str) or not is_text(text):
        raise InputError(f"{where}: the {column} is {_said(row, column)}; expected text.")
    if not text.strip():
        raise InputError(f"{where}: the {column} is empty; write one or remove the line.")
    if len(text) > LONGEST:
        raise InputError(f"{where}: {len(text)} characters; a prompt has at most {LONGEST}; shorten it.")
    identifier, category, challenge = (_about(row, name, where) for name in OWN_COLUMNS)
    return Prompt(identifier or number, text, category, challenge)


def _about(row: Mapping[str, Any], name: str, where: str) -> str:
    """What a row says of its prompt; an id may be a whole number."""
    value = row.get(name)
    if value is None:
        return ""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not is_text(value):
        raise InputError(f"{where}: the {name} is {_said(row, name)}; expected text.")
    return str(value)


def _said(row: Mapping[str, Any], name: str) -> str:
    """A value of the wrong kind, with its kind as JSON calls it."""
    if name not in row:
        return "not there"
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    value = row[name]
    kind = kinds.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
    return kind if value is None else f"{shown(value)}, {kind}"


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield f"{path}, line {number}", {"prompt": line}


def _table_rows(path: Path) -> Iterator[Row]:
    return table_rows(path, tabs=path.suffix.lower() == ".tsv")


def _line_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _named(json_of(line, where), where)


def _list_rows(path: Path) -> Iterator[Row]:
    content = json_of(text_of(path), str(path))
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of prompts, or of objects with a prompt.")
    for number, entry in enumerate(content):
        where = f"{path}, entry {number}"
        yield where, {"prompt": entry} if isinstance(entry, str) else _named(entry, where)


def _named(row: Any, where: str) -> dict[str, Any]:
    """An object's values by their names in small letters."""
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected an object such as {{"prompt": "a red circle"}}.')
    names = [str(name).strip().lower() for name in row]
    check_names(names, where)
    return dict(zip(names, row.values(), strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    from alignbench.preferences.parquet import opened

    with opened(path) as handle:
        names = [name.strip().lower() for name in handle.schema_arrow.names]
        check_names(names, str(path))
        wanted = [name for name in handle.schema_arrow.names if name.strip().lower() in (*TEXT_COLUMNS, *OWN_COLUMNS)]
        table = handle.read(columns=wanted, use_threads=False).to_pydict()
        count = handle.metadata.num_rows
    unread = dict.fromkeys(name for name in names if name not in (*TEXT_COLUMNS, *OWN_COLUMNS))
    for row in range(count):
        yield f"{path}, row {row}", {name.strip().lower(): values[row] for name, values in table.items()} | unread


READERS = {
    ".txt": _text_rows,
    ".tsv": _table_rows,
    ".csv": _table_rows,
    ".jsonl": _line_rows,
    ".json": _list_rows,
    ".parquet": _parquet_rows,
}
