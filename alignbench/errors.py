"""The errors alignbench raises on purpose. Each message names the value, what was expected and the next step.

The command line prints them as one line on stderr: exit code 2 for `InputError` and `Unsupported`, 1 for the others.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

from alignbench.printed import one_line, visible


class AlignbenchError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(AlignbenchError, ValueError):
    """Something the user gave is wrong: a name, a value, a file."""

    exit_code = 2


class UnknownName(InputError):
    """A name that nothing answers to. The message lists near names and all known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"no {kind} named {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class ResultFileError(InputError):
    """A result file that cannot be trusted: truncated, edited, from a newer schema, or not a result at all."""


class RunError(AlignbenchError, RuntimeError):
    """A run that cannot go on: a full disk, a reward that returns NaN, a model file that is missing."""


class Diverged(RunError):
    """A loss or gradient became NaN or infinite. The last good checkpoint is kept."""


class Unsupported(AlignbenchError):
    """This algorithm cannot run on this problem; the reason becomes a row of the table, not a crash."""

    exit_code = 2


class CannotContinue(RunError):
    """What an earlier try left cannot be continued: `--force` clears it and begins anew."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; use --force to begin anew.")
        self.what = what


def warn(line: str) -> None:
    """A line about what was coped with, where no progress is shown."""
    print(one_line(line), file=sys.stderr, flush=True)


def shown(value: object) -> str:
    """A wrong value in a message, of bounded length."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "…"


def described(error: BaseException, longest: int | None = None) -> str:
    """An error that was not raised on purpose, in a line: its kind, and what it says as far as `longest`."""
    return f"{type(error).__name__}: {said(error)[:longest]}"


def said(error: BaseException) -> str:
    """What an error says, in one line in which nothing is hidden."""
    return " ".join(visible(str(error)).split())
