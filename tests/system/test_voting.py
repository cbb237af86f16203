"""The voting page's server: no vote is lost, doubled or forged, and no method's name leaves it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from said import one_line
from servers import running
from voted import Browser, cells, post

from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.judging import voting_log
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.judging.voting_served import bound, is_local, served
from alignbench.record.votes import Rules, read_log

PLAIN = Rules(same=0, other_prompt=0, repeat=0, overlap=0)


@contextlib.contextmanager
def session_of(files, log: Path, rules: Rules = PLAIN, host: str = "127.0.0.1", **asked):
    """A session and its URL while its server runs."""
    session = begin(files, Asked(log, rules=rules, **asked))
    with served(session, bound(host, 0)) as (server, url), running(server):
        yield session, url


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "votes.jsonl"


def test_a_rater_votes_to_the_end_and_every_vote_is_in_the_log(files, log):
    with session_of(files, log) as (_, url):
        anna = Browser(url, "anna")
        count = 0
        while pair := anna.next():
            said = anna.vote(pair, ("left", "right", "tie", "skip")[count % 4])
            count += 1
            assert (said["progress"]["done"], said["progress"]["total"]) == (count, 12)
    assert count == 12
    found = read_log(log)
    assert Counter(vote.choice for vote in found.votes.values()) == {"left": 3, "right": 3, "tie": 3, "skip": 3}
    assert {cast.pair.prompt for cast in found.cast} == {f"p{i}" for i in range(12)}
    assert all(cast.pair.left.sha256 == cast.vote.left for cast in found.cast)


def test_a_port_that_is_taken_is_told_and_leaves_no_log(files, log, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command_line(["vote", *map(str, files), "--votes", str(log), "--port", str(port)]) == 2
    assert f"--port {port} cannot be used (Address already in use); stop what is there" in one_line(capsys)
    assert not [path for path in log.parent.iterdir() if "votes" in path.name]


def test_no_answer_names_a_method_and_pictures_carry_nothing_but_pixels(files, log):
    with session_of(files, log) as (_, url):
        anna = Browser(url, "anna")
        said = [anna.ask("enter"), anna.next()]
        content = anna.picture(said[1], "left")
    assert not any(name in json.dumps(said) for name in ("refl", "base", "json", "cell"))
    assert not Image.open(io.BytesIO(content)).info


def test_sides_are_drawn_anew_for_each_pair_and_alike_for_one_seed(files, tmp_path):
    def sides(name: str, seed: int) -> list[int]:
        with session_of(files, tmp_path / f"{name}.jsonl", seed=seed) as (session, url):
            anna = Browser(url, "anna")
            while pair := anna.next():
                anna.vote(pair, "left")
            return [pair.left.cell for pair in session.log.served.values()]

    assert sides("a", 1) == sides("b", 1) != sides("c", 2)
    assert 2 <= sum(sides("d", 1)) <= 10


def test_every_two_methods_meet_alike_often(tmp_path, log):
    files = cells(tmp_path / "results", ("base", "refl", "draft"))
    with session_of(files, log, each=30) as (session, url):
        for name in ("anna", "ben"):
            rater = Browser(url, name)
            while pair := rater.next():
                rater.vote(pair, "tie")
    met = Counter(frozenset((p.left.cell, p.right.cell)) for p in session.log.served.values())
    assert len(met) == 3
    assert max(met.values()) - min(met.values()) <= 1
    asked = Counter((frozenset((p.left.cell, p.right.cell)), p.prompt) for p in session.log.served.values())
    assert max(asked.values()) <= 2


def test_adaptively_the_most_open_duel_is_asked_about_most(tmp_path, log):
    files = cells(tmp_path / "results", ("base", "refl", "draft"), prompts=40)
    with session_of(files, log, each=100, adaptive=True) as (session, url):
        rater = Browser(url, "anna")
        while pair := rater.next():
            one = session.log.served[pair["nonce"]]
            easy = {one.left.cell, one.right.cell} == {0, 1}
            best = "left" if one.left.cell == 0 else "right"
            rater.vote(pair, best if easy else ("left", "right")[len(session.log.votes) % 2])
    met = Counter(frozenset((p.left.cell, p.right.cell)) for p in session.log.served.values())
    assert met[frozenset((0, 1))] == min(met.values()) < max(met.values()) - 5


def test_the_same_picture_of_two_methods_is_a_tie_that_nobody_is_asked_about(tmp_path, log):
    files = cells(tmp_path / "results", same=(1, 4, 7))
    with session_of(files, log) as (session, url):
        anna = Browser(url, "anna")
        while pair := anna.next():
            anna.vote(pair, "left")
        assert anna.ask("next", have=[])["progress"] == {"done": 9, "total": 9, "seconds": 0}
    assert {line.prompt for line in session.log.identical} == {"p1", "p4", "p7"}
    assert len(session.log.votes) == 9
    assert len(read_log(log).identical) == 3


def test_several_questions_are_asked_about_a_pair_one_after_the_other(files, log):
    with session_of(files, log, questions=("overall", "alignment", "Which has better colours?"), each=2) as (s, url):
        anna = Browser(url, "anna")
        assert len(anna.ask("enter")["questions"]) == 3
        seen = []
        while pair := anna.next():
            seen.append((pair["question"], pair["pictures"]["left"]))
            anna.vote(pair, "left")
    assert [question for question, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert len({picture for _, picture in seen}) == 2
    assert len({pair.item for pair in s.log.served.values()}) == 2


def test_checks_and_repeats_are_shown_unannounced_in_about_their_shares(tmp_path, log):
    files = cells(tmp_path / "results", prompts=150)
    with session_of(files, log, rules=Rules(same=0.05, other_prompt=0.05, repeat=0.1), each=100) as (session, url):
        keys = set()
        for name in ("anna", "ben"):
            rater = Browser(url, name)
            while pair := rater.next():
                keys.add(frozenset(pair))
                rater.vote(pair, "left")
    kinds = Counter(pair.check for pair in session.log.served.values())
    assert len(keys) == 1  # nothing in the answer tells a check
    assert 2 <= kinds["same"] <= 25
    assert 2 <= kinds["other prompt"] <= 25
    assert 5 <= kinds["repeat"] <= 40
    pairs = list(session.log.served.values())
    for pair in pairs:
        if pair.check == "same":
            assert pair.left == pair.right
        elif pair.check == "repeat":
            assert any((p.left, p.right, p.rater, p.check) == (pair.right, pair.left, pair.rater, "") for p in pairs)
        elif pair.check == "other prompt":
            assert pair.left.cell == pair.right.cell
            right_one = pair.right if pair.wrong == "left" else pair.left
            assert pair.prompt == f"p{right_one.place}"


def test_an_undone_vote_is_open_again_and_comes_first(files, log):
    with session_of(files, log) as (session, url):
        anna = Browser(url, "anna")
        first = anna.next()
        anna.vote(first, "left")
        second = anna.next()
        anna.vote(second, "right")
        assert anna.ask("undo")["pair"]["nonce"] == second["nonce"]
        assert anna.ask("undo")["pair"]["nonce"] == first["nonce"]
        assert anna.ask("undo")["code"] == "none"
        assert anna.next()["nonce"] == first["nonce"]
        assert anna.vote(first, "tie")["progress"]["done"] == 1
    assert [vote.choice for vote in read_log(log).votes.values()] == ["tie"]
    assert session.log.votes.keys() == {first["nonce"]}


def test_two_windows_of_one_rater_neither_lose_nor_double_a_vote(files, log):
    with session_of(files, log) as (_, url):
        one, other = Browser(url, "anna"), Browser(url, "anna")
        pair, same = one.next(), other.next()
        assert pair == same
        one.vote(pair, "left")
        assert other.vote(same, "right")["code"] == "counted"
        assert one.next(pair["nonce"]) == other.next() != pair
    assert [vote.choice for vote in read_log(log).votes.values()] == ["left"]


REFUSED = {
    "of another rater": (403, "not shown to you"),
    "made up": (403, "not shown to you"),
    "replayed": (409, "has your vote already"),
    "without a choice": (422, "expected left, right"),
    "with a text for milliseconds": (422, "whole number"),
    "with a name of 41 letters": (422, "1 to 40 letters"),
    "with a name of control characters": (422, "1 to 40 letters"),
    "in no JSON": (400, "not JSON"),
    "in a list": (400, "an object"),
    "of 5,000 bytes": (413, "4096"),
    "as a form": (415, "application/json"),
    "from another page": (403, "voting page alone"),
    "from no page": (403, "voting page alone"),
    "from a null origin": (403, "voting page alone"),
    "under another host": (400, "Invalid host"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_vote_is_refused_with_a_reason(case, files, log):
    with session_of(files, log) as (session, url):
        anna, ben = Browser(url, "anna"), Browser(url, "ben")
        mine, theirs = anna.next(), ben.next()
        anna.vote(mine, "left")
        fine = {"rater": "anna", "key": "", "nonce": anna.next()["nonce"], "choice": "left", "milliseconds": 3}
        changed = {
            "of another rater": {"nonce": theirs["nonce"]},
            "made up": {"nonce": "x" * 24},
            "replayed": {"nonce": mine["nonce"], "choice": "right"},
            "without a choice": {"choice": "both"},
            "with a text for milliseconds": {"milliseconds": "3"},
            "with a name of 41 letters": {"rater": "a" * 41},
            "with a name of control characters": {"rater": "a\x07"},
        }.get(case, {})
        body = json.dumps(fine | changed).encode()
        body = {"in no JSON": b"{", "in a list": b"[]", "of 5,000 bytes": b" " * 5000}.get(case, body)
        origin = {
            "from another page": "http://evil.example", "from no page": None, "from a null origin": "null",
        }.get(case, url)  # fmt: skip
        kind = "application/x-www-form-urlencoded" if case == "as a form" else "application/json"
        host = f"evil.example:{url.rpartition(':')[2]}" if case == "under another host" else None
        status, said = post(f"{url}/vote", body, origin, kind, host)
        assert len(session.log.votes) == 1
    expected, words = REFUSED[case]
    assert status == expected
    assert words in said.decode()


def test_raters_with_names_need_the_address_that_was_made_for_them(files, log):
    with session_of(files, log, raters=("anna", "ben")) as (session, url):
        assert Browser(url, "anna", session.key_of("anna")).next()
        for rater, key in (
            ("anna", ""),
            ("anna", session.key_of("ben")),
            ("carl", session.key_of("carl")),
            ("anna", "ü"),
        ):
            assert Browser(url, rater, key).ask("next", have=[])["code"] == "key"
        key = session.key_of("anna")
    with session_of(files, log, raters=("anna", "ben")) as (session, url):
        assert session.key_of("anna") == key  # addresses outlive the process


def test_another_host_has_to_be_an_address_and_needs_a_key(files, log):
    with session_of(files, log, closed=True, host="127.0.0.2") as (session, url):
        assert url.startswith("http://127.0.0.2:")
        status, _ = post(f"{url}/enter", b"{}", url, host=f"127.0.0.1:{url.rpartition(':')[2]}")
        assert status == 400
        assert Browser(url, "anna").ask("next", have=[])["code"] == "key"
        assert Browser(url, "anna", session.key_of("")).next()


def test_loopback_alone_needs_no_key():
    assert is_local("127.0.0.1")
    assert not is_local("192.168.0.7")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "name the one address"),
        (["--host", "example.org"], "expected an IPv4 address"),
        (["--host", "::1"], "expected an IPv4 address"),
        (["--votes", "votes.csv"], "expected a .jsonl"),
        (["--each", "0"], "at least 1"),
        (["--port", "70000"], "0 to 65535"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--raters", "anna", "anna"], "twice"),
        (["--raters", "0"], "expected 1 to"),
        (["--raters", "-3"], "expected 1 to"),
        (["--raters", "2.5"], "expected 1 to"),
        (["--task", "overall", "overall"], "twice"),
        (["--task", "x" * 201], "expected 1 to 200 letters"),
        (["--task", *map(str, range(21))], "at most 20"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(arguments, words, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["vote", *map(str, files), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*.jsonl*"))


def test_a_full_disk_is_said_and_nothing_is_lost_or_half_written(files, log, monkeypatch):
    with session_of(files, log) as (session, url):
        anna = Browser(url, "anna")
        first = anna.next()
        anna.vote(first, "left")
        second = anna.next()
        before = log.read_bytes()
        real = os.write

        def half(descriptor: int, content: bytes) -> int:
            return (
                real(descriptor, content[: len(content) // 2])
                if descriptor == session._file.handle
                else real(descriptor, content)
            )

        with monkeypatch.context() as full:
            full.setattr(voting_log.os, "write", half)
            assert "disk of the server is full" in anna.vote(second, "right")["error"]
            assert log.read_bytes() == before

        def no_room(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr(voting_log.os, "fsync", no_room)
            assert anna.vote(second, "right")["code"] == "full"
            assert log.read_bytes() == before
        assert anna.vote(second, "right")["progress"]["done"] == 2
    assert [vote.choice for vote in read_log(log).votes.values()] == ["left", "right"]


@pytest.mark.slow
def test_fifty_raters_at_once_lose_nothing(tmp_path, log):
    files = cells(tmp_path / "results", ("base", "refl", "draft"), prompts=60)
    acknowledged: list[str] = []
    failed: list[object] = []

    def sit(url: str, name: str) -> None:
        rater = Browser(url, name)
        for k in range(12):
            pair = rater.next()
            said = rater.vote(pair, ("left", "right", "tie")[k % 3])
            (acknowledged if "progress" in said else failed).append(pair["nonce"])

    with session_of(files, log, rules=Rules(), each=12) as (_, url):
        threads = [threading.Thread(target=sit, args=(url, f"rater {i}")) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert len(acknowledged) == len(set(acknowledged)) == 600
    assert read_log(log).votes.keys() == set(acknowledged)


def started(files, log: Path, port: int = 0):
    """The command in a process of its own, and the URL it says."""
    command = [sys.executable, "-m", "alignbench", "vote", *map(str, files), "--votes", str(log), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    url = process.stdout.readline().split()[-1].rstrip("/")
    return process, url


@pytest.mark.slow
def test_no_answered_vote_is_lost_when_the_server_is_killed_and_started_again(tmp_path, log):
    files = cells(tmp_path / "results", prompts=150)
    acknowledged: dict[str, str] = {}
    process, url = started(files, log)
    port = int(url.rpartition(":")[2])
    for _ in range(3):
        rater = Browser(url, "anna")
        stop = threading.Timer(0.4, process.send_signal, [signal.SIGKILL])
        stop.start()
        with contextlib.suppress(OSError, http.client.HTTPException):  # killed before the answer, or within it
            while time.monotonic():
                pair = rater.next()
                if pair is None:
                    break
                if "progress" in rater.vote(pair, "left"):
                    acknowledged[pair["nonce"]] = "left"
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop.join()
        known = read_log(log)
        assert known.votes.keys() >= acknowledged.keys()
        with open(log, "ab") as handle:
            handle.write(b'{"kind": "vote", "nonce": "to')  # what a kill may tear
        process, url = started(files, log, port)
        again = Browser(url, "anna").next()
        assert again is None or again["nonce"] not in acknowledged
    process.send_signal(signal.SIGINT)
    process.wait()
    assert len(acknowledged) > 3
    assert read_log(log).votes.keys() >= acknowledged.keys()


def test_a_pair_that_was_shown_before_the_kill_can_be_voted_on_after_it(files, log):
    with session_of(files, log) as (_, url):
        pair = Browser(url, "anna").next()
    with session_of(files, log) as (session, url):
        assert Browser(url, "anna").next() == pair
        Browser(url, "anna").vote(pair, "right")
        assert session.log.votes[pair["nonce"]].choice == "right"


def test_a_log_is_held_by_one_process(files, log):
    with session_of(files, log), pytest.raises(InputError, match="in use by another"):
        begin(files, Asked(log))


def test_a_log_of_other_pictures_questions_or_results_is_not_continued(files, log, tmp_path):
    with session_of(files, log, seed=3):
        pass
    with pytest.raises(InputError, match="asks 'overall'; leave --task out"):
        begin(files, Asked(log, ("alignment",)))
    with pytest.raises(InputError, match="has --seed 3"):
        begin(files, Asked(log, seed=4))
    with pytest.raises(InputError, match="was not begun with --adaptive; leave it out"):
        begin(files, Asked(log, adaptive=True))
    more = cells(tmp_path / "others", ("base", "refl", "draft"))
    with pytest.raises(InputError, match=r"has no votes on draft.json"):
        begin(more, Asked(log))
    with pytest.raises(InputError, match=r"other pictures of base.json"):
        begin(cells(tmp_path / "larger", size=32), Asked(log))
    picture = next((tmp_path / "results" / "refl" / "images").glob("*.png"))
    Image.new("RGB", (24, 24)).save(picture)
    with pytest.raises(InputError, match=r"refl/images/\d+-0\.png was changed after .*refl\.json was written"):
        begin(files, Asked(log))


def test_a_log_goes_on_as_it_was_begun(files, log):
    with session_of(files, log, adaptive=True):
        pass
    with contextlib.closing(begin(files, Asked(log))) as session:
        assert session._chooser.adaptive


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines, lines[-1]], "a second vote"),
        (lambda lines: lines[:1] + lines[2:], "not shown to 'anna'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("anna", "ben")], "not shown to 'ben'"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"left":"', '"left":"0', 1)], "left: String should match"),
        (lambda lines: [*lines, lines[0]], "one header"),
        (lambda lines: lines[1:], "the header"),
        (lambda lines: [*lines, "{}"], "expected a line of a log"),
        (lambda lines: [*lines, "nonsense"], "not valid JSON"),
        (lambda lines: [lines[0].replace('"schema":1', '"schema":2'), *lines[1:]], "schema 2"),
    ],
)
def test_an_edited_log_is_refused_by_line(change, words, files, log):
    with session_of(files, log) as (_, url):
        anna = Browser(url, "anna")
        anna.vote(anna.next(), "left")
    lines = log.read_text().splitlines()
    log.write_text("".join(f"{line}\n" for line in change(lines)))
    with pytest.raises(InputError, match=words):
        read_log(log)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The bytes of a log with votes, an undo and a pair of one picture."""
    folder = tmp_path_factory.mktemp("finished")
    with session_of(cells(folder / "results", prompts=4, same=(1,)), folder / "votes.jsonl") as (_, url):
        anna = Browser(url, "anna")
        while pair := anna.next():
            anna.vote(pair, "left")
        anna.ask("undo")
    return (folder / "votes.jsonl").read_bytes()


@given(place=st.integers(0, 10_000), cut=st.integers(0, 40), put=st.binary(max_size=40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_log_of_any_bytes_is_read_or_refused_in_a_sentence(place, cut, put, finished, tmp_path):
    start = place % len(finished)
    (tmp_path / "votes.jsonl").write_bytes(finished[:start] + put + finished[start + cut :])
    with contextlib.suppress(InputError):
        read_log(tmp_path / "votes.jsonl")
