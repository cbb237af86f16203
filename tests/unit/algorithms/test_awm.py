"""Advantage Weighted Matching: its score by hand, its gradient, its levels, and what an update is compared with."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from alignbench import Key, LoRA, Prompt, Prompts, flow_sigma
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.interface import Sampling
from alignbench.meter import Meter
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid

awm = importlib.import_module("alignbench.algorithms.awm")
KEY = Key("test", "awm")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(6)]
SAMPLING = Sampling(8, 1.0)


@pytest.fixture
def pipelines(mixture):
    return {"diffusion": mixture, "flow": MixturePipeline(grid().mixture, FlowSchedule(shift=3.0), Meter())}


def algorithm(**changes):
    return awm.AWM(**{"samples_per_round": 8, "samples_per_prompt": 4, "steps": 8, "levels": 3, "batch": 8, **changes})


def moved(policy, scale=0.02, name="moved"):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * KEY(name, i).normal(*parameter.shape))
    return policy


def data(advantages):
    points = 3 * KEY("points").normal(6, 2)
    return [awm.Advantaged(*row) for row in zip(points, PROMPTS, advantages, strict=True)]


ADVANTAGES = [1.0, -0.5, 0.2, 0.0, -1.0, 0.3]


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


class FirstCoordinate:
    differentiable = False

    def __call__(self, images, prompts):
        return images[:, 0]


@pytest.mark.parametrize(
    ("weighting", "power", "m", "sigma", "expected"),
    [
        ("ghuber", 0.25, 1.0, 0.5, -0.5 / 0.25 * (1 - 10**-2.5)),
        ("ghuber", 0.25, 0.0, 0.5, 0.0),
        ("ghuber", 0.25, 0.0625, 1.0, -4 * (0.5 - 10**-2.5)),
        ("ghuber", 0.5, 4.0, 0.25, -0.25 / 0.5 * (2 - 1e-5)),  # twice the authors' Huber loss
        ("sigma", 0.25, 3.0, 0.5, -1.5),
        ("uniform", 0.25, 3.0, 0.5, -3.0),
    ],
)
def test_the_score_by_hand(weighting, power, m, sigma, expected):
    found = awm.weighted(torch.tensor([m]).double(), torch.tensor([sigma]), weighting, power)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_an_error_of_nothing_has_a_finite_gradient():
    m = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    awm.weighted(m, torch.ones(1), "ghuber", 0.25).sum().backward()
    assert torch.isfinite(m.grad).all()


def test_the_mean_squared_difference_by_hand():
    assert awm.error(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0]])).item() == 5.0


def test_levels_are_one_of_each_part_without_the_first_and_the_last_tenth():
    """14 steps: parts 1, 2-3, 4-5, 6-7, 8-9 and 10-11, as the authors' bounds have them."""
    own = awm.AWM()
    drawn = [own.draw_levels(KEY("levels", i), 14) for i in range(200)]
    parts = [{1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}]
    assert {number for numbers in drawn for number in numbers} == set(range(1, 12))
    for numbers in drawn:
        assert all(number in part for number, part in zip(sorted(numbers), parts, strict=True))
    assert len({tuple(numbers) for numbers in drawn}) > 100  # in an order of their own


def test_more_levels_than_steps_repeat_some():
    assert sorted(algorithm(levels=4, first=0, share=1.0).draw_levels(KEY, 2)) == [0, 0, 1, 1]


