"""Two-way random effects: mean squares worked by hand, and what they say of a mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from alignbench import Key
from alignbench.analysis.random_effects import degrees_of_freedom, filled_in, mean_squares, unit_mean


def cells(rows):
    """[units, seeds, 1]"""
    return np.array(rows, float)[:, :, None]


def test_mean_squares_of_three_prompts_and_two_seeds_by_hand():
    """Rows (1, 2), (3, 6), (5, 7): means 1.5, 4.5, 6 and 3, 5 about 4. Prompts: 2 (6.25 + 0.25 + 4) / 2 = 10.5; seeds
    3 (1 + 1) / 1 = 6; interaction (0.5² 2 + 0.5² 2 + 0) / 2 = 0.5: each residual is ±0.5, ∓0.5, 0."""
    squares = mean_squares(cells([[1, 2], [3, 6], [5, 7]]))
    assert squares == {(0,): (pytest.approx(10.5), 2), (1,): (pytest.approx(6), 1), (0, 1): (pytest.approx(0.5), 2)}


def test_the_variance_of_the_mean_and_its_parts_by_hand():
    """(10.5 + 6 − 0.5) / 6 = 8/3, of which 10.5 / 6 of the prompts."""
    found = unit_mean(cells([[1, 2], [3, 6], [5, 7]]))
    assert (found.mean, found.variance, found.of_units) == pytest.approx((4, 8 / 3, 1.75))
    assert (found.of_seeds, found.df_seeds) == pytest.approx((5.5 / 6, 1))
    assert found.seeds_random
    assert found.error == math.sqrt(found.variance)


def test_one_seed_leaves_students_standard_error():
    values = Key("one").generator().normal(size=20)
    found = unit_mean(values[:, None, None])
    assert found.variance == pytest.approx(values.var(ddof=1) / 20)
    assert found.of_units == found.variance
    assert (found.df, found.seeds_random) == (19, False)


def test_seeds_that_are_alike_leave_the_prompts():
    """Three copies: no variance of seeds and no interaction, so copies tell nothing more than one."""
    values = Key("copies").generator().normal(size=20)
    copied = unit_mean(np.repeat(values[:, None, None], 3, 1))
    assert copied.variance == pytest.approx(values.var(ddof=1) / 20)
    assert (copied.df, copied.of_seeds) == (19, 0)


def test_prompts_that_are_alike_leave_the_seeds():
    found = unit_mean(cells([[1, 2, 6]] * 10))
    assert found.variance == pytest.approx(np.var([1, 2, 6], ddof=1) / 3)
    assert (found.of_units, found.df, found.df_seeds) == pytest.approx((0, 2, 2))


def test_each_part_counts_with_its_own_quantile():
    """0.64 with 199 degrees of freedom, 0.36 with 2: √(0.64 1.9720² + 0.36 4.3027²) = √(2.4888 + 6.6648) = 3.0255. That
    is Student's quantile at 3.30 degrees: 3.1824 at 3, 2.7764 at 4."""
    df = degrees_of_freedom((0.64, 199), (0.36, 2))
    assert scipy.stats.t.ppf(0.975, df) == pytest.approx(3.0255, abs=1e-4)
    assert df == pytest.approx(3.30, abs=0.005)


def test_seeds_on_both_sides_have_the_degrees_of_freedom_of_satterthwaite():
    values = Key("both sides").generator().normal(size=(6, 3, 4)) + 5 * np.arange(3)[None, :, None]
    s = {factors: square for factors, (square, _) in mean_squares(values).items()}
    assert unit_mean(values).df_seeds == pytest.approx((s[1,] + s[2,]) ** 2 / (s[1,] ** 2 / 2 + s[2,] ** 2 / 3))


def test_three_factors_are_inclusion_and_exclusion():
    values = Key("three").generator().normal(size=(6, 3, 2))
    s = {factors: square for factors, (square, _) in mean_squares(values).items()}
    expected = s[0,] + s[1,] + s[2,] - s[0, 1] - s[0, 2] - s[1, 2] + s[0, 1, 2]
    assert unit_mean(values).variance == pytest.approx(max(expected, s[0,]) / 36)


def test_a_missing_cell_is_filled_by_the_additive_fit_and_costs_a_degree_of_freedom():
    """An additive table with a hole: what fills it is what stood there. The mean is that of what is there."""
    whole = np.array([1.0, 4, 2, 7])[:, None] + np.array([0.0, 3, 5])
    holed = whole.copy()
    holed[2, 1] = np.nan
    assert filled_in(holed[:, :, None])[0][:, :, 0] == pytest.approx(whole)
    assert unit_mean(holed[:, :, None]).mean == pytest.approx(np.nanmean(holed, 1).mean())
    assert mean_squares(np.ones((4, 3, 1)), missing=1)[0, 1][1] == 3 * 2 - 1


def test_the_variance_is_right_on_average_with_seeds_and_prompts_random():
    """12 prompts of sd 1, 4 seeds of sd 0.5, interaction 0.7: var = 1/12 + 0.25/4 + 0.49/48 = 0.1560."""
    rng = Key("average").generator()
    n, s, repeats = 12, 4, 3000
    found = [
        unit_mean((rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(1, s)) + 0.7 * rng.normal(size=(n, s)))[:, :, None])
        for _ in range(repeats)
    ]
    means = np.array([x.mean for x in found])
    assert means.var() == pytest.approx(0.1560, rel=0.08)
    assert np.mean([x.variance for x in found]) == pytest.approx(0.1560, rel=0.05)


def test_the_skewness_of_a_mean_shrinks_with_prompts_and_with_what_seeds_add():
    """−1, −1, 2: third moment 2, second 2: 2 / 2^1.5 = 0.7071, over √3."""
    values = np.array([-1.0, -1, 2])
    assert unit_mean(values[:, None, None]).skewness == pytest.approx(2 / 2**1.5 / math.sqrt(3))
    apart = unit_mean(values[:, None, None] + np.array([-5.0, 0, 5])[None, :, None])
    assert apart.skewness < 0.1


def test_one_unit_has_no_degrees_of_freedom():
    found = unit_mean(np.array([[[1.0]]]))
    assert (found.mean, found.variance, found.df, found.skewness) == (1, 0, 0, 0)
