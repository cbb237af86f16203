"""Floors of the testbed: what exact draws score, how often they exceed it, and that nothing else depends on it."""

from __future__ import annotations

import math

import pytest
import torch

from alignbench import Key, plugins
from alignbench.testbed import floors, scores
from alignbench.testbed.estimators import Terms
from alignbench.testbed.exact_problem import ExactProblem, problem_of
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.scores import measure
from alignbench.testbed.tilt import Frontier, moments, tilted
from alignbench.testbed.toys import grid

KEY = Key("test", "floors")
SOURCES = ("exact divergence", "change of variables", "nearest neighbours")


def toy(name: str) -> ExactProblem:
    problem = problem_of(plugins.load("benchmarks", name)().prompts("test")[:1])
    assert problem is not None
    return problem


def test_a_floor_is_the_381st_of_400():
    """The first 32 of 1 … 400 have a mean of 16.5, which is subtracted. By rank: 381 − 16.5."""
    assert floors.of_nuisance(torch.arange(1, 401).double()) == 381 - 16.5
    assert floors.FLOOR_REPLICATES == 400


def test_many_sets_are_the_draws_of_each():
    keys = [KEY("set", i) for i in range(5)]
    together = grid().mixture.sets(keys, 70)
    torch.testing.assert_close(together, torch.stack([grid().mixture.sample(key, 70) for key in keys]))


def test_sums_of_sets_are_those_of_as_many_prompts():
    """The same mode distances and covariances, from sums about zero instead of about the modes."""
    optimum = tilted(grid().mixture, grid().rewards["quadratic"], 1.0)
    sets = optimum.sets([KEY("sums", i) for i in range(6)], 300)
    flat, prompts = sets.flatten(0, 1), torch.arange(6).repeat_interleave(300)
    one = Terms.of(flat, optimum, torch.zeros(1800, 0).double(), prompts)
    gamma = optimum.log_responsibilities(flat).exp().unflatten(0, (6, 300))
    other = Terms.joined([Terms.of_sets(sets[:2], gamma[:2]), Terms.of_sets(sets[2:], gamma[2:])])
    each = torch.eye(6).double()
    torch.testing.assert_close(other.mode_distance(each, optimum), one.mode_distance(each, optimum))
    torch.testing.assert_close(
        other.covariance_ratio(each, optimum, other.share), one.covariance_ratio(each, optimum, one.share)
    )


def test_each_set_has_its_own_modes_with_points_enough_for_a_covariance():
    """Two far modes of half the mass. A set of 40 points in the first and 20 in the second is judged by the first."""
    two = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1, 1))
    spread = torch.linspace(-1, 1, 40).double()
    sets = torch.cat([spread - 9, 3 * spread[:20] + 9])[None, :, None]
    terms = Terms.of_sets(sets, two.log_responsibilities(sets[0]).exp()[None])
    found = terms.covariance_ratio(torch.ones(1, 1).double(), two, terms.share)
    assert float(found) == pytest.approx(float(spread.var(correction=0)), rel=1e-6)


def test_where_the_divergence_is_known_the_regret_of_exact_draws_is_the_noise_of_their_mean_reward():
    """A linear reward on one Gaussian: −λ û is normal, so that its 95 % quantile is 1.645 λ √(Var r / n). A quantile
    of 400 has a standard error of √(0.05 · 0.95 / 400) / φ(1.645) = 0.106 of the standard deviation."""
    problem = toy("gaussian")
    r, n = problem.rewards["linear"], 250
    spread = math.sqrt(moments(tilted(problem.mixture, r, 1.0), r)[1] / n)
    found = floors.of_optimum(problem, "linear", n, "exact divergence", KEY("linear"))
    assert found.regret / spread == pytest.approx(1.645, abs=2 * 0.106)


def test_a_density_that_is_known_at_every_point_leaves_exact_draws_no_regret_and_no_excess():
    """Measured at the λ of their own mean reward they are a little below the frontier, and no floor is."""
    found = floors.of_optimum(grid(), "quadratic", 60, "change of variables", KEY("chain"))
    assert found.regret == 0
    earned = Frontier(grid().mixture, grid().rewards["quadratic"]).at(1.0)[0]
    assert floors.of_excess(grid(), "quadratic", earned, 60, "change of variables", KEY("chain")) == 0


def test_the_rate_that_draws_earn_themselves_brings_them_nearer_by_half_the_squared_error():
    """KL(q ‖ p*_λ) − min over λ', to second order û² / (2 Var r), for draws whose mean reward is off by û."""
    r = grid().rewards["quadratic"]
    frontier, rate = Frontier(grid().mixture, r), 1.3
    expected, variance = moments(tilted(grid().mixture, r, rate), r)
    off = 0.05 * math.sqrt(variance)
    other = frontier.matched(expected + off)

    def missed(at: float) -> float:  # KL(q ‖ p*_λ) but for what does not depend on λ
        reward, kl = frontier.at(at)
        return at * reward - kl - at * (expected + off)

    assert missed(rate) - missed(other) == pytest.approx(off**2 / (2 * variance), rel=0.05)


