"""Logs of votes that somebody edited, moved or imported, and names that somebody typed in another way."""

from __future__ import annotations

import contextlib
import json

import pytest
from voted import cells

from alignbench.analysis.compare import compare
from alignbench.errors import InputError
from alignbench.judging.outside_votes import import_votes
from alignbench.judging.voting import Session, begin
from alignbench.judging.voting_asked import Asked
from alignbench.judging.voting_served import raters_of
from alignbench.record.digests import picture_of
from alignbench.record.result import read, write
from alignbench.record.votes import Rules, read_log
from alignbench.remote.vote_server import Refused

PLAIN = Rules(same=0, other_prompt=0, repeat=0, overlap=0)


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "votes.jsonl"


def session_of(files, log, *questions):
    return contextlib.closing(begin(files, Asked(log, questions, rules=PLAIN)))


def cast(session: Session, rater: str, choice: str = "left") -> dict:
    """A vote on the next pair, which is given as the page has it."""
    pair = session.next(rater, "", [])["pair"]
    session.vote(rater, "", pair["nonce"], choice, 900)
    return pair


def test_after_a_rater_is_cut_from_a_log_pictures_are_still_of_their_prompt(files, log):
    with session_of(files, log, "overall", "alignment") as session:
        for rater in ("ben", "anna", "ben", "anna"):
            cast(session, rater)
            cast(session, rater)
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"rater":"ben"' not in line))
    with session_of(files, log) as session:
        for _ in range(4):
            pairs = [cast(session, "anna"), cast(session, "anna")]
            assert pairs[0]["prompt"] == pairs[1]["prompt"]
            assert pairs[0]["pictures"] == pairs[1]["pictures"]
        items = {}
        for pair in session.log.served.values():
            items.setdefault(pair.item, set()).add((pair.prompt, pair.left, pair.right))
    assert all(len(pictures) == 1 for pictures in items.values())


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\nof today", b'{"a": 1}', b'{"a": 1}\n{"b": ', b'{"kind": "note", "text": "x'],
)  # fmt: skip
def test_a_file_that_is_no_log_is_refused_and_left_as_it_is(content, files, log):
    log.write_bytes(content)
    with pytest.raises(InputError, match=r"votes\.jsonl"):
        begin(files, Asked(log))
    assert log.read_bytes() == content


def test_a_log_of_something_else_is_not_mended(files, log, tmp_path):
    with session_of(files, log) as session:
        cast(session, "anna")
    torn = log.read_bytes()[:-9]
    log.write_bytes(torn)
    with pytest.raises(InputError, match="asks 'overall'"):
        begin(files, Asked(log, ("alignment",)))
    assert log.read_bytes() == torn


@pytest.mark.parametrize("length", [0, 1, 30, 200])
def test_a_header_that_a_kill_tore_is_begun_anew(length, files, log):
    with session_of(files, log):
        whole = log.read_bytes()
    log.write_bytes(whole[:length])
    with session_of(files, log) as session:
        cast(session, "anna")
    assert len(read_log(log).votes) == 1


def test_imported_votes_are_not_gone_on_with(files, log, tmp_path):
    (tmp_path / "votes.csv").write_text("prompt,method_a,method_b,choice,rater\np0,base,refl,a,anna\n")
    import_votes(tmp_path / "votes.csv", files, log)
    before = log.read_bytes()
    with pytest.raises(InputError, match=r"cast elsewhere \(imported from votes\.csv\); name another --votes"):
        begin(files, Asked(log))
    assert log.read_bytes() == before


@pytest.mark.parametrize("gone", [lambda log, aside: log.rename(aside), lambda log, aside: log.unlink()])
def test_a_vote_on_a_log_that_was_moved_is_not_said_to_be_counted(gone, files, log, tmp_path):
    with session_of(files, log) as session:
        cast(session, "anna")
        pair = session.next("anna", "", [])["pair"]
        gone(log, tmp_path / "aside.jsonl")
        with pytest.raises(Refused, match=r"written to by another program\. This was not counted"):
            session.vote("anna", "", pair["nonce"], "left", 900)
        if (tmp_path / "aside.jsonl").exists():
            (tmp_path / "aside.jsonl").rename(log)
            session.vote("anna", "", pair["nonce"], "left", 900)
            assert len(read_log(log).votes) == 2


def test_what_another_program_writes_into_a_log_in_use_is_not_overwritten(files, log):
    with session_of(files, log) as session:
        cast(session, "anna")
        log.write_bytes(log.read_bytes() + b" ")
        with pytest.raises(Refused, match="written to by another program"):
            session.next("anna", "", [])


def test_the_last_vote_stays_when_an_editor_drops_the_end_of_its_line(files, log):
    with session_of(files, log) as session:
        cast(session, "anna")
        cast(session, "anna")
    whole = log.read_bytes()
    log.write_bytes(whole.removesuffix(b"\n"))
    assert len(read_log(log).votes) == 2
    with session_of(files, log) as session:
        assert len(session.log.votes) == 2
        assert log.read_bytes() == whole
    log.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))  # as editors of Windows save it
    assert len(read_log(log).votes) == 2


