"""What several commands do with what they found: print it, write it, draw it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")


def check_ending(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file to write whose name does not end as its format does."""
    if path is not None and path.suffix not in endings:
        *others, last = endings
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{option} {path}: expected a {expected} file.")


def typed(*words: object) -> str:
    """Paths and values as a shell takes them."""
    return " ".join(shlex.quote(str(word)) for word in words)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def report(values: Mapping[str, Any], text: str, print_json: bool, output: Path | None) -> None:
    """Print the values as JSON, or the text for people, and write the JSON to a file where one is named."""
    from alignbench.files import write_text

    content = as_json(values)
    print(content if print_json else text, end="")
    if output is not None:
        write_text(output, content)
        if not print_json:
            print(f"written to {output}")


def draw(figure: Figure, path: Path) -> None:
    """Write a figure in the format its file's ending says."""
    from alignbench.files import replace_file

    with replace_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
