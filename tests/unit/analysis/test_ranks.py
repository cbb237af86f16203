"""Bradley-Terry strengths: against statsmodels, by hand, and where they end."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import statsmodels.api as sm

from alignbench import Key
from alignbench.analysis.ranks import Shares, ranks


def shares_of(by_prompt, seeds=None):
    """From shares [prompts, methods, methods]; each method one run, or its own shares [runs, methods] by method."""
    by_prompt = np.array(by_prompt, np.float32)
    methods = by_prompt.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rates = np.nanmean(by_prompt, 0, dtype=float)
    rows = [np.array((seeds or {}).get(k, rates[k][None]), float) for k in range(methods)]
    return Shares(by_prompt, np.concatenate(rows), np.repeat(np.arange(methods), [len(r) for r in rows]), rates)


def battles(prompts=200, methods=4, key="battles"):
    rng = Key(key).generator()
    strength = np.array([0.0, 0.3, 0.8, -0.4])[:methods]
    effect = 0.7 * rng.standard_normal((prompts, methods))
    won = np.full((prompts, methods, methods), np.nan)
    for i in range(methods):
        for j in range(i):
            chance = 1 / (1 + np.exp(-(strength[i] + effect[:, i] - strength[j] - effect[:, j])))
            won[:, i, j] = rng.random(prompts) < chance
            won[:, j, i] = 1 - won[:, i, j]
    return won


def test_strengths_equal_statsmodels_with_clustered_covariance():
    won = battles()
    prompts, methods = won.shape[:2]
    rows, results, groups = [], [], []
    for p in range(prompts):
        for i in range(methods):
            for j in range(i):
                row = np.zeros(methods)
                row[i], row[j] = 1, -1
                rows.append(row[1:])
                results.append(won[p, i, j])
                groups.append(p)
    fitted = sm.GLM(np.array(results), np.array(rows), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups)}
    )
    ours = ranks(shares_of(won))
    assert ours.strength[1:] == pytest.approx(fitted.params, abs=0.02)  # we add half a win to each side
    assert (ours.high - ours.low)[1:] / 2 == pytest.approx(1.96 * fitted.bse, rel=0.03)


def test_two_methods_have_the_log_odds_of_their_rate():
    """140 of 200 and half a win on each side: log(140.5 / 60.5)."""
    won = np.full((200, 2, 2), np.nan)
    won[:, 1, 0] = np.arange(200) < 140
    won[:, 0, 1] = 1 - won[:, 1, 0]
    found = ranks(shares_of(won))
    assert found.strength[1] == pytest.approx(math.log(140.5 / 60.5), abs=1e-6)
    assert (found.place.tolist(), found.place_low.tolist(), found.place_high.tolist()) == ([2, 1], [2, 1], [2, 1])
    assert (found.fit.pairs, found.fit.missed) == (1, 0)


def test_a_clean_sweep_has_an_open_end():
    """200 of 200: nothing says how much stronger. The other end is the model's own; of variation there is none."""
    won = np.full((200, 2, 2), np.nan)
    won[:, 1, 0], won[:, 0, 1] = 1, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranks(shares_of(won))
    assert found.high[1] == math.inf
    assert found.low[1] == pytest.approx(math.log(401) - 1.96 * math.sqrt(1 / 200.5 + 2), abs=0.01)
    turned = ranks(shares_of(won.transpose(0, 2, 1)))
    assert turned.low[1] == -math.inf


def test_an_end_is_open_where_no_chain_of_wins_leads_back():
    """a and b take turns, both always beat c: over c their strengths are open above, between them they are not."""
    won = np.full((100, 3, 3), np.nan)
    won[:, 0, 1] = np.arange(100) % 2
    won[:, 1, 0] = 1 - won[:, 0, 1]
    won[:, 0, 2] = won[:, 1, 2] = 1
    won[:, 2, 0] = won[:, 2, 1] = 0
    found = ranks(shares_of(won))
    assert np.isfinite([found.low[1], found.high[1], found.high[2]]).all()
    assert found.low[2] == -math.inf


