"""What several commands do with what they found: print it, write it, draw it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import InputError
from alignbench.files import is_stream, replace_file, write_text
from alignbench.printed import HIDDEN, Screen, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")
NARROWEST = 24  # columns that are laid out for; below it the terminal breaks lines


def check_ending(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file to write whose name does not end as its format does. A device or a pipe has a name of its own, and
    takes the format where there is one alone."""
    if path is not None and path.suffix not in endings and not (len(endings) == 1 and is_stream(path)):
        *others, last = endings
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{option} {path}: expected a {expected} file.")


def say(*lines: str) -> None:
    """Print lines, each of which stays one whatever names it holds."""
    print("\n".join(map(one_line, lines)), flush=True)


def listing(*lines: str) -> None:
    """Print laid-out lines, folded where the screen is narrow; words stay whole, so that paths can be copied."""
    from alignbench.analysis.formats import folded

    width = screen().width
    print("\n".join(folded(one_line(line), width, whole_words=True) for line in lines), flush=True)


def note(*lines: str) -> None:
    """Lines that do not belong to what a program would read from stdout."""
    print("\n".join(map(one_line, lines)), file=sys.stderr, flush=True)


def screen() -> Screen:
    """What stdout is: a terminal, or COLUMNS where that is set, has a width; a file or a pipe takes lines of any."""
    width = shutil.get_terminal_size((0, 0)).columns
    return Screen(max(width, NARROWEST) if width else None, sys.stdout.encoding or "utf-8")


def typed(*words: object) -> str:
    """Paths and values as a shell takes them; hidden characters in the form that bash, zsh and ksh read."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    if not HIDDEN.search(word) and "\n" not in word and "\t" not in word:
        return shlex.quote(word)
    plain = {"\\": "\\\\", "'": "\\'"}
    shown = (plain.get(c, c if c.isprintable() else "".join(f"\\x{b:02x}" for b in os.fsencode(c))) for c in word)
    return f"$'{''.join(shown)}'"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def as_json(values: Mapping[str, Any]) -> str:
    """JSON that says the same in every encoding: what is hidden, or half of a pair, is an escape of JSON's own."""
    text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def print_json(values: Mapping[str, Any]) -> None:
    """Print values as JSON: characters that stdout lacks are escapes of JSON, not replaced."""
    text = as_json(values)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    print(text, end="")


def report(values: Mapping[str, Any], text: Callable[[Screen], str], in_json: bool, output: Path | None) -> None:
    """Print the values as JSON, or the text for people, and write the JSON to a file where one is named."""
    if in_json:
        print_json(values)
    else:
        print(text(screen()), end="")
    if output is not None:
        write_text(output, as_json(values))
        if not in_json:
            say_written(output)


def say_written(path: Path) -> None:
    """Where something was written, unless it went to a device or a pipe, perhaps this very output."""
    if not is_stream(path):
        say(f"written to {path}")


def draw(figure: Figure, path: Path) -> None:
    """Write a figure in the format its file's ending says."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
