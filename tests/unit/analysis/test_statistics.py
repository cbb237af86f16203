"""Win rates: by hand, against published numbers, and by simulation of their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from alignbench.analysis.statistics import outcomes, score_interval, win_rate
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
    assert ties.ties == pytest.approx(0.8)
    assert ties.high - ties.low < 0.6 * (decided.high - decided.low)


def test_the_rate_mirrors_when_the_methods_are_swapped():
    results, prompts = np.array([1, 0.5, 0, 1, 1, 1, 0.5, 1.0]), np.repeat(np.arange(4), 2)
    one, other = win_rate(results, prompts), win_rate(1 - results, prompts)
    assert one.rate == pytest.approx(1 - other.rate)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


CORNERS = [(30, 1, 0.5, 0.95), (30, 4, 1.5, 0.5), (30, 8, 1.5, 0.95), (200, 1, 1.5, 0.5), (200, 8, 0.5, 0.95)]


@pytest.mark.parametrize(("prompts", "samples", "effect", "rate"), CORNERS)
def test_the_interval_covers_the_true_rate_in_93_to_97_percent(prompts, samples, effect, rate):
    """Probit-normal wins: image s of prompt p is won if z_ps < μ + effect · u_p, with prompt effects of this standard
    deviation. Two standard errors of the simulation itself (0.5 points) are allowed on either side. results/statistics
    has many more settings."""
    repeats = 2000
    rng = Key("coverage", prompts, samples, str(effect), str(rate)).generator()
    mu = scipy.stats.norm.ppf(rate) * np.sqrt(1 + effect**2)
    clusters = np.repeat(np.arange(prompts), samples)
    covered = 0
    for _ in range(repeats):
        threshold = mu + effect * rng.standard_normal((prompts, 1))
        wins = (rng.standard_normal((prompts, samples)) < threshold).astype(float).ravel()
        interval = win_rate(wins, clusters)
        covered += interval.low <= rate <= interval.high
    assert 0.93 - 0.01 <= covered / repeats <= 0.97 + 0.01


def test_the_interval_also_covers_with_ties():
    rng, covered = Key("ties").generator(), 0
    clusters = np.repeat(np.arange(60), 4)
    for _ in range(1500):
        wins = (rng.random(240) < 0.7).astype(float)
        wins[rng.random(240) < 0.5] = 0.5
        interval = win_rate(wins, clusters)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.925 <= covered / 1500 <= 0.98


def test_with_ties_the_interval_is_tangos():
    """1 win, 9 losses and 40 ties, against Tango's statistic with the constrained P(loss) found by a search."""

    def statistic(difference, wins=1, losses=9, n=50):
        def minus_log_likelihood(q):
            counts = ((wins, q + difference), (losses, q), (n - wins - losses, 1 - 2 * q - difference))
            return -sum(count * np.log(chance) for count, chance in counts)

        bounds = (max(0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9)
        q = scipy.optimize.minimize_scalar(
            minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return (wins - losses - n * difference) / np.sqrt(n * (2 * q + difference - difference**2))

    expected = [
        scipy.optimize.brentq(lambda x: statistic(x) - 1.959964, -0.5, -0.16),
        scipy.optimize.brentq(lambda x: statistic(x) + 1.959964, -0.16, 0.2),
    ]
    assert expected == pytest.approx([-0.2929, -0.0445], abs=1e-4)
    low, high = score_interval(1, 9, 50, 1.959964)
    assert [2 * low - 1, 2 * high - 1] == pytest.approx(expected, abs=1e-6)


def test_two_hundred_ties_leave_room_for_the_pairs_that_were_not_drawn():
    """Nothing decided in 200 pairs: up to z² / (200 + z²) = 1.9 % of pairs may be decided, all of them the same way."""
    rate = win_rate(np.full(200, 0.5), np.arange(200))
    assert (rate.rate, rate.ties, rate.effective) == (0.5, 1, pytest.approx(200))
    assert rate.high - 0.5 == pytest.approx(1.959964**2 / (200 + 1.959964**2) / 2, abs=1e-6)
    assert rate.low == pytest.approx(1 - rate.high)
