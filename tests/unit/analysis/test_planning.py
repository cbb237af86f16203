"""What results can show: variances worked by hand and found again in draws, and the difference that a plan names is
found by the tests of a comparison as often as it says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import t

from alignbench.analysis.pairing import Meeting
from alignbench.analysis.planning import (
    BASELINE_SEEDS,
    PROMPTS,
    SEEDS,
    Components,
    Size,
    components,
    error,
    plan_for,
    smallest,
)
from alignbench.analysis.random_effects import unit_mean
from alignbench.keys import Key

POWER, LEVEL = 0.8, 0.05
BOTH = (PROMPTS, SEEDS)


def meeting(differences) -> Meeting:
    """Of differences [prompts, images, seeds] from a baseline of zeros; a win is a difference above 0."""
    values = np.asarray(differences, dtype=float)
    n, k, seeds = values.shape
    mine = values.reshape(n * k, seeds).T[:, None]
    won = np.where(np.isnan(mine), np.nan, np.where(mine == 0, 0.5, mine > 0))
    return Meeting(mine, np.where(np.isnan(mine), np.nan, 0.0), won, np.repeat(np.arange(n), k))


def columns(*rows):
    """Differences of prompts with one image each: a row a prompt, a column a seed."""
    return meeting(np.array(rows, dtype=float)[:, None])


def parts(images=None, size=(200, 1, 3, 1), **of_prompts) -> Components:
    """Variances by name: p, s and ps."""
    names = {"p": (PROMPTS,), "s": (SEEDS,), "b": (BASELINE_SEEDS,), "ps": BOTH}
    within = None if images is None else {(PROMPTS,): images}
    return Components({names[name]: float(x) for name, x in of_prompts.items()}, within, 1.0, Size(*size))


def test_variances_of_prompts_and_seeds_by_hand():
    """Means of prompts 5 and 1, of seeds 3 and 3: mean squares 2 (2² + 2²) = 16, 0, and of what is left, ±1, 4. So
    ps 4, p (16 − 4) / 2 = 6, s (0 − 4) / 2, which is below 0."""
    found = components(columns([6, 4], [0, 2]), "difference")
    assert found.of_prompts == pytest.approx({(PROMPTS,): 6, (SEEDS,): 0, BOTH: 4})
    assert found.of_images is None
    assert found.size == (2, 1, 2, 1)


def test_variances_of_images_within_prompts_by_hand():
    """Within the prompts ((−2)² + 2² + 0 + 0) / 2 = 4; of the prompts' means 2 and 10 it is 32, of which two images
    make 4 / 2."""
    found = components(meeting([[[0], [4]], [[10], [10]]]), "difference")
    assert found.of_prompts == pytest.approx({(PROMPTS,): 30})
    assert found.of_images == pytest.approx({(PROMPTS,): 4})
    assert found.spread_of_images == 2


def test_where_some_prompts_have_more_images_each_brings_its_own_part():
    """One prompt of one image and one of three, in which the variance is 4: 4 (1 + 1/3) / 2 of the means' is theirs."""
    values = np.array([[1.0, np.nan, np.nan], [8, 10, 12]])[:, :, None]
    found = components(meeting(values), "difference")
    assert found.of_images == pytest.approx({(PROMPTS,): 4})
    assert found.of_prompts == pytest.approx({(PROMPTS,): 9**2 / 2 - 4 * 2 / 3})


def test_a_missing_score_leaves_the_others():
    values = np.arange(24, dtype=float).reshape(4, 2, 3) ** 2
    values[1, 0, 2] = np.nan
    found = components(meeting(values), "difference")
    assert all(math.isfinite(variance) for variance in (*found.of_prompts.values(), *(found.of_images or {}).values()))
    assert found.size == (4, 2, 3, 1)


def test_wins_vary_as_they_would_at_a_rate_of_a_half():
    """Three wins, one loss: variance 1/4 about the mean 1/4 above a half, mean square distance from a half 1/4. At a
    half the same pairs vary by 1/4 · (1/4) / (1/4 − 1/16) = 1/3, as two wins and two losses do."""
    assert components(columns([1], [1], [1], [-1]), "rate").of_prompts == pytest.approx({(PROMPTS,): 1 / 3})
    assert components(columns([1], [1], [-1], [-1]), "rate").of_prompts == pytest.approx({(PROMPTS,): 1 / 3})


def test_where_all_is_won_what_may_vary_is_put_down_to_prompts():
    found = components(columns(*[[1, 1, 1]] * 10), "rate")
    assert found.of_prompts == {(PROMPTS,): 0.25}
    assert smallest(found, found.size, LEVEL, POWER) < 0.5


def test_one_seed_tells_no_variance_of_seeds():
    found = components(columns([1], [-1], [2]), "difference")
    assert math.isnan(found.spread(SEEDS))
    assert math.isnan(found.spread(*BOTH))
    assert found.size.seeds == 1