def test_seeds_do_not_add_weight_and_widen_the_interval():
    """The same shares of a method with three runs that differ: the same strength, less sure; equal runs: as sure."""
    won = battles(methods=3)
    rates = np.nan_to_num(np.nansum(won, 0) / len(won))
    np.fill_diagonal(rates, np.nan)
    one = ranks(shares_of(won))
    equal = ranks(shares_of(won, {1: np.repeat(rates[1][None], 3, 0)}))
    apart = ranks(shares_of(won, {1: rates[1] + np.array([[-0.2], [0.0], [0.2]])}))
    assert equal.strength == pytest.approx(one.strength)
    assert apart.strength == pytest.approx(one.strength)
    assert equal.high - equal.low == pytest.approx(one.high - one.low)
    assert (apart.high - apart.low)[1] > 2 * (one.high - one.low)[1]
    assert apart.place_high[1] - apart.place_low[1] >= one.place_high[1] - one.place_low[1]


def test_equal_methods_share_their_places():
    won = np.full((100, 3, 3), 0.5)
    won[:, np.arange(3), np.arange(3)] = np.nan
    won += 0.1 * np.triu(Key("noise").generator().normal(size=(100, 3, 3)), 1)
    won = np.where(np.tril(np.ones((3, 3)), -1) > 0, 1 - won.transpose(0, 2, 1), won)
    found = ranks(shares_of(won))
    assert (found.place_high - found.place_low).max() >= 1


@pytest.mark.parametrize("prompts", [1, 3, 5])
def test_few_prompts_that_all_say_the_same_leave_places_open(prompts):
    won = np.full((prompts, 2, 2), np.nan)
    won[:, 1, 0], won[:, 0, 1] = 1, 0
    found = ranks(shares_of(won))
    assert (found.place.tolist(), found.place_low.tolist(), found.place_high.tolist()) == ([2, 1], [1, 1], [2, 2])


def test_places_of_two_methods_are_told_apart_exactly_where_their_strength_is():
    for wins in range(51):
        won = np.full((50, 2, 2), np.nan)
        won[:, 1, 0] = np.arange(50) < wins
        won[:, 0, 1] = 1 - won[:, 1, 0]
        found = ranks(shares_of(won))
        assert (found.place_low == found.place_high).all() == (found.low[1] > 0 or found.high[1] < 0)


def test_places_of_equal_methods_hold_all_that_chance_gives_them():
    """Five methods that are equal, 30 prompts, 100 times: in 95 % every place from 1 to 5 is left to each."""
    rng, whole = Key("equal").generator(), []
    for _ in range(100):
        scores = rng.standard_normal((30, 5))
        won = (scores[:, :, None] > scores[:, None]).astype(float)
        won[:, np.arange(5), np.arange(5)] = np.nan
        found = ranks(shares_of(won))
        whole.append(((found.place_low == 1) & (found.place_high == 5)).mean())
    assert np.mean(whole) > 0.93


def test_a_circle_of_wins_does_not_fit_and_is_said_not_to():
    """a beats b, b beats c and c beats a by 80 %: equal strengths, and every pair is told wrong by 30 points."""
    won = np.full((200, 3, 3), np.nan)
    up = (np.arange(200) % 5 < 4).astype(float)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        won[:, i, j], won[:, j, i] = up, 1 - up
    found = ranks(shares_of(won))
    assert found.strength == pytest.approx([0, 0, 0], abs=1e-6)
    assert (found.fit.pairs, found.fit.missed) == (3, 3)
    assert abs(found.fit.seen - found.fit.implied) == pytest.approx(0.3)


def test_methods_that_never_met_have_no_ranks():
    won = np.full((10, 4, 4), np.nan)
    for i, j in ((0, 1), (2, 3)):
        won[:, i, j], won[:, j, i] = 1, 0
    assert ranks(shares_of(won)) is None


def test_a_method_without_scores_leaves_the_others_their_places():
    won = battles(methods=4)
    won[:, 2], won[:, :, 2] = np.nan, np.nan
    found = ranks(shares_of(won))
    assert np.isnan(found.strength).tolist() == [False, False, True, False]
    assert sorted(found.place[[0, 1, 3]]) == [1, 2, 3]


def test_more_prompts_narrow_the_interval():
    few, many = (ranks(shares_of(battles(n))) for n in (50, 800))
    assert (many.high - many.low)[1] < 0.5 * (few.high - few.low)[1]
