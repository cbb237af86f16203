"""Metrics of the exact testbed over training seeds: intervals that contain the seeds, worked by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from alignbench import Key
from alignbench.analysis.compare import compare
from alignbench.analysis.formats import Table, csv_text, written
from alignbench.analysis.frontier import Pooled, as_csv, over_seeds, panels, pooled
from alignbench.analysis.frontier_plot import frontier_figure
from alignbench.analysis.tables import _at_floor, render
from alignbench.record import result as results

SEEDS = (942.0, 900.0, 549.0)


@pytest.fixture
def make_runs(make_result):
    """Runs of one method, one a seed, whose metric `r.<name>` has these values, each in the middle of its interval."""

    def make(values, half=9.0, name="regret", trained=True, floor=0.5, **kept):
        found = []
        for i, value in enumerate(values):
            ends = {} if half is None else {"low": value - half, "high": value + half}
            metric = {"value": value, "kind": "estimate", "about": "as measured", "floor": floor, **ends}
            seed = i + 1 if trained else None
            path = make_result(f"run{i}", [0.0], "ddpo", seed=seed, metrics={f"r.{name}": metric} | kept, **CURVE)
            found.append(path)
        return found

    return make


CURVE = {"frontiers": {"r": {"beta": 1.0, "points": [(0.0, 0.0, 0.0), (1.0, 1.0, 0.5)]}}}


def of(paths, name="regret") -> Pooled:
    found = pooled([results.read(path) for path in paths], f"r.{name}")
    assert found is not None
    return found


def test_three_seeds_by_hand(make_runs):
    """Mean 797; off by 145, 103 and −248, so s² = 93,138 / 2 and s² / S = 15,523. Half-widths of 9 are standard errors
    of 9 / 1.96 = 4.592, w² = 21.09. ν = 2 (1 + 21.09 / 15,523)² = 2.0054, t_ν = 4.2915, √(21.09 + 15,523) = 124.68."""
    found = of(make_runs(SEEDS))
    assert found.value == 797
    assert found.df == pytest.approx(2.0054, abs=1e-4)
    assert found.high - 797 == pytest.approx(4.2915 * 124.676, rel=1e-4)
    assert (found.low + found.high) / 2 == pytest.approx(797)
    assert found.covers == "training seeds"
    assert all(found.low < seed < found.high for seed in found.seeds)
    assert found.floor == 0.5


def test_two_seeds_have_one_degree_of_freedom():
    """1 and 3, no noise of their own: s² / S = 1, t_1 = 12.706."""
    assert over_seeds([1.0, 3.0], 0.0) == (pytest.approx(12.7062, rel=1e-5), pytest.approx(1.0))


def test_noise_that_seeds_share_does_not_shrink_with_their_number():
    """Seeds whose values differ by far less than their intervals say: the half-width stays 9, for three as for ten."""
    for count in (3, 10):
        half, df = over_seeds([100 + 1e-3 * i for i in range(count)], 9.0)
        assert half == pytest.approx(9, rel=1e-6)
        assert df is not None
        assert df > 1e6


def test_equal_seeds_have_the_width_of_their_own_interval_and_no_degrees_of_freedom(make_runs):
    found = of(make_runs((5.0, 5.0, 5.0)))
    assert (found.low, found.high) == (pytest.approx(5 - 9), pytest.approx(5 + 9))
    assert found.df is None
    assert found.covers == "training seeds"


@pytest.mark.parametrize(("trained", "covers"), [(True, "this run"), (False, "images")])
def test_one_run_keeps_its_own_interval_and_says_that_it_is_of_this_run(trained, covers, make_runs):
    found = of(make_runs(SEEDS[:1], trained=trained))
    assert (found.value, found.low, found.high) == (942, 933, 951)
    assert (found.covers, found.df) == (covers, None)


def test_a_metric_that_one_run_lacks_is_not_pooled(make_runs):
    paths = make_runs(SEEDS[:2])
    runs = [results.read(path) for path in paths]
    assert pooled([runs[0], runs[1].model_copy(update={"metrics": {}})], "r.regret") is None
    assert pooled(runs, "r.excess_kl") is None


def test_runs_without_an_interval_have_none_together(make_runs):
    found = of(make_runs(SEEDS, half=None))
    assert (found.value, found.low, found.high, found.df) == (797, None, None, None)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("mode_tv", 0.0, 1.0), ("covariance", 0.0, None), ("regret", None, None)]
)
def test_what_cannot_be_negative_has_no_negative_interval(name, low, high, make_runs):
    """0.1, 0.6 and 0.9: the interval of their mean, 0.53 ± 1.0, begins below 0 and ends above 1."""
    found = of(make_runs((0.1, 0.6, 0.9), half=0.01, name=name), name)
    assert (found.low == low) if low is not None else found.low < 0
    assert (found.high == high) if high is not None else found.high > 1


def test_intervals_hold_the_mean_of_all_seeds_nearly_as_often_as_they_say():
    """3000 methods of three seeds, which differ by 1, with a noise that they share. The share that is found has a
    standard error of √(0.05 · 0.95 / 3000) = 0.4 points. A mean of the runs' own intervals holds it in 48 to 94 %."""
    for noise, least in ((0.01, 0.94), (0.2, 0.91), (1.0, 0.94), (10.0, 0.94)):
        drawn = Key("coverage", str(noise)).normal(3000, 4).double()
        values = drawn[:, :3] + noise * drawn[:, 3:]
        held = [abs(float(row.mean())) <= over_seeds(row.tolist(), 1.96 * noise)[0] for row in values]
        assert least < sum(held) / len(held) < 0.97, (noise, sum(held) / len(held))


