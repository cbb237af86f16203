"""The log of blind votes: one JSON line for each pair that was shown, each vote, and each vote that was taken back.

The first line is the header: which cells, which questions, and the rules, fixed before anybody voted. A vote is bound
to both pictures by the SHA-256 that their results keep (see `digests`), and to a pair that was shown to its rater by a
number that nobody can guess. Lines are only ever appended. A log in which a vote does not follow from the lines before
it was edited, and is refused.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignbench.errors import InputError, shown
from alignbench.files import canonical_json
from alignbench.reading import is_file, json_of, read_bytes
from alignbench.record.result import Digest, Result

SCHEMA: Final = 1
OURS = "alignbench vote"  # the source of a log whose votes were asked for here, sides drawn at random
LONGEST_NAME = 40  # characters of a rater's name
LONGEST_QUESTION = 200  # and of a question's
MOST_QUESTIONS = 20
LARGEST = 2**31
NUMBERED = re.compile(r"(rater-)?\d+")  # a name that says nothing about who it is outside of its log

Choice = Literal["left", "right", "tie", "skip"]
Check = Literal["", "same", "other prompt", "repeat"]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Nonce = Annotated[str, Field(min_length=16, max_length=64, pattern=r"^[\w-]+$")]
Small = Annotated[int, Field(ge=0, le=LARGEST)]
Text = Annotated[str, Field(max_length=5000)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Question(_Line):
    """What is asked about a pair."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_QUESTION)]
    text: Annotated[str, Field(min_length=1, max_length=500)]
    of_prompt: bool = True  # whether a picture of another prompt has to lose


class VotedCell(_Line):
    """A cell whose pictures are shown."""

    id: str  # what it is, whatever its file is called and whichever scorers it has by now
    result: Text  # the name of its result file
    method: Text
    pictures: Digest  # of all of them, as in the result file


class Rules(_Line):
    """What else is shown than new pairs, and whom to believe; a share is of all pairs."""

    same: float = 0.025  # the same picture twice: there is no better one
    other_prompt: float = 0.025  # a picture of another prompt: it is the worse one
    repeat: float = 0.05  # a pair that the rater has had, with sides swapped
    overlap: float = 0.2  # of new pairs: one that somebody else has had
    fewest_checks: Small = 3  # below which nobody is judged
    most_failed: float = 1 / 3  # share of failed checks above which results are also shown without the rater

    @property
    def sentence(self) -> str:
        return (
            f"a rater who fails more than {100 * self.most_failed:.0f} % of at least {self.fewest_checks} checks "
            "(same picture twice: no tie; picture of another prompt: preferred) is left out in the second figure"
        )


class Header(_Line):
    """The first line."""

    kind: Literal["header"] = "header"
    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    created: str
    evaluation: str
    seed: int
    adaptive: bool = False
    source: Text = OURS  # or where outside votes come from
    questions: Annotated[list[Question], Field(min_length=1, max_length=MOST_QUESTIONS)]
    cells: Annotated[list[VotedCell], Field(min_length=2, max_length=1000)]
    rules: Rules
    rule: Text  # in words


class Shown(_Line):
    """One picture of a pair."""

    cell: Small  # its place among the header's
    place: Small  # of the prompt
    sample: Small
    sha256: Digest


class Served(_Line):
    """A pair that was sent to a rater, with one question. Questions about one pair have one item number."""

    kind: Literal["served"] = "served"
    nonce: Nonce
    rater: Name
    item: Small
    question: Small
    prompt: Text  # its id
    left: Shown
    right: Shown
    check: Check = ""
    wrong: Literal["", "left", "right"] = ""  # the picture of another prompt
    at: str


class Vote(_Line):
    """What a rater chose."""

    kind: Literal["vote"] = "vote"
    nonce: Nonce
    rater: Name
    choice: Choice
    left: Digest
    right: Digest
    milliseconds: Small
    at: str


class Undo(_Line):
    """A vote that its rater took back; the pair is open again."""

    kind: Literal["undo"] = "undo"
    nonce: Nonce
    rater: Name
    at: str


class Identical(_Line):
    """A pair of methods that made the same picture: a tie, of which nobody was asked."""

    kind: Literal["identical"] = "identical"
    item: Small
    prompt: Text
    left: Shown
    right: Shown
    at: str


Line = Header | Served | Vote | Undo | Identical
KINDS: dict[str, type[_Line]] = {
    "header": Header, "served": Served, "vote": Vote, "undo": Undo, "identical": Identical,
}  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """A vote that counts, with what it is of."""

    pair: Served
    vote: Vote