def test_the_error_and_its_parts_by_hand():
    """With p 6, s 0, ps 4 of 2 prompts and 2 seeds: 6/2 + 0 + 4/4 = 4; T_p = 3 + 1, T_s = 1, all of it by chance."""
    found = error(parts(p=6, s=0, ps=4), Size(2, 1, 2, 1))
    assert found == pytest.approx((4, 1, 1, 1, 1))
    assert found.scale == pytest.approx(2)


def test_the_error_of_any_size_by_hand():
    """6/8 + 4/(8·2) + 3/4 + 8/(8·4) = 0.75 + 0.25 + 0.75 + 0.25."""
    assert error(parts(p=6, images=4, s=3, ps=8), Size(8, 2, 4, 1)).scale == pytest.approx(math.sqrt(2))


def test_one_seed_alone_is_not_drawn():
    """What the seed adds is part of what is measured, and what it adds to single prompts one of their parts."""
    found = error(parts(p=6, s=3, ps=8), Size(7, 1, 1, 1))
    assert (found.scale, found.df_units, found.of_seeds) == pytest.approx((math.sqrt(14 / 7), 6, 0))


def test_seeds_of_the_baseline_are_a_factor_of_their_own():
    assert error(parts(p=8, s=3, b=2), Size(8, 1, 3, 2)).scale == pytest.approx(math.sqrt(1 + 1 + 1))
    planned = plan_for(parts(p=8, s=3, b=2), Size(8, 1, 3, 2), LEVEL, POWER)
    assert planned.doubled["seeds"] == smallest(parts(p=8, s=3, b=2), Size(8, 1, 6, 4), LEVEL, POWER)


def test_the_smallest_difference_by_hand():
    """sd 2 over 100 prompts is an error of 0.2 with 99 degrees: 0.2 (1.984 + 0.845)."""
    assert smallest(parts(p=4), Size(100, 1, 1, 1), LEVEL, POWER) == pytest.approx(0.2 * (1.98422 + 0.84523), abs=1e-4)


def test_more_tests_need_more():
    """Of 20 tests each has 0.05 / 20."""
    needed = smallest(parts(p=4), Size(100, 1, 1, 1), LEVEL / 20, POWER)
    assert needed == pytest.approx(0.2 * (t.ppf(1 - 0.00125, 99) + t.ppf(0.8, 99)))


@pytest.mark.parametrize(("seeds", "noncentral"), [(3, 5.65349), (30, 2.89875)])
def test_no_number_of_prompts_gets_below_what_seeds_make(seeds, noncentral):
    """What seeds of sd 1 alone show is exact: t at 2 degrees and 4.3027 has a power of 0.8 at a noncentrality of 5.653,
    at 29 degrees and 2.0452 at 2.899 (scipy.stats.nct); over √seeds."""
    planned = plan_for(parts(p=400, s=1, ps=2), Size(200, 1, seeds, 1), LEVEL, POWER)
    assert planned.fixed["seeds"] == pytest.approx(noncentral / math.sqrt(seeds), rel=1e-3)
    assert planned.fixed["seeds"] < planned.doubled["prompts"] < planned.smallest


def test_with_so_many_prompts_no_number_of_images_gets_below_what_prompts_make():
    planned = plan_for(parts(p=4, images=12, size=(100, 1, 1, 1)), Size(100, 1, 1, 1), LEVEL, POWER)
    assert planned.smallest == pytest.approx(0.4 * (1.98422 + 0.84523), abs=1e-4)
    assert planned.fixed == {
        "prompts": pytest.approx(0.2 * (1.98422 + 0.84523), abs=1e-4),
        "images": 0,
    }


@pytest.mark.parametrize(
    ("found", "first"),
    [
        (parts(p=1, s=0.04, ps=1), "seeds"),
        (parts(p=1, s=0, ps=0.1), "prompts"),
        (parts(p=1, size=(200, 1, 1, 1)), "prompts"),
        (parts(p=0), None),
    ],
)
def test_what_to_double_first(found, first):
    assert plan_for(found, found.size, LEVEL, POWER).first == first


def test_twice_the_images_help_as_twice_the_prompts_only_where_prompts_are_alike():
    alike = plan_for(parts(p=0, images=1), Size(10**6, 1, 1, 1), LEVEL, POWER)
    assert alike.doubled["images"] == pytest.approx(alike.doubled["prompts"])
    other = plan_for(parts(p=1, images=1), Size(10**6, 1, 1, 1), LEVEL, POWER)
    assert other.doubled["images"] > other.doubled["prompts"]


def test_more_prompts_show_no_larger_difference_only():
    """Also between prompts whose part is small, where few seeds tell most of the error."""
    found = parts(p=0.04, s=0.01, ps=0.18)
    needed = [smallest(found, Size(50 * 2.0**i, 1, 3, 1), LEVEL, POWER) for i in range(12)]
    assert needed == sorted(needed, reverse=True)


