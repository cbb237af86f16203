"""MaPO: the score and the loss by hand, the signs that a port of it had wrong, and invariance to batching."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from differences import slopes

from alignbench import Key, LoRA, Prompt
from alignbench.diffusion.objectives import noising, pair_errors
from alignbench.keys import epochs
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.toys import grid

mapo = importlib.import_module("alignbench.algorithms.mapo")


@pytest.fixture
def policy(mixture):
    found = mixture.adapt(LoRA(), Key("adapter"))
    with torch.no_grad():
        for i, parameter in enumerate(found.parameters()):
            parameter.add_(0.05 * Key("moved", i).normal(*parameter.shape))
    return found


@pytest.fixture
def pairs(mixture):
    prompts = [Prompt(f"p{i}", f"point {i}") for i in range(4)]
    return MixturePairs(grid().mixture, grid().rewards["quadratic"], mixture, prompts, Key("pairs"), 40)


def whole(algorithm, policy, pairs, count=12):
    order = epochs(Key("order"), len(pairs), 0, count)
    return sum(algorithm.losses(policy, pairs, order, range(count), Key("update"), []))


def gradient(loss, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


def test_the_score_by_hand_and_one_where_the_error_vanishes():
    """ρ = ½: at L = 2, 1/(e − 1); at L = 0.2, where the series is, 0.1/(e^0.1 − 1)."""
    found = mapo.score(torch.tensor([0.0, 0.2, 2.0, 400.0, 1e30]), 0.5)
    assert found.tolist() == pytest.approx([1, 0.1 / math.expm1(0.1), 1 / (math.e - 1), 0, 0])


def test_the_score_falls_by_half_of_its_sharpness_at_first_and_its_gradient_is_always_finite():
    error = torch.tensor([0.0, 1e-7, 0.199, 0.201, 5.0, 1e4], requires_grad=True)
    (found,) = torch.autograd.grad(mapo.score(error, 0.5).sum(), error)
    assert found[:2].tolist() == pytest.approx([-0.25, -0.25])
    assert float(found[2]) == pytest.approx(float(found[3]), abs=1e-4)  # series and formula meet
    assert float(found[5]) == 0
    assert (found[:5] < 0).all()


def test_the_loss_by_hand():
    """ρ = ½, L = (2, 4): f = 1/(e − 1), 2/(e² − 1); T = 10: z = 2.6894; a label of ½ is the mean of either order."""
    error = torch.tensor([[2.0, 2.0], [4.0, 4.0]])
    loss, z = mapo.mapo_loss(error, torch.tensor([1.0, 0.5]), 0.1, 0.5, 10)
    expected = 10 * (1 / (math.e - 1) - 2 / (math.e**2 - 1))
    assert z.tolist() == pytest.approx([expected] * 2)
    right, wrong = 2 + 0.1 * math.log1p(math.exp(-expected)), 4 + 0.1 * math.log1p(math.exp(expected))
    assert loss.tolist() == pytest.approx([right, (right + wrong) / 2])


@pytest.mark.parametrize(("winner", "loser"), [(0.3, 0.5), (0.5, 0.3), (0.4, 0.4), (1e-6, 3.0)])
def test_a_larger_error_of_the_winner_costs_and_one_of_the_loser_pays(winner, loser):
    """Of the whole loss and of the margin alone. diffusers' ORPO script has the margin the other way round."""
    error = torch.tensor([[winner], [loser]], requires_grad=True)
    loss, _ = mapo.mapo_loss(error, torch.ones(1), 0.1, 0.5, 10)
    (found,) = torch.autograd.grad(loss.sum(), error)
    assert found[0] > 1  # the error itself, and the margin
    assert found[1] < 0


def test_equal_errors_have_a_margin_of_nothing_and_beta_t_rho_over_eight_of_slope():
    """At L_w = L_l → 0, σ(0) = ½ and f′ = −ρ/2: the margin's slope is β T ρ/4."""
    error = torch.full((2, 1), 1e-6, requires_grad=True)
    loss, z = mapo.mapo_loss(error, torch.ones(1), 0.1, 0.5, 1000)
    assert float(z.detach()) == 0
    assert float(loss.detach()) == pytest.approx(0.1 * math.log(2), abs=1e-5)
    (found,) = torch.autograd.grad(loss.sum(), error)
    assert found.flatten().tolist() == pytest.approx([1 + 12.5, -12.5], rel=1e-4)


def test_the_reference_is_not_evaluated(policy, pairs, mixture):
    """Twelve pairs take two evaluations each."""
    before = mixture.meter.total.denoiser_forward
    whole(mapo.MaPO(batch=6), policy, pairs)
    assert mixture.meter.total.denoiser_forward - before == 24


def test_winner_and_loser_share_timestep_and_noise(policy, pairs):
    batch, keys = pairs.batch(range(8)), [Key("pair", i) for i in range(8)]
    algorithm = mapo.MaPO()
    drawn = noising(keys, batch.winner, batch.condition, policy)
    torch.testing.assert_close(algorithm.errors(policy, batch, keys), pair_errors(policy, batch, drawn))
    same = replace(batch, loser=batch.winner)
    winner, loser = algorithm.errors(policy, same, keys)
    assert torch.allclose(winner, loser)


@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_any_size_have_the_gradient_of_the_whole(size, policy, pairs):
    parts, one = mapo.MaPO(batch=size, caption_dropout=0.2), mapo.MaPO(batch=12, caption_dropout=0.2)
    torch.testing.assert_close(
        gradient(whole(parts, policy, pairs), policy), gradient(whole(one, policy, pairs), policy), atol=1e-4, rtol=1e-4
    )


def test_the_gradient_is_that_of_finite_differences(policy, pairs):
    """In float64, along one direction in weight space."""
    policy.network.double()

    class Double:
        def __len__(self):
            return len(pairs)

        def batch(self, indices):
            found = pairs.batch(indices)
            return replace(found, winner=found.winner.double(), loser=found.loser.double())

    exact, found = slopes(lambda: whole(mapo.MaPO(batch=5), policy, Double()), policy.parameters())
    assert found == pytest.approx(exact, rel=1e-4)


def test_the_start_is_checked_against_the_reference(mixture, pairs):
    policy = mixture.adapt(LoRA(), Key("adapter"))

    class Asked:
        key = staticmethod(Key("check"))

    probe = mapo.MaPO().probe(Asked, pairs, policy)
    moved, expected = probe.identities["the errors minus the reference's"]
    assert expected == 0
    assert moved.abs().max() < 1e-7


def test_the_summary_counts_ties_half():
    error = torch.tensor([[0.2, 0.4], [0.6, 0.4]])
    found = mapo.summary([mapo.Seen(error, torch.tensor([3.0, 0.0]), torch.tensor([0.1, 0.5]))])
    assert found == pytest.approx(
        {"loss": 0.3, "margin": 1.5, "accuracy": 0.75, "winner_error": 0.3, "loser_error": 0.5}
    )


@pytest.mark.parametrize("name", ["beta", "sharpness"])
def test_fields_that_make_no_sense_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0.0"):
        mapo.MaPO(**{name: 0.0})
