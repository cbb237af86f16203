"""D3PO: its loss by hand and at its bounds, pairs that share x_T and nothing else, and ties that teach nothing."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from differences import slopes
from places import TOY

from alignbench import Key, LoRA, Prompt, Prompts, Sampling, plugins
from alignbench.devices import chunked
from alignbench.diffusion.episodes import moves_of
from alignbench.diffusion.transition import log_density
from alignbench.experiment.problem import CellProblem
from alignbench.processes import ALONE
from alignbench.progress import Progress

d3po = importlib.import_module("alignbench.algorithms.d3po")
KEY = Key("test", "d3po")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
SAMPLING = Sampling(6, 1.0, 1.0)
FirstCoordinate = plugins.load("rewards", f"{TOY}:FirstCoordinate")


@pytest.fixture
def problem(mixture, tmp_path):
    def build(reward=None):
        return CellProblem(
            pipeline=mixture, reward=reward or FirstCoordinate(), prompts=Prompts(PROMPTS), sampling=SAMPLING,
            key=KEY("cell"), meter=mixture.meter, folder=tmp_path, progress=Progress(quiet=True),
        )  # fmt: skip

    return build


@pytest.fixture
def policy(mixture):
    made = mixture.adapt(LoRA(), KEY("adapter"))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.005 * KEY("moved", i).normal(*parameter.shape))
    return made


def twins_of(problem, policy, n=8):
    return d3po.twins(problem, policy, PROMPTS[:n], [KEY("pair", i) for i in range(n)], SAMPLING)


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_the_loss_by_hand():
    """log ρ_w = 0.05, log ρ_l = −0.05, β = 0.1: −log σ(0.01) = log(1 + e^−0.01)."""
    loss = d3po.preference_loss(torch.tensor([0.05]), torch.tensor([-0.05]), 0.1, 0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.01)), abs=1e-7)


def test_at_the_reference_the_loss_is_ln_2_and_its_gradient_half_beta():
    winner, loser = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = d3po.preference_loss(winner, loser, 0.3, 0.1)
    assert loss.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-12)
    loss.sum().backward()
    assert winner.grad.tolist() == pytest.approx([-0.15] * 3)
    assert loser.grad.tolist() == pytest.approx([0.15] * 3)


def test_swapping_winner_and_loser_turns_the_argument_around():
    """σ(a) + σ(−a) = 1."""
    one, other = (0.05 * KEY("ratio", i).normal(6).double() for i in range(2))
    losses = [d3po.preference_loss(*pair, 2.0, 0.1) for pair in ((one, other), (other, one))]
    torch.testing.assert_close((-losses[0]).exp() + (-losses[1]).exp(), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(("beta", "clip", "bound"), [(0.1, 0.1, 0.0200671), (10.0, 0.1, 2.00671), (1.0, 0.5, 1.098612)])
def test_the_argument_is_bounded_whatever_the_ratios(beta, clip, bound):
    """By β log((1 + ε)/(1 − ε)), so that the loss stays between −log σ(± bound)."""
    winner = torch.tensor([50.0, -50.0], dtype=torch.float64)
    losses = d3po.preference_loss(winner, -winner, beta, clip)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-bound)), math.log1p(math.exp(bound))], rel=1e-5)


@pytest.mark.parametrize("value", [0.2, -0.2])
def test_a_step_outside_the_range_gets_no_gradient_and_its_twin_still_does(value):
    winner, loser = torch.tensor([value], requires_grad=True), torch.tensor([0.01], requires_grad=True)
    d3po.preference_loss(winner, loser, 0.1, 0.1).sum().backward()
    assert winner.grad.item() == 0
    assert loser.grad.item() == pytest.approx(0.05, rel=0.02)


def test_the_loss_by_finite_differences():
    ratios = [(0.05 * KEY("difference", i).normal(6).double()).requires_grad_() for i in range(2)]
    assert torch.autograd.gradcheck(lambda *pair: d3po.preference_loss(*pair, 4.0, 0.1), ratios)


def test_the_gradient_is_that_of_finite_differences(problem, policy):
    """In float64, along one direction in weight space, off the policy that drew the paths."""
    path, _ = twins_of(problem(), policy)
    policy.network.double()
    path = replace(path, latents=path.latents.double())
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.002 * KEY("further", i).normal(*parameter.shape))
    algorithm = d3po.D3PO(beta=2.0, clip=0.9, batch=3)
    pairs = [(2 * i + i % 2, 2 * i + 1 - i % 2) for i in range(8)]
    exact, found = slopes(lambda: sum(algorithm.losses(ALONE, policy, path, pairs, [])), policy.parameters(), 1e-6)
    assert found == pytest.approx(exact, rel=1e-5)


def test_both_paths_share_x_T_and_nothing_else(problem, policy):
    path, rewards = twins_of(problem(), policy)
    first, second = path.latents[:, ::2], path.latents[:, 1::2]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], policy.initial_noise([KEY("pair", i) for i in range(8)]))
    assert len({tuple(row) for row in first[0].tolist()}) == 8
    for one, other in zip(first[1:], second[1:], strict=True):
        assert not (one == other).any()
    torch.testing.assert_close(rewards, path.final[:, 0])
    noise = [
        (path.latents[i + 1] - step.mean) / step.std[:, None]
        for i in range(len(path.actions))
        for step in [path.transition(policy, i)]
    ]
    drawn = torch.stack(noise).detach()  # [steps, twins, 2]
    assert abs(float(torch.corrcoef(torch.stack([drawn[:, ::2].flatten(), drawn[:, 1::2].flatten()]))[0, 1])) < 0.3


def test_a_pair_does_not_depend_on_the_batch_it_is_sampled_in(problem, policy):
    whole, alone = twins_of(problem(), policy).path, twins_of(problem(), policy, 1).path
    torch.testing.assert_close(alone.latents, whole.latents[:, :2], atol=1e-5, rtol=0)


def test_the_image_that_earns_more_wins_and_ties_and_unscored_ones_are_left_out():
    rewards = torch.tensor([1.0, 2.0, 5.0, 3.0, 4.0, 4.0, math.nan, 1.0, 0.0, math.nan])
    assert d3po.ordered(rewards) == [(1, 0), (2, 3)]


def test_the_loss_is_the_mean_over_pairs_and_steps(problem, policy):
    """Against a loss written out in one expression."""
    path, _ = twins_of(problem(), policy)
    algorithm, pairs = d3po.D3PO(beta=1.5, clip=0.4, batch=3), [(0, 1), (3, 2), (4, 5), (15, 14)]
    seen = []
    found = gradient(policy, algorithm.losses(ALONE, policy, path, pairs, seen))
    total = torch.zeros(())
    for winner, loser in pairs:
        for action in range(6):
            ratio = []
            for image in (winner, loser):
                x = path.latents[action + 1]
                new, old = (log_density(x, path.transition(p, action))[image] for p in (policy, policy.reference))
                ratio.append(new - old.detach())
            total = total - torch.nn.functional.logsigmoid(1.5 * (ratio[0] - ratio[1]))
    assert max(float(s.log_ratio.abs().max()) for s in seen) < math.log(1.4)  # nothing is clipped here
    torch.testing.assert_close(found, gradient(policy, [total / 24]), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_leave_the_gradient_and_need_one_forward_pass_for_winners_and_losers(problem, policy, batch, mixture):
    path, rewards = twins_of(problem(), policy)
    pairs = d3po.ordered(rewards)
    assert len(pairs) == 8
    algorithm = d3po.D3PO(batch=8)
    expected = gradient(policy, algorithm.losses(ALONE, policy, path, pairs, []))
    calls, predict = [], policy.predict
    policy.predict = lambda *arguments: calls.append(len(arguments[0])) or predict(*arguments)
    before = mixture.meter.total
    other = gradient(policy, replace(algorithm, batch=batch).losses(ALONE, policy, path, pairs, []))
    torch.testing.assert_close(other, expected, atol=1e-7, rtol=1e-3)
    assert calls == [2 * len(part) for part in chunked(pairs, batch) for _ in range(6)]
    spent = mixture.meter.total - before
    assert spent.denoiser_forward == 2 * spent.denoiser_backward == 2 * 6 * 16  # the reference without gradient


def test_ratios_are_taken_against_the_reference(problem, policy, mixture):
    path, _ = twins_of(problem(), policy)
    moves = moves_of(path, [0, 5, 3], [2, 0, 4])
    start = mixture.adapt(LoRA(), KEY("adapter"))
    assert torch.equal(d3po.log_ratios(start, moves), torch.zeros(3))
    found = d3po.log_ratios(policy, moves)
    expected = [
        (path.log_density(policy, a)[i] - path.log_density(policy.reference, a)[i]).item()
        for i, a in [(0, 2), (5, 0), (3, 4)]
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_updates_share_out_the_pairs_and_report_what_lies_outside(problem, policy):
    path, rewards = twins_of(problem(), policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    updates = d3po.D3PO(updates_per_round=3, clip=1e-6).update(
        problem(), policy, optimiser, path, d3po.ordered(rewards), KEY("update")
    )
    assert len(updates) == 3
    assert all(update.clip_fraction > 0.9 and update.loss == pytest.approx(math.log(2), abs=1e-5) for update in updates)


class Constant(FirstCoordinate):
    def __call__(self, images, prompts):
        return torch.ones(len(images))


@pytest.mark.parametrize("reward", [FirstCoordinate, Constant])
def test_a_reward_that_only_ties_leaves_the_policy_at_its_reference(problem, reward, mixture):
    tied = reward is Constant
    run = problem(reward())
    algorithm = d3po.D3PO(rounds=2, samples_per_round=8, updates_per_round=2, batch=4, learning_rate=1e-2)
    policy = algorithm.align(run).pipeline
    assert (policy.network[-1].bias.abs().max().item() == 0) is tied
    for line in run.curve():
        assert line["ties"] == (1 if tied else 0)
        assert ("loss" in line) is not tied


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples_per_round": 3}, "samples_per_round must be even, two for each pair, got 3"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"clip": 1.0}, "clip must lie below 1, got 1.0"),
        ({"eta": 0.0}, r"eta must lie in \(0, 1\], got 0.0"),
        ({"passes": 0}, "passes must be at least 1, got 0"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        d3po.D3PO(**fields)


def test_the_defaults_are_those_of_the_authors_code():
    d = d3po.D3PO()
    assert (d.beta, d.clip, d.eta, d.learning_rate, d.weight_decay, d.max_norm) == (0.1, 0.1, 1.0, 3e-5, 1e-4, 1.0)
    assert (d.rounds, d.samples_per_round, d.updates_per_round, d.batch, d.rank) == (400, 40, 20, 1, 4)
