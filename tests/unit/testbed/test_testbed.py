"""The exact testbed: closed forms against Monte Carlo, finite differences, quadrature and each other."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from alignbench import ExactReward, Key, Prompt, Reward, plugins
from alignbench.errors import InputError
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.exact_problem import ExactProblem, problem_of
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.pipeline import exact_schedule
from alignbench.testbed.tilt import (
    Frontier,
    Quadratic,
    log_z,
    log_z_of_parts,
    moments,
    optimal_score,
    rates,
    soft_value,
    tilted,
)
from alignbench.testbed.toys import grid

KEY = Key("test", "testbed")
TOYS = ("grid", "ring", "overlap", "gaussian", "grid64")
LEVELS = (0.95, 0.6, 0.2, 0.01)


def toy(name: str) -> ExactProblem:
    problem = problem_of(plugins.load("benchmarks", name)().prompts("test")[:1])
    assert problem is not None
    return problem


TOY = grid()
PAIRS = [(name, reward) for name in TOYS for reward in plugins.load("benchmarks", name).known]


def row(value: float, n: int) -> torch.Tensor:
    """The same noise level n times."""
    return torch.full((n,), value, dtype=torch.float64)


def uneven(d: int = 3, k: int = 4) -> Mixture:
    """Unequal weights, full covariances."""
    root = KEY("covariance").normal(k, d, d).double()
    covariances = root @ root.transpose(1, 2) / d + 0.3 * torch.eye(d)
    return Mixture(KEY("weight").uniform(k).double().softmax(-1), 1.5 * KEY("mean").normal(k, d), covariances)


def curved(d: int = 3) -> Quadratic:
    root = KEY("curvature").normal(d, d).double()
    return Quadratic(root @ root.T / d, KEY("slope").normal(d), 0.7)


def sloped(d: int = 3) -> Quadratic:
    return Quadratic.linear(KEY("slope").normal(d), -0.2)


REWARDS = pytest.mark.parametrize("reward", [curved(), sloped()], ids=["curved", "sloped"])


def test_a_quadratic_reward_by_hand():
    """A = [[2, 1], [1, 4]], h = (1, −1), c = ½ at x = (1, 2): xᵀA x = 2 + 4 + 16, hᵀx = −1."""
    r = Quadratic(torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([1.0, -1.0]), 0.5)
    assert float(r(torch.tensor([1.0, 2.0]))) == pytest.approx(-11 - 1 + 0.5)
    assert r.gradient(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([1 - 4, -1 - 9])
    around = Quadratic.around(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 3.0]))
    assert float(around(torch.tensor([2.0, 5.0]))) == pytest.approx(-0.5 * (2 * 1 + 1 * 4))


def test_one_gaussian_tilted_by_hand():
    """N(1, 2) with r = −(x − 3)²/2 at λ = 1: precision ½ + 1, mean (½·1 + 3)/1.5; Z = (1 + 2)^-½ exp(−½·4/3)."""
    one = Mixture(torch.ones(1), torch.tensor([[1.0]]), torch.tensor([[[2.0]]]))
    r = Quadratic.around(torch.ones(1, 1), torch.tensor([3.0]))
    optimum = tilted(one, r, 1.0)
    assert float(optimum.covariances) == pytest.approx(1 / 1.5)
    assert float(optimum.means) == pytest.approx(3.5 / 1.5)
    assert log_z(one, r, 1.0) == pytest.approx(-0.5 * math.log(3) - 2 / 3)
    assert moments(one, r)[0] == pytest.approx(-0.5 * (2 + 4))


@pytest.mark.parametrize(("name", "reward"), PAIRS)
def test_the_closed_form_numbers_of_a_prompt_set_are_right_to_all_digits(name, reward):
    known, problem = plugins.load("benchmarks", name).known[reward], toy(name)
    mixture, r = problem.mixture, problem.rewards[reward]
    found = (moments(mixture, r)[0], *Frontier(mixture, r).at(1.0), log_z(mixture, r, 1.0))
    assert [f"{x:.6f}" for x in found] == [f"{x:.6f}" for x in known]


def test_the_first_toy_has_the_reference_numbers():
    """Independently derived: reward and divergence along the frontier, and p*'s weights. KL(3) = 1.323445."""
    problem = grid()
    mixture, r = problem.mixture, problem.rewards["quadratic"]
    frontier = Frontier(mixture, r)
    assert f"{moments(mixture, r)[0]:.5f}" == "-11.07633"
    assert [f"{x:.6f}" for x in frontier.at(1)] == ["-0.290720", "1.148966"]
    assert f"{log_z(mixture, r, 1):.6f}" == "-1.439687"
    weights = tilted(mixture, r, 1.0).weights.reshape(3, 3)  # [x, y]
    assert [f"{w:.3f}" for w in weights[:, 1].tolist()] == ["0.315", "0.370", "0.315"]
    assert weights[:, [0, 2]].flatten().tolist() == pytest.approx([1e-5] * 6, rel=1)
    table = {
        0.01: ("-10.375", ".0035"), 0.03: ("-8.976", ".0315"), 0.1: ("-4.757", ".2969"), 0.3: ("-.7421", ".9577"),
        3: ("-.1958", "1.3234"), 10: ("-.0893", "1.940"), 30: ("-.0221", "3.054"), 100: ("-.0068", "3.808"),
    }  # fmt: skip
    for rate, printed in table.items():
        for value, text in zip(frontier.at(rate), printed, strict=True):
            digits = len(text.partition(".")[2])
            assert abs(value - float(text)) <= 0.5000001 * 10**-digits, (rate, value, text)


