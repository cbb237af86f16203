"""Demon and noise search: how noises are mixed and tried, the flow they value candidates by, and what both keep."""

from __future__ import annotations

import importlib

import pytest
import torch
from closed_form import Bowl, Constant, NoGradient

from alignbench import Key, Prompt, Sampling
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.diffusion.variance_exploding import ProbabilityFlow, spread_levels

demon = importlib.import_module("alignbench.algorithms.demon")
search = importlib.import_module("alignbench.algorithms.noise_search")
best_of_n = importlib.import_module("alignbench.algorithms.best_of_n")
Demon, NoiseSearch = demon.Demon, search.NoiseSearch
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
KEYS = [Key("demon", i) for i in range(8)]
SHORT = Sampling(10, 1.0, 1.0)


def flow(mixture, n, stochasticity=0.1):
    return ProbabilityFlow(mixture, mixture.timesteps(n), 1.0, stochasticity)


def many(n, name="many"):
    return [Prompt(str(i), "point") for i in range(n)], [Key(name, i) for i in range(n)]


def test_heuns_method_is_of_second_order_in_the_step(mixture):
    """From pure noise two fifths of the way, in 5, 10 and 20 steps, against 200."""
    whole, condition = flow(mixture, 500), mixture.condition(PROMPTS)
    x = Key("x").normal(8, 2).double() * whole.sigma[0]
    ends = {n: whole.ode(x, range(0, 201, 200 // n), condition) for n in (5, 10, 20, 200)}
    errors = [float((ends[n] - ends[200]).abs().mean()) for n in (5, 10, 20)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("stochasticity", [None, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.1, 0.5))])
def test_the_sde_has_the_marginals_of_the_flow(stochasticity, mixture):
    prompts, keys = many(4000)
    path, condition = flow(mixture, 50, stochasticity), mixture.condition(prompts)
    start = mixture.initial_noise(keys) / path.alpha_bar[0] ** 0.5
    x = start
    for i in range(50):
        x = path.sde(x, path.noise(x, i, condition), Key("n", i).normal(4000, 2), i, condition)
    ode = path.ode(start, range(51), condition)
    torch.testing.assert_close(x.square().mean(0), ode.square().mean(0), atol=0.8, rtol=0)
    torch.testing.assert_close(x.abs().mean(0), ode.abs().mean(0), atol=0.25, rtol=0)


def test_weights_by_hand_and_ones_where_there_is_nothing_to_choose():
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    tanh = demon.weights_of(values, "tanh", 1.0)
    torch.testing.assert_close(tanh, torch.tensor([[-0.7616, 0.0, 0.7616], [1.0, 1.0, 1.0]]), atol=1e-4, rtol=0)
    soft = demon.weights_of(values, "boltzmann", 1.0)
    torch.testing.assert_close(soft[0], values[0].softmax(0))
    assert soft[1].tolist() == [1, 1, 1]
    assert demon.weights_of(torch.tensor([[4.0]]), "tanh", None).tolist() == [[1.0]]
    adaptive = demon.weights_of(values[:1], "boltzmann", None)
    torch.testing.assert_close(demon.weights_of(7 * values[:1] - 3, "boltzmann", None), adaptive)
    torch.testing.assert_close(demon.weights_of(-values[:1], "tanh", None), -demon.weights_of(values[:1], "tanh", None))
    assert demon.weights_of(values[:1], "boltzmann", 1e-3)[0].tolist() == [0, 0, 1]


def test_a_mixed_noise_lies_on_the_shell_or_is_standard_normal():
    noise = torch.cat([Key("z", i).normal(4, 64) for i in range(500)])
    weights = torch.tensor([[0.1, -0.4, 0.9, 0.2]]).expand(500, 4)
    shell, free = (demon.mixed(noise, weights, shell) for shell in (True, False))
    torch.testing.assert_close(shell.norm(dim=1), torch.full((500,), 8.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(shell / shell.norm(dim=1, keepdim=True), free / free.norm(dim=1, keepdim=True))
    assert abs(float(free.mean())) < 0.02
    assert float(free.var()) == pytest.approx(1, abs=0.03)
    antisymmetric = demon.mixed(noise, -weights, True)
    torch.testing.assert_close(antisymmetric, -shell)


@pytest.mark.parametrize("fields", [{"candidates": 1}, {"candidates": 3}], ids=str)
def test_without_a_preference_demon_is_the_plain_sde(fields, make_problem, mixture):
    prompts, keys = many(1500)
    problem = make_problem(Constant(), sampling=SHORT)
    algorithm = Demon(shell=False, steps=20, value_steps=1, stochasticity=0.5, **fields)
    found = algorithm.align(problem)(prompts, keys).images
    plain = PipelineSampler(mixture, Sampling(100, 1.0, 0.0))(prompts, keys).images
    torch.testing.assert_close(found.square().mean(0), plain.square().mean(0), atol=1.5, rtol=0)
    torch.testing.assert_close(found.mean(0), plain.mean(0), atol=0.4, rtol=0)


@pytest.mark.parametrize("rule", ["tanh", "boltzmann"])
def test_demon_raises_a_reward_that_has_no_gradient(rule, make_problem, mixture):
    prompts, keys = many(64)
    problem = make_problem(NoGradient(), sampling=SHORT)
    algorithm = Demon(candidates=8, rule=rule, shell=False, steps=20, value_steps=4, stochasticity=0.5)
    assert algorithm.unsupported(problem) is None
    before = Bowl()(PipelineSampler(mixture, SHORT)(prompts, keys).images, prompts).mean()
    assert Bowl()(algorithm.align(problem)(prompts, keys).images, prompts).mean() > before + 3


def test_levels_are_spread_evenly_and_end_where_they_should():
    assert spread_levels(3, 13, 5) == [3, 5, 7, 9, 11, 13]
    assert spread_levels(3, 5, 9) == [3, 4, 5]
    assert spread_levels(9, 10, 1) == [9, 10]


def test_random_search_is_best_of_n_and_searching_longer_never_loses(make_problem):
    problem = make_problem(Bowl(), sampling=SHORT)
    found = NoiseSearch(strategy="random", iterations=2, neighbours=3).align(problem)(PROMPTS, KEYS).images
    seven = best_of_n.BestOfN(n=7).align(problem)(PROMPTS, KEYS).images
    assert torch.equal(found, seven)
    for strategy in ("random", "zero_order"):
        rewards = [
            Bowl()(NoiseSearch(strategy=strategy, iterations=k).align(problem)(PROMPTS, KEYS).images, PROMPTS)
            for k in (0, 1, 3)
        ]
        assert (rewards[0] <= rewards[1]).all()
        assert (rewards[1] <= rewards[2]).all()
        assert rewards[2].mean() > rewards[0].mean()


def test_no_iterations_are_plain_sampling(make_problem, mixture):
    problem = make_problem(Bowl(), sampling=SHORT)
    plain = PipelineSampler(mixture, SHORT)(PROMPTS, KEYS).images
    assert torch.equal(NoiseSearch(iterations=0).align(problem)(PROMPTS, KEYS).images, plain)


def test_a_neighbour_keeps_the_norm_and_the_angle():
    pivot, fresh = Key("pivot").normal(5, 3, 4, 2), Key("fresh").normal(5, 3, 4, 2)
    near = search.neighbour(pivot, fresh, 0.95)
    a, b = pivot.flatten(1), near.flatten(1)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))
    torch.testing.assert_close((a * b).sum(1) / a.norm(dim=1) ** 2, torch.full((5,), 0.95), atol=1e-6, rtol=0)
