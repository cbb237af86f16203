"""`alignbench plan` as it is typed: its tables, formats and refusals."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from result_files import writer
from said import one_line

from alignbench.cli.app import run_command_line
from alignbench.keys import Key

PROMPTS = 40


def scores(*path, shift: float = 0.0, count: int = PROMPTS) -> list[float]:
    return [shift + float(x) for x in Key("plan", *path).generator().normal(size=count)]


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """`base`, a method without training, one that was trained three times and one that was trained once."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    folder.mkdir()
    make_result = writer(folder)
    make_result("base", {"r": scores("base"), "s": scores("other")})
    make_result("best", {"r": scores("best"), "s": scores("best", "s")}, "best_of_n")
    make_result("once", {"r": scores("once"), "s": scores("once", "s")}, "dpok", seed=1)
    for seed in (1, 2, 3):
        own = {"r": scores("ddpo", seed, shift=0.3 * seed), "s": scores("ddpo", seed, "s")}
        make_result(f"ddpo{seed}", own, "ddpo", seed=seed)
    return folder


def as_json(capsys, *words: str) -> dict:
    assert run_command_line(["plan", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def plan_of(values: dict, method: str, scorer: str = "r") -> dict:
    (group,) = values["groups"]
    (row,) = [row for row in group["methods"] if (row["method"], row["scorer"]) == (method, scorer)]
    return row


def test_without_files_it_plans_from_the_folder_results(results, capsys):
    assert run_command_line(["plan"]) == 0
    text = capsys.readouterr().out
    for scorer in ("r", "s"):
        assert f"{scorer}: the smallest difference from base that can be shown" in text
    assert "a two-sided test at 0.05 / 3 (Bonferroni for 3 tests) shows with 80 % probability" in text
    assert "3 of them tell their standard deviation roughly; it may be 0.5 to 6.3 times as large" in text


def test_of_a_method_that_was_trained_once_seeds_are_not_known(results, capsys):
    assert run_command_line(["plan", "--scorer", "r"]) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("dpok")]
    assert "not known" in line
    assert line.endswith("a second seed")
    assert "seeds: not known from one run (dpok). What is planned is about this run alone" in text
    assert "s: the smallest difference" not in text


def test_the_plan_is_for_what_is_there_unless_another_size_is_asked(results, capsys):
    now = plan_of(as_json(capsys), "ddpo")
    assert now["planned"] == now["now"] == {"prompts": PROMPTS, "images": 1, "seeds": 3, "baseline_seeds": 1}
    asked = plan_of(as_json(capsys, "--prompts", "400", "--seeds", "6"), "ddpo")
    assert asked["planned"] == {"prompts": 400, "images": 1, "seeds": 6, "baseline_seeds": 1}
    for quantity in ("win_rate", "difference"):
        assert asked[quantity]["smallest_now"] == now[quantity]["smallest"]
        assert asked[quantity]["smallest"] < now[quantity]["smallest"]
        assert now[quantity]["doubled"]["seeds"] > now[quantity]["limit_of"]["prompts"]


def test_seeds_and_images_that_are_not_told_apart_stay_as_they_are(results, capsys):
    values = as_json(capsys, "--seeds", "6", "--images", "4")
    for method, seeds in (("best_of_n", 1), ("dpok", 1), ("ddpo", 6)):
        assert plan_of(values, method)["planned"] == {
            "prompts": PROMPTS, "images": 1, "seeds": seeds, "baseline_seeds": 1,
        }  # fmt: skip


def test_images_are_told_apart_where_prompts_have_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_result = writer(tmp_path)
    make_result("base", scores("base", count=80), samples=2)
    make_result("best", scores("best", count=80), "best_of_n", samples=2)
    values = as_json(capsys, ".", "--images", "8")
    found = plan_of(values, "best_of_n")
    assert found["planned"] == {"prompts": 40, "images": 8, "seeds": 1, "baseline_seeds": 1}
    assert set(found["win_rate"]["doubled"]) == {"prompts", "images"}
    assert run_command_line(["plan", "."]) == 0
    text = capsys.readouterr().out
    assert "sd images" in text
    assert "not told apart" not in text


def test_a_family_of_one_needs_less_and_more_power_more(results, capsys):
    usual, alone, sure = (
        plan_of(as_json(capsys, *words), "ddpo")["win_rate"]["smallest"]
        for words in ((), ("--family-size", "1"), ("--power", "0.95"))
    )
    assert alone < usual < sure


def test_what_is_asked_for_stands_beside_what_is_there(results, capsys):
    assert run_command_line(["plan", "--prompts", "1000"]) == 0
    text = capsys.readouterr().out
    assert "now: win rate ±" in text
    assert "1000 × 1 × 3" in text


def test_csv_is_a_table_and_its_notes_are_apart(results, capsys):
    assert run_command_line(["plan", "--format", "csv", "--scorer", "r"]) == 0
    printed = capsys.readouterr()
    header, *rows = csv.reader(io.StringIO(printed.out))
    assert header[:4] == ["evaluation", "table", "method", "sd prompts"]
    assert [row[2] for row in rows] == ["best_of_n", "ddpo", "dpok"]
    assert "not known from one run" in printed.err


@pytest.mark.parametrize(
    ("form", "start"), [("markdown", "## tiny on shapes/test"), ("latex", "% tiny on shapes/test")]
)
def test_it_is_written_for_papers_too(results, capsys, form, start):
    assert run_command_line(["plan", "--format", form, "--output", "plan.txt"]) == 0
    assert capsys.readouterr().out == "written to plan.txt\n"
    assert Path("plan.txt").read_text().startswith(start)


def test_another_method_may_be_the_baseline(results, capsys):
    (group,) = as_json(capsys, "--baseline", "ddpo")["groups"]
    assert group["baseline"] == "ddpo"
    best = plan_of({"groups": [group]}, "best_of_n")
    assert (best["now"]["seeds"], best["now"]["baseline_seeds"]) == (1, 3)
    assert "baseline seeds" in best["win_rate"]["sd"]
    assert run_command_line(["plan", "--baseline", "ddpo"]) == 0
    assert "sd seeds of ddpo" in capsys.readouterr().out


def test_a_baseline_that_was_trained_once_is_a_run_as_well(results, capsys):
    values = as_json(capsys, "--baseline", "dpok")
    found = plan_of(values, "ddpo")
    assert (found["trained_once"], found["add_first"]) == (["dpok"], "a second seed")
    assert found["win_rate"]["sd"]["seeds"] >= 0
    assert any("not known from one run (dpok)" in note for note in values["groups"][0]["notes"])


def test_an_evaluation_without_the_baseline_is_a_note(results, capsys):
    writer(results)("elsewhere", scores("elsewhere"), evaluation={"eval_seed": 9})
    values = as_json(capsys)
    assert len(values["groups"]) == 1
    (note,) = values["notes"]
    assert "no method has a score beside base's; `alignbench run` one." in note


def test_a_trial_that_was_left_over_changes_no_plan(results, capsys):
    before = as_json(capsys)
    writer(results)("trial", scores("base")[:2], configuration={"limit": 2})
    values = as_json(capsys)
    methods = [found["groups"][0]["methods"] for found in (before, values)]
    assert methods[0] == methods[1]
    (note,) = values["notes"]
    assert note.endswith("has most scores, 'base limit=2 scorers=r' is left out.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "0"], "--prompts 0: expected a whole number from 2 to 1000000000."),
        (["--prompts", "1"], "--prompts 1: expected a whole number from 2"),
        (["--prompts", "9" * 400], "expected a whole number from 2"),
        (["--images", "0"], "--images 0: expected a whole number from 1"),
        (["--seeds", "-1"], "--seeds -1: expected a whole number from 1"),
        (["--family-size", "0"], "--family-size 0: expected a whole number from 1"),
        (["--power", "1"], "--power 1: expected a share between 0 and 1, such as 0.8."),
        (["--power", "nan"], "--power nan: expected a share between 0 and 1"),
        (["--scorer", "q"], "no scorer in these files named 'q'"),
        (["--baseline", "best"], "no method in these files to use as baseline named 'best'. "),
        (["results/base.json"], "results/base.json: one result alone compares nothing; add that of a method"),
        (["results/best.json", "results/once.json"], "no complete result of 'base' with this evaluation"),
        (["nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_planned_is_one_line(results, capsys, words, message):
    assert run_command_line(["plan", *words]) == 2
    assert message in one_line(capsys)


def test_one_prompt_tells_nothing_of_prompts(tmp_path, capsys):
    make_result = writer(tmp_path)
    make_result("base", scores("base", count=8), samples=8)
    make_result("best", scores("best", count=8), "best_of_n", samples=8)
    assert run_command_line(["plan", str(tmp_path)]) == 2
    assert "one prompt alone does not tell how prompts differ; evaluate on more of them." in one_line(capsys)


def test_results_that_are_not_complete_are_no_ground_for_a_plan(tmp_path, capsys):
    writer(tmp_path)("base", [1.0, 2.0], status="partial", reason="killed")
    assert run_command_line(["plan", str(tmp_path)]) == 2
    assert "none of these results is complete; `alignbench ls` shows how far each is." in one_line(capsys)


def test_where_every_pair_ties_there_is_nothing_to_tell(tmp_path, capsys):
    make_result = writer(tmp_path)
    make_result("base", [1.0] * 20)
    make_result("best", [1.0] * 20, "best_of_n")
    found = plan_of(as_json(capsys, str(tmp_path)), "best_of_n")
    assert found["win_rate"]["smallest"] is None
    assert found["add_first"] is None


def test_scores_of_any_size_end_no_plan(tmp_path, capsys):
    make_result = writer(tmp_path)
    for size in (1e307, 1e150, 1e100, 1e-160, 5e-324):
        make_result("base", [0.0] * 12)
        make_result("wild", [-1e308, 0.0, 1e308] * 4, "refl")
        for seed in (1, 2, 3):
            make_result(f"ddpo{seed}", [size * (i % (seed + 1) - 0.4) for i in range(12)], "ddpo", seed=seed)
        for form in ("table", "csv", "json"):
            assert run_command_line(["plan", str(tmp_path), "--format", form]) == 0, capsys.readouterr().err
        capsys.readouterr()
