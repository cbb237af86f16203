"""Preference pairs from votes are what most raters said, in a folder that everything reads."""

from __future__ import annotations

import contextlib
import json

import pytest
from voted import cells

from alignbench import files as files_of_ours
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.files import replace_file
from alignbench.judging import vote_pairs
from alignbench.judging.vote_pairs import pairs_from_votes
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.preferences.source import open_pairs
from alignbench.record.votes import Rules

PLAIN = Rules(same=0, other_prompt=0, repeat=0)


def voted(files, log, wishes, rules=PLAIN, questions=()):
    """Everybody votes on every pair for the method that they wish; "left" is who always takes that side."""
    session = begin(files, Asked(log, rules=rules, questions=questions))
    for name, wish in wishes.items():
        while (seen := session.next(name, "", [])["pair"]) is not None:
            pair = session.log.served[seen["nonce"]]
            methods = {side: session.ground.cells[getattr(pair, side).cell].voted.method for side in ("left", "right")}
            choice = wish if wish in ("left", "tie", "skip") else "left" if methods["left"] == wish else "right"
            session.vote(name, "", seen["nonce"], choice, 100)
    session.close()
    return log


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results", prompts=6, same=(2,))


def test_the_label_is_what_most_votes_say(files, tmp_path):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl", "ben": "refl", "carl": "base", "dora": "skip"})
    made = pairs_from_votes(log, files, tmp_path / "pairs")
    assert (made.pairs, made.ties, made.votes, made.raters) == (5, 0, 15, 3)
    source = open_pairs(tmp_path / "pairs")
    assert len(source) == 5
    for i in range(5):
        pair = source.pair(i)
        assert pair.models[int(pair.label == 0.0)] == "refl"
        assert pair.prompt.text == f"prompt {pair.prompt.id}"
    contents = dict(source.images(range(5)))
    assert contents[0][0] == next((files[0].with_suffix("") / "images").glob("00000-0.png")).read_bytes()


def test_as_many_for_one_as_for_the_other_is_a_tie(files, tmp_path):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl", "ben": "base"})
    assert pairs_from_votes(log, files, tmp_path / "pairs").ties == 5


def test_who_fails_the_checks_has_no_say(tmp_path):
    files = cells(tmp_path / "results", prompts=80)
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "left"}, Rules(same=0.2, other_prompt=0))
    with pytest.raises(InputError, match=r"no votes on 'overall' .*, but for those of 'anna', who failed"):
        pairs_from_votes(log, files, tmp_path / "pairs")


def test_nobody_is_blamed_who_has_no_votes_there(files, tmp_path, monkeypatch):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "skip"})
    monkeypatch.setattr(vote_pairs, "suspects", lambda _: {"anna", "ben"})
    with pytest.raises(InputError, match=r"no votes on 'overall' between these results\.$"):
        pairs_from_votes(log, files, tmp_path / "pairs")


def test_pairs_that_an_older_alignbench_made_are_replaced_by_force_alone(files, tmp_path):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    made = tmp_path / "pairs" / "votes.json"
    pairs_from_votes(log, files, made.parent)
    about = json.loads(made.read_text())
    made.write_text(json.dumps({name: value for name, value in about.items() if name != "pairs"} | {"schema": 1}))
    with pytest.raises(InputError, match="holds pairs that an older alignbench made; --force replaces them, or choose"):
        pairs_from_votes(log, files, made.parent)
    pairs_from_votes(log, files, made.parent, force=True)
    assert json.loads(made.read_text()) == about


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"schema": [1]}'])
def test_a_damaged_file_beside_pairs_ends_in_one_line(files, tmp_path, content):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    pairs_from_votes(log, files, tmp_path / "pairs")
    (tmp_path / "pairs" / "votes.json").write_text(content)
    with pytest.raises(InputError, match=r"holds (other things than pairs|pairs of other votes)"):
        pairs_from_votes(log, files, tmp_path / "pairs")


def test_made_again_they_are_left_and_other_votes_replace_them_by_force_alone(files, tmp_path):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"}, questions=("overall", "alignment"))
    pairs_from_votes(log, files, tmp_path / "pairs")
    content = (tmp_path / "pairs" / "pairs.jsonl").read_bytes()
    pairs_from_votes(log, files, tmp_path / "pairs")
    assert (tmp_path / "pairs" / "pairs.jsonl").read_bytes() == content
    with pytest.raises(InputError, match="pairs of other votes or results; --force"):
        pairs_from_votes(log, files, tmp_path / "pairs", "alignment")
    pairs_from_votes(log, files, tmp_path / "pairs", "alignment", force=True)
    assert json.loads((tmp_path / "pairs" / "votes.json").read_text())["question"] == "alignment"
    with pytest.raises(InputError, match="holds other things"):
        pairs_from_votes(log, files, tmp_path, force=True)
    with pytest.raises(InputError, match="no question in"):
        pairs_from_votes(log, files, tmp_path / "pairs", "colours")