def test_the_second_toy_has_the_reference_numbers():
    problem = toy("ring")
    mixture, r = problem.mixture, problem.rewards["quadratic"]
    assert f"{moments(mixture, r)[0]:.2f}" == "-9.23"
    assert [f"{x:.6f}" for x in Frontier(mixture, r).at(1)] == ["-1.340043", "1.627761"]
    weights = tilted(mixture, r, 1.0).weights
    assert [f"{w:.4f}" for w in weights[[2, 6, 1, 3, 5, 7]].tolist()] == [
        "0.7987", "0.1765", "0.0092", "0.0092", "0.0032", "0.0032",
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "best", "drawn", "error", "frontier"), [
    (2, -6.39942, -6.39, 0.007, "-5.93"), (4, -2.62220, -2.62, 0.006, "-2.19"), (8, -0.601349, -0.600, 0.003, "-.248"),
    (16, -0.115939, -0.1157, 0.0005, "-.1005"), (64, -0.0191924, -0.0192, 0.0002, "-.0184"),
    (256, -0.00260144, -0.0026, 0.00005, "-.0025"),
])  # fmt: skip
def test_best_of_n_stands_below_the_frontier_by_the_reference_numbers(n, best, drawn, error, frontier):
    """R_n = ∫ n u^{n−1} Q(u) du against R at KL = log n − (n − 1)/n.

    `best` is one-dimensional quadrature of P(best reward > −a) by the error function; the published `drawn` is from
    two million draws, of the standard error given.
    """
    r = TOY.rewards["quadratic"]
    curve = Frontier(TOY.mixture, r)
    spent = math.log(n) - (n - 1) / n
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if curve.at(middle)[1] < spent else (low, middle)
    assert abs(curve.at(low)[0] - float(frontier)) <= 0.5000001 * 10 ** -len(frontier.partition(".")[2])
    found = best_of(n, TOY.mixture, r)
    assert found == pytest.approx(best, rel=1e-4)
    assert abs(found - drawn) < 2 * error


