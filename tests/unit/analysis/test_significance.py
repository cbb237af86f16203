"""Tests of a win rate and of a difference: by brute force, by hand, by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from alignbench import Key
from alignbench.analysis.random_effects import unit_mean
from alignbench.analysis.significance import (
    adjusted,
    difference_interval,
    difference_p,
    holm,
    parts_of,
    sign_flip,
    win_p,
)


def brute_force(values):
    sums = np.array(list(itertools.product([1, -1], repeat=len(values)))) @ values
    return float((np.abs(sums) >= abs(values.sum()) - 1e-9).mean())


@pytest.mark.parametrize("number", range(20))
def test_the_sign_flip_test_counts_all_signs(number):
    rng = Key("flips", number).generator()
    values = rng.integers(-4, 5, rng.integers(1, 13))
    assert sign_flip(values / 8, 8) == pytest.approx(brute_force(values), abs=1e-12)


def test_three_wins_of_three_are_one_in_four_and_ties_say_nothing():
    assert sign_flip(np.full(3, 0.5), 2) == pytest.approx(0.25)
    assert sign_flip(np.array([0.5, 0.5, 0.5, 0, 0, 0]), 2) == pytest.approx(0.25)
    assert sign_flip(np.zeros(10), 2) == 1


def test_many_prompts_agree_with_the_binomial_test():
    values = np.r_[np.full(130, 0.5), np.full(70, -0.5)]
    assert sign_flip(values, 2) == pytest.approx(scipy.stats.binomtest(130, 200).pvalue, rel=1e-6)


def test_no_p_value_is_below_the_precision_of_its_computation():
    assert sign_flip(np.full(400, 0.5), 2) == 1e-12


def test_the_grid_holds_the_mean_outcomes_of_prompts_with_so_many_pairs():
    """Of 2 and 3 pairs: sixths, and halves of them for ties. Of 5, 7 and 11: halves of their product, three times as
    fine; thirteenths would be finer than outcomes are told apart, and are rounded."""
    assert parts_of(np.array([2, 3, 2])) == 12
    assert parts_of(np.array([1])) == 2
    assert parts_of(np.array([7, 11, 13, 5])) == 2 * 5 * 7 * 11 * 3


def test_with_several_seeds_students_test_has_the_last_word():
    """Forty prompts, all won by one seed and all lost by another but for the third: prompts alone see a difference."""
    outcome = np.stack([np.ones(40), np.ones(40), np.r_[np.ones(10), np.zeros(30)]], 1)[:, :, None]
    spread = unit_mean(outcome)
    alone = sign_flip(outcome.mean((1, 2)) - 0.5, 6)
    p = win_p(outcome.mean((1, 2)), 6, spread)
    assert alone < 1e-6
    assert p == pytest.approx(2 * scipy.stats.t.sf(0.25 / spread.error, spread.df))
    assert p > 0.2


def test_a_symmetric_sample_gives_students_test_and_interval():
    values = np.array([-1.0, 3, 0.5, 1.5, -2, 4, 1, 1])
    values = np.r_[values, 2 - values]  # symmetric about 1
    spread = unit_mean(values[:, None, None])
    assert spread.skewness == pytest.approx(0)
    expected = scipy.stats.ttest_1samp(values, 0)
    assert difference_p(values, spread) == pytest.approx(expected.pvalue)
    assert difference_interval(values, spread, 0.95) == pytest.approx(tuple(expected.confidence_interval()))


def test_skewness_widens_the_interval_on_the_side_of_the_tail():
    values = np.r_[np.zeros(15) + 0.1 * np.arange(15), 20.0]
    spread = unit_mean(values[:, None, None])
    low, high = difference_interval(values, spread, 0.95)
    student = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert low == pytest.approx(student.low)
    assert high > student.high + 1


def test_the_interval_and_the_p_value_agree():
    """A value just inside the interval is not rejected at 5 %, one just outside is."""
    values = Key("agree").generator().exponential(size=40)
    spread = unit_mean(values[:, None, None])
    for end, outwards in zip(difference_interval(values, spread, 0.95), (-1, 1), strict=True):
        for step, rejected in ((1e-3 * outwards, True), (-1e-3 * outwards, False)):
            moved = values - (end + step)
            assert (difference_p(moved, unit_mean(moved[:, None, None])) < 0.05) is rejected


def test_an_interval_that_is_not_to_be_told_is_nan():
    """Nothing varies; one prompt; three of thirty prompts differ."""
    for values in (np.ones(20), np.array([1.0]), np.r_[np.zeros(27), 1.0, 2.0, 3.0]):
        low, high = difference_interval(values, unit_mean(values[:, None, None]), 0.95)
        assert math.isnan(low)
        assert math.isnan(high)


def test_the_p_of_a_difference_is_never_below_what_the_signs_could_give():
    assert difference_p(np.ones(4), unit_mean(np.ones((4, 1, 1)))) == 2 / 2**4
    assert difference_p(np.zeros(9), unit_mean(np.zeros((9, 1, 1)))) == 1
    nearly = np.array([1.0, 1.001, 0.999, 1.0])
    assert difference_p(nearly, unit_mean(nearly[:, None, None])) == 2 / 2**4


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.5."""
    assert holm(np.array([0.02, 0.5, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert len(holm(np.array([]))) == 0


def test_families_are_adjusted_by_themselves():
    p, scorers = [0.02, 0.03, 0.01], ["a", "a", "b"]
    assert adjusted(p, scorers, "scorer") == (pytest.approx([0.04, 0.04, 0.01]), [2, 2, 1])
    assert adjusted(p, scorers, "table") == (pytest.approx([0.04, 0.04, 0.03]), [3, 3, 3])
    assert adjusted(p, scorers, "none") == (p, [1, 1, 1])


@pytest.mark.parametrize(("draw", "at_most"), [("normal", 0.065), ("exponential", 0.065), ("lognormal", 0.075)])
def test_a_mean_of_zero_is_rejected_in_one_of_twenty_samples(draw, at_most):
    """Sixty prompts, 2,000 samples, standard error 0.5 points; Student's test alone rejects 9 % of the lognormal."""
    rng = Key("size", draw).generator()
    shift = {"normal": 0, "exponential": 1, "lognormal": math.exp(0.5)}[draw]
    samples = getattr(rng, draw)(size=(2000, 60)) - shift
    rejected = np.mean([difference_p(x, unit_mean(x[:, None, None])) < 0.05 for x in samples])
    assert 0.025 < rejected < at_most
