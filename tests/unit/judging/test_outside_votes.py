"""Votes from elsewhere become a log like any other, or are refused by row."""

from __future__ import annotations

import itertools
import json

import pytest
from voted import cells

from alignbench.analysis.compare import compare
from alignbench.analysis.vote_tables import vote_reading
from alignbench.cli import votes
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.judging.outside_votes import import_votes
from alignbench.record.result import read, write
from alignbench.record.votes import read_log

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
        ("p1,base,refl,a,ANNA", "the rater is 'ANNA', and above 'anna'; write a name in one way"),
    ],
)
def test_a_row_that_means_nothing_is_refused_by_its_line(row, words, files, tmp_path):
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,base,refl,a,anna\n{row}\n")
    with pytest.raises(InputError, match=f"line 3.*{words}"):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    assert not (tmp_path / "votes.jsonl").exists()


def label_studio(path, *annotations, **task):
    """An export of one task."""
    data = {"prompt": "p0", "method_a": "base", "method_b": "refl"}
    path.write_text(json.dumps([{"data": data, "annotations": annotations, **task}]))
    return path


def test_label_studios_raters_are_told_apart_and_one_without_a_choice_skipped(files, tmp_path):
    left = [{"type": "pairwise", "value": {"selected": "left"}}]
    people = [{"id": i, "email": f"{'x' * 40}{i}@example.org"} for i in (1, 2, 3)]
    annotations = [
        {"completed_by": people[0], "result": left},
        {"completed_by": people[1], "result": left},
        {"completed_by": people[2], "result": []},
    ]
    export = label_studio(tmp_path / "export.json", *annotations, predictions=[{"result": left}])
    assert import_votes(export, files, tmp_path / "votes.jsonl").raters == 3
    (column,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups[0].votes
    assert (column.worth.votes, column.worth.raters, column.worth.skipped) == (2, 2, 1)


def test_a_minimal_export_of_label_studio_is_refused_with_what_to_do(files, tmp_path):
    row = {"id": 1, "prompt": "p0", "method_a": "base", "method_b": "refl", "choice": "left", "annotator": 1}
    (tmp_path / "export.json").write_text(json.dumps([row]))
    with pytest.raises(InputError, match="task 0: expected data and annotations; export it as JSON, not as JSON-MIN"):
        import_votes(tmp_path / "export.json", files, tmp_path / "votes.jsonl")


def renamed(path, name):
    """A result and its pictures under another name."""
    path.with_suffix("").rename(path.with_name(name))
    return path.rename(path.with_name(f"{name}.json"))


def seeds(folder):
    """The unaligned model, and a method with two training seeds."""
    base, *runs = cells(folder, ("base", "refl", "draft"), prompts=6)
    for seed, path in enumerate(runs):
        result = read(path)
        asked = result.configuration.model_copy(update={"algorithm": "refl", "seed": seed})
        write(path, result.model_copy(update={"configuration": asked, "trains": True}))
    return [base, *(renamed(path, f"refl{seed}") for seed, path in enumerate(runs))]


def test_of_several_seeds_a_result_file_is_voted_on(tmp_path):
    files = seeds(tmp_path / "results")
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,base,refl0,a,anna\np0,base,refl1.json,b,anna\n")
    made = import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    assert (made.votes, made.repeats) == (2, 0)
    (column,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups[0].votes
    assert (column.versus[0].votes, column.versus[0].rate.rate) == (2, 0.5)
    for row, said in (
        ("p0,base,refl,a,anna", r"'refl' has several seeds; name a result file: refl0\.json, refl1\.json"),
        ("p0,refl0,refl1,a,anna", "'refl0' against itself"),
    ):
        (tmp_path / "votes.csv").write_text(f"{HEADER}{row}\n")
        with pytest.raises(InputError, match=said):
            import_votes(tmp_path / "votes.csv", files, tmp_path / "more.jsonl")


def test_a_choice_that_is_a_side_and_the_method_on_the_other_is_refused(tmp_path):
    """What `alignbench vote a.json b.json` is told of a table with sides in turn."""
    files = [renamed(path, name) for path, name in zip(cells(tmp_path / "results"), "ab", strict=True)]
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,a,b,a,anna\np1,b,a,left,anna\np2,b,a,a,anna\n")
    with pytest.raises(
        InputError, match="line 4: the choice is 'a', which is a side and names the method on the other"
    ):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")


def test_tables_as_excel_saves_them_are_read(files, tmp_path):
    """Semicolons, a mark at the beginning, and line ends of Windows."""
    table = f'{HEADER}"prompt p0",base,refl,b,"anna; b"\np1,base,refl,b,ben\n'.replace(",", ";").replace("\n", "\r\n")
    (tmp_path / "votes.csv").write_text(table, encoding="utf-8-sig", newline="")
    made = import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    assert (made.votes, made.raters) == (2, 2)


def test_columns_that_a_table_lacks_or_that_are_not_used_are_named(files, tmp_path, capsys):
    table, log = tmp_path / "votes.csv", tmp_path / "votes.jsonl"
    table.write_text("prompt,method_a,method_b,choice,sampel\np0,base,refl,a,1\n")
    with pytest.raises(InputError, match=r"votes\.csv, line 1: no column rater between its commas; expected prompt"):
        import_votes(table, files, log)
    table.write_text(f"{HEADER.strip()},sampel\np0,base,refl,a,anna,1\n")
    assert run_command_line(["vote", *map(str, files), "--import", str(table), "--votes", str(log)]) == 0
    assert "columns that are not used: 'sampel'" in capsys.readouterr().out


def test_of_many_methods_one_line_tells_how_many_votes_they_take(tmp_path):
    methods = ("refl", "draft", "ddpo", "dpok", "best_of_n")
    files = cells(tmp_path / "results", methods, prompts=6)
    duels = list(itertools.combinations(methods, 2))
    rows = [f"p{i},{one},{other},{'a' if i % 2 else 'b'},anna" for i in range(4) for one, other in duels]
    (tmp_path / "votes.csv").write_text(HEADER + "\n".join(rows))
    import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    (group,) = compare(files[:4], votes=[tmp_path / "votes.jsonl"]).groups  # 6 duels
    assert sum("within ±5 points takes about 385 votes" in line for line in vote_reading(group)) == 6
    (group,) = compare(files, votes=[tmp_path / "votes.jsonl"]).groups
    (line,) = [line for line in vote_reading(group) if "±5 points" in line]
    assert line.startswith("votes: each of these 10 rates within ±5 points takes about 385 votes of these raters")
    assert line.endswith("of people, 5 raters at least, better twenty.")


def test_from_the_command_line(files, tmp_path, capsys):
    table, log = tmp_path / "votes.csv", tmp_path / "votes.jsonl"
    table.write_text(f"{HEADER}p0,base,refl,a,anna\n")
    assert run_command_line(["vote", *map(str, files), "--import", str(table), "--votes", str(log)]) == 0
    assert "1 vote of 1 rater in" in capsys.readouterr().out
    assert run_command_line(["vote", *map(str, files), "--import", str(tmp_path / "x.txt"), "--votes", str(log)]) == 2


@pytest.mark.parametrize(("mark", "end"), [(";", "\n"), ("\t", "\r\n"), (",", "\n")])
def test_a_first_line_says_what_separates_as_excel_has_it(mark, end, files, tmp_path):
    rows = f"{HEADER}p0,base,refl,a,anna\np1,base,refl,c,anna\n".replace(",", mark)
    (tmp_path / "votes.csv").write_bytes(f"SEP={mark}\n{rows}".replace("\n", end).encode("utf-8-sig"))
    with pytest.raises(InputError, match=r"votes\.csv, line 4: the choice is 'c'"):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")
    (tmp_path / "votes.csv").write_text(f"sep=|\n{HEADER}")
    with pytest.raises(InputError, match=r"votes\.csv, line 1: 'sep=\|'; expected sep=, or sep=; or a tab there"):
        import_votes(tmp_path / "votes.csv", files, tmp_path / "votes.jsonl")


@pytest.mark.parametrize(("word", "instead"), [("tie", "both"), ("skip", "nothing"), ("same", "tie")])
def test_a_word_that_is_also_a_methods_name_is_refused_with_what_to_write(word, instead, files, tmp_path):
    base = renamed(files[0], word)
    (tmp_path / "votes.csv").write_text(f"{HEADER}p0,{word},refl,{word},anna\n")
    meant = "skip" if word == "skip" else "tie"
    said = f"names a method and is a word for a {meant}; write left or right for the method, {instead} for a {meant}"
    with pytest.raises(InputError, match=f"line 2: the choice is '{word}', which {said}"):
        import_votes(tmp_path / "votes.csv", [base, files[1]], tmp_path / "votes.jsonl")


def test_what_a_rater_says_of_a_pair_in_another_log_too_counts_once(tmp_path):
    files, logs = cells(tmp_path / "results", prompts=6, same=[2]), [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for log, rows in zip(
        logs,
        (
            ["p0,base,refl,a,anna", "p0,base,refl,b,ben", "p1,base,refl,skip,anna", "p2,base,refl,a,anna"],
            ["p0,refl,base,a,anna", "p1,base,refl,b,anna", "p2,base,refl,a,anna", "p3,base,refl,b,anna"],
        ),
        strict=True,
    ):
        log.with_suffix(".csv").write_text(HEADER + "\n".join(rows))
        import_votes(log.with_suffix(".csv"), files, log)
    (group,) = compare(files, votes=logs).groups
    (against,) = group.votes[0].versus
    assert (against.votes, against.raters, against.identical, against.skipped) == (4, 2, 1, 1)
    assert group.votes[0].worth.alpha.units == 1
    (note,) = [note for note in group.notes if "stands in another log" in note]
    assert note.startswith("votes on overall: 1 vote of a rater on a pair that stands in another log too counts")


@pytest.mark.parametrize("content", ["", HEADER, "\ufeffPK"])
def test_a_table_is_no_log(files, tmp_path, content):
    (tmp_path / "votes.csv").write_text(content)
    with pytest.raises(InputError, match=r"votes\.csv: no log of votes; `alignbench vote` makes one"):
        compare(files, votes=[tmp_path / "votes.csv"])


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


def test_raters_are_numbers_where_a_column_of_them_has_gaps(files, tmp_path):
    raters = [7.0, 7.0, 8.0, 8.0, 8.0, None]
    import_votes(parquet(tmp_path / "votes.parquet", user_id=raters), files, tmp_path / "votes.jsonl")
    assert {vote.rater for vote in read_log(tmp_path / "votes.jsonl").votes.values()} == {"7", "8"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user_id": None}, r"votes\.parquet has no column user_id"),
        ({"label_0": [0.3] * 6}, r"row 0: label_0 is 0\.3; expected 1, 0 or 0\.5"),
        ({"model_1": ["sdxl"] * 6}, r"row 0: .*method in these results"),
        ({"caption": ["a cat"] * 6}, "row 0: 'a cat' is no prompt of these results"),
        ({"model_0": [None] * 6}, "row 0: no model_0"),
        ({"user_id": [7, None, 7, 7, 7, 7]}, "row 1: no user_id; correct the row, or leave it out"),
        ({"label_0": [[1.0]] * 6, "label_1": None}, r"row 0: label_0 is \[1\.0\]; expected 1, 0 or 0\.5"),
        ({"has_label": ["False"] * 6}, "row 0: has_label is 'False'; expected true or false"),
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