@functools.cache
def quadrature(mixture: Mixture, r: Quadratic) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards in ascending order and their probabilities under p_ref, on a grid that is fine near y = 0."""
    x = torch.linspace(-7.5, 7.5, 301, dtype=torch.float64)
    s = torch.linspace(-2, 2, 1001, dtype=torch.float64)
    y, slope = s**3, 3 * s**2
    points = torch.cartesian_prod(x, y)
    mass = mixture.log_prob(points).exp() * slope.repeat(len(x))
    order = r(points).argsort()
    return r(points)[order], mass[order] / mass.sum()


def best_of(n: int, mixture: Mixture, r: Quadratic) -> float:
    """∫ n u^{n−1} Q(u) du."""
    rewards, mass = quadrature(mixture, r)
    u = torch.cat([torch.zeros(1).double(), mass.cumsum(0).clamp(max=1)])
    return float(((u**n).diff() * rewards).sum())


@pytest.mark.parametrize(("name", "reward", "n", "excess"), [
    ("ring", "quadratic", 8, "0.01"), ("overlap", "quadratic", 8, "0.01"), ("gaussian", "linear", 8, "0.19"),
    ("grid", "quadratic", 8, "0.20"), ("gaussian", "linear", 64, "0.43"),
])  # fmt: skip
def test_best_of_ns_excess_is_what_its_header_says(name, reward, n, excess):
    """log n − (n − 1)/n − KL(λ) at R(λ) = R_n, with R_n by quadrature over the plane."""
    problem, side = toy(name), torch.linspace(-9, 9, 401, dtype=torch.float64)
    r, points = problem.rewards[reward], torch.cartesian_prod(side, side)
    mass, order = problem.mixture.log_prob(points).exp(), r(points).argsort()
    u = torch.cat([torch.zeros(1).double(), (mass[order] / mass.sum()).cumsum(0).clamp(max=1)])
    earned = float(((u**n).diff() * r(points)[order]).sum())
    frontier = Frontier(problem.mixture, r)
    found = math.log(n) - (n - 1) / n - frontier.at(frontier.matched(earned))[1]
    assert f"{found:.2f}" == excess


def after_ddim(mean: float, variance: float, n: int) -> tuple[float, float]:
    """Mean and variance that n ancestral DDIM steps make of N(0, 1) on one Gaussian axis, where each is affine."""
    steps, m, v = exact_schedule().steps(n), 0.0, 1.0
    for i in range(n):
        level, target = float(steps.alpha_bar[i]), float(steps.next_alpha_bar[i])
        noise = (1 - target) / (1 - level) * (1 - level / target)
        gain = math.sqrt(level) * variance / (level * variance + 1 - level)  # x0 = mean + gain (x − √ᾱ mean)
        at_zero = mean - gain * math.sqrt(level) * mean
        towards = math.sqrt(1 - target - noise) / math.sqrt(1 - level)
        slope = math.sqrt(target) * gain + towards * (1 - math.sqrt(level) * gain)
        m = slope * m + (math.sqrt(target) - towards * math.sqrt(level)) * at_zero
        v = slope**2 * v + noise
    return m, v


def test_fifty_ddim_steps_cost_what_the_header_of_base_says():
    """gaussian: axes (1, 1)/√2 and (1, −1)/√2 with variances 1.5 and 0.5 and means 0 and √2; nuisance: N(0, 1)."""
    lost = []
    for mean, variance in ((0.0, 1.5), (math.sqrt(2), 0.5), (0.0, 1.0)):
        m, v = after_ddim(mean, variance, 50)
        lost.append((v / variance + (m - mean) ** 2 / variance - 1 - math.log(v / variance)) / 2)
    assert f"{lost[0] + lost[1]:.3f}" == "0.013"
    assert f"{lost[2]:.3f}" == "0.006"
    assert f"{after_ddim(0.0, 1.0, 50)[1]:.2f}" == "0.86"


@REWARDS
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_tilt_agrees_with_importance_sampling(reward, rate):
    mixture = uneven()
    x = mixture.sample(KEY("draws"), 400_000)
    weight = (rate * reward(x)).exp()
    assert float(weight.mean().log()) == pytest.approx(log_z(mixture, reward, rate), abs=0.05)
    weight = weight / weight.sum()
    optimum = tilted(mixture, reward, rate)
    mean = (optimum.weights[:, None] * optimum.means).sum(0)
    assert (weight[:, None] * x).sum(0).tolist() == pytest.approx(mean.tolist(), abs=0.04)
    assert float((weight * reward(x)).sum()) == pytest.approx(moments(optimum, reward)[0], abs=0.04)
    assert mixture.log_prob(x[:5]).shape == (5,)


@REWARDS
def test_the_tilted_density_is_the_reference_times_the_exponential(reward):
    mixture, x = uneven(), 2 * KEY("x").normal(20, 3).double()
    expected = mixture.log_prob(x) + 0.8 * reward(x) - log_z(mixture, reward, 0.8)
    torch.testing.assert_close(tilted(mixture, reward, 0.8).log_prob(x), expected, atol=1e-9, rtol=0)


@REWARDS
def test_the_partition_has_the_form_of_the_literature(reward):
    """log Z_k = λc − ½ log det(I + λSA) − ½ mᵀS⁻¹m + ½ (S⁻¹m + λh)ᵀ S* (S⁻¹m + λh)."""
    mixture, rate = uneven(), 0.7
    for m, s, found in zip(
        mixture.means,
        mixture.covariances,
        log_z_of_parts(reward, rate, mixture.means, mixture.covariances),
        strict=True,
    ):
        precision = s.inverse()
        best = (precision + rate * reward.curvature).inverse()
        pull = precision @ m + rate * reward.slope
        determinant = torch.logdet(torch.eye(3).double() + rate * s @ reward.curvature)
        expected = rate * reward.constant - determinant / 2 - m @ precision @ m / 2 + pull @ best @ pull / 2
        assert float(found) == pytest.approx(float(expected), abs=1e-9)


@REWARDS
def test_slopes_of_the_frontier_by_finite_differences(reward):
    """d log Z/dλ = R, R' = Var r, KL' = λ R', and dR/dKL = β."""
    mixture, rate, h = uneven(), 0.6, 1e-4
    frontier = Frontier(mixture, reward)
    mean, variance = moments(tilted(mixture, reward, rate), reward)
    (below, kl_below), (above, kl_above) = frontier.at(rate - h), frontier.at(rate + h)
    by_log_z = (log_z(mixture, reward, rate + h) - log_z(mixture, reward, rate - h)) / (2 * h)
    assert by_log_z == pytest.approx(mean, abs=1e-6)
    assert (above - below) / (2 * h) == pytest.approx(variance, abs=1e-5)
    assert (kl_above - kl_below) / (2 * h) == pytest.approx(rate * variance, abs=1e-5)
    assert (above - below) / (kl_above - kl_below) == pytest.approx(1 / rate, abs=1e-4)


