"""Diffusion-KTO: the loss by hand, its reference point, symmetries of the label, and invariance to batching."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from differences import slopes

from alignbench import Key, LoRA, PairBatch, Prompt
from alignbench.diffusion.objectives import denoising_error, noising
from alignbench.keys import epochs
from alignbench.processes import Processes
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.toys import grid

kto = importlib.import_module("alignbench.algorithms.diffusion_kto")
KEYS = [Key("pair", i) for i in range(8)]
UTILITIES = ("kahneman_tversky", "loss_averse", "risk_seeking")


@pytest.fixture
def policy(mixture):
    return mixture.adapt(LoRA(), Key("adapter"))


@pytest.fixture
def pairs(mixture):
    prompts = [Prompt(f"p{i}", f"point {i}") for i in range(4)]
    return MixturePairs(grid().mixture, grid().rewards["quadratic"], mixture, prompts, Key("pairs"), 40)


def moved(policy, scale: float = 0.05):
    """The policy with its weights pushed off the reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("moved", i).normal(*parameter.shape))
    return policy


def algorithm(**fields):
    return kto.DiffusionKTO(**{"beta": 3.0, "caption_dropout": 0.0, **fields})


def whole(chosen, policy, pairs, count=12, kappa=None):
    """The loss of an update, as it is minimised."""
    order, places, key = epochs(Key("order"), len(pairs), 0, count), range(count), Key("update")
    before = chosen.before(policy, pairs, order, places, key)
    centre = kto.reference_point(torch.cat(before.gains)) if kappa is None else kappa
    return sum(chosen.losses(policy, pairs, order, places, key, before.reference, centre, []))


def gradient(loss, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


@pytest.mark.parametrize(
    ("utility", "liked", "disliked"),
    [
        ("kahneman_tversky", 1 / (1 + math.e), 1 - 1 / (1 + math.e)),  # 1 − σ(1), 1 − σ(−1)
        ("loss_averse", 1 + math.log1p(math.exp(-1)), 1 + math.log1p(math.e)),  # 1 − log σ(1), 1 − log σ(−1)
        ("risk_seeking", 1 - math.log1p(math.e), 1 - math.log1p(math.exp(-1))),  # 1 + log σ(−1), 1 + log σ(1)
    ],
)
def test_the_loss_by_hand(utility, liked, disliked):
    """β = 10, g = 0.3, κ = 0.2: β (g − κ) = 1."""
    loss = kto.kto_loss(torch.full((3,), 0.3), torch.tensor([1.0, 0.0, 0.5]), 0.2, 10.0, utility)
    assert loss.tolist() == pytest.approx([liked, disliked, (liked + disliked) / 2])


def test_the_reference_point_is_the_mean_gain_and_never_below_zero():
    assert kto.reference_point(torch.tensor([0.1, -0.2, 0.4])) == pytest.approx(0.1)
    assert kto.reference_point(torch.tensor([0.1, -0.4])) == 0
    assert kto.reference_point(torch.zeros(0)) == 0


@pytest.mark.parametrize("utility", UTILITIES)
def test_a_gain_of_what_is_desirable_lowers_the_loss_and_of_what_is_not_raises_it(utility):
    gain = torch.tensor([0.2, 0.2, 0.2], requires_grad=True)
    loss = kto.kto_loss(gain, torch.tensor([1.0, 0.0, 0.5]), 0.2, 8.0, utility)
    (found,) = torch.autograd.grad(loss.sum(), gain)
    slope = 8.0 / 4 if utility == "kahneman_tversky" else 8.0 / 2  # β U′(0)
    assert found.tolist() == pytest.approx([-slope, slope, 0.0])


def test_the_other_label_is_one_minus_the_loss_so_that_a_tie_has_no_gradient():
    """σ(−z) = 1 − σ(z)."""
    gain = Key("g").normal(6).requires_grad_()
    liked, disliked, tie = (kto.kto_loss(gain, torch.full((6,), p), 0.1, 2.0, UTILITIES[0]) for p in (1.0, 0.0, 0.5))
    torch.testing.assert_close(liked, 1 - disliked)
    torch.testing.assert_close(tie, torch.full((6,), 0.5))
    (found,) = torch.autograd.grad(tie.sum(), gain)
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("utility", "loss"), list(zip(UTILITIES, (0.5, 1 + math.log(2), 1 - math.log(2)), strict=True))
)
def test_at_the_reference_nothing_has_gained_and_the_probe_says_what_the_loss_is(utility, loss, policy, pairs):
    chosen = algorithm(utility=utility)
    total = whole(chosen, policy, pairs)
    assert float(total.detach()) == pytest.approx(loss, abs=1e-6)

    class Asked:
        key = staticmethod(Key("check"))

    probe = chosen.probe(Asked, pairs, policy)
    (found, expected), (gains, none) = probe.identities["the loss"], probe.identities["the gain"]
    assert (expected, none) == (pytest.approx(loss), 0.0)
    torch.testing.assert_close(found, torch.full_like(found, loss), atol=1e-6, rtol=0)
    assert gains.abs().max() < 1e-7