def test_no_rate_no_floor():
    assert math.isnan(floors.of_excess(grid(), "quadratic", 0.5, 60, "nearest neighbours", KEY))


@pytest.mark.parametrize("n", [300, 700])
@pytest.mark.parametrize("source", SOURCES)
def test_floors_follow_from_what_a_result_keeps(source, n, monkeypatch):
    """Problem, number of points, where log q is from, and the mean reward: bit by bit, so that they can be remade."""
    monkeypatch.setattr(floors, "FLOOR_REPLICATES", 40)
    problem = toy("grid64")
    x = problem.mixture.sample(KEY("points", n), n).float()
    known = {"exact divergence": {"known_kl": 0.0}, "change of variables": {"log_q": problem.mixture.log_prob(x)}}
    found = measure(problem, ["quadratic"], x, torch.arange(n), KEY, **known.get(source, {}))
    key, earned = KEY("quadratic"), found["quadratic.reward"].value
    optimum = floors.of_optimum(problem.flat, "quadratic", n, source, key)
    assert found["quadratic.regret"].floor == optimum.regret
    assert found["quadratic.mode_tv"].floor == optimum.mode_tv
    assert found["quadratic.covariance"].about == scores.about_covariance(*optimum.covariance)
    excess = floors.of_excess(problem.flat, "quadratic", earned, n, source, key)
    assert found["quadratic.excess_kl"].floor == excess
    drawn = floors.nuisance_of_draws(n, 62, KEY("nuisance"), 40)
    assert found["nuisance"].floor == floors.of_nuisance(drawn)


def test_values_and_intervals_do_not_depend_on_the_sets_that_make_floors(monkeypatch):
    x = toy("grid64").mixture.sample(KEY("values"), 80)
    found = []
    for count in (floors.REPLICATES, 3 * floors.REPLICATES):
        monkeypatch.setattr(floors, "FLOOR_REPLICATES", count)
        found.append(measure(toy("grid64"), ["quadratic"], x, torch.arange(80), KEY))
    for name, few in found[0].items():
        many = found[1][name]
        assert (few.value, few.low, few.high) == (many.value, many.low, many.high)
    assert found[0]["quadratic.regret"].floor != found[1]["quadratic.regret"].floor


def exceeded(problem: ExactProblem, reward: str, key: Key, known: bool, monkeypatch) -> dict[str, int]:
    """How many of 120 fresh sets of 100 exact draws from p* score above their floor. Floors do not depend on the set
    but through its mean reward, so they are computed once, at the mean that is expected."""
    n, r = 100, problem.rewards[reward]
    optimum = tilted(problem.mixture, r, 1 / problem.beta)
    earned, kl = Frontier(problem.mixture, r).at(1 / problem.beta)
    source: floors.Source = "exact divergence" if known else "nearest neighbours"
    floor = floors.of_optimum(problem.flat, reward, n, source, key(reward))
    excess = floors.of_excess(problem.flat, reward, earned, n, source, key(reward))
    drawn = floors.nuisance_of_draws(n, 62, key("nuisance"), floors.FLOOR_REPLICATES)
    above: dict[str, int] = {}
    with monkeypatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 4)  # intervals are not looked at, nor is the divergence from p_ref
        patch.setattr(scores, "_divergence", lambda *_: scores.Measure(None, "left out"))
        patch.setattr(floors, "of_optimum", lambda *_: floor)
        patch.setattr(floors, "of_excess", lambda *_: excess)
        patch.setattr(floors, "nuisance_of_draws", lambda *_: drawn)
        for i in range(120):
            x = optimum.sample(key("fresh", i), n)
            found = measure(problem, [reward], x, torch.arange(n), key, known_kl=kl if known else None)
            for name, m in found.items():
                if m.floor:  # all but 0: one mode has no distance from itself
                    above[name] = above.get(name, 0) + (m.value > m.floor)
    return above


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward", "known", "scored"),
    [
        ("gaussian", "linear", False, {"linear.regret", "linear.excess_kl"}),
        ("grid64", "quadratic", True, {f"quadratic.{s}" for s in ("regret", "excess_kl", "mode_tv")} | {"nuisance"}),
    ],
)
def test_exact_draws_exceed_a_floor_in_five_of_a_hundred_cases(name, reward, known, scored, monkeypatch):
    """By neighbours where only they matter, with a known divergence on the rest. Five floors of each kind, 120 fresh
    sets for each: the share that is found has a standard error of 1.0 points, √(0.05 · 0.95 / 600) = 0.9 of the fresh
    sets and √(0.05 · 0.95 / 400 / 5) = 0.5 of five floors."""
    counts = [exceeded(toy(name), reward, KEY("exceed", i), known, monkeypatch) for i in range(5)]
    found = {score: sum(count[score] for count in counts) / 600 for score in counts[0]}
    print({score: f"{100 * share:.1f} %" for score, share in found.items()})
    assert set(found) == scored
    assert all(0.035 <= share <= 0.07 for share in found.values()), found
