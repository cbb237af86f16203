"""The statistics: by hand, against scipy and statsmodels, and by simulation of their coverage."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from alignbench.analysis import statistics
from alignbench.analysis.statistics import bradley_terry, holm, outcomes, paired_differences, win_rate
from alignbench.keys import Key


def test_outcomes_count_small_differences_as_ties():
    mine, theirs = np.array([1.0, 2.0, 3.0, 3.05]), np.array([2.0, 2.0, 1.0, 3.0])
    assert outcomes(mine, theirs).tolist() == [0, 0.5, 1, 1]
    assert outcomes(mine, theirs, epsilon=0.1).tolist() == [0, 0.5, 1, 0.5]


def test_one_image_per_prompt_gives_wilsons_interval():
    """8 wins of 10: Wilson 0.4902 to 0.9433 (Newcombe 1998, method 3)."""
    rate = win_rate(np.array([1.0] * 8 + [0.0] * 2), np.arange(10))
    assert rate.rate == 0.8
    assert (rate.low, rate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert rate.effective == pytest.approx(10)


def test_copies_of_the_same_image_add_no_information():
    results = np.array([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1] * 4)
    single = win_rate(results[:20], np.arange(20))
    copied = win_rate(np.repeat(results[:20], 50), np.repeat(np.arange(20), 50))
    assert copied.rate == single.rate
    assert copied.effective == pytest.approx(20, rel=0.1)
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.1)


def test_all_wins_count_prompts_not_images():
    rate = win_rate(np.ones(160), np.repeat(np.arange(20), 8))
    assert rate.rate == 1
    assert 0.75 < rate.low < 0.95
    assert rate.high == 1


def test_ties_count_half_and_narrow_the_interval():
    ties = win_rate(np.array([0.5] * 80 + [1.0] * 10 + [0.0] * 10), np.arange(100))
    decided = win_rate(np.array([1.0] * 50 + [0.0] * 50), np.arange(100))
    assert ties.rate == decided.rate == 0.5
    assert ties.ties == 0.8
    assert ties.high - ties.low < 0.6 * (decided.high - decided.low)


def test_the_rate_mirrors_when_the_methods_are_swapped():
    results, prompts = np.array([1, 0.5, 0, 1, 1, 1, 0.5, 1.0]), np.repeat(np.arange(4), 2)
    one, other = win_rate(results, prompts), win_rate(1 - results, prompts)
    assert one.rate == pytest.approx(1 - other.rate)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


SETTINGS = [
    (prompts, samples, effect, rate)
    for prompts in (30, 200)
    for samples in (1, 4, 8)
    for effect in (0.5, 1.5)  # standard deviation of prompts; one image's own is 1
    for rate in (0.5, 0.95)
]


CORNERS = [(30, 1, 0.5, 0.95), (30, 4, 1.5, 0.5), (30, 8, 1.5, 0.95), (200, 1, 1.5, 0.5), (200, 8, 0.5, 0.95)]


@pytest.mark.parametrize(
    ("prompts", "samples", "effect", "rate"),
    [case if case in CORNERS else pytest.param(*case, marks=pytest.mark.slow) for case in SETTINGS],
)
def test_the_interval_covers_the_true_rate_in_93_to_97_percent(prompts, samples, effect, rate):
    """Probit-normal wins: image s of prompt p is won if z_ps < μ + effect · u_p. Two standard errors of the simulation
    itself (0.35 points) are allowed on either side."""
    repeats = 4000
    rng = Key("coverage", prompts, samples, str(effect), str(rate)).generator()
    mu = scipy.stats.norm.ppf(rate) * np.sqrt(1 + effect**2)
    clusters = np.repeat(np.arange(prompts), samples)
    covered = 0
    for _ in range(repeats):
        threshold = mu + effect * rng.standard_normal((prompts, 1))
        wins = (rng.standard_normal((prompts, samples)) < threshold).astype(float).ravel()
        interval = win_rate(wins, clusters)
        covered += interval.low <= rate <= interval.high
    assert 0.93 - 0.007 <= covered / repeats <= 0.97 + 0.007


def test_the_interval_also_covers_with_ties():
    rng, covered = Key("ties").generator(), 0
    clusters = np.repeat(np.arange(60), 4)
    for _ in range(1500):
        wins = (rng.random(240) < 0.7).astype(float)
        wins[rng.random(240) < 0.5] = 0.5
        interval = win_rate(wins, clusters)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.925 <= covered / 1500 <= 0.98


def test_differences_agree_with_scipys_bootstrap_and_permutation_test():
    values = Key("values").generator().normal(0.15, 1, size=(60, 1))
    ours = paired_differences(values, Key("test"))
    boot = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    )
    assert (ours.low[0], ours.high[0]) == pytest.approx(tuple(boot.confidence_interval), abs=0.03)
    theirs = scipy.stats.permutation_test(
        (values[:, 0],), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    assert ours.p[0] == pytest.approx(theirs.pvalue, abs=0.02)


def test_the_permutation_test_is_exact_for_few_prompts():
    """Three prompts, differences 1, 2, 4: of the 8 sign patterns only the two extreme ones reach |7|: p = 1/4."""
    p = paired_differences(np.array([[1.0], [2.0], [4.0]]), Key("few")).p[0]
    assert p == pytest.approx(0.25, abs=0.015)


def test_no_difference_gives_p_one():
    result = paired_differences(np.zeros((20, 2)), Key("none"))
    assert result.p.tolist() == [1, 1]
    assert result.mean.tolist() == result.low.tolist() == result.high.tolist() == [0, 0]


def test_columns_together_equal_columns_alone():
    values = Key("columns").generator().normal(size=(40, 3))
    together = paired_differences(values, Key("k"))
    alone = paired_differences(values[:, 1:2], Key("k"))
    assert [x[1] for x in together] == pytest.approx([x[0] for x in alone])


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.5."""
    assert holm(np.array([0.02, 0.5, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert len(holm(np.array([]))) == 0


def battles(prompts=200, methods=4, key="battles"):
    rng = Key(key).generator()
    strength = np.array([0.0, 0.3, 0.8, -0.4])[:methods]
    effect = 0.7 * rng.standard_normal((prompts, methods))
    wins = np.zeros((prompts, methods, methods))
    for i in range(methods):
        for j in range(i):
            chance = 1 / (1 + np.exp(-(strength[i] + effect[:, i] - strength[j] - effect[:, j])))
            won = rng.random(prompts) < chance
            wins[:, i, j], wins[:, j, i] = won, ~won
    return wins


def test_bradley_terry_equals_statsmodels_with_clustered_covariance():
    wins = battles()
    prompts, methods = wins.shape[:2]
    rows, results, groups = [], [], []
    for p in range(prompts):
        for i in range(methods):
            for j in range(i):
                row = np.zeros(methods)
                row[i], row[j] = 1, -1
                rows.append(row[1:])
                results.append(wins[p, i, j])
                groups.append(p)
    fitted = sm.GLM(np.array(results), np.array(rows), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups)}
    )
    ours = bradley_terry(wins)
    assert ours.strength[1:] == pytest.approx(fitted.params, abs=0.02)  # we add half a win to each side
    half = (ours.high - ours.low)[1:] / 2
    assert half == pytest.approx(1.96 * fitted.bse, rel=0.03)


def test_a_clean_sweep_has_finite_ordered_strengths():
    wins = np.zeros((50, 3, 3))
    wins[:, 0, 1] = wins[:, 0, 2] = 1
    wins[:30, 1, 2] = 1
    wins[30:, 2, 1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranks = bradley_terry(wins)
    assert np.isfinite(ranks.strength).all()
    assert ranks.strength[0] > ranks.strength[1] > ranks.strength[2]


def test_methods_that_never_met_have_no_ranks():
    wins = np.zeros((10, 4, 4))
    wins[:, 0, 1] = wins[:, 2, 3] = 1
    assert bradley_terry(wins) is None


def test_more_prompts_narrow_the_interval():
    few, many = bradley_terry(battles(50)), bradley_terry(battles(800))
    assert (many.high - many.low)[1] < 0.5 * (few.high - few.low)[1]


def test_statistics_use_keys_and_repeat_exactly():
    values = Key("again").generator().normal(size=(30, 2))
    one, two = (paired_differences(values, Key("same")) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert statistics.RESAMPLES >= 2000