def test_the_gains_of_two_processes_are_gathered_in_the_order_of_one(policy, pairs):
    moved(policy)
    chosen, order, key = algorithm(batch=2), epochs(Key("order"), len(pairs), 0, 12), Key("update")
    shares = [Processes(rank, 2).shard(range(12), chosen.batch) for rank in (0, 1)]
    first, second = (chosen.before(policy, pairs, order, share, key).gains for share in shares)
    gathered = [gains for both in zip(first, second, strict=True) for gains in both]  # as `Processes.gather` does
    assert torch.equal(torch.cat(gathered), torch.cat(chosen.before(policy, pairs, order, range(12), key).gains))


def test_the_reference_point_is_a_constant_of_the_gradient(policy, pairs):
    """With κ fixed at its value by hand, the loss and its gradient are the same."""
    moved(policy)
    chosen = algorithm(beta=50.0)
    order = epochs(Key("order"), len(pairs), 0, 12)
    gains = torch.cat(chosen.before(policy, pairs, order, range(12), Key("update")).gains)
    assert not gains.requires_grad
    kappa = max(0.0, float(gains.mean()))
    torch.testing.assert_close(
        gradient(whole(chosen, policy, pairs), policy), gradient(whole(chosen, policy, pairs, kappa=kappa), policy)
    )
    shifted = whole(chosen, policy, pairs, kappa=kappa + 0.5)
    assert not torch.allclose(shifted, whole(chosen, policy, pairs))


def test_the_gradient_is_that_of_finite_differences(policy, pairs):
    """In float64, along one direction in weight space, with κ held."""
    policy.network.double()
    moved(policy)

    class Double:
        def __len__(self):
            return len(pairs)

        def batch(self, indices):
            found = pairs.batch(indices)
            return replace(found, winner=found.winner.double(), loser=found.loser.double())

    exact, found = slopes(lambda: whole(algorithm(batch=5), policy, Double(), kappa=0.01), policy.parameters())
    assert found == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_any_size_have_the_gradient_of_the_whole(size, policy, pairs):
    """The reference point is the update's, so that it does not depend on how much fits into memory."""
    moved(policy)
    parts, one = (algorithm(batch=batch, beta=50.0, caption_dropout=0.2) for batch in (size, 12))
    torch.testing.assert_close(
        gradient(whole(parts, policy, pairs), policy), gradient(whole(one, policy, pairs), policy), atol=1e-5, rtol=1e-4
    )


def test_winners_are_desirable_losers_are_not_and_either_is_shown_as_often_as_asked(mixture, pairs):
    batch, keys = pairs.batch([0] * 2000), [Key("many", i) for i in range(2000)]
    shown = algorithm(desirable_share=0.8).shown(mixture, batch, keys)
    assert float(shown.desirable.mean()) == pytest.approx(0.8, abs=0.03)
    won = shown.desirable == 1
    assert torch.equal(shown.x0[won], batch.winner[won])
    assert torch.equal(shown.x0[~won], batch.loser[~won])
    tied = algorithm().shown(mixture, replace(batch, label=torch.full((2000,), 0.5)), keys)
    assert tied.desirable.tolist() == [0.5] * 2000


def test_images_have_a_timestep_and_noise_of_their_own(policy, pairs):
    shown = algorithm().shown(policy, pairs.batch(range(8)), KEYS)
    drawn = noising(KEYS, shown.x0, shown.drawn.condition, policy)
    assert torch.equal(shown.drawn.t, drawn.t)
    assert len({tuple(row) for row in shown.drawn.noise.tolist()}) == 8
    moved(policy)
    expected = denoising_error(policy, shown.x0, drawn.noise, drawn.t, drawn.condition)
    torch.testing.assert_close(shown.error(policy), expected)
    assert not torch.allclose(shown.error(policy.reference), expected)


def test_pairs_that_cannot_be_read_are_left_out_and_the_others_keep_their_draws(policy, pairs):
    """With the third of six pairs unreadable, five sixths of the loss of the others are left."""

    class Holey:
        def __len__(self):
            return len(pairs)

        def batch(self, indices):
            rows = [row for row, i in enumerate(indices) if i != 2]
            found = pairs.batch([indices[row] for row in rows])
            return PairBatch(found.winner, found.loser, found.condition, found.label, rows)

    moved(policy)
    chosen, places = algorithm(batch=2), range(6)
    before = chosen.before(policy, Holey(), places, places, Key("update"))
    assert [len(gains) for gains in before.gains] == [2, 1, 2]
    total = sum(chosen.losses(policy, Holey(), places, places, Key("update"), before.reference, 0.0, []))
    each = []
    for i in (0, 1, 3, 4, 5):
        shown = chosen.shown(policy, pairs.batch([i]), [Key("update")("pair", i)])
        gains = shown.error(policy.reference) - shown.error(policy)
        each.append(kto.kto_loss(gains, shown.desirable, 0.0, chosen.beta, chosen.utility))
    torch.testing.assert_close(total, torch.cat(each).sum() / 6)


def test_the_summary_keeps_the_two_labels_apart():
    seen = [kto.Seen(torch.tensor([0.1, 0.3, -0.2]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.1, 0.2, 0.6]))]
    found = kto.summary(seen)
    assert found == pytest.approx({"loss": 0.3, "desirable_gain": 0.2, "undesirable_gain": -0.2})
    assert set(kto.summary([kto.Seen(*(part[:2] for part in seen[0]))])) == {"loss", "desirable_gain"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"desirable_share": 1.0}, r"desirable_share must lie in \(0, 1\), got 1.0"),
        ({"pairs_per_update": 0}, "pairs_per_update must be at least 1, got 0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        kto.DiffusionKTO(**fields)