def test_a_header_with_a_question_or_a_cell_twice_is_refused(files, log):
    with session_of(files, log, "overall", "alignment") as session:
        cast(session, "anna")
    first, rest = log.read_text().split("\n", 1)
    for name, said in (("questions", "the question 'overall' stands there twice"), ("cells", "the cell '.*' stands")):
        header = json.loads(first)
        header[name][1] = header[name][0]
        log.write_text(f"{json.dumps(header)}\n{rest}")
        with pytest.raises(InputError, match=f"line 1: {said}"):
            read_log(log)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "p99"}, {"prompt": "p11"}, {"right": {"place": 99}}, {"right": {"sample": 7}},
        {"right": {"sha256": "0" * 64}}, {"left": {"cell": 0}, "right": {"cell": 0}},
    ],
    ids=str,
)  # fmt: skip
def test_a_log_that_shows_what_nobody_was_shown_is_not_gone_on_with(change, files, log):
    with session_of(files, log) as session:
        session.next("anna", "", [])
    header, line = log.read_text().splitlines()
    pair = json.loads(line)
    assert pair["prompt"] != "p11"
    for name, value in change.items():
        pair[name] = pair[name] | value if isinstance(value, dict) else value
    log.write_text(f"{header}\n{json.dumps(pair)}\n")
    with pytest.raises(
        InputError, match=r"a pair on prompt 'p\d+' is not of .*\.json and .*\.json; the log was edited"
    ):
        begin(files, Asked(log))


def test_a_name_in_other_letters_or_blanks_is_the_same_rater(files, log):
    with session_of(files, log) as session:
        cast(session, "José Ruiz")
        for name in ("JOSÉ ruiz", " José  Ruiz", "Jose\u0301 Ruiz"):
            assert session.enter(name, "")["rater"] == "José Ruiz"
            cast(session, name)
        assert {vote.rater for vote in session.log.votes.values()} == {"José Ruiz"}
    with pytest.raises(InputError, match="one name stands there twice"):
        raters_of(("Anna", "anna"))


def test_an_address_for_a_name_in_other_letters_is_for_the_same_rater(files, log):
    with session_of(files, log) as session:
        first = cast(session, "Anna")
        open_pair = session.next("Anna", "", [])["pair"]
    asked = Asked(log, raters=("anna",), rules=PLAIN)
    with contextlib.closing(begin(files, asked)) as session:
        key = session.key_of("anna")
        assert session.enter("anna", key)["rater"] == "Anna"
        for name in ("anna", "Anna"):  # as in the address, and as the page has it from then on
            assert session.next(name, key, [])["pair"] == open_pair
        assert session.undo("Anna", key)["pair"] == first
        with pytest.raises(Refused, match="whole address"):
            session.enter("anna", "")


def test_two_versions_of_a_plug_in_are_two_cells_of_a_log(files, log):
    for path, version in zip(files, "ab", strict=True):
        result = read(path)
        asked = result.configuration.model_copy(
            update={"algorithm": "my.py:Mine", "code": {"my.py:Mine": version * 64}}
        )
        write(path, result.model_copy(update={"configuration": asked}))
    with session_of(files, log) as session:
        for _ in range(6):
            pair = session.log.served[session.next("anna", "", [])["pair"]["nonce"]]
            session.vote("anna", "", pair.nonce, "left" if pair.left.cell == 1 else "right", 900)
    (column,) = compare(files, votes=[log]).groups[0].votes
    assert [duel.rate.rate for duel in column.duels] == [1.0]


def test_one_cell_with_other_scorers_is_not_voted_on_against_itself(files, log):
    result = read(files[0])
    other = result.configuration.model_copy(update={"scorers": ["r", "more"]})
    (files[0].parent / "again").symlink_to(files[0].with_suffix(""))
    write(files[0].with_name("again.json"), result.model_copy(update={"configuration": other}))
    with pytest.raises(
        InputError, match=r"again\.json and .*base\.json are one cell with other scorers; leave one out"
    ):
        begin([*files, files[0].with_name("again.json")], Asked(log))
    assert not log.exists()


def test_a_pair_whose_picture_has_gone_is_passed_over_and_comes_back_with_it(files, log):
    with session_of(files, log) as session:
        pair = session.next("anna", "", [])["pair"]
        shown = session.log.served[pair["nonce"]].left
        picture = picture_of(session.ground.cells[shown.cell].path, shown.place, shown.sample)
        content = picture.read_bytes()
        picture.unlink()
        assert cast(session, "anna")["prompt"] != pair["prompt"]
        cast(session, "anna")
        assert session.undo("anna", "")["progress"]["done"] == 1
        picture.write_bytes(files[0].read_bytes())
        while session.next("anna", "", [])["pair"]:
            cast(session, "anna")
        end = session.next("anna", "", [])
        assert (end["progress"]["done"], end["progress"]["total"]) == (11, 11)
        assert end["left_out"].startswith("1 pair left out: pictures can no longer be shown; tell who")
        picture.write_bytes(content)
        assert session.next("anna", "", [])["pair"] == pair