def test_pictures_that_have_gone_are_named(files, tmp_path):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    (files[1].with_suffix("") / "images" / "00003-0.png").unlink()
    with pytest.raises(InputError, match=r"00003-0\.png cannot be read"):
        pairs_from_votes(log, files, tmp_path / "pairs")


def test_what_was_cut_short_at_any_file_goes_on(files, tmp_path, monkeypatch):
    """The names of what is written, in order; then a stop before each of them, and the same command again."""
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    names: list[str] = []
    stop = ""

    @contextlib.contextmanager
    def stopping(path, sync=True):
        names.append(path.name)
        if path.name == stop:
            path.with_name(f".{path.name}.1.tmp").touch()
            raise KeyboardInterrupt
        with replace_file(path, sync) as temporary:
            yield temporary

    monkeypatch.setattr(vote_pairs, "replace_file", stopping)
    monkeypatch.setattr(files_of_ours, "replace_file", stopping)
    whole = pairs_from_votes(log, files, tmp_path / "whole")
    written = {path.name: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    assert len(names) == len(written) == 12
    for k, stop in enumerate(list(dict.fromkeys(names))):
        with pytest.raises(KeyboardInterrupt):
            pairs_from_votes(log, files, tmp_path / str(k))
        stop = ""
        pairs_from_votes(log, files, tmp_path / str(k))
        found = {path.name: path.read_bytes() for path in (tmp_path / str(k)).rglob("*") if path.is_file()}
        assert {name: content for name, content in found.items() if not name.endswith(".tmp")} == written


def test_pairs_of_fewer_results_are_not_taken_for_those_of_all(tmp_path):
    files = cells(tmp_path / "results", ("base", "refl", "draft"), prompts=6)
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    few = pairs_from_votes(log, files[:2], tmp_path / "pairs")
    with pytest.raises(InputError, match="pairs of other votes or results; --force"):
        pairs_from_votes(log, files, tmp_path / "pairs")
    every = pairs_from_votes(log, files, tmp_path / "pairs", force=True)
    assert few.pairs < every.pairs == len(open_pairs(tmp_path / "pairs"))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace('"prompt":"p3"', '"prompt":"p9"'),
        lambda line: line.replace('"place":3', '"place":99999'),
        lambda line: line.replace('"sample":0', '"sample":7'),
        lambda line: line.replace('"cell":1', '"cell":9'),
        lambda line: line.replace('"evaluation":"', '"evaluation":"x'),
        lambda line: line.replace('"rater":"anna"', '"rater":"\\u001b[31m"'),
        lambda line: line.replace('"id":"', '"id":"x'),
    ],
)
def test_a_forged_log_ends_both_commands_in_one_line(change, files, tmp_path, capsys):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    log.write_text("".join(f"{change(line)}\n" for line in log.read_text().splitlines()))
    for command in (
        ["compare", *map(str, files), "--votes", str(log)],
        ["pairs", *map(str, files), "--from-votes", str(log), "--output", str(tmp_path / "pairs")],
    ):
        code = run_command_line(command)
        said = capsys.readouterr()
        assert code in (0, 2)
        assert "\x1b" not in said.out + said.err
        assert said.err.count("\n") == (code == 2)


def test_from_the_command_line_to_accuracy(files, tmp_path, capsys):
    log = voted(files, tmp_path / "votes.jsonl", {"anna": "refl"})
    folder = tmp_path / "pairs"
    assert run_command_line(["pairs", *map(str, files), "--from-votes", str(log), "--output", str(folder)]) == 0
    assert "5 pairs from 5 votes of 1 rater" in capsys.readouterr().out
    assert run_command_line(["accuracy", "--pairs", str(folder), "--scorers", "jpeg_compressibility"]) == 0
    assert "jpeg_compressibility" in capsys.readouterr().out
    assert run_command_line(["pairs", "--from-votes", str(log), "--model", "tiny"]) == 2
    assert "--model: pairs from votes need no model" in capsys.readouterr().err
    assert run_command_line(["pairs", str(files[0])]) == 2
    assert "for pairs --from-votes" in capsys.readouterr().err
