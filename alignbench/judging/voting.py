"""A session of votes: who is shown what, which votes count, and the log that all of it follows from.

One process holds the log. A pair is written down before it is shown, a vote before it is acknowledged, each with one
write and a sync: what a rater was told is counted is on disk, whatever dies. What is not on disk never happened.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.files import FULL
from alignbench.judging.ballot import Chooser, Ground, Item, ground_of
from alignbench.judging.voting_asked import Asked, check_same, check_shown, header_of, now
from alignbench.judging.voting_log import Changed, LogFile, opened, secret_of
from alignbench.keys import Key
from alignbench.pictures import PictureError, content_of, read
from alignbench.printed import how_many
from alignbench.record.digests import digest, picture_of
from alignbench.record.votes import (
    LONGEST_NAME,
    Header,
    Identical,
    Line,
    Log,
    Served,
    Shown,
    Undo,
    Vote,
    folded,
    line_of,
    read_log,
)
from alignbench.remote.vote_server import Refused

if TYPE_CHECKING:
    from PIL import Image

RATERS = 1000  # in one session
AHEAD = 4  # pairs that may be open for a rater at a time
UNREADABLE = "this picture can no longer be read; tell who started the server."
SLOWEST = 60_000  # milliseconds of a vote, in the guess of how long it will take


@dataclass
class Session:
    """Votes on pictures, as the server asks for them. Every method may be called from any thread."""

    ground: Ground
    asked: Asked
    log: Log
    secret: bytes
    _file: LogFile
    _chooser: Chooser
    _number: int = 0  # of the next item; a log from which somebody cut a rater's lines has gaps
    _of: dict[str, list[Served]] = field(default_factory=dict)  # by rater, in the order they were shown
    _turn: threading.RLock = field(default_factory=threading.RLock)

    # What raters ask for

    def enter(self, rater: str, key: str) -> dict[str, Any]:
        """What a page needs to begin. Raises Refused for somebody who may not vote."""
        rater = self._known(rater, key)
        return {"rater": rater, "questions": [{"text": q.text} for q in self.log.header.questions]}

    def next(self, rater: str, key: str, have: Sequence[str]) -> dict[str, Any]:
        """The first open pair that the page does not have, or a new one; and how far the rater is. Pairs of which a
        picture has gone are passed over, and stay open; at the end it is said how many."""
        rater = self._known(rater, key)
        with self._turn:
            there = [pair for pair in self._open(rater) if self._is_there(pair)]
            pair = next((pair for pair in there if pair.nonce not in have), None)
            if pair is None and len(there) < AHEAD:
                pair = next(filter(self._is_there, iter(lambda: self._serve(rater), None)), None)
            if pair is None:
                gone = len(self._open(rater)) - len(there)
                said = (
                    f"{how_many(gone, 'pair')} left out: pictures can no longer be shown; tell who started the server."
                )
                progress = self._progress(rater, ended=not there)
                return {"pair": None, "progress": progress, "left_out": said if gone else ""}
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
                at=now(),
            )
            self._append(line)
            if pair.question == 0:
                self._chooser.voted(_item_of(pair), choice)
            return {"progress": self._progress(rater)}

    def undo(self, rater: str, key: str) -> dict[str, Any]:
        """Take back the rater's last vote: its pair is open again, before all others."""
        rater = self._known(rater, key)
        with self._turn:
            last = next((vote for vote in reversed(self.log.votes.values()) if vote.rater == rater), None)
            if last is None:
                raise Refused("there is no vote of yours to take back.", 409, "none")
            pair = self.log.served[last.nonce]
            self._append(Undo(nonce=last.nonce, rater=rater, at=now()))
            if pair.question == 0:
                self._chooser.voted(_item_of(pair), last.choice, sign=-1)
            return {"pair": self._as_seen(pair), "progress": self._progress(rater)}

    def picture(self, nonce: str, side: str) -> bytes:
        """A picture as PNG, encoded anew: nothing but its pixels leaves. Raises Refused where it has changed."""
        with self._turn:
            pair = self.log.served.get(nonce)
        if pair is None or side not in ("left", "right"):
            raise Refused("there is no such picture.", 404)
        content = self._content(pair.left if side == "left" else pair.right)
        try:
            return encoded(read(content, formats=("PNG",)).image)
        except PictureError:
            raise Refused(UNREADABLE, 410) from None

    def _content(self, one: Shown) -> bytes:
        cell = self.ground.cells[one.cell]
        try:
            content = content_of(picture_of(cell.path, one.place, one.sample))
            if digest(content, cell.by_pixels) != one.sha256:
                raise Refused("this picture was changed while votes were cast; tell who started the server.", 410)
            return content
        except PictureError:
            raise Refused(UNREADABLE, 410) from None

    def _is_there(self, pair: Served) -> bool:
        """Whether both pictures of a pair can still be shown."""
        try:
            self._content(pair.left)
            self._content(pair.right)
        except Refused:
            return False
        return True

    # Who may vote

    def key_of(self, rater: str) -> str:
        """What stands in a rater's address: of a name, or, where any name may be typed, of the session."""
        return hmac.new(self.secret, rater.encode(), hashlib.sha256).hexdigest()[:24]

    def _known(self, rater: str, key: str) -> str:
        if self.asked.raters:
            asked = next((name for name in self.asked.raters if folded(name) == folded(rater)), None)
            if asked is None or not hmac.compare_digest(key.encode(), self.key_of(asked).encode()):
                raise Refused(
                    "you need the whole address that was made for you, with what stands behind #.", 403, "key"
                )
            with self._turn:
                return self._written_before(asked)
        if self.asked.closed and not hmac.compare_digest(key.encode(), self.key_of("").encode()):
            raise Refused("you need the whole address, with what stands behind #.", 403, "key")
        name = " ".join(rater.split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Refused(f"a name has 1 to {LONGEST_NAME} letters.", 422, "name")
        with self._turn:
            name = self._written_before(name)
            if name not in self._of and len(self._of) >= RATERS:
                raise Refused(f"{RATERS} raters are here already.", 403)
        return name

    def _written_before(self, name: str) -> str:
        """A rater's name as the log has it: in other capitals it is the same rater."""
        if name in self._of:
            return name
        return next((known for known in self._of if folded(known) == folded(name)), name)

    # What is shown

    def _open(self, rater: str) -> list[Served]:
        return [pair for pair in self._of.get(rater, ()) if pair.nonce not in self.log.votes]

    def _serve(self, rater: str) -> Served | None:
        """Write down the next question on the last pair, or a new pair."""
        own = self._of.get(rater, [])
        if own and own[-1].question + 1 < len(self.log.header.questions):
            last = own[-1]
            return self._written(rater, _item_of(last), last.item, last.question + 1)
        if self._count(rater) >= self.asked.each:
            return None
        while (item := self._chooser.next(rater)) is not None:
            number = self._number
            if item.check or not self.ground.alike(item.left, item.right):
                return self._written(rater, item, number, 0)
            self._append(Identical(item=number, prompt=item.prompt, left=item.left, right=item.right, at=now()))
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
            at=now(),
        )
        self._append(pair)
        self._of.setdefault(rater, []).append(pair)
        if question == 0:
            self._remember(number, item, rater)
        return pair

    def _remember(self, number: int, item: Item, rater: str) -> None:
        self._number = max(self._number, number + 1)
        self._chooser.shown(item, rater)

    def _as_seen(self, pair: Served) -> dict[str, Any]:
        """What a browser may know of a pair: nothing of methods."""
        of_item = (pair.item, pair.left, pair.right)
        own = [p for p in self._of[pair.rater] if (p.item, p.left, p.right) == of_item]
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
        """Write a line to disk, then take it in. Where the disk is full, or another program has changed the log,
        neither happens."""
        then = "This was not counted, all before it was; tell who started the server, then choose again."
        try:
            self._file.append(line_of(line))
        except Changed as error:
            raise Refused(f"{error}. {then}", 503, "changed") from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise Refused(f"the disk of the server is full. {then}", 507, "full") from error
        if not isinstance(line, Header):
            self.log.add(line)

    def close(self) -> None:
        self._file.close()

    def summary(self) -> str:
        """How many votes there are."""
        raters = {vote.rater for vote in self.log.votes.values()}
        return f"{how_many(len(self.log.votes), 'vote')} of {how_many(len(raters), 'rater')} in {self.asked.log}"