@dataclass
class Log:
    """What the lines of a log come to."""

    header: Header
    served: dict[str, Served] = field(default_factory=dict)  # by nonce, in order
    votes: dict[str, Vote] = field(default_factory=dict)  # that were not taken back, in the order they came
    identical: list[Identical] = field(default_factory=list)

    def add(self, line: Served | Vote | Undo | Identical) -> None:
        """Take a line in. Raises InputError where it does not follow from those before it."""
        if isinstance(line, Identical):
            self.identical.append(line)
        elif isinstance(line, Served):
            if line.nonce in self.served:
                raise InputError("a pair is shown under the number of another one")
            if line.question >= len(self.header.questions):
                raise InputError(f"question {line.question}, of {len(self.header.questions)}")
            self.served[line.nonce] = line
        else:
            pair = self.served.get(line.nonce)
            if pair is None or pair.rater != line.rater:
                raise InputError(f"a {line.kind} on a pair that was not shown to {shown(line.rater)}")
            if (line.nonce in self.votes) == isinstance(line, Vote):
                raise InputError("a second vote on one pair" if isinstance(line, Vote) else "an undo without a vote")
            if isinstance(line, Undo):
                del self.votes[line.nonce]
            elif (line.left, line.right) != (pair.left.sha256, pair.right.sha256):
                raise InputError("a vote on other pictures than were shown")
            else:
                self.votes[line.nonce] = line
        for picture in (line.left, line.right) if isinstance(line, Served | Identical) else ():
            if picture.cell >= len(self.header.cells):
                raise InputError(f"a picture of cell {picture.cell}, of {len(self.header.cells)}")

    @property
    def cast(self) -> list[Cast]:
        return [Cast(self.served[nonce], vote) for nonce, vote in self.votes.items()]


def read_log(path: Path) -> Log:
    """A log of votes. A last line that a kill tore was never answered and is left out. Raises InputError naming the
    line for whatever no alignbench wrote."""
    *lines, last = read_bytes(path).split(b"\n") if is_file(path) else [b""]
    lines += [last] if is_whole(last) else []
    if not lines or not lines[0].removeprefix(codecs.BOM_UTF8).startswith(b"{"):
        raise InputError(f"{path}: no log of votes; `alignbench vote` makes one, of a table by --import.")
    log: Log | None = None
    for number, text in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        line = _parsed(text.removeprefix(codecs.BOM_UTF8) if number == 1 else text, where)
        if isinstance(line, Header) == (log is not None):
            raise InputError(f"{where}: expected {'one header, in the first line' if log else 'the header of a log'}.")
        try:
            if log is None:
                log = Log(line)  # type: ignore[arg-type]
                _check_header(log.header)
            else:
                log.add(line)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"{where}: {error}; the log was edited or damaged.") from None
    assert log is not None
    return log


def is_whole(last: bytes) -> bool:
    """Whether the last line of a log lacks nothing but its end, as editors leave it. A torn one is no JSON."""
    try:
        return isinstance(json_of(last), dict)
    except ValueError:
        return False


def _parsed(text: bytes, where: str) -> _Line:
    try:
        content = json_of(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}).") from None
    kind = KINDS.get(str(content.get("kind"))) if isinstance(content, dict) else None
    if kind is None:
        raise InputError(f"{where}: expected a line of a log of votes, found {shown(content)}.")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{where}: schema {shown(content['schema'])}, this version reads {SCHEMA}.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def _check_header(header: Header) -> None:
    """Raise InputError where it is not to be told which question or cell a line is about."""
    for what, names in (("question", [q.name for q in header.questions]), ("cell", [cell.id for cell in header.cells])):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"the {what} {shown(twice)} stands there twice")


def check_questions(names: Sequence[str], where: str) -> None:
    """Raise InputError for questions that no log holds."""
    if len(names) > MOST_QUESTIONS:
        raise InputError(f"{where}: {len(names)} questions; at most {MOST_QUESTIONS} are asked about a pair.")
    for name in names:
        if not 0 < len(name) <= LONGEST_QUESTION or not name.isprintable():
            raise InputError(f"{where}: the question is {shown(name)}; expected 1 to {LONGEST_QUESTION} letters.")
    if len(set(names)) < len(names):
        raise InputError(f"{where}: one question stands there twice.")


def folded(name: str) -> str:
    """Equal for names of raters that differ in blanks, in capital letters, or in how a letter is encoded: one rater."""
    return unicodedata.normalize("NFKC", " ".join(name.split())).casefold()


def person(name: str, log: int) -> str:
    """Equal for names in several logs that mean one rater: however it is written, but for a number, such as of
    `--raters 20`, which each log gives to its own raters."""
    same = folded(name)
    return f"{same}\n{log}" if NUMBERED.fullmatch(same) else same  # no name has a line end


def line_of(line: _Line) -> bytes:
    """A line as it is written."""
    return f"{line.model_dump_json(by_alias=True)}\n".encode()


def cell_id(result: Result) -> str:
    """What a cell is but for its scorers, which may be added later."""
    asked = result.configuration.model_dump(exclude={"scorers", "code"})
    makers = [made] if (made := result.configuration.makers) else []  # nothing, of a cell without plug-ins
    content = [asked, result.sampler, result.evaluation.fingerprint, *makers]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


def checks_of(log: Log, name: str | None = None) -> dict[str, list[bool]]:
    """Whether each rater passed each check that tells something, perhaps with one question alone. A skipped one tells
    nothing."""
    found: dict[str, list[bool]] = {}
    for cast in log.cast:
        pair, choice = cast.pair, cast.vote.choice
        question = log.header.questions[pair.question]
        tells = pair.check == "same" or (pair.wrong and question.of_prompt)
        if tells and choice != "skip" and name in (None, question.name):
            passed = choice != pair.wrong if pair.wrong else choice == "tie"
            found.setdefault(pair.rater, []).append(passed)
    return found


def suspects(log: Log) -> set[str]:
    """Raters who fail by the header's rule."""
    rules = log.header.rules
    return {
        rater
        for rater, passed in checks_of(log).items()
        if len(passed) >= rules.fewest_checks and passed.count(False) > rules.most_failed * len(passed)
    }
