"""Results as DataFrames, and what Python code and notebooks see of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

import alignbench
from alignbench.analysis.frames import Results
from alignbench.errors import InputError, ResultFileError


@pytest.fixture
def folder(tmp_path, make_result):
    """Two seeds of a method that trains, one of which has a failed score and a curve, and the baseline."""
    make_result("base", {"r": [0.0, 1.0, 2.0, 3.0], "s": [1.0] * 4}, samples=2)
    make_result("one", {"r": [1.0, 2.0, 3.0, 4.0], "s": [2.0] * 4}, "ddpo", seed=1, samples=2)
    curve = [
        {"round": 0, "held_out": {"r": 0.5}, "seconds": 0.0, "denoiser_forward": 0, "denoiser_backward": 0},
        {
            "round": 1,
            "reward": 0.7,
            "held_out": {"r": 0.9},
            "seconds": 2.0,
            "denoiser_forward": 8,
            "denoiser_backward": 4,
        },
    ]
    make_result("two", {"r": [1.0, None, 3.0, 4.0], "s": [2.0] * 4}, "ddpo", seed=2, samples=2, curve=curve)
    make_result("bad", [1.0], "sft", seed=0, status="failed", reason="out of memory")
    return tmp_path


def test_a_scorer_that_is_called_like_another_column_has_a_column_of_its_own(tmp_path, make_result):
    scores = {"saturation": [1.0, 2.0], "text": [5.0, 7.0]}
    make_result("base", scores, pictures={"saturation": [0.1, 0.3]})
    results = alignbench.load(tmp_path)
    assert results.rows["saturation"].tolist() == [0.1, 0.3]
    assert results.rows["scorer.saturation"].tolist() == [1.0, 2.0]
    assert results.rows["text"].tolist() == ["prompt p0", "prompt p1"]
    assert results.runs["scorer.text"].tolist() == [6.0]
    assert results.runs["saturation"].tolist() == [pytest.approx(0.2)]


def test_a_row_is_an_image_with_its_prompt_and_a_column_per_scorer(folder):
    rows = alignbench.load(folder).rows
    assert list(rows.columns) == [
        "evaluation", "method", "algorithm", "seed", "prompt", "text", "category", "challenge", "sample", "r", "s",
    ]  # fmt: skip
    assert len(rows) == 12
    means = rows.groupby("method")["r"].mean()
    assert means["base"] == 1.5
    assert means["ddpo"] == pytest.approx((10 + 8) / 7)  # the failed score is left out
    one = rows[(rows["seed"] == 2) & (rows["prompt"] == "p0")]
    assert one["sample"].tolist() == [0, 1]
    assert one["r"].tolist()[0] == 1.0
    assert math.isnan(one["r"].tolist()[1])
    assert rows.loc[rows["algorithm"] == "base", "seed"].isna().all()
    assert rows["seed"].dtype == "Int64"


def test_curves_and_costs_begin_with_whose_they_are(folder):
    results = alignbench.load(folder)
    curves = results.curves
    assert curves["held_out.r"].tolist() == [0.5, 0.9]
    assert curves["round"].tolist() == [0, 1]
    assert curves["seed"].tolist() == [2, 2]
    assert np.isnan(curves["reward"].iloc[0])
    costs = results.costs
    assert costs["image_denoiser"].tolist() == [2.0, 2.0, 2.0]
    assert set(costs.columns) >= {"method", "seed", "alignment_denoiser", "image_seconds", "memory_bytes"}
    assert results.runs.set_index("seed").loc[1, "r"] == 2.5
    assert len(results) == 3
    assert repr(results) == "<3 results of 2 methods>"


def test_a_comparison_as_a_frame_has_what_the_json_has(folder):
    from alignbench.analysis.tables import render

    comparison = alignbench.compare(folder)
    frame = comparison.to_frame()
    (group,) = json.loads(render(comparison, "json"))["groups"]
    assert len(frame) == 2 * 2
    for item in group["versus"]:
        (row,) = frame[(frame["scorer"] == item["scorer"]) & (frame["method"] == item["method"])].to_dict("records")
        assert row["win_rate"] == item["rate"]["rate"]
        assert (row["win_rate_low"], row["win_rate_high"]) == (item["rate"]["low"], item["rate"]["high"])
        for of, test in (("win_rate", item["rate_test"]), ("difference", item["difference_test"])):
            assert (row[f"{of}_p"], row[f"{of}_p_adjusted"]) == (test["p"], test["adjusted"])
            assert (row[f"{of}_mark"] if isinstance(row[f"{of}_mark"], str) else None) == test["mark"]
        assert row["seeds"] == len(item["seeds"])
    base = frame[frame["method"] == "base"]
    assert base["win_rate"].isna().all()
    assert base["mean"].tolist() == [1.5, 1.0]


def test_a_comparison_is_short_to_look_at_and_prints_its_tables(folder):
    from alignbench.analysis.tables import render

    comparison = alignbench.compare(folder)
    assert repr(comparison) == "<comparison of 2 methods on 1 evaluations; print it, or see to_frame()>"
    assert str(comparison) == render(comparison, "table")


def test_notebooks_get_tables_with_foreign_text_escaped(folder, make_result):
    make_result("evil", {"r": [1.0] * 4, "s": [2.0] * 4}, "<script>alert(1)</script>", samples=2)
    for html in (alignbench.compare(folder)._repr_html_(), alignbench.load(folder)._repr_html_()):
        assert "<table" in html
        assert "<script>" not in html
        assert "&lt;script&gt;" in html


def test_a_comparison_takes_loaded_results_and_the_names_of_the_command(folder):
    results = alignbench.load([folder / "base.json", str(folder / "one.json")])
    assert isinstance(results, Results)
    comparison = alignbench.compare(results, scorers=["r"], baseline="base")
    assert comparison.to_frame()["scorer"].unique().tolist() == ["r"]


def test_what_cannot_be_loaded_is_said_as_on_the_command_line(folder):
    (folder / "torn.json").write_text("{")
    with pytest.raises(ResultFileError, match=r"torn\.json: not valid JSON"):
        alignbench.load(folder)
    assert len(alignbench.load(folder, skip_bad=True)) == 3
    with pytest.raises(InputError, match="there is no such folder"):
        alignbench.load(folder / "nothing")


def test_nothing_complete_is_an_empty_table(tmp_path, make_result):
    make_result("bad", [1.0], status="failed", reason="x")
    results = alignbench.load(tmp_path)
    assert len(results) == 0
    assert isinstance(results.rows, pd.DataFrame)
    assert results.rows.empty
    assert alignbench.compare(tmp_path)._repr_html_() == "<p>no complete results to compare</p>"
