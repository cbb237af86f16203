"""Votes of several logs in one comparison: which names are one person, and whose votes count."""

from __future__ import annotations

import contextlib

import pytest
from voted import cells

from alignbench.analysis.compare import compare
from alignbench.judging.outside_votes import import_votes
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.judging.voting_served import raters_of
from alignbench.record.votes import Rules, person

PLAIN = Rules(same=0, other_prompt=0, repeat=0, overlap=0)
CHECKED = Rules(same=0.3, other_prompt=0.3, repeat=0, overlap=0)


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results")


@pytest.fixture
def voted(files, tmp_path):
    """A function that makes a log: these raters choose one side of every pair, and pass every check or none."""

    def vote(name, raters, rules=PLAIN, passing=True, asked=(), choice="left"):
        log = tmp_path / f"{name}.jsonl"
        with contextlib.closing(begin(files, Asked(log, raters=asked, rules=rules))) as session:
            for rater in raters:
                key = session.key_of(rater) if asked else ""
                while seen := session.next(rater, key, [])["pair"]:
                    pair = session.log.served[seen["nonce"]]
                    right = {"left": "right", "right": "left", "": "tie"}[pair.wrong]
                    wrong = {"left": "left", "right": "right", "": "left"}[pair.wrong]
                    said = choice if not pair.check else right if passing else wrong
                    session.vote(rater, key, seen["nonce"], said, 900)
        return log

    return vote


def row_of(files, *logs):
    (group,) = compare(files, votes=logs).groups
    (column,) = group.votes
    return column.versus[0], group.notes


def test_numbered_raters_of_two_logs_are_as_many_people(files, voted):
    names = raters_of(["3"])
    logs = [voted(name, names, asked=names) for name in "ab"]
    row, notes = row_of(files, *logs)
    assert (row.raters, row.votes) == (6, 6 * 12)
    assert row.people is not None
    assert notes == []


def test_a_typed_name_in_two_logs_is_one_person_however_it_is_written(files, voted):
    row, notes = row_of(files, voted("a", ["Anna", "ben"]), voted("b", ["ANNA", "rater-1"]))
    assert (row.raters, row.votes) == (3, 3 * 12)
    assert any("12 votes of a rater on a pair that stands in another log too" in note for note in notes)


def test_imported_raters_with_bare_numbers_are_of_their_own_table(files, tmp_path):
    logs = []
    for name in "ab":
        rows = "".join(f"p{i},base,refl,{name},{rater}\n" for i in range(6) for rater in (7, "anna"))
        (tmp_path / f"{name}.csv").write_text(f"prompt,method_a,method_b,choice,rater\n{rows}")
        logs.append(tmp_path / f"{name}.jsonl")
        import_votes(tmp_path / f"{name}.csv", files, logs[-1])
    row, _ = row_of(files, *logs)
    assert (row.raters, row.votes) == (3, 3 * 6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_fails_the_checks_of_one_log_is_trusted_in_none(order, files, voted, tmp_path):
    careless = voted("a", ["anna"], CHECKED, passing=False)
    rows = "".join(f"p{i},base,refl,{'ab'[i % 2]},{rater}\n" for i in range(12) for rater in ("Anna", "ben"))
    (tmp_path / "more.csv").write_text(f"prompt,method_a,method_b,choice,rater\n{rows}")
    import_votes(tmp_path / "more.csv", files, tmp_path / "b.jsonl")
    logs = [careless, tmp_path / "b.jsonl"]
    row, _ = row_of(files, *(logs[i] for i in order))
    assert row.raters == 2
    assert row.trusted.rate == 0.5  # ben's votes alone
    assert (row.trusted.low, row.trusted.high) == pytest.approx((0.2, 0.8), abs=0.1)


@pytest.mark.parametrize(
    ("name", "same"), [("Anna", True), ("rater-1", False), ("RATER-12", False), ("7", False), ("rater-x", True),
                       ("anna7", True)],
)  # fmt: skip
def test_a_number_says_who_somebody_is_in_its_own_log_alone(name, same):
    assert (person(name, 0) == person(name.swapcase(), 1)) == same
    assert person(name, 0) == person(f" {name.swapcase()} ", 0)
