"""What little, odd or much a folder may hold: a comparison of sound numbers all the same.

Intervals have a width, and hold what they are of. NaN stands only where the fields say that it may: the interval of a
difference and the effect where prompts tell nothing of them, the mean of a method without a score.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from alignbench.analysis.compare import compare
from alignbench.keys import Key

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

TWENTY = [float(x) for x in Key("twenty").generator().normal(size=20)]


def noisy(scores, *path):
    return [x + float(e) for x, e in zip(scores, Key("noise", *path).generator().normal(size=len(scores)), strict=True)]


def sound_group(paths, **options):
    (group,) = compare(paths, **options).groups
    for row in group.versus:
        assert_sound_row(row)
    for duel in group.duels:
        assert_sound_rate(duel.rate)
    for scorer, ranks in group.ranks.items():
        if ranks is not None:
            assert_sound_ranks(ranks, group.pairwise[scorer])
    return group


def assert_sound_row(row):
    assert_sound_rate(row.rate)
    for test in (row.rate_test, row.difference_test):
        assert 0 < test.p <= test.adjusted <= 1
    assert math.isfinite(row.mean)
    assert math.isfinite(row.baseline_mean)
    assert row.difference == pytest.approx(row.mean - row.baseline_mean, abs=1e-9 * max(1.0, abs(row.mean)))
    low, high = row.difference_low, row.difference_high
    assert math.isnan(low) == math.isnan(high)
    if not math.isnan(low):
        assert low < row.difference < high
        assert high - low > 1e-9 * max(abs(row.mean), abs(row.baseline_mean))
    assert math.isnan(row.effect) or abs(row.effect) < 1e6
    assert row.if_failed is None or 0 <= row.if_failed[0] <= row.rate.rate <= row.if_failed[1] <= 1


def assert_sound_rate(rate):
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert rate.high - rate.low > 1e-3
    assert 0 <= rate.ties <= 1
    assert 0 < rate.effective <= rate.pairs * (1 + 1e-9)


def assert_sound_ranks(ranks, pairwise):
    others = ~np.eye(len(pairwise), dtype=bool)
    alone = (np.isnan(pairwise) | ~others).all(1)
    assert (np.isnan(ranks.strength) == alone).all()
    ranked = np.flatnonzero(~alone)
    assert (ranks.low[ranked[1:]] < ranks.strength[ranked[1:]]).all()
    assert (ranks.strength[ranked[1:]] < ranks.high[ranked[1:]]).all()
    assert (ranks.place_low[ranked] <= ranks.place[ranked]).all()
    assert (ranks.place[ranked] <= ranks.place_high[ranked]).all()
    assert 0 <= ranks.fit.missed <= ranks.fit.pairs


def test_one_file_is_compared_with_nothing(make_result):
    group = sound_group([make_result("base", TWENTY)])
    assert (group.versus, group.ranks) == ([], {"r": None})
    assert group.means == {"r": {"base": pytest.approx(np.mean(TWENTY))}}


@pytest.mark.parametrize("images", [1, 2, 4])
def test_one_prompt_has_intervals_over_its_images_and_no_claim(make_result, images):
    scores = TWENTY[:images]
    base = make_result("base", scores, samples=images)
    best = make_result("best", [x + 1 for x in noisy(scores, "one")], "best_of_n", samples=images)
    trained = [make_result(f"ddpo-{k}", noisy(scores, k), "ddpo", seed=k, samples=images) for k in range(3)]
    group = sound_group([base, best, *trained])
    for row in group.versus:
        assert row.random.startswith("images")
        assert row.rate_test.mark is row.difference_test.mark is None
        assert row.rate.high - row.rate.low > 0.4
    if images == 1:
        assert np.isinf(group.ranks["r"].high[1:]).all()
        assert group.ranks["r"].place_high.tolist() == [3, 3, 3]


@pytest.mark.parametrize("rows", [[("p0", 0)], [("p0", 0), ("p0", 1)], [("p0", 0), ("p1", 0)]])
@pytest.mark.parametrize(("method", "baseline"), list(itertools.product((1, 2, 20), repeat=2)))
def test_few_pairs_and_any_number_of_seeds_have_an_interval(make_result, rows, method, baseline):
    """All won, so that nothing varies: neither seeds nor images may stand for the prompts that were not seen."""
    base = [make_result(f"sft-{k}", [0.0] * len(rows), "sft", seed=k, pairs=rows) for k in range(baseline)]
    mine = [make_result(f"ddpo-{k}", [1.0 + k] * len(rows), "ddpo", seed=k, pairs=rows) for k in range(method)]
    (row,) = sound_group([*base, *mine], baseline="sft").versus
    assert row.rate.rate == 1
    assert row.rate.low < 0.6
    assert row.rate_test.p >= 0.5
    assert row.rate_test.mark is row.difference_test.mark is None


@pytest.mark.parametrize("seeds", [(1, 1), (3, 1), (3, 3)])
def test_ties_everywhere_are_one_half_with_room(make_result, seeds):
    files = [
        make_result(f"{name}-{k}", [0.25] * 80, name, seed=k, samples=4)
        for name, count in zip(("ddpo", "sft"), seeds, strict=True)
        for k in range(count)
    ]
    group = sound_group(files, baseline="sft", duels=True)
    (row,) = group.versus
    assert (row.rate.rate, row.rate.ties, row.rate_test.p, row.difference_test.p) == (0.5, 1, 1, 1)
    assert row.rate.high - row.rate.low > 0.1
    assert math.isnan(row.difference_low)
    assert math.isnan(row.effect)
    assert group.ranks["r"].place.tolist() == [1, 1]


def test_the_same_scores_under_two_names_are_told_apart_by_no_more_than_a_point(make_result):
    """200 ties: Tango's interval is ± z² / (n + z²) / 2, 0.94 points at n = 200."""
    scores = [float(x) for x in Key("two hundred").generator().normal(size=200)]
    group = sound_group([make_result("base", scores), make_result("best", scores, "best_of_n")])
    (row,) = group.versus
    z = 1.959964
    assert row.rate.rate == 0.5
    assert row.rate.effective <= row.rate.pairs == 200
    half = z**2 / (200 + z**2) / 2
    assert half > 0.009
    assert (row.rate.low, row.rate.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("shift", [0.3, 1e-3, 1e6])
def test_a_difference_that_is_the_same_everywhere_has_no_interval_of_rounding(make_result, shift, images):
    """Its prompts say nothing of how it would vary; x + 0.3 - x is not the same float everywhere."""
    base = make_result("base", TWENTY, samples=images)
    best = make_result("best", [x + shift for x in TWENTY], "best_of_n", samples=images)
    (row,) = sound_group([base, best]).versus
    assert math.isnan(row.difference_low)
    assert math.isnan(row.effect)
    assert row.rate.rate == 1
    assert row.rate.low < 1
    assert row.difference_test.p == pytest.approx(2.0 ** (1 - 20 // images))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_constant_scores_of_every_seed_are_compared_by_their_seeds(make_result, value):
    """Seeds differ and prompts do not: an interval of the rate that knows it is about three things, not sixty."""
    base = make_result("base", [value] * 20)
    files = [make_result(f"ddpo-{k}", [value + step] * 20, "ddpo", seed=k) for k, step in enumerate((1.0, 2.0, -1.0))]
    (row,) = sound_group([base, *files]).versus
    assert row.rate.rate == pytest.approx(2 / 3)
    assert row.rate.effective < 3
    assert row.rate.high - row.rate.low > 0.8
    assert row.rate_test.p > 0.2
    assert row.rate_test.mark is None


def test_seeds_that_differ_alike_on_every_prompt_leave_no_rounding_for_a_variance_of_prompts(make_result):
    """Two thirds of each prompt's pairs are won. As 0.666… the prompts would seem to vary by 1e-17, and the effective
    number, divided by that, would be nothing."""
    base = make_result("base", [0.0] * 60, samples=3)
    files = [
        make_result(f"ddpo-{k}", [1.0, 1.0, -1.0] * 20 if k else [1.0] * 60, "ddpo", seed=k, samples=3)
        for k in range(3)
    ]
    (row,) = sound_group([base, *files]).versus
    assert row.rate.rate == pytest.approx(7 / 9)
    assert 2 < row.rate.effective < 30


def test_scores_that_all_failed_are_no_row(make_result):
    base = make_result("base", TWENTY)
    failed = make_result("best", [None] * 20, "best_of_n")
    group = sound_group([base, failed])
    assert group.versus == []
    assert math.isnan(group.means["r"]["best_of_n"])
    assert any("not scored" in note for note in group.notes)
    assert group.ranks["r"] is None


def test_where_every_score_failed_there_is_nothing_to_rank(make_result):
    group = sound_group([make_result("base", [None] * 3), make_result("best", [None] * 3, "best_of_n")])
    assert (group.versus, group.ranks) == ([], {"r": None})


def test_one_score_that_did_not_fail_is_one_pair(make_result):
    base = make_result("base", TWENTY)
    nearly = make_result("best", [TWENTY[0] + 1, *[None] * 19], "best_of_n")
    (row,) = sound_group([base, nearly]).versus
    assert (row.rate.pairs, row.rate.rate, row.failed) == (1, 1, 19)
    assert row.if_failed == pytest.approx((1 / 20, 1))
    assert row.rate_test.mark is None


def test_a_seed_without_a_score_is_not_a_second_seed(make_result):
    """Two files, one of them without any score of this scorer: a claim from one training run."""
    base = make_result("base", [0.0] * 20)
    scored = make_result("ddpo-0", [x**2 + 1 for x in TWENTY], "ddpo", seed=0)
    failed = make_result("ddpo-1", [None] * 20, "ddpo", seed=1)
    (row,) = sound_group([base, scored, failed]).versus
    assert row.this_run
    assert row.rate_test.p < 0.001
    assert row.rate_test.mark is row.difference_test.mark is None


def test_a_failure_on_a_row_that_the_other_does_not_have_changes_nothing(make_result):
    base = make_result("base", TWENTY[:10])
    best = make_result("best", [x + 1 + x**2 for x in TWENTY[:10]] + [None], "best_of_n")
    (row,) = sound_group([base, best]).versus
    assert (row.failed, row.if_failed) == (0, None)


def test_prompts_that_some_seeds_lack_keep_mean_and_difference_together(make_result):
    """The second seed has the easy prompts alone. Mean, baseline's mean and difference are over the same pairs."""
    base = make_result("base", [0.0] * 4 + [10.0] * 4)
    whole = make_result("ddpo-0", [1.0, 2, 3, 4, 10, 11, 12, 13], "ddpo", seed=0)
    part = make_result("ddpo-1", [2.0, 5, 3, 6], "ddpo", seed=1)
    (row,) = sound_group([base, whole, part]).versus
    by_prompt = [1.5, 3.5, 3, 5, 0, 1, 2, 3]
    assert row.difference == pytest.approx(np.mean(by_prompt))
    assert row.rate.rate == pytest.approx((7 + 0.5) / 8)


@pytest.mark.parametrize("baseline", [1, 20])
def test_twenty_seeds_with_holes(make_result, baseline):
    rng = Key("twenty seeds").generator()

    def file(name, seed):
        rows = [(f"p{p}", k) for p in range(30) for k in range(2) if rng.random() > 0.1]
        scores = [None if rng.random() < 0.05 else round(float(x), 1) for x in rng.normal(seed / 40, 1, len(rows))]
        return make_result(f"{name}-{seed}", scores, name, seed=seed, pairs=rows)

    base = [file("sft", seed) for seed in range(baseline)]
    (row,) = sound_group([*base, *(file("ddpo", seed) for seed in range(20))], baseline="sft").versus
    assert len(row.seeds) == 20
    assert row.random == "prompts and seeds"
    assert row.failed > 0


def test_methods_that_win_everything_are_not_said_to_be_missed_by_the_model(make_result):
    """Half a win on either side pulls the implied rate to 20.5 / 21; that is no misfit."""
    group = sound_group([make_result("base", [0.0] * 20), make_result("best", [1.0] * 20, "best_of_n")])
    assert group.ranks["r"].fit.implied == pytest.approx(0.5 / 21)
    assert group.ranks["r"].fit.missed == 0


def many(make_result, methods, prompts):
    level = Key("level").generator().normal(size=prompts)
    for k in range(methods):
        rng = Key("method", k).generator()
        scores = {s: np.round(level + rng.normal(size=prompts) + rng.normal(0, 0.5), 3).tolist() for s in ("r", "s")}
        yield make_result(f"m{k:03}", scores, "best_of_n" if k else "base", fields={"n": k} if k else {})


def test_sixty_methods_are_ranked_and_compared(make_result):
    group = sound_group(list(many(make_result, 60, 20)))
    assert len(group.versus) == 2 * 59
    assert {row.family for row in group.versus} == {59}


@pytest.mark.slow
def test_five_hundred_methods_are_ranked_and_compared(make_result):
    group = sound_group(list(many(make_result, 500, 20)))
    assert len(group.versus) == 2 * 499
    assert len(group.ranks["r"].strength) == 500
