"""Charts as places: win rates, cost against gain, training."""

from __future__ import annotations

import pytest
from pictured import curve, some_methods

from alignbench.analysis.compare import compare
from alignbench.analysis.load import load, methods_of
from alignbench.page import charts


@pytest.fixture
def group_of(tmp_path):
    def make():
        (group,) = compare([tmp_path]).groups
        (runs,) = load([tmp_path]).groups.values()
        return group, methods_of(runs)

    return make


def test_win_rates_stand_in_percent_with_the_most_frequent_winner_first(tmp_path, group_of):
    some_methods(tmp_path)
    rows = charts.forest(group_of()[0])
    assert [row.method for row in rows] == ["best_of_n", "refl", "sft"]
    first, _ = rows[0].strips
    assert (first.at, first.end, first.mark) == (100.0, 100.0, "better")
    assert rows[1].strips[1].mark == "worse"


def test_a_method_without_a_score_has_no_strip(tmp_path, make_result, group_of):
    make_result("base", {"r": [0.0] * 8, "s": [0.0] * 8})
    make_result("one", {"r": [1.0] * 8}, "best_of_n")
    (row,) = charts.forest(group_of()[0])
    assert row.strips[0] is not None
    assert row.strips[1] is None


def test_a_trained_method_reaches_as_far_as_its_training_over_a_thousand_images_costs(tmp_path, make_result, group_of):
    used = [f"{r}_{d}" for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")]
    per_image = dict.fromkeys(used, 0.0) | {"denoiser_forward": 40.0}
    make_result("base", [0.0] * 8, cost={"per_image": per_image})
    training = dict.fromkeys(used, 0) | {"denoiser_forward": 40_000}
    for seed in (1, 2):
        make_result(f"r{seed}", [1.0] * 8, "refl", seed=seed, cost={"per_image": per_image, "alignment": training})
    twice = per_image | {"denoiser_forward": 80.0}
    make_result("best", [1.0] * 8, "best_of_n", fields={"n": 2}, cost={"per_image": twice})
    (chart,) = charts.cost_charts(*group_of())
    points = {point.method: point for point in chart.points}
    assert points["refl"].x == chart.baseline[0]
    assert points["refl"].reach == points["best_of_n"].x  # 40 + 40,000 / 1,000 = 80 evaluations
    assert points["best_of_n"].reach is None
    assert chart.rival == f"{chart.baseline[0]},{chart.baseline[1]} {points['best_of_n'].x},{points['best_of_n'].y}"


def test_without_costs_there_is_no_chart_of_them(tmp_path, make_result, group_of):
    make_result("base", [0.0] * 8, cost=None)
    make_result("one", [1.0] * 8, "best_of_n", cost=None)
    assert charts.cost_charts(*group_of()) == []


def test_a_budget_is_marked_at_its_cost(tmp_path, make_result, group_of):
    make_result("base", [0.0] * 8)
    make_result("one", [1.0] * 8, "best_of_n", configuration={"budget": {"nfe": 240.0}})
    (chart,) = charts.cost_charts(*group_of())
    assert [name for _, name in chart.budgets] == ["240"]


def test_training_is_the_change_in_standard_deviations_upwards_where_better(tmp_path, make_result, group_of):
    lower = {"s": {"higher_is_better": False}}
    make_result("base", {"r": [0.0, 2.0] * 4, "s": [0.0, 4.0] * 4}, scorers=lower)  # deviations 1 and 2
    lines = curve({"r": [1.0, 1.0, 1.5], "s": [3.0, 3.0, 5.0]})
    make_result("one", {"r": [1.0, 2.0] * 4, "s": [0.0, 1.0] * 4}, "refl", seed=1, curve=lines, scorers=lower)
    found = charts.trainings(*group_of())
    (chart,) = found.charts
    assert [(line.scorer, line.end, line.proxy) for line in chart.lines] == [
        ("r", "+0.50", True),
        ("s", "-1.00", False),
    ]
    assert (found.lowest, found.highest) == ("-1", "+0.5")
    assert chart.lines[0].band == ""


def test_seeds_have_a_band(tmp_path, group_of):
    some_methods(tmp_path)
    (chart,) = charts.trainings(*group_of()).charts
    assert chart.seeds == 2
    assert chart.lines[0].band


def test_nothing_trained_is_no_chart(tmp_path, make_result, group_of):
    make_result("base", [0.0] * 8)
    assert charts.trainings(*group_of()) is None