def begin(paths: Sequence[Path], asked: Asked) -> Session:
    """Start a session, or go on with one. Raises InputError where the log is of other pictures or questions, or another
    process holds it."""
    ground = ground_of(paths)
    header = header_of(ground, asked)  # what cannot be asked leaves no file behind
    file = opened(asked.log)
    try:
        log = read_log(asked.log) if file.begun else Log(header)
        check_same(log.header, ground, asked)
        check_shown(log, ground, asked.log)
        file.mend()
        chooser = Chooser(ground, log.header.rules, Key("votes", log.header.seed), log.header.adaptive)
        session = Session(ground, asked, log, secret_of(asked.log), file, chooser)
        if not file.size:
            session._append(log.header)
        _replay(session)
    except BaseException:
        file.close()
        raise
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
            session._remember(line.item, _item_of(line), line.rater)
    for pair in log.served.values():
        session._of.setdefault(pair.rater, []).append(pair)
    for cast in log.cast:
        if cast.pair.question == 0:
            session._chooser.voted(_item_of(cast.pair), cast.vote.choice)


def _item_of(pair: Served) -> Item:
    return Item(pair.prompt, pair.left, pair.right, pair.check, pair.wrong)


def encoded(image: Image.Image) -> bytes:
    """A picture as PNG by one encoder, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
