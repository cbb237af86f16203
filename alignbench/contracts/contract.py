"""Contracts: a sentence, and a check of it that says what it found instead."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from alignbench.errors import AlignbenchError, described

T = TypeVar("T")


class Broken(AlignbenchError):
    """A contract does not hold. The message says what was found instead."""


class NotAsked(Exception):
    """A contract asks nothing of this plug-in. The message says why."""


@dataclass(frozen=True)
class Contract(Generic[T]):
    """A sentence about a plug-in, and its check, which raises Broken or NotAsked."""

    says: str
    check: Callable[[T], None]


@dataclass(frozen=True)
class Finding:
    """What came of one contract."""

    says: str
    state: Literal["holds", "broken", "not asked"]
    detail: str = ""


def findings(contracts: Sequence[Contract[T]], subject: T, source: Path | None = None) -> Iterator[Finding]:
    """Check one contract after the other. Whatever a plug-in raises breaks the contract that met it, and no other. Of
    an error that passed through the plug-in's `source`, the line is named."""
    for contract in contracts:
        try:
            contract.check(subject)
        except NotAsked as reason:
            yield Finding(contract.says, "not asked", str(reason))
        except Broken as error:
            yield Finding(contract.says, "broken", str(error))
        except Exception as error:  # a plug-in may raise anything
            yield Finding(contract.says, "broken", described(error) + line_of(error, source))
        else:
            yield Finding(contract.says, "holds")


def line_of(error: BaseException, source: Path | None) -> str:
    """Where an error last was in a file, as words to put behind its message; '' where it never was there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if source is not None and Path(frame.filename) == source]
    return f" ({source.name}, line {lines[-1]})" if lines and source is not None else ""


def require(holds: bool, otherwise: str) -> None:
    """Raise Broken with this sentence where something does not hold."""
    if not holds:
        raise Broken(otherwise)
