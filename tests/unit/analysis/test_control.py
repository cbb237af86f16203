"""The win rate at an equal value of a covariate, and margins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm

from alignbench import Key
from alignbench.analysis.compare import compare
from alignbench.analysis.control import controlled
from alignbench.analysis.equivalence import equivalence
from alignbench.analysis.pairing import Meeting
from alignbench.analysis.tables import render
from alignbench.errors import InputError, UnknownName


def meetings(outcome, shift):
    """The outcomes of one run on as many prompts, and the covariate's differences."""
    zeros, prompts = np.zeros((1, 1, len(outcome))), np.arange(len(outcome))
    won = np.array(outcome, float)[None, None]
    return Meeting(won, zeros, won, prompts), Meeting(np.array(shift, float)[None, None], zeros, won, prompts)


def test_what_a_style_alone_wins_is_gone_at_equal_style():
    """Wins follow the style and nothing else, and the method has more of it."""
    rng = Key("style").generator()
    shift = rng.normal(1.0, 1.0, 4000)
    outcome = (rng.random(4000) < 1 / (1 + np.exp(-1.5 * shift))).astype(float)
    found = controlled(*meetings(outcome, shift), "style")
    assert found.raw > 0.7
    assert found.low < 0.5 < found.high
    assert found.rate == pytest.approx(0.5, abs=0.03)
    assert found.slope == pytest.approx(1.5 * shift.std(), rel=0.1)
    assert found.shift == pytest.approx(shift.mean())


def test_the_interval_is_the_clustered_one_of_statsmodels():
    rng = Key("statsmodels").generator()
    shift = rng.normal(0.3, 1.0, 300)
    outcome = np.where(rng.random(300) < 0.2, 0.5, (rng.random(300) < 0.6).astype(float))
    found = controlled(*meetings(outcome, shift), "style")
    fitted = sm.GLM(outcome, sm.add_constant(shift), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(300)}
    )
    assert math.log(found.rate / (1 - found.rate)) == pytest.approx(fitted.params[0], abs=1e-6)
    half = (math.log(found.high / (1 - found.high)) - math.log(found.low / (1 - found.low))) / 2
    assert half == pytest.approx(1.968 * fitted.bse[0], rel=0.01)


@pytest.mark.parametrize(
    ("outcome", "shift", "why"),
    [
        ([1.0] * 40, list(range(40)), "fewer than 10 pairs are won, or lost"),
        ([1.0] * 20 + [0.0] * 20, [3.0] * 40, "differs alike in all pairs"),
        ([1.0] * 20 + [0.0] * 20, [5.0] * 20 + [-5.0] * 20, "tells every win from every loss"),
        ([1.0] * 20 + [0.0] * 20, [math.nan] * 40, "no pair has a score"),
    ],
)
def test_what_cannot_be_fitted_says_why(outcome, shift, why):
    found = controlled(*meetings(outcome, shift), "style")
    assert math.isnan(found.rate)
    assert why in found.about


def test_a_comparison_warns_where_the_controlled_rate_disagrees(make_result):
    rng = Key("warns").generator()
    shift = rng.normal(1.0, 1.0, 200)
    outcome = np.where(rng.random(200) < 1 / (1 + np.exp(-2 * shift)), 1.0, -1.0)
    base = make_result("base", {"r": [0.0] * 200, "style": [0.0] * 200})
    other = make_result("a", {"r": [float(x) for x in outcome], "style": [float(x) for x in shift]}, "demon")
    comparison = compare([base, other], control="style")
    row = next(v for v in comparison.groups[0].versus if v.scorer == "r")
    assert row.rate_test.mark == "better"
    assert row.control_disagrees
    assert "at equal style: part of the win rate is style." in render(comparison, "table")
    assert next(v for v in comparison.groups[0].versus if v.scorer == "style").controlled is None
    with pytest.raises(UnknownName, match="no scorer in these files named 'styl'"):
        compare([base, other], control="styl")


@pytest.mark.parametrize(
    ("low", "high", "higher", "expected"),
    [
        (-0.01, 0.015, True, "equal within"), (-0.01, 0.03, True, "not worse than"),
        (0.05, 0.09, True, "not worse than"),
        (-0.03, 0.01, True, "open"), (-0.09, -0.03, True, "worse by more than"), (-0.02, 0.0, True, "open"),
        (-0.03, 0.01, False, "not worse than"), (0.03, 0.09, False, "worse by more than"),
        (math.nan, math.nan, True, "open"),
    ],
)  # fmt: skip
def test_what_an_interval_says_beside_a_margin_of_two_hundredths(low, high, higher, expected):
    assert equivalence(low, high, 0.02, higher) == expected


def test_margins_are_shown_and_wrong_ones_are_refused(make_result):
    noise = [float(x) for x in Key("margin").generator().normal(0, 0.01, 60)]
    base, other = make_result("base", {"r": [0.0] * 60}), make_result("a", {"r": noise}, "demon")
    comparison = compare([base, other], margin=["r=0.02"])
    assert comparison.groups[0].versus[0].equivalence == "equal within"
    assert "margin 0.02" in render(comparison, "table")
    for word, said in (
        ("r", "expected SCORER=AMOUNT"), ("r=x", "expected a number above 0"), ("r=0", "expected a number above 0"),
        ("r=nan", "expected a number above 0"), ("r=inf", "expected a number above 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            compare([base, other], margin=[word])
    with pytest.raises(UnknownName, match="no scorer in these files named 's'"):
        compare([base, other], margin=["s=1"])
    with pytest.raises(InputError, match="r has a margin already"):
        compare([base, other], margin=["r=0.02", "r=0.03"])
