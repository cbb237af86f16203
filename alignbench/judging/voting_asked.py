"""What a session of votes is asked to be, and whether a log that is there is of the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from alignbench.errors import InputError, shown
from alignbench.judging.ballot import Ground
from alignbench.record.votes import OURS, Header, Identical, Log, Question, Rules, Served, check_questions

PAPER = {  # the three questions of the human study of Diffusion-DPO (Wallace et al. 2023, section 5.1)
    "overall": Question(name="overall", text="Which picture do you prefer, given the text?"),
    "alignment": Question(name="alignment", text="Which picture better fits the text?"),
    "appearance": Question(
        name="appearance", text="Which picture is more appealing, whatever the text says?", of_prompt=False
    ),
}


@dataclass(frozen=True)
class Asked:
    """What a session is asked to be."""

    log: Path
    questions: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()  # names; none: whoever types a name
    each: int = 100  # pairs of a rater
    seed: int | None = None
    adaptive: bool = False
    closed: bool = False  # a key in the address is needed, whoever may vote
    rules: Rules = field(default_factory=Rules)


def questions_of(asked: Sequence[str]) -> list[Question]:
    """The questions by their short names, or in the user's own words."""
    check_questions(asked, "--task")
    return [PAPER.get(text) or Question(name=text, text=text) for text in asked or ("overall",)]


def header_of(ground: Ground, asked: Asked) -> Header:
    return Header(
        schema=1,
        created=now(),
        evaluation=ground.evaluation,
        seed=asked.seed or 0,
        adaptive=asked.adaptive,
        questions=questions_of(asked.questions),
        cells=[cell.voted for cell in ground.cells],
        rules=asked.rules,
        rule=asked.rules.sentence,
    )


def check_same(header: Header, ground: Ground, asked: Asked) -> None:
    """Raise InputError where a log is of other pictures, questions or draws, or of votes that were cast elsewhere."""
    if header.source != OURS:
        raise InputError(
            f"{asked.log} holds votes that were cast elsewhere ({header.source}); name another --votes. "
            "`compare --votes` takes both."
        )
    known, now = {cell.id: cell for cell in header.cells}, {cell.voted.id: cell.voted for cell in ground.cells}
    for identifier, cell in now.items():
        if identifier not in known:
            raise InputError(f"{asked.log} has no votes on {cell.result}; name another --votes, or the same results.")
        if known[identifier].pictures != cell.pictures:
            raise InputError(
                f"{asked.log} is of other pictures of {cell.result} than are there now; name another --votes."
            )
    if missing := [cell.result for cell in header.cells if cell.id not in now]:
        raise InputError(f"{asked.log} is also about {', '.join(missing)}; name all its results, or another --votes.")
    if [cell.id for cell in header.cells] != [cell.voted.id for cell in ground.cells]:
        raise InputError(f"{asked.log} has these results in another order; name another --votes.")
    if asked.questions and questions_of(asked.questions) != header.questions:
        texts = ", ".join(shown(question.name) for question in header.questions)
        raise InputError(f"{asked.log} asks {texts}; leave --task out, or name another --votes.")
    if asked.adaptive and not header.adaptive:
        raise InputError(f"{asked.log} was not begun with --adaptive; leave it out, or name another --votes.")
    if asked.seed is not None and asked.seed != header.seed:
        raise InputError(f"{asked.log} has --seed {header.seed}; leave it out, or name another --votes.")


def check_shown(log: Log, ground: Ground, path: Path) -> None:
    """Raise InputError where a log says that something else was shown than two methods' pictures of one prompt, or a
    check."""
    owner = {i: number for number, cells in enumerate(ground.methods) for i in cells}
    pairs: list[Served | Identical] = [*log.served.values(), *log.identical]
    for pair in pairs:
        checked = isinstance(pair, Served) and pair.check in ("same", "other prompt")
        fits = pair.prompt in ground.texts and (checked or owner[pair.left.cell] != owner[pair.right.cell])
        for one in (pair.left, pair.right):
            cell = ground.cells[one.cell]
            fits &= checked or cell.places.get(pair.prompt) == one.place
            fits &= cell.pictures.get((one.place, one.sample)) == one.sha256
        if not fits:
            files = " and ".join(ground.cells[one.cell].path.name for one in (pair.left, pair.right))
            raise InputError(f"{path}: a pair on prompt {shown(pair.prompt)} is not of {files}; the log was edited.")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