@REWARDS
def test_regret_is_a_divergence(reward):
    """J*(β) − J_q(β) = β KL(q ‖ p*_β) for q another tilt, where every term is in closed form."""
    mixture, beta, other = uneven(), 0.8, 0.5
    frontier = Frontier(mixture, reward)
    mean, kl = frontier.at(other)
    missed = frontier.optimum(beta) - (mean - beta * kl)
    between = (other - 1 / beta) * mean - log_z(mixture, reward, other) + log_z(mixture, reward, 1 / beta)
    assert missed == pytest.approx(beta * between, abs=1e-9)
    assert frontier.optimum(beta) == pytest.approx(frontier.at(1 / beta)[0] - beta * frontier.at(1 / beta)[1], abs=1e-9)


@REWARDS
@pytest.mark.parametrize("rate", [-0.05, 0.0, 1e-3, 0.4, 5.0, 300.0])
def test_the_rate_that_earns_a_reward_is_found_again(reward, rate):
    frontier = Frontier(uneven(), reward)
    assert frontier.matched(frontier.at(rate)[0]) == pytest.approx(rate, rel=1e-6, abs=1e-7)


def test_a_reward_out_of_reach_has_an_infinite_rate():
    frontier = Frontier(grid().mixture, grid().rewards["quadratic"])
    assert frontier.matched(0.5) == math.inf
    assert Frontier(uneven(), Quadratic(-0.1 * torch.eye(3), torch.zeros(3))).matched(-1.0) == -math.inf


def test_a_tilt_that_does_not_exist_is_refused():
    """r = +½ a |x|² beats the Gaussian's tails from λ = 1 / (a s) on."""
    one, r = Mixture(torch.ones(1), torch.zeros(1, 2), 2 * torch.eye(2)[None]), Quadratic(-torch.eye(2), torch.zeros(2))
    assert rates(one, r) == pytest.approx((-math.inf, 0.5))
    assert float(tilted(one, r, 0.49).covariances[0, 0, 0]) == pytest.approx(2 / 0.02)
    with pytest.raises(ValueError, match=r"no tilted distribution at λ = 0\.5: it must lie in \(-inf, 0\.5\)"):
        tilted(one, r, 0.5)