def test_so_few_prompts_show_nothing():
    """Five signs give no p below 2 / 2⁵ = 0.0625, six 0.031; prompts that tie have none."""
    assert math.isinf(smallest(parts(p=1), Size(5, 1, 1, 1), LEVEL, POWER))
    assert math.isfinite(smallest(parts(p=1), Size(6, 1, 1, 1), LEVEL, POWER))
    assert math.isinf(smallest(replace(parts(p=1), differing=0.5), Size(10, 1, 1, 1), LEVEL, POWER))


def test_where_nothing_varies_nothing_is_told():
    tied = components(columns([0], [0], [0]), "rate")
    assert math.isnan(plan_for(tied, tied.size, LEVEL, POWER).smallest)


@pytest.mark.parametrize("unit", [1e150, 1e80, 1e-80, 1e-150])
def test_degrees_of_freedom_know_no_units(unit):
    values = np.array([[6.0, 4, 9], [0, 2, 3], [5, 5, 9]])
    usual, other = (unit_mean(scale * values[:, :, None]) for scale in (1, unit))
    assert (other.df, other.skewness) == pytest.approx((usual.df, usual.skewness))
    assert other.mean == pytest.approx(unit * usual.mean)
    found = components(columns(*(unit * values)), "difference")
    expected = smallest(components(columns(*values), "difference"), Size(20, 1, 3, 1), LEVEL, POWER)
    assert smallest(replace(found, differing=1.0), Size(20, 1, 3, 1), LEVEL, POWER) / unit == pytest.approx(expected)


def drawn(key: Key, n: int, k: int, seeds: int, sd: tuple[float, ...], shift: float = 0.0):
    """Differences with these standard deviations of prompts, images, seeds, prompt × seed and image × seed."""
    normal = key.generator().normal
    shapes = [(n, 1, 1), (n, k, 1), (1, 1, seeds), (n, 1, seeds), (n, k, seeds)]
    return meeting(shift + sum(s * normal(size=shape) for s, shape in zip(sd, shapes, strict=True)))


def test_variances_of_draws_are_found_without_bias():
    """Over 300 draws the mean of each estimate is within three of its standard errors of the truth."""
    sd = (0.8, 0.6, 0.5, 0.5, 0.4)
    found = [components(drawn(Key("parts", i), 60, 3, 5, sd), "difference") for i in range(300)]
    estimates = np.array(
        [
            [
                *(c.of_prompts[f] for f in ((PROMPTS,), (SEEDS,), BOTH)),
                *((c.of_images or {})[f] for f in ((PROMPTS,), BOTH)),
            ]
            for c in found
        ]
    )
    true = np.square([sd[0], sd[2], sd[3], sd[1], sd[4]])
    errors = estimates.std(0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(estimates.mean(0) - true) < 3 * errors).all()
    assert (errors < 0.03 * true + 0.01).all()


SETTINGS = {
    "one seed": (200, 1, 1, (1.0, 0, 0, 0, 0)),
    "three seeds": (200, 1, 3, (0.7, 0, 0.12, 0.7, 0)),
    "five seeds, three images": (100, 3, 5, (0.6, 0.5, 0.1, 0.4, 0.5)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_planned_mean_difference_is_found_in_80_of_100_tables(setting):
    """In 1,500 tables, whose share has a standard error of one point, by the test of the mean."""
    n, k, seeds, sd = SETTINGS[setting]
    p, image, s, ps, both = np.square(sd)
    true = parts(p=p, size=(n, k, seeds, 1), images=image if k > 1 else None)
    if seeds > 1:
        true = replace(true, of_prompts={**true.of_prompts, (SEEDS,): s, BOTH: ps})
    if k > 1:
        true = replace(true, of_images={(PROMPTS,): image, BOTH: both})
    shift = smallest(true, true.size, LEVEL, POWER)
    tables = (drawn(Key("mean", setting, i), n, k, seeds, sd, shift) for i in range(1500))
    shown = [met.difference_p() < LEVEL and met.difference_mean.mean > 0 for met in tables]
    assert abs(np.mean(shown) - POWER) < 0.04


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_planned_win_rate_is_found_in_80_of_100_tables(setting):
    """The same by the test of the win rate. Variances of wins come from 20 large tables at a rate of a half; the rate
    is Φ(shift / sd of a difference), where outcomes vary a little less."""
    n, k, seeds, sd = SETTINGS[setting]
    large = [components(drawn(Key("large", i), 500, k, 20 if seeds > 1 else 1, sd), "rate") for i in range(20)]

    def mean(of: str) -> dict:
        found = [getattr(part, of) for part in large]
        return {factors: float(np.mean([each[factors] for each in found])) for factors in found[0]}

    size = Size(n, k, seeds, 1)
    true = Components(mean("of_prompts"), mean("of_images") if k > 1 else None, 1.0, size)
    shift = ndtri(0.5 + smallest(true, size, LEVEL, POWER)) * math.sqrt(np.square(sd).sum())
    tables = (drawn(Key("wins", setting, i), n, k, seeds, sd, shift) for i in range(1500))
    shown = [met.rate_p() < LEVEL and met.outcome_mean.mean > 0.5 for met in tables]
    assert -0.04 < np.mean(shown) - POWER < 0.05
