"""A session of votes: who is shown what, which votes count, and the log that all of it follows from.

One process holds the log. A pair is written down before it is shown, a vote before it is acknowledged, each with one
write and a sync: what a rater was told is counted is on disk, whatever dies. What is not on disk never happened.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignbench.errors import InputError, shown
from alignbench.files import FULL, cannot_write, make_folder
from alignbench.judging.ballot import Chooser, Ground, Item
from alignbench.keys import Key
from alignbench.record.votes import (
    LONGEST_NAME,
    Header,
    Identical,
    Line,
    Log,
    Question,
    Rules,
    Served,
    Undo,
    Vote,
    line_of,
    picture_of,
    read_log,
)
from alignbench.remote.vote_server import Refused

RATERS = 1000  # in one session
AHEAD = 4  # pairs that may be open for a rater at a time
SLOWEST = 60_000  # milliseconds of a vote, in the guess of how long it will take

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
    found = [PAPER.get(text) or Question(name=text, text=text) for text in asked or ("overall",)]
    if len({question.name for question in found}) < len(found):
        raise InputError("--task: one question stands there twice.")
    return found


@dataclass
class Session:
    """Votes on pictures, as the server asks for them. Every method may be called from any thread."""

    ground: Ground
    asked: Asked
    log: Log
    secret: bytes
    _file: int
    _size: int
    _chooser: Chooser
    _items: dict[int, Item] = field(default_factory=dict)
    _of: dict[str, list[Served]] = field(default_factory=dict)  # by rater, in the order they were shown
    _turn: threading.RLock = field(default_factory=threading.RLock)

    # What raters ask for

    def enter(self, rater: str, key: str) -> dict[str, Any]:
        """What a page needs to begin. Raises Refused for somebody who may not vote."""
        rater = self._known(rater, key)
        return {"rater": rater, "questions": [{"text": q.text} for q in self.log.header.questions]}

    def next(self, rater: str, key: str, have: Sequence[str]) -> dict[str, Any]:
        """The first open pair that the page does not have, or a new one; and how far the rater is."""
        rater = self._known(rater, key)
        with self._turn:
            pair = next((pair for pair in self._open(rater) if pair.nonce not in have), None)
            if pair is None and len(self._open(rater)) < AHEAD:
                pair = self._serve(rater)
            if pair is None:
                return {"pair": None, "progress": self._progress(rater, ended=not self._open(rater))}
            return {"pair": self._as_seen(pair), "progress": self._progress(rater)}

    def vote(self, rater: str, key: str, nonce: str, choice: str, milliseconds: int) -> dict[str, Any]:
        """Count a vote. Raises Refused for one that is not on a pair that is open for this rater."""
        rater = self._known(rater, key)
        with self._turn:
            pair = self.log.served.get(nonce)
            if pair is None or pair.rater != rater:
                raise Refused("this pair was not shown to you; nothing was counted.", 403, "foreign")
            if nonce in self.log.votes:
                raise Refused("this pair has your vote already; nothing was counted twice.", 409, "counted")
            if choice not in ("left", "right", "tie", "skip"):
                raise Refused("expected left, right, tie or skip.", 422)
            line = Vote(
                nonce=nonce,
                rater=rater,
                choice=choice,  # type: ignore[arg-type]
                left=pair.left.sha256,
                right=pair.right.sha256,
                milliseconds=milliseconds,
                at=_now(),
            )
            self._append(line)
            if pair.question == 0:
                self._chooser.voted(self._items[pair.item], choice)
            return {"progress": self._progress(rater)}

    def undo(self, rater: str, key: str) -> dict[str, Any]:
        """Take back the rater's last vote: its pair is open again, before all others."""
        rater = self._known(rater, key)
        with self._turn:
            last = next((vote for vote in reversed(self.log.votes.values()) if vote.rater == rater), None)
            if last is None:
                raise Refused("there is no vote of yours to take back.", 409, "none")
            pair = self.log.served[last.nonce]
            self._append(Undo(nonce=last.nonce, rater=rater, at=_now()))
            if pair.question == 0:
                self._chooser.voted(self._items[pair.item], last.choice, sign=-1)
            return {"pair": self._as_seen(pair), "progress": self._progress(rater)}

    def picture(self, nonce: str, side: str) -> bytes:
        """A picture as PNG, encoded anew: nothing but its pixels leaves. Raises Refused where it has changed."""
        from alignbench.pictures import PictureError, content_of, read

        with self._turn:
            pair = self.log.served.get(nonce)
        if pair is None or side not in ("left", "right"):
            raise Refused("there is no such picture.", 404)
        one = pair.left if side == "left" else pair.right
        path = picture_of(self.ground.cells[one.cell].path, one.place, one.sample)
        try:
            content = content_of(path)
            if hashlib.sha256(content).hexdigest() != one.sha256:
                raise Refused("this picture was changed while votes were cast; tell who started the server.", 410)
            return encoded(read(content, formats=("PNG",)).image)
        except PictureError:
            raise Refused("this picture can no longer be read; tell who started the server.", 410) from None

    # Who may vote

    def key_of(self, rater: str) -> str:
        """What stands in a rater's address: of a name, or, where any name may be typed, of the session."""
        return hmac.new(self.secret, rater.encode(), hashlib.sha256).hexdigest()[:24]

    def _known(self, rater: str, key: str) -> str:
        if self.asked.raters:
            if rater not in self.asked.raters or not hmac.compare_digest(key.encode(), self.key_of(rater).encode()):
                raise Refused(
                    "you need the whole address that was made for you, with what stands behind #.", 403, "key"
                )
            return rater
        if self.asked.closed and not hmac.compare_digest(key.encode(), self.key_of("").encode()):
            raise Refused("you need the whole address, with what stands behind #.", 403, "key")
        name = " ".join(rater.split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Refused(f"a name has 1 to {LONGEST_NAME} letters.", 422, "name")
        if name not in self._of and len(self._of) >= RATERS:
            raise Refused(f"{RATERS} raters are here already.", 403)
        return name

    # What is shown

    def _open(self, rater: str) -> list[Served]:
        return [pair for pair in self._of.get(rater, ()) if pair.nonce not in self.log.votes]

    def _serve(self, rater: str) -> Served | None:
        """Write down the next question on the last pair, or a new pair."""
        own = self._of.get(rater, [])
        if own and own[-1].question + 1 < len(self.log.header.questions):
            last = own[-1]
            return self._written(rater, self._items[last.item], last.item, last.question + 1)
        if self._count(rater) >= self.asked.each:
            return None
        while (item := self._chooser.next(rater)) is not None:
            number = len(self._items)
            if item.check or item.left.sha256 != item.right.sha256:
                return self._written(rater, item, number, 0)
            self._append(Identical(item=number, prompt=item.prompt, left=item.left, right=item.right, at=_now()))
            self._remember(number, item, "")
        return None

    def _written(self, rater: str, item: Item, number: int, question: int) -> Served:
        pair = Served(
            nonce=secrets.token_urlsafe(18),
            rater=rater,
            item=number,
            question=question,
            prompt=item.prompt,
            left=item.left,
            right=item.right,
            check=item.check,
            wrong=item.wrong,
            at=_now(),
        )
        self._append(pair)
        self._shown(pair)
        return pair

    def _shown(self, pair: Served) -> None:
        self._of.setdefault(pair.rater, []).append(pair)
        if pair.item not in self._items:
            self._remember(pair.item, Item(pair.prompt, pair.left, pair.right, pair.check, pair.wrong), pair.rater)

    def _remember(self, number: int, item: Item, rater: str) -> None:
        self._items[number] = item
        self._chooser.shown(item, rater)

    def _as_seen(self, pair: Served) -> dict[str, Any]:
        """What a browser may know of a pair: nothing of methods."""
        own = [p for p in self._of[pair.rater] if p.item == pair.item]
        return {
            "nonce": pair.nonce,
            "question": pair.question,
            "prompt": self.ground.texts[pair.prompt],
            "pictures": {side: f"picture/{own[0].nonce}/{side}" for side in ("left", "right")},
        }

    def _count(self, rater: str) -> int:
        """Items that a rater was shown."""
        return len({pair.item for pair in self._of.get(rater, ())})

    def _progress(self, rater: str, ended: bool = False) -> dict[str, Any]:
        """Votes, how many there will be, and how long the rest may take."""
        shown = self._of.get(rater, [])
        votes = [self.log.votes[pair.nonce] for pair in shown if pair.nonce in self.log.votes]
        expected = min(self.asked.each, max(self._count(rater), self._chooser.size))
        total = len(votes) if ended else expected * len(self.log.header.questions)
        taken = [min(SLOWEST, vote.milliseconds) for vote in votes[-20:]]
        left = max(0, total - len(votes))
        seconds = round(left * statistics.median(taken) / 1000) if len(taken) >= 3 else None
        return {"done": len(votes), "total": total, "seconds": seconds}

    # The log

    def _append(self, line: Line) -> None:
        """Write a line to disk, then take it in. Where the disk is full, neither happens."""
        content = line_of(line)
        try:
            written = os.write(self._file, content)
            if written < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            if error.errno in FULL:
                raise Refused(
                    "the disk of the server is full. This was not counted, all before it was; tell who started the "
                    "server, then choose again.",
                    507,
                    "full",
                ) from error
            raise
        self._size += len(content)
        if not isinstance(line, Header):
            self.log.add(line)

    def close(self) -> None:
        os.close(self._file)

    def summary(self) -> str:
        """How many votes there are."""
        raters = {vote.rater for vote in self.log.votes.values()}
        return f"{len(self.log.votes)} votes of {len(raters)} raters in {self.asked.log}"


def begin(paths: Sequence[Path], asked: Asked) -> Session:
    """Start a session, or go on with one. Raises InputError where the log is of other pictures or questions, or another
    process holds it."""
    from alignbench.judging.ballot import ground_of

    ground = ground_of(paths)
    make_folder(asked.log.parent)
    try:
        handle = os.open(asked.log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise cannot_write(asked.log, error) from error
    try:
        return _begun(ground, asked, handle)
    except BaseException:
        os.close(handle)
        raise


def _begun(ground: Ground, asked: Asked, handle: int) -> Session:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(
            f"{asked.log} is in use by another `alignbench vote`; stop it, or name another --votes."
        ) from None
    size = _whole(asked.log, handle)
    secret = _secret(asked.log)
    log = read_log(asked.log) if size else Log(_header(ground, asked))
    if size:
        _check_same(log.header, ground, asked)
    chooser = Chooser(ground, log.header.rules, Key("votes", log.header.seed), asked.adaptive)
    session = Session(ground, asked, log, secret, handle, size, chooser)
    if not size:
        session._append(log.header)
    _replay(session)
    return session


def _replay(session: Session) -> None:
    """Remember what a log says was shown and voted."""
    log = session.log
    everything: list[Identical | Served] = [*log.identical, *log.served.values()]
    lines = sorted(everything, key=lambda line: line.item)
    for line in lines:
        if isinstance(line, Identical):
            session._remember(line.item, Item(line.prompt, line.left, line.right), "")
        elif line.question == 0:
            session._remember(line.item, Item(line.prompt, line.left, line.right, line.check, line.wrong), line.rater)
    for pair in log.served.values():
        session._of.setdefault(pair.rater, []).append(pair)
    for cast in log.cast:
        if cast.pair.question == 0:
            session._chooser.voted(session._items[cast.pair.item], cast.vote.choice)


def _header(ground: Ground, asked: Asked) -> Header:
    return Header(
        schema=1,
        created=_now(),
        evaluation=ground.evaluation,
        seed=asked.seed or 0,
        adaptive=asked.adaptive,
        questions=questions_of(asked.questions),
        cells=[cell.voted for cell in ground.cells],
        rules=asked.rules,
        rule=asked.rules.sentence,
    )


def _check_same(header: Header, ground: Ground, asked: Asked) -> None:
    """Raise InputError where a log is of other pictures, questions or draws."""
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
    if asked.seed is not None and asked.seed != header.seed:
        raise InputError(f"{asked.log} has --seed {header.seed}; leave it out, or name another --votes.")


def _whole(path: Path, handle: int) -> int:
    """The size of a log without a last line that a kill tore; nobody was told that it was counted."""
    size = os.fstat(handle).st_size
    if not size:
        return 0
    from alignbench.reading import read_bytes

    end = read_bytes(path).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)
    return end


def _secret(log: Path) -> bytes:
    """What the keys in addresses are made with; kept beside the log for its owner alone, so that they stay valid."""
    path = log.with_name(f".{log.name}.key")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    with os.fdopen(handle, "rb+") as stream:
        known = stream.read(64)
        if len(known) < 32:
            stream.seek(0)
            known = secrets.token_bytes(32)
            stream.write(known)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
    return known


def encoded(image: Any) -> bytes:
    """A picture as PNG by one encoder, without metadata."""
    import io

    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