@pytest.mark.parametrize("level", LEVELS)
def test_the_score_is_the_gradient_of_the_noised_density(level):
    noised, x = uneven().noised(level), KEY("x").normal(6, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(noised.log_prob(x).sum(), x)
    torch.testing.assert_close(noised.score(x.detach()), gradient, atol=1e-9, rtol=0)


@pytest.mark.parametrize("level", LEVELS)
def test_the_denoised_point_is_tweedies(level):
    mixture, x = uneven(), KEY("x").normal(6, 3).double()
    tweedie = (x + (1 - level) * mixture.noised(level).score(x)) / math.sqrt(level)
    found = mixture.posterior_mean(x, row(level, 6))
    torch.testing.assert_close(found, tweedie, atol=1e-9, rtol=0)


@REWARDS
@pytest.mark.parametrize("level", LEVELS)
def test_the_noised_optimum_is_the_noised_reference_times_the_exponential_of_the_value(reward, level):
    """log p*_t − log p_t = V_t − log Z, and so the optimal score is the score plus ∇V_t."""
    mixture, x, rate = uneven(), KEY("x").normal(6, 3).double().requires_grad_(), 0.9
    value = soft_value(mixture, reward, rate, x, row(level, 6))
    gap = tilted(mixture, reward, rate).noised(level).log_prob(x) - mixture.noised(level).log_prob(x)
    torch.testing.assert_close(gap, value - log_z(mixture, reward, rate), atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    x = x.detach()
    expected = mixture.noised(level).score(x) + gradient
    torch.testing.assert_close(optimal_score(mixture, reward, rate, x, level), expected, atol=1e-9, rtol=0)


def test_plugging_in_the_denoised_point_is_exact_for_one_gaussian_and_a_linear_reward():
    """V_t(x) − λ r(x0hat) does not depend on x; for a curved reward it does."""
    problem, x = toy("gaussian"), 2 * KEY("x").normal(8, 2).double()
    mixture, level = problem.mixture, row(0.4, 8)

    def gap(reward: Quadratic) -> torch.Tensor:
        return soft_value(mixture, reward, 1.0, x, level) - reward(mixture.posterior_mean(x, level))

    assert float(gap(problem.rewards["linear"]).std()) < 1e-12
    assert float(gap(toy("overlap").rewards["quadratic"]).std()) > 0.1


def test_the_reverse_kernel_is_bayes_rule():
    """p(x_s | x_t) p_t(x_t) = p_s(x_s) N(x_t; a x_s, (1 − a²) I) at points drawn anyhow."""
    mixture, t, s = uneven(), row(0.3, 6), row(0.7, 6)
    x_t, x_s = KEY("t").normal(6, 3).double(), KEY("s").normal(6, 3).double()
    a = math.sqrt(0.3 / 0.7)
    forward = torch.distributions.Normal(a * x_s, math.sqrt(1 - a**2)).log_prob(x_t).sum(-1)
    expected = mixture.noised(0.7).log_prob(x_s) + forward - mixture.noised(0.3).log_prob(x_t)
    torch.testing.assert_close(mixture.reverse(x_t, t, s).log_prob(x_s), expected, atol=1e-9, rtol=0)


def test_draws_of_the_reverse_kernel_have_its_moments():
    mixture, n = uneven(), 60_000
    x, levels = KEY("t").normal(1, 3).double().expand(n, -1), (row(v, n) for v in (0.3, 0.8))
    kernel = mixture.reverse(x, *levels)
    drawn = kernel.draw(KEY("u").uniform(n), KEY("z").normal(n, 3))
    assert drawn.mean(0).tolist() == pytest.approx(kernel.mean()[0].tolist(), abs=0.02)
    weight, mean = kernel.log_weights[0].exp(), kernel.means[0]
    second = (weight[:, None, None] * (kernel.covariances[0] + mean[:, :, None] * mean[:, None, :])).sum(0)
    torch.testing.assert_close(drawn.T @ drawn / n, second, atol=0.05, rtol=0)


def test_the_conditional_covariance_is_that_of_the_literature():
    """V_k = S − ᾱ S C⁻¹ S and μ_k = m + √ᾱ S C⁻¹ (x − √ᾱ m)."""
    mixture, level, x = uneven(), 0.4, KEY("x").normal(2, 3).double()
    posterior = mixture.reverse(x, row(level, 2), torch.ones(2).double())
    for k, (m, s) in enumerate(zip(mixture.means, mixture.covariances, strict=True)):
        inverse = (level * s + (1 - level) * torch.eye(3).double()).inverse()
        torch.testing.assert_close(posterior.covariances[0, k], s - level * s @ inverse @ s, atol=1e-12, rtol=0)
        mean = m + math.sqrt(level) * (s @ inverse @ (x - math.sqrt(level) * m).T).T
        torch.testing.assert_close(posterior.means[:, k], mean, atol=1e-12, rtol=0)


def test_a_step_to_the_same_level_changes_nothing():
    mixture, x, level = uneven(), KEY("x").normal(4, 3).double(), row(0.5, 4)
    drawn = mixture.reverse(x, level, level).draw(KEY("u").uniform(4), KEY("z").normal(4, 3))
    torch.testing.assert_close(drawn, x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("reward", ["quadratic", "quadratic_proxy"])
def test_the_embedded_problem_has_the_optimum_of_its_plane(reward):
    wide, flat = toy("grid64"), toy("grid64").flat
    assert wide.mixture.dimension == 64
    assert wide.plane is not None
    torch.testing.assert_close(wide.plane.T @ wide.plane, torch.eye(2).double(), atol=1e-12, rtol=0)
    for rate in (0.0, 0.3, 1.0, 10.0):
        ours, theirs = (Frontier(p.mixture, p.rewards[reward]).at(rate) for p in (wide, grid()))
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert Frontier(flat.mixture, flat.rewards[reward]).at(rate) == pytest.approx(theirs, abs=1e-9)
    x = wide.mixture.sample(KEY("x"), 5)
    torch.testing.assert_close(flat.rewards[reward](x @ wide.plane), wide.rewards[reward](x), atol=1e-9, rtol=0)
    rest = torch.linalg.qr(wide.plane, mode="complete")[0][:, 2:]
    torch.testing.assert_close(rest.T @ wide.mixture.covariances[0] @ rest, torch.eye(62).double(), atol=1e-9, rtol=0)
    assert float((wide.mixture.means @ rest).abs().max()) < 1e-9


def test_the_schedule_starts_where_the_mixture_is_noise():
    """V_T is constant at x_T ~ N(0, I) to within what no method could tell, so that p* is also what control aims at."""
    level = float(exact_schedule().steps(50).alpha_bar[0])
    for name in TOYS[:4]:
        problem, x = toy(name), KEY("start").normal(2000, 2).double()
        assert (
            abs(float((problem.mixture.noised(level).log_prob(x) + (x**2 / 2).sum(-1) + math.log(2 * math.pi)).mean()))
            < 2e-4
        )
        for reward in problem.rewards.values():
            value = soft_value(problem.mixture, reward, 1.0, x, row(level, 2000))
            assert float(value.std()) < 0.03


def test_problems_differ_in_their_digest():
    assert len({toy(name).sha256 for name in TOYS}) == len(TOYS)
    problem = grid()
    m = problem.mixture
    moved = ExactProblem("grid", Mixture(m.weights, m.means + 1e-6, m.covariances), problem.rewards)
    assert moved.sha256 != problem.sha256
    assert ExactProblem("grid", m, problem.rewards, beta=2.0).sha256 != problem.sha256


def test_a_digest_does_not_depend_on_rounding():
    """Another machine's linear algebra moves every number, and zeros too, by the last bits."""
    problem, q = grid(), torch.from_numpy(np.linalg.qr(KEY("rotation").normal(64, 64).double().numpy())[0])
    m = problem.mixture
    jitter = 1e-15 * KEY("jitter").normal(*m.means.shape).double()
    again = ExactProblem("grid", Mixture(m.weights, m.means + jitter, m.covariances), problem.rewards)
    assert again.sha256 == problem.sha256
    wide, turned = (problem.embedded("wide", rotation) for rotation in (q, q + 1e-15 * KEY("q").normal(64, 64)))
    assert wide.sha256 == turned.sha256 != problem.sha256


def test_a_problem_without_an_optimum_at_its_beta_is_refused():
    steep = {"quadratic": Quadratic(-torch.eye(2), torch.zeros(2))}
    with pytest.raises(ValueError, match=r"reward 'quadratic' has no optimum at β = 0\.1; choose β > 0\.3"):
        ExactProblem("steep", grid().mixture, steep, beta=0.1)
    assert ExactProblem("steep", grid().mixture, steep, beta=0.5).sha256


@pytest.mark.parametrize("n", [3, 30, 50, 501, 600, 1000])
def test_the_steps_of_the_exact_model_are_chained(n):
    steps = exact_schedule().steps(n)
    assert torch.equal(steps.alpha_bar[1:], steps.next_alpha_bar[:-1])
    assert int(steps.t[0]) == 999


def test_prompts_of_two_problems_are_refused():
    prompts = [
        *plugins.load("benchmarks", "grid")().prompts("test")[:2],
        *plugins.load("benchmarks", "ring")().prompts("test"),
    ]
    with pytest.raises(InputError, match=r"several exact problems \(grid, ring\); use those of one"):
        problem_of(prompts)


def test_the_proxy_of_a_reward_costs_true_reward():
    """At its own optimum every proxy earns less of what it stands for than the true optimum does, at β = 1."""
    for name, reward in PAIRS:
        problem = toy(name)
        truth = reward.removesuffix("_proxy")
        if truth != reward:
            deceived = moments(tilted(problem.mixture, problem.rewards[reward], 1.0), problem.rewards[truth])[0]
            assert deceived < Frontier(problem.mixture, problem.rewards[truth]).at(1.0)[0] - 0.05


@pytest.fixture
def pairs(mixture) -> MixturePairs:
    problem = grid()
    prompts = [Prompt(f"p{i}", f"point {i}") for i in range(7)]
    return MixturePairs(problem.mixture, problem.rewards["quadratic"], mixture, prompts, KEY("pairs"), 3000)


def test_pairs_are_draws_of_the_reference_labelled_by_bradley_terry(pairs):
    batch = pairs.batch(range(3000))
    assert batch.label.tolist() == [1.0] * 3000
    both = torch.cat([batch.winner, batch.loser]).double()
    assert both.mean(0).tolist() == pytest.approx([0, 0], abs=0.15)
    margin = pairs.reward(batch.winner) - pairs.reward(batch.loser)
    # Among pairs whose rewards differ by δ, the better one should win with probability σ(δ).
    for low, high in ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0)):
        near = (margin.abs() > low) & (margin.abs() <= high)
        expected = float(margin.abs()[near].sigmoid().mean())
        assert float((margin[near] > 0).double().mean()) == pytest.approx(
            expected, abs=3.5 * 0.5 / int(near.sum()) ** 0.5
        )


def test_a_pair_depends_on_its_number_alone(pairs):
    together, alone = pairs.batch([5, 2999, 0]), pairs.batch([2999])
    assert torch.equal(together.winner[1:2], alone.winner)
    assert torch.equal(together.loser[1:2], alone.loser)
    assert not torch.equal(together.winner[0], together.winner[2])
    assert len(together.condition) == 3
    with pytest.raises(IndexError, match=r"pair 3000 is outside of \[0, 3000\)"):
        pairs.batch([3000])


def test_a_reward_is_declared_by_the_name_that_problems_hold_it_under():
    @dataclass(frozen=True)
    class Own(ExactReward):
        name = "quadratic"

    prompts, x = TOY.prompts("test")[:2], torch.tensor([[2.0, -1.0], [10.0, 0.0]])
    assert isinstance(Own(), Reward)
    assert Own()(x, prompts).tolist() == pytest.approx([-(2**2) / 100 - 1, -1])  # r = −x²/100 − y²
    assert Own().info() == plugins.load("rewards", "quadratic")().info()
    assert Own().unsupported(prompts, (2,)) is None
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Own().with_grad(x, prompts).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[-0.04, 2.0], [-0.2, 0.0]]))
    assert not Own()(x, prompts).requires_grad
