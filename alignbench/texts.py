"""Text files that somebody gives: UTF-8 and nothing else, and tables and JSON that can be read in one way only."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignbench import reading
from alignbench.errors import InputError, shown
from alignbench.reading import read_bytes

MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # what files of another encoding begin with
MARKED = {",": "comma", ";": "semicolon", "\t": "tab"}
LONGEST = 2**24  # bytes of a line that is read by itself
LARGEST = 2**31  # bytes; HPDv2's largest file has a third of it


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, with or without a mark at its beginning. Raises InputError saying what else it is."""
    content = read_bytes(path, LARGEST)
    if kind := MARKS.get(content[:2]):
        raise InputError(f"{path} is {kind}; save the file as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        seen = content[error.start : error.start + 1].decode("cp1252", "replace")
        raise InputError(
            f"{path}, line {line}: not UTF-8 (as Windows-1252 it would be {seen!r}); save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {line}: a null character, which no text has; save the file as UTF-8.")
    return text


def lines_of(path: Path) -> list[str]:
    """The lines of a file; only line ends of the three systems end one. Raises InputError."""
    return text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def streamed(path: Path) -> Iterator[tuple[int, int, str]]:
    """The lines of a UTF-8 file one after another: where each begins in bytes, its number from 1, and its text without
    its end. Raises InputError by line, as `text_of`, and for a line that is longer than any should be."""
    begins = 0
    with open(path, "rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(LONGEST), b""), start=1):
            where = f"{path}, line {number}"
            if number == 1 and (kind := MARKS.get(line[:2])):
                raise InputError(f"{path} is {kind}; save the file as UTF-8.")
            if len(line) == LONGEST:
                raise InputError(f"{where}: has more than {LONGEST:,} bytes, which is no line of this kind.")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                seen = line[error.start : error.start + 1].decode("cp1252", "replace")
                raise InputError(
                    f"{where}: not UTF-8 (as Windows-1252 it would be {seen!r}); save the file as UTF-8."
                ) from None
            if "\0" in text:
                raise InputError(f"{where}: a null character, which no text has; save the file as UTF-8.")
            yield begins, number, text.rstrip("\n")
            begins += len(line)


def _separator(path: Path, text: str, tabs: bool) -> tuple[str, bool]:
    """What separates the fields of a table, and whether its first line says so, as Excel reads and writes it."""
    if said := re.match(r"sep=(.)([\r\n]|$)", text, re.IGNORECASE):
        if said[1] not in MARKED:
            raise InputError(f"{path}, line 1: {shown(said[0].strip())}; expected sep=, or sep=; or a tab there.")
        return said[1], True
    header = text.lstrip("\r\n").partition("\n")[0]
    return "\t" if tabs else ";" if ";" in header and "," not in header else ",", False


def table_rows(path: Path, tabs: bool = False, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with a header: the place of each, and its fields by column in small letters. Commas separate
    fields, and double quotes hold them together (RFC 4180); semicolons do where they are in the header and no comma is,
    as Excel writes them where commas stand in numbers, or whatever a first line `sep=;` says. Of a table with tabs,
    quotes are text. Raises InputError by line for a row that has not as many fields as the header: a comma that is not
    quoted would cut a text short."""
    text = text_of(path)
    mark, said = _separator(path, text, tabs)
    source = io.StringIO(text, newline="")
    if said:
        next(source)
    passed = int(said)  # lines
    reader = csv.reader(source, delimiter=mark, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=not tabs)
    header: list[str] | None = None
    begun = 1 + passed
    try:
        for fields in reader:
            where, begun = f"{path}, line {begun}", reader.line_num + passed + 1
            if not fields:
                continue
            if header is None:
                header = [name.strip().lower() for name in fields]
                check_names(header, where)
                if missing := [name for name in needed if name not in header]:
                    raise InputError(
                        f"{where}: no column {', '.join(missing)} between its {MARKED[mark]}s; expected "
                        f"{', '.join(needed)}."
                    )
                continue
            if len(fields) != len(header):
                why = "" if tabs else f"; a text with a {MARKED[mark]} in it stands between double quotes"
                raise InputError(
                    f"{where}: {len(fields)} fields between its {MARKED[mark]}s, and the header has {len(header)}{why}."
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        why = "a double quote is never closed" if "end of data" in str(error) else str(error)
        raise InputError(f"{path}, line {begun}: {why}; a double quote inside of quotes is written twice.") from None


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse columns of one name; those without any may be as many as they like."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise InputError(f"{where}: two columns are called {shown(twice)}; rename one of them.")


def json_of(text: str, where: str) -> Any:
    """The value of a JSON text. Raises InputError naming `where` for what is none, and for an object that has a name
    twice: readers would differ on which is meant."""
    try:
        return reading.json_of(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from None


def is_text(value: object) -> bool:
    """Whether a value is text that can be written: JSON can hold halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
