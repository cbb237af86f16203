"""Votes from elsewhere become a log like any other, or are refused by row."""

from __future__ import annotations

import json

import pytest
from voted import cells

from alignbench.analysis.compare import compare
from alignbench.cli import votes
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.judging.outside_votes import import_votes

HEADER = "prompt,method_a,method_b,choice,rater\n"


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results", prompts=6)


def test_a_table_becomes_a_column(files, tmp_path):
    table = tmp_path / "votes.csv"
    lines = [f"p{i},base,refl,b,anna" for i in range(4)] + ["prompt p4,refl,base.json,refl,ben", "p5,base,refl,tie,ben"]
    table.write_text(HEADER + "\n".join(lines))
    made = import_votes(table, files, tmp_path / "votes.jsonl")
    assert (made.votes, made.raters) == (6, 2)
    (column,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups[0].votes
    assert column.versus[0].rate.rate == pytest.approx(5.5 / 6)
    with pytest.raises(InputError, match="there already"):
        import_votes(table, files, tmp_path / "votes.jsonl")


def test_tables_of_two_questions_with_the_same_rows_are_two_columns_and_a_copy_is_refused(files, tmp_path):
    logs = [tmp_path / f"{name}.jsonl" for name in ("overall", "alignment", "copy")]
    for log, question in zip(logs, ("overall", "alignment", "overall"), strict=True):
        table = log.with_suffix(".csv")
        table.write_text(f"{HEADER.strip()},question\np0,base,refl,b,anna,{question}\np1,base,refl,b,ben,{question}\n")
        import_votes(table, files, log)
    columns = compare(files, votes=logs[:2]).groups[0].votes
    assert [column.name for column in columns] == ["votes: overall", "votes: alignment"]
    with pytest.raises(InputError, match="hold the same votes"):
        compare(files, votes=[logs[0], logs[2]])


def test_label_studios_export_is_read(files, tmp_path):
    tasks = [
        {
            "data": {"prompt": f"p{i}", "method_a": "base", "method_b": "refl"},
            "annotations": [
                {"completed_by": {"id": 3, "email": "anna@example.org"}, "lead_time": 1.5, "result": [pick]},
                {"completed_by": 4, "was_cancelled": True, "result": []},
            ],
        }
        for i, pick in enumerate(
            [
                {"type": "pairwise", "value": {"selected": "left"}},
                {"type": "choices", "value": {"choices": ["tie"]}},
                {"type": "choices", "value": {"choices": ["right"]}},
            ]
        )
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    made = import_votes(tmp_path / "export.json", files, tmp_path / "votes.jsonl")
    assert (made.votes, made.raters) == (3, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("p9,base,refl,a,anna", "'p9' is no prompt"),
        ("p1,base,ddpo,a,anna", "no method in these results named 'ddpo'"),
        ("p1,base,base,a,anna", "against itself"),
        ("p1,base,refl,c,anna", "the choice is 'c'"),
        ("p1,base,refl,a,", "the rater is ''"),
    ],
)
def test_a_row_that_means_nothing_is_refused_by_its_line(row, words, files, tmp_path):
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,base,refl,a,anna\n{row}\n")
    with pytest.raises(InputError, match=f"line 3.*{words}"):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    assert not (tmp_path / "votes.jsonl").exists()


def test_from_the_command_line(files, tmp_path, capsys):
    table, log = tmp_path / "votes.csv", tmp_path / "votes.jsonl"
    table.write_text(f"{HEADER}p0,base,refl,a,anna\n")
    assert run_command_line(["vote", *map(str, files), "--import", str(table), "--votes", str(log)]) == 0
    assert "1 vote of 1 rater in" in capsys.readouterr().out
    assert run_command_line(["vote", *map(str, files), "--import", str(tmp_path / "x.txt"), "--votes", str(log)]) == 2


def column_of(files, tmp_path, *rows):
    """The column of votes, and what was made, of a table with these rows."""
    (tmp_path / "votes.csv").write_text(HEADER + "\n".join(rows))
    made = import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    (column,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups[0].votes
    return column, made


def test_what_a_rater_says_of_a_pair_again_counts_for_agreement_with_oneself_alone(files, tmp_path):
    again = ["p0,base,refl,a,anna", "p0,base,refl,a,anna", "p0,refl,base,a,anna", "p0,base,refl,a,ben"]
    column, made = column_of(files, tmp_path, *again, "p1,base,refl,skip,anna", "p1,base,refl,b,anna")
    assert (made.votes, made.repeats) == (6, 2)
    (against,) = column.versus
    assert (against.votes, against.raters, against.majority) == (3, 2, None)
    assert column.worth.myself.rate == 0.5  # the same once, the other way round once


def test_one_picture_of_two_methods_is_a_tie_whatever_is_said_of_it(tmp_path):
    files = cells(tmp_path / "results", prompts=6, same=[2])
    column, made = column_of(files, tmp_path, "p2,base,refl,a,anna", "p2,base,refl,a,ben", "p3,base,refl,b,anna")
    assert (made.votes, made.raters, made.identical) == (1, 1, 2)
    (against,) = column.versus
    assert (against.votes, against.identical) == (1, 1)
    assert against.rate.rate == 0.75


def test_a_log_of_identical_pictures_alone_is_no_log_that_nobody_voted_in(tmp_path):
    files = cells(tmp_path / "results", prompts=6, same=[2])
    (tmp_path / "votes.csv").write_text(f"{HEADER}p2,base,refl,a,anna\n")
    import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    (group,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups
    assert not any("nobody has voted" in note for note in group.notes)


def test_nothing_is_said_of_sides_that_nobody_drew(files, tmp_path):
    column, _ = column_of(files, tmp_path, *(f"p{i},base,refl,a,anna" for i in range(6)))
    assert column.worth.left is None


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (["q" * 300], r"votes\.csv: the question is 'qqq.*expected 1 to 200 letters"),
        ([f"q{i}" for i in range(21)], "21 questions; at most 20"),
        (["which\x07"], "the question is 'which"),
    ],
)
def test_questions_that_no_log_holds_are_refused(files, tmp_path, questions, said):
    rows = "".join(f"p0,base,refl,a,anna,{question}\n" for question in questions)
    (tmp_path / "votes.csv").write_text(f"{HEADER[:-1]},question\n{rows}")
    with pytest.raises(InputError, match=said):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")


@pytest.mark.parametrize(
    "option",
    [
        ["--task", "overall"], ["--raters", "5"], ["--each", "7"], ["--adaptive"], ["--seed", "0"],
        ["--host", "10.0.0.1"], ["--port", "0"], ["--each", "100"], ["--host", "127.0.0.1"], ["--port", "8765"],
    ],
)  # fmt: skip
def test_no_option_of_the_page_is_passed_over(files, tmp_path, option, capsys):
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,base,refl,a,anna\n")
    typed = ["--import", str(tmp_path / "votes.csv"), "--votes", str(tmp_path / "votes.jsonl")]
    assert run_command_line(["vote", *map(str, files), *typed, *option]) == 2
    said = f"{' '.join(option)}: --import opens no page; leave one of them out."
    assert capsys.readouterr().err == f"alignbench: {said}\n"
    assert not (tmp_path / "votes.jsonl").exists()


def test_help_tells_the_defaults_of_the_page(capsys):
    assert run_command_line(["vote", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"(default: {value})" in text for value in (votes.EACH, votes.HOST, votes.PORT))


def parquet(path, **changes):
    """Six rows in Pick-a-Pic's layout, of which nobody judged the last; its pictures are no pictures."""
    columns = {
        "caption": [f"prompt p{i}" for i in range(6)], "jpg_0": [b"?"] * 6, "jpg_1": [b"?"] * 6,
        "model_0": ["refl", "base"] * 3, "model_1": ["base", "refl"] * 3,
        "label_0": [1.0, 0.0, 0.5, 1.0, 1.0, 0.0], "label_1": [0.0, 1.0, 0.5, 0.0, 0.0, 0.0],
        "has_label": [True] * 5 + [False], "user_id": [7, 7, 8, 8, 8, 9],
    } | changes  # fmt: skip
    pyarrow = pytest.importorskip("pyarrow.parquet")
    pyarrow.write_table(pytest.importorskip("pyarrow").table({k: v for k, v in columns.items() if v}), path)
    return path


def test_votes_in_pick_a_pics_layout_are_read(files, tmp_path):
    """Rows 0, 1, 4 are for refl, row 2 is a tie, row 3 is for base."""
    made = import_votes(parquet(tmp_path / "votes.parquet"), files, tmp_path / "votes.jsonl")
    assert (made.votes, made.raters) == (5, 2)
    (column,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups[0].votes
    assert column.versus[0].rate.rate == pytest.approx(3.5 / 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_id": None}, r"votes\.parquet has no column user_id"),
        ({"label_0": [0.3] * 6}, r"row 0: label_0 is 0\.3; expected 1, 0 or 0\.5"),
        ({"model_1": ["sdxl"] * 6}, r"row 0: .*method in these results"),
        ({"caption": ["a cat"] * 6}, "row 0: 'a cat' is no prompt of these results"),
        ({"model_0": [None] * 6}, "row 0: no method_a"),
    ],
)
def test_a_parquet_file_of_something_else_is_refused_by_row(files, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        import_votes(parquet(tmp_path / "votes.parquet", **changes), files, tmp_path / "votes.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        import_votes(tmp_path / "bad.parquet", files, tmp_path / "votes.jsonl")
    with pytest.raises(InputError, match=r"none\.parquet: there is no such file"):
        import_votes(tmp_path / "none.parquet", files, tmp_path / "votes.jsonl")
