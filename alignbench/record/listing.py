"""The cells of a folder: how far each is, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from alignbench.errors import InputError, ResultFileError
from alignbench.locks import in_use
from alignbench.reading import json_of, read_bytes
from alignbench.record import apart
from alignbench.record.contents import content_of
from alignbench.record.result import Result, Status, problem_of, read

STATE = "cell.json"  # in the folder of a cell
WEIGHTS = "adapter"  # likewise, a folder with what was trained


@dataclass(frozen=True)
class Listed:
    """One cell."""

    name: str
    state: str  # its result's status, running, started, gone or unreadable
    detail: str
    bytes: int  # of the result file and its folder
    can_continue: bool


class Head(BaseModel):
    """What is said of a result."""

    model_config = ConfigDict(strict=True)

    status: Status
    reason: str | None
    finished: str | None
    images: int


def head_of(path: Path) -> Head:
    """What is said of the result at a path. Rows that lie apart are not read, so that nothing is known of their
    digest; that their file is there is. Raises ResultFileError."""
    try:
        return _head(path)
    except apart.Absent:  # it may have been written anew between its two files
        return _head(path)


def _head(path: Path) -> Head:
    content = content_of(path)
    if "apart" not in content:
        result = read(path)
        images = len(result.rows)
        return Head(status=result.status, reason=result.reason, finished=result.finished, images=images)
    said = apart.Apart.of(content["apart"], path)
    said.file_of(path)
    told = {name: content.get(name) for name in ("status", "reason", "finished")}
    try:
        return Head.model_validate({**told, "images": said.lengths["rows"]})
    except ValidationError as error:
        raise ResultFileError(problem_of(path, error)) from None


def cells_of(folder: Path) -> list[Listed]:
    """The cells of a folder by name. Raises InputError where there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; `alignbench run` makes results.")
    return sorted(_cells(folder), key=lambda cell: cell.name)


def folders_below(folders: Iterable[Path]) -> list[Path]:
    """The folders directly in these that hold results, which are not looked at where only these are named."""
    return sorted({path.parent for folder in folders for path in folder.glob("*/*.json") if _is_result(path)})


def complete_of(paths: Iterable[Path], say: Callable[[str], None]) -> list[tuple[Path, Result]]:
    """The complete results among files; each of the others is said in a line. Raises InputError where none is
    complete, ResultFileError for a file that cannot be trusted."""
    found, reasons = [], []
    for path in dict.fromkeys(paths):
        result = read(path)
        if result.status == "complete":
            found.append((path, result))
        else:
            again = "; type its command again" if result.status in ("partial", "failed") else ""
            reasons.append(f"{path} is {result.status}{again}")
    if not found:
        raise InputError(f"{reasons[0] if reasons else 'no result was named'}; only complete results have pictures.")
    for reason in reasons:
        say(f"left out: {reason}")
    return found


def _is_result(path: Path) -> bool:
    """Whether a file begins as results do: other JSON lies about too."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            return b'"status"' in handle.read(64)
    except OSError:  # one that may not be read
        return False


def _cells(folder: Path) -> Iterator[Listed]:
    results = {path.stem: path for path in folder.glob("*.json")}
    begun = {path.parent.name: path.parent for path in folder.glob(f"*/{STATE}")}
    for name in {*results, *begun}:
        own = folder / name
        size = sum(map(_size, own.rglob("*"))) if own.is_dir() else 0
        if holder := in_use(own):
            yield Listed(name, "running", f"in use by {holder}", size, False)
        elif name not in results:
            state, detail = _begun(own)
            yield Listed(name, state, detail, size, state == "started")
        else:
            size += sum(map(_size, (results[name], *apart.files_of(results[name]))))
            try:
                head = head_of(results[name])
            except ResultFileError as error:
                yield Listed(name, "unreadable", str(error).removeprefix(f"{results[name]}: "), size, False)
                continue
            unfinished = head.status in ("partial", "failed")
            yield Listed(name, head.status, _detail(head), size, unfinished)


def _size(path: Path) -> int:
    """In bytes; of a file alone, and of none that goes while a run writes."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _detail(head: Head) -> str:
    if head.status == "complete":
        return f"{head.images} images, {head.finished}"
    return head.reason or ""


def _begun(folder: Path) -> tuple[str, str]:
    """State and detail of a cell without a result."""
    try:
        saved = json_of(read_bytes(folder / STATE))
        attempts, running = int(saved["attempts"]), bool(saved["running"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return "unreadable", "its state file cannot be read"
    if not running:
        return "gone", "it had ended, and its result file is not there"
    return "started", f"attempt {attempts}, no result yet"