@pytest.mark.parametrize("model", ["diffusion", "flow"])
def test_a_term_is_the_noised_image_and_its_velocity(pipelines, model):
    """x_0 is what is left of x_σ without σ v, so that nothing but clean latents and noise stands in it."""
    policy = pipelines[model].adapt(LoRA(), KEY("adapter"))
    own = algorithm()
    terms = list(own.terms(policy, data(ADVANTAGES), SAMPLING, KEY, range(6)))
    assert len(terms) == 3
    x0 = torch.stack([row.latent for row in data(ADVANTAGES)])
    for term in terms:
        level = policy.schedule.predict(term.x, term.x, term.t).alpha_bar
        alpha, sigma = level.sqrt().float()[:, None], (1 - level).sqrt().float()[:, None]
        torch.testing.assert_close((term.x - sigma * term.velocity) / (alpha + sigma), x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(term.sigma, flow_sigma(level))
        assert term.advantage.tolist() == pytest.approx(ADVANTAGES)


@pytest.mark.parametrize("model", ["diffusion", "flow"])
def test_at_the_old_policy_the_gradient_is_the_advantage_times_the_scores(pipelines, model):
    policy = moved(pipelines[model].adapt(LoRA(), KEY("adapter")))
    average = moved(pipelines[model].adapt(LoRA(), KEY("adapter")), name="average")
    own, seen = algorithm(beta=0.2, ema_beta=0.7), []
    terms = list(own.terms(policy, data(ADVANTAGES), SAMPLING, KEY, range(6)))
    found = gradient(policy, own.losses(policy, average, terms, None, seen))
    by_hand = [
        -term.advantage * own.score(term.under(policy), term)
        + 0.2 * awm.error(term.under(policy), term.under(policy.reference).detach())
        + 0.7 * awm.error(term.under(policy), term.under(average).detach())
        for term in terms
    ]
    torch.testing.assert_close(found, gradient(policy, by_hand), rtol=1e-4, atol=1e-5)
    assert all((each.log_ratio == 0).all() for each in seen)


def test_with_all_advantages_equal_to_one_and_a_uniform_weight_it_is_flow_matching(pipelines):
    policy = moved(pipelines["flow"].adapt(LoRA(), KEY("adapter")))
    own = algorithm(weighting="uniform", beta=0.0, ema_beta=0.0)
    terms = list(own.terms(policy, data([1.0] * 6), SAMPLING, KEY, range(6)))
    matching = [awm.error(term.under(policy), term.velocity) for term in terms]
    found = gradient(policy, own.losses(policy, policy, terms, None, []))
    torch.testing.assert_close(found, gradient(policy, matching), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8)]
)
def test_off_policy_the_ratio_is_clipped_as_ppo_does(pipelines, ratio, advantage, loss):
    policy = moved(pipelines["flow"].adapt(LoRA(), KEY("adapter")))
    own = algorithm(clip=0.2, beta=0.0, ema_beta=0.0)
    terms = list(own.terms(policy, data([advantage] * 6), SAMPLING, KEY, range(6)))
    old = [own.score(term.under(policy), term).detach() - torch.tensor(ratio).double().log() for term in terms]
    found = torch.cat(list(own.losses(policy, policy, terms, old, [])))
    assert found.tolist() == pytest.approx([loss] * 18, rel=1e-5)


class Recorder:
    """A problem whose step follows the gradient, and notes it."""

    def __init__(self):
        self.gradients = []

    def shard(self, items, together=1):
        return items

    def gather(self, parts):
        return list(parts)

    def step(self, losses, optimiser, max_norm=None):
        optimiser.zero_grad()
        for loss in losses:
            loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        optimiser.step()
        return 0.0


def test_the_first_of_two_updates_is_on_policy_and_the_second_is_not(pipelines):
    found = {}
    for batch in (1, 8):
        policy, average = (moved(pipelines["flow"].adapt(LoRA(), KEY("adapter"))) for _ in range(2))
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.05)
        own = algorithm(updates_per_round=2, batch=batch, clip=0.2)
        found[batch] = own.update(Recorder(), policy, average, optimiser, data(ADVANTAGES), SAMPLING, KEY("update"))
        assert found[batch][0].ratio_error == 0
        assert found[batch][1].ratio_error > 0
    assert found[1][1].ratio_error == pytest.approx(found[8][1].ratio_error, rel=1e-3)


def test_the_batch_changes_no_gradient(pipelines):
    found = {}
    for batch in (1, 4, 8):
        policy, average = (moved(pipelines["diffusion"].adapt(LoRA(), KEY("adapter"))) for _ in range(2))
        problem, own = Recorder(), algorithm(batch=batch)
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
        own.update(problem, policy, average, optimiser, data(ADVANTAGES), SAMPLING, KEY("update"))
        (found[batch],) = problem.gradients
    torch.testing.assert_close(found[1], found[8], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[4], found[8], rtol=1e-4, atol=1e-5)


def test_the_average_follows_by_the_authors_rule(make_problem, pipelines):
    """min(0.3, rate · updates) of it is kept after each round."""
    own = algorithm(rounds=2, decay_rate=0.2, learning_rate=1e-2)
    problem = make_problem(FirstCoordinate(), pipelines["flow"])
    problem.prompts, states, rounds = Prompts(PROMPTS), [], problem.rounds

    def watched(n, state):
        for current in rounds(n, state):
            yield current
            states.append({name: state[name].parameters()[0].detach().clone() for name in ("policy", "average")})

    start = pipelines["flow"].adapt(LoRA(own.rank), problem.key("adapter")).parameters()[0].detach()
    problem.rounds = watched
    own.align(problem)
    first = 0.2 * start + 0.8 * states[0]["policy"]
    torch.testing.assert_close(states[0]["average"], first)
    torch.testing.assert_close(states[1]["average"], 0.3 * first + 0.7 * states[1]["policy"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ({"decay_most": 1.0}, "the average would never change"),
        ({"power": 0.0}, "power must be positive"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**fields)


def test_a_path_without_steps_to_train_at_is_refused(make_problem, pipelines):
    problem = make_problem(FirstCoordinate(), pipelines["flow"])
    problem.prompts = Prompts(PROMPTS)
    assert algorithm(first=6).unsupported(problem) is None
    reason = "first=7 and share=0.9 leave none of a path's 8 steps; set first lower."
    assert replace(algorithm(), first=7).unsupported(problem) == reason
