"""Steering and SVDD: weights in logarithms, resampling, unbiasedness, and the defects of the reference code."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from closed_form import Bowl, Constant

from alignbench import Key, Prompt, Sampling
from alignbench.diffusion.particles import categorical, effective_size, particle_keys, systematic
from alignbench.diffusion.rollout import PipelineSampler, transition

steering = importlib.import_module("alignbench.algorithms.steering")
svdd = importlib.import_module("alignbench.algorithms.svdd")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(6)]
KEYS = [Key("steering", i) for i in range(6)]
SHORT = Sampling(10, 1.0, 1.0)
Steering, SVDD, Weights = steering.Steering, svdd.SVDD, steering.Weights


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_a_constant_reward_leaves_every_particle_a_plain_sample(potential, make_problem, mixture):
    problem = make_problem(Constant(offset=5.0), sampling=SHORT)
    cloud = Steering(n=4, potential=potential, interval=2).steer(problem, PROMPTS, KEYS)
    plain = PipelineSampler(mixture, SHORT)([p for p in PROMPTS for _ in range(4)], particle_keys(KEYS, 4))
    assert torch.equal(cloud.images, plain.images)
    assert (cloud.log_weights == cloud.log_weights[0, 0]).all()
    torch.testing.assert_close(cloud.log_evidence, torch.full((6,), 50.0), atol=1e-3, rtol=1e-5)


def test_one_particle_is_plain_sampling(make_problem, mixture):
    problem = make_problem(Bowl(), sampling=SHORT)
    plain = PipelineSampler(mixture, SHORT)(PROMPTS, KEYS).images
    assert torch.equal(Steering(n=1, interval=2).align(problem)(PROMPTS, KEYS).images, plain)
    assert torch.equal(SVDD(candidates=1).align(problem)(PROMPTS, KEYS).images, plain)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_without_resampling_the_weights_are_the_final_rewards_over_beta(potential, make_problem):
    problem = make_problem(Bowl(), sampling=SHORT)
    cloud = Steering(n=4, potential=potential, interval=2, beta=0.5, resample_below=0.0).steer(problem, PROMPTS, KEYS)
    torch.testing.assert_close(cloud.log_weights, cloud.rewards / 0.5, atol=1e-3, rtol=1e-4)


def evidence(make_problem, weights=None, populations=3000, **fields):
    """The mean and standard error of exp(log Ẑ) over populations of four, at λ = 0.1."""
    problem = make_problem(Bowl(), sampling=SHORT)
    prompts = [Prompt(str(i), "point") for i in range(populations)]
    keys = [Key("evidence", i) for i in range(populations)]
    estimate = Steering(n=4, beta=10.0, interval=2, **fields).steer(problem, prompts, keys).log_evidence.exp()
    return float(estimate.mean()), float(estimate.std()) / math.sqrt(populations)


@pytest.fixture
def normaliser(mixture):
    """E exp(r/10) under the same ten-step chain, from independent samples."""
    n, steps = 40000, mixture.timesteps(SHORT.steps)
    condition, x = mixture.condition([Prompt("p", "point")] * n), Key("normaliser").normal(n, 2)
    for i in range(SHORT.steps):
        x = transition(mixture, x, steps[i], condition, SHORT).sample(Key("noise", i).normal(n, 2))
    return float((Bowl()(x, []) / 10).exp().mean())


@pytest.mark.parametrize(
    "fields",
    [
        {"potential": "difference", "resample_below": 0.9},
        pytest.param({"potential": "difference", "resample_below": 2.0}, marks=pytest.mark.slow),
        pytest.param({"potential": "max", "resample_below": 2.0}, marks=pytest.mark.slow),
        pytest.param({"potential": "sum", "resample_below": 0.9}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_estimated_evidence_is_unbiased(fields, make_problem, normaliser):
    mean, error = evidence(make_problem, **fields)
    assert abs(mean - normaliser) < 4 * error + 0.01 * normaliser


@pytest.mark.slow
def test_both_defects_of_the_reference_code_are_caught(make_problem, normaliser, monkeypatch):
    """Weights dropped where nothing is resampled (Feynman-Kac's code), and a past that resampling leaves in place."""
    resampled = Weights.resampled

    def dropped(self, below, uniform):
        weights, ancestors = resampled(self, below, uniform)
        return weights._replace(log_weights=torch.zeros_like(weights.log_weights)), ancestors

    def left(self, below, uniform):
        weights, ancestors = resampled(self, below, uniform)
        return weights._replace(log_past=self.log_past, last=self.last), ancestors

    for defect, below in ((dropped, 0.9), (left, 2.0)):
        monkeypatch.setattr(Weights, "resampled", defect)
        mean, error = evidence(make_problem, potential="difference", resample_below=below)
        assert abs(mean - normaliser) > 8 * error + 0.1 * normaliser


def test_resampling_permutes_all_that_is_known_of_a_particle_alike():
    ids = torch.arange(8.0).reshape(2, 4)
    log_weights = torch.tensor([[0.0, 5.0, 1.0, 2.0], [0.0, 0.1, 0.0, 0.1]])
    held = Weights(log_weights, ids, ids + 10, ids + 20, ids + 30, torch.zeros(2))
    new, ancestors = held.resampled(0.9, torch.tensor([0.3, 0.3]))
    assert ancestors[1].tolist() == [0, 1, 2, 3]  # its effective size is almost four: nothing happens
    torch.testing.assert_close(new.log_weights[1], log_weights[1])
    assert new.log_weights[0].eq(0).all()
    assert new.log_evidence[1] == 0
    for offset, value in ((0, new.log_past), (10, new.last), (20, new.highest), (30, new.total)):
        torch.testing.assert_close(value - offset, ids.gather(1, ancestors))


def test_potentials_by_hand():
    even = Weights.even(1, 2)
    one = even.times("difference", torch.tensor([[1.0, 3.0]])).times("difference", torch.tensor([[4.0, 2.0]]))
    assert one.log_weights.tolist() == [[4.0, 2.0]]
    top = even.times("max", torch.tensor([[1.0, 3.0]])).times("max", torch.tensor([[4.0, 2.0]]))
    assert top.log_weights.tolist() == [[5.0, 6.0]]
    added = even.times("sum", torch.tensor([[1.0, 3.0]])).times("sum", torch.tensor([[4.0, 2.0]]))
    assert added.log_weights.tolist() == [[6.0, 8.0]]
    for weights in (one, top, added):
        assert weights.final(torch.tensor([[0.5, 0.25]])).tolist() == [[0.5, 0.25]]


def test_systematic_resampling_is_unbiased_and_off_by_less_than_one():
    log_weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    uniform = torch.linspace(0, 1, 2001)[:-1]
    counts = torch.stack([torch.bincount(systematic(log_weights, u[None])[0], minlength=4) for u in uniform]).float()
    assert (counts.sum(1) == 4).all()
    assert ((counts - 4 * log_weights.exp()).abs() < 1).all()
    torch.testing.assert_close(counts.mean(0), 4 * log_weights.exp()[0], atol=0.01, rtol=0)
    one_hot = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert systematic(one_hot, torch.tensor([0.7])).tolist() == [[1, 1, 1]]
    assert systematic(torch.zeros(1, 5) - 900, torch.tensor([0.5])).tolist() == [[0, 1, 2, 3, 4]]


def test_the_effective_size_counts_equal_weights_whatever_their_size():
    log_weights = torch.tensor([[700.0, 700.0, 700.0], [0.0, -2000.0, -2000.0]])
    torch.testing.assert_close(effective_size(log_weights), torch.tensor([3.0, 1.0]), atol=1e-3, rtol=0)
    drawn = categorical(torch.tensor([[0.25, 0.75]]).log().expand(4, 2), torch.tensor([0.0, 0.24, 0.26, 0.99]))
    assert drawn.tolist() == [0, 0, 1, 1]


def test_steering_without_a_check_within_its_steps_is_refused_as_best_of_n(make_problem):
    reason = Steering(n=4, interval=9).unsupported(make_problem(Bowl(), sampling=SHORT))
    assert reason == (
        "interval=9 leaves no check within 10 steps, and without one this is best_of_n; set it to less than 9."
    )
    assert Steering(n=4, interval=8).unsupported(make_problem(Bowl(), sampling=SHORT)) is None
    two = Steering(n=4, interval=1).unsupported(make_problem(Bowl(), sampling=replace(SHORT, steps=2)))
    assert two == (
        "interval=1 leaves no check within 2 steps, and without one this is best_of_n; sample in at least 3 steps."
    )
    assert Steering(n=4, interval=1).unsupported(make_problem(Bowl(), sampling=replace(SHORT, steps=3))) is None
    assert Steering(n=1).unsupported(make_problem(Bowl(), sampling=SHORT)) is None


def test_prompts_do_not_mix_and_shifting_or_scaling_the_reward_is_of_no_account(make_problem):
    algorithm = Steering(n=4, interval=2, beta=0.5, potential="difference", select="sample")
    problem = make_problem(Bowl(), sampling=SHORT)
    together = algorithm.align(problem)(PROMPTS, KEYS).images
    alone = torch.cat([algorithm.align(problem)(PROMPTS[i : i + 1], KEYS[i : i + 1]).images for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    shifted = algorithm.align(make_problem(Bowl(offset=3.0), sampling=SHORT))(PROMPTS, KEYS).images
    torch.testing.assert_close(together, shifted, atol=1e-5, rtol=0)
    quadruple = Steering(n=4, interval=2, beta=2.0, potential="difference", select="sample")
    scaled = quadruple.align(make_problem(Bowl(scale=4.0), sampling=SHORT))(PROMPTS, KEYS).images
    torch.testing.assert_close(together, scaled, atol=1e-5, rtol=0)


def test_a_small_alpha_is_the_best_candidate_and_a_large_one_any(make_problem):
    problem = make_problem(Bowl(), sampling=SHORT)
    best = SVDD(candidates=4, choose="argmax").align(problem)(PROMPTS, KEYS).images
    assert torch.equal(SVDD(candidates=4, alpha=1e-6).align(problem)(PROMPTS, KEYS).images, best)
    keys = [Key("many", i) for i in range(400)]
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(400, 4)
    counts = torch.bincount(SVDD(candidates=4, alpha=1e6).chosen(values, keys), minlength=4)
    assert (counts > 70).all()


def test_more_particles_earn_more(make_problem):
    problem = make_problem(Bowl(), sampling=SHORT)
    prompts, keys = [Prompt(str(i), "p") for i in range(200)], [Key("more", i) for i in range(200)]
    for method in (
        lambda n: Steering(n=n, interval=2, select="sample", beta=1.0),
        lambda n: SVDD(candidates=n, choose="argmax"),
    ):
        earned = [float(Bowl()(method(n).align(problem)(prompts, keys).images, prompts).mean()) for n in (1, 2, 8)]
        assert earned[0] < earned[1] < earned[2]