def test_json_csv_and_the_figure_have_the_interval_that_contains_the_seeds(make_runs):
    kl = {"value": 0.4, "low": 0.3, "high": 0.5, "kind": "estimate", "about": "as measured"}
    paths = make_runs((1.0, 2.0, 3.0), half=0.1, name="reward", kl=kl, trained=True)
    expected = of(paths, "reward")
    (group,) = json.loads(render(compare(paths), "json"))["groups"]
    (standing,) = group["optimality"]
    kept = standing["metrics"]["reward"]
    assert (kept["low"], kept["high"], kept["df"]) == (expected.low, expected.high, expected.df)
    assert kept["covers"] == "training seeds"
    found = panels(paths)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    (row,) = [row for row in rows if row["kind"] == "method" and float(row["beta"]) == 1]
    assert (float(row["reward_low"]), float(row["reward_high"])) == (expected.low, expected.high)
    assert row["interval_covers"] == "training seeds"
    (axis,) = frontier_figure(found).axes
    (bars,) = [c for c in axis.containers if c.has_yerr]
    ends = bars[2][1].get_segments()[0][:, 1]
    assert ends.tolist() == pytest.approx([expected.low, expected.high])


def test_the_mark_of_an_exact_optimum_is_a_number_for_spreadsheets_and_a_sign_in_latex(make_runs):
    found = of(make_runs((-0.04, -0.02), half=0.01))
    cell = f"{found.value:.3f}" + _at_floor(found)
    assert cell == "-0.030≈"
    assert next(csv.reader(io.StringIO(csv_text([[cell, "≈1"]])))) == [cell, "≈1"]
    table = Table("t", ["method", "regret"], [["ddpo", cell]])
    assert r"-0.030$\approx$" in written(table, "latex")
    assert "-0.030≈" in written(table, "markdown")
    assert not _at_floor(of(make_runs((0.6, 0.7), half=0.01)))
    assert math.isfinite(found.low)


def test_the_reading_below_a_table_says_what_its_intervals_contain(make_runs):
    reward = {"value": 1.0, "low": 0.9, "high": 1.1, "kind": "estimate", "about": "mean reward"}
    printed = render(compare(make_runs(SEEDS, **{"r.reward": reward})), "table")
    assert "Intervals contain the training seeds where a method has two or more" in printed
    assert "≈: not to be told from an exact optimum" in printed
