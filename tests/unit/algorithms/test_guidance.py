"""Classifier guidance and universal guidance: what they leave alone, what they equal, and where they are exact."""

from __future__ import annotations

import importlib

import pytest
import torch
from closed_form import Bowl, Constant, NoGradient, Slope

from alignbench import Key, Prompt, Sampling
from alignbench.diffusion.lookahead import clipped_gradient, shift_per_gradient, slope
from alignbench.diffusion.rollout import PipelineSampler, step_noise
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.transition import ddim, std_of
from alignbench.meter import Meter
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.pipeline import MixturePipeline

classifier = importlib.import_module("alignbench.algorithms.classifier_guidance")
universal = importlib.import_module("alignbench.algorithms.universal_guidance")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(16)]
KEYS = [Key("guidance", i) for i in range(16)]
CG, UG = classifier.ClassifierGuidance, universal.UniversalGuidance
ONCE = {"recurrence": 1, "backward_steps": 0}


def images(algorithm, problem, prompts=PROMPTS, keys=KEYS):
    return algorithm.align(problem)(prompts, keys).images


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "algorithm",
    [
        CG(scale=0.0),
        CG(scale=0.0, rule="variance", jacobian="frozen"),
        UG(forward=0.0, **ONCE),
        UG(forward=0.0, backward=0.0, recurrence=1),
    ],
    ids=str,
)
def test_scale_zero_is_the_unguided_chain_to_the_bit(algorithm, eta, make_problem, mixture):
    problem = make_problem(Bowl(), sampling=Sampling(8, 1.0, eta))
    plain = PipelineSampler(mixture, problem.sampling)(PROMPTS, KEYS).images
    assert torch.equal(images(algorithm, problem), plain)


@pytest.mark.parametrize(
    "algorithm", [CG(), CG(jacobian="frozen"), UG(recurrence=1), UG(recurrence=1, smoothing=0.2)], ids=str
)
def test_a_constant_reward_leaves_the_chain_as_it_is(algorithm, make_problem, mixture):
    problem = make_problem(Constant(offset=3.0))
    assert torch.equal(images(algorithm, problem), PipelineSampler(mixture, problem.sampling)(PROMPTS, KEYS).images)


@pytest.mark.parametrize("algorithm", [CG, UG])
def test_adding_a_constant_changes_nothing_and_beta_is_in_units_of_the_reward(algorithm, make_problem):
    plain = images(algorithm(beta=2.0), make_problem(Bowl()))
    assert torch.equal(images(algorithm(beta=2.0), make_problem(Bowl(offset=7.0))), plain)
    torch.testing.assert_close(images(algorithm(beta=8.0), make_problem(Bowl(scale=4.0))), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_score_rule_is_ddim_of_a_shifted_noise_estimate(eta, mixture):
    x, condition = Key("x").normal(16, 2), mixture.condition(PROMPTS)
    step = mixture.timesteps(8)[3]
    here = slope(mixture, x, int(step.t), condition, 1.0, lambda x0: Bowl()(x0, PROMPTS))
    t, s, sigma = float(step.alpha_bar), float(step.next_alpha_bar), float(std_of(step, eta))
    eps = here.prediction.eps - (1 - t) ** 0.5 * here.gradient
    x0 = (x - (1 - t) ** 0.5 * eps) / t**0.5
    by_hand = s**0.5 * x0 + (1 - s - sigma**2) ** 0.5 * eps
    shift = float(shift_per_gradient(step, eta, "score"))
    torch.testing.assert_close(
        ddim(here.prediction, step, eta).mean + shift * here.gradient, by_hand, atol=1e-5, rtol=0
    )
    assert float(shift_per_gradient(step, eta, "variance")) == pytest.approx(sigma**2)


def test_the_two_rules_agree_as_steps_become_short(mixture):
    gaps = []
    for n in (10, 100, 500):
        step = mixture.timesteps(n)[n // 2]
        score, variance = (float(shift_per_gradient(step, 1.0, rule)) for rule in ("score", "variance"))
        gaps.append(abs(score / variance - 1))
    assert gaps[0] > 10 * gaps[2]
    assert gaps[2] < 0.05


def test_the_full_gradient_is_that_of_finite_differences_and_the_frozen_one_is_over_the_root_of_alpha_bar(mixture):
    x, condition = Key("x").normal(16, 2).double(), mixture.condition(PROMPTS)

    def reward(x0):
        return Bowl()(x0, PROMPTS)

    full = slope(mixture, x, 400, condition, 1.0, reward)
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = 1e-5
        up, down = (reward(mixture.predict(x + sign * step, 400, condition).x0) for sign in (1, -1))
        torch.testing.assert_close(full.gradient[:, j], (up - down) / 2e-5, atol=1e-5, rtol=1e-4)
    frozen = slope(mixture, x, 400, condition, 1.0, reward, "frozen")
    x0 = full.prediction.x0
    expected = -2 * x0 * torch.tensor([0.01, 1.0]) / float(mixture.schedule.alpha_bar[400]) ** 0.5
    torch.testing.assert_close(frozen.gradient, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(frozen.values, full.values)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["score", pytest.param("variance", marks=pytest.mark.slow)])
def test_guidance_is_exact_for_one_gaussian_and_a_linear_reward(rule, make_problem):
    """The tilted Gaussian has its mean moved by S h / β and the covariance it had."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    levels = Schedule.scaled_linear()
    gaussian = MixturePipeline(
        Mixture(torch.ones(1), torch.tensor([[1.0, -1.0]]), covariance[None]),
        Schedule(levels, float(levels[0]), steps_offset=1),
        Meter(),
    )
    problem = make_problem(Slope(), pipeline=gaussian, sampling=Sampling(200, 1.0, 1.0))
    prompts = [Prompt(str(i), "point") for i in range(1500)]
    points = images(CG(beta=0.5, rule=rule), problem, prompts, [Key("exact", i) for i in range(1500)])
    expected = torch.tensor([1.0, -1.0]) + covariance[0] / 0.5
    torch.testing.assert_close(points.mean(0), expected, atol=0.08, rtol=0)
    torch.testing.assert_close(points.T.cov(), covariance, atol=0.06, rtol=0)


def test_guidance_outside_the_window_is_none_and_all_of_it_is_the_default(make_problem, mixture):
    problem = make_problem(Bowl())
    whole = images(CG(), problem)
    assert torch.equal(images(CG(window_start=0.0, window_end=1.0), problem), whole)
    before = mixture.meter.total
    half = images(CG(window_start=0.5), problem)
    assert (mixture.meter.total - before).reward_forward == 16 * 4
    assert not torch.equal(half, whole)
    with pytest.raises(ValueError, match="the window must lie in"):
        CG(window_start=0.8, window_end=0.2)


def test_a_gradient_is_cut_to_its_longest_row_by_row():
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped_gradient(gradient, 1.0), expected)
    assert clipped_gradient(gradient, None) is gradient


def test_universal_guidance_forwards_alone_is_classifier_guidance(make_problem):
    problem = make_problem(Bowl())
    assert torch.equal(images(UG(forward=1.0, **ONCE), problem), images(CG(), problem))


def test_backward_guidance_alone_that_keeps_the_noise_is_mpgd(make_problem, mixture):
    """x̂_0 moves along the reward's gradient, then a DDIM step with the noise estimate as it was (He et al. 2023)."""
    sampling = Sampling(8, 1.0, 0.6)
    problem = make_problem(Bowl(), sampling=sampling)
    algorithm = UG(forward=0.0, backward=0.7, backward_steps=1, keep_noise=True, recurrence=1, beta=2.0)
    x, steps, condition = mixture.initial_noise(KEYS), mixture.timesteps(8), mixture.condition(PROMPTS)
    for i in range(8):
        prediction = mixture.predict(x, int(steps[i].t), condition)
        t, s, sigma = float(steps[i].alpha_bar), float(steps[i].next_alpha_bar), float(std_of(steps[i], 0.6))
        gradient = -2 * prediction.x0 * torch.tensor([0.01, 1.0]) / 2.0
        x0 = prediction.x0 + 0.7 * (1 - t) * gradient
        x = s**0.5 * x0 + (1 - s - sigma**2) ** 0.5 * prediction.eps + sigma * step_noise(KEYS, i, x)
    torch.testing.assert_close(images(algorithm, problem), x, atol=1e-5, rtol=0)


def test_backward_guidance_whose_noise_follows_is_ddim_of_the_moved_estimate(mixture):
    step, x = mixture.timesteps(8)[2], Key("x").normal(16, 2)
    prediction = mixture.predict(x, int(step.t), mixture.condition(PROMPTS))
    moved = Key("moved").normal(16, 2)
    t, s, sigma = float(step.alpha_bar), float(step.next_alpha_bar), float(std_of(step, 1.0))
    x0 = prediction.x0 + moved
    by_hand = s**0.5 * x0 + (1 - s - sigma**2) ** 0.5 * (x - t**0.5 * x0) / (1 - t) ** 0.5
    shift = float(universal.shift_per_estimate(step, 1.0, False))
    torch.testing.assert_close(ddim(prediction, step, 1.0).mean + shift * moved, by_hand, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_recurrence_with_a_constant_reward_keeps_the_distribution(make_problem, mixture):
    sampling = Sampling(50, 1.0, 1.0)
    prompts, keys = [Prompt(str(i), "point") for i in range(1000)], [Key("again", i) for i in range(1000)]
    again = images(UG(recurrence=3), make_problem(Constant(), sampling=sampling), prompts, keys)
    plain = PipelineSampler(mixture, sampling)(prompts, keys).images
    assert not torch.equal(again, plain)
    torch.testing.assert_close(again.square().mean(0), plain.square().mean(0), atol=1.0, rtol=0)
    torch.testing.assert_close(again.mean(0), plain.mean(0), atol=0.4, rtol=0)


def test_smoothing_follows_the_mean_of_the_tilt_around_the_estimate(make_problem, mixture):
    step, keys = mixture.timesteps(8)[4], [Key("s", i) for i in range(16)]
    algorithm = UG(smoothing=0.5, smoothing_samples=3, beta=2.0)
    tilt = algorithm.log_tilt(make_problem(Bowl()), PROMPTS, step, keys)
    x0 = Key("x0").normal(16, 2).requires_grad_()
    deviation = 0.5 * float(1 - step.alpha_bar) ** 0.5
    near = torch.stack([x0 + deviation * torch.stack([key(j).normal(2) for key in keys]) for j in range(3)])
    expected = torch.stack([Bowl()(part, PROMPTS).div(2).exp() for part in near]).mean(0).log()
    torch.testing.assert_close(tilt(x0), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("algorithm", [CG(), UG()], ids=["classifier", "universal"])
def test_a_reward_without_a_gradient_is_refused_with_the_way_out(algorithm, make_problem):
    reason = algorithm.unsupported(make_problem(NoGradient()))
    assert reason.endswith(
        "has none; choose a differentiable --reward, or an algorithm that needs no gradient, such as ddpo or steering."
    )
    still = make_problem(Bowl(), sampling=Sampling(8, 1.0, 0.0))
    assert (CG(rule="variance").unsupported(still) or "").endswith('set eta=1 or rule="score".')
    exact = make_problem(Bowl(), sampling=Sampling(8, 1.0, 0.0, kernel="exact"))
    assert "leave --kernel out" in algorithm.unsupported(exact)
