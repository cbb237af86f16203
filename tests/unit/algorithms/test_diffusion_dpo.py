"""Diffusion-DPO and SFT: losses by hand, identities at the reference, symmetries, and invariance to batching."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from colours import Brightness
from differences import slopes

from alignbench import Condition, Key, LoRA, PairBatch, Prompt
from alignbench.diffusion.objectives import denoising_error, first_batch, noising
from alignbench.diffusion.optimisers import optimiser_of, warmed_up
from alignbench.errors import RunError
from alignbench.keys import epochs
from alignbench.quantities import Prediction
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.toys import grid

dpo = importlib.import_module("alignbench.algorithms.diffusion_dpo")
sft = importlib.import_module("alignbench.algorithms.sft")
KEYS = [Key("pair", i) for i in range(8)]


def moved(policy, scale: float = 0.05):
    """The policy with its weights pushed off the reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("moved", i).normal(*parameter.shape))
    return policy


@pytest.fixture
def policy(mixture):
    return mixture.adapt(LoRA(), Key("adapter"))


@pytest.fixture
def pairs(mixture):
    prompts = [Prompt(f"p{i}", f"point {i}") for i in range(4)]
    return MixturePairs(grid().mixture, grid().rewards["quadratic"], mixture, prompts, Key("pairs"), 40)


@pytest.fixture
def batch(pairs):
    return pairs.batch(range(8))


def swapped(batch: PairBatch) -> PairBatch:
    return PairBatch(batch.loser, batch.winner, batch.condition, batch.label, batch.rows)


def gradient(loss, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


def test_the_loss_by_hand():
    """β = 4: z = −2 [(0.1 − 0.3) − (0.5 − 0.2)] = 1; a label of ½ averages −log σ(1) and −log σ(−1)."""
    error, reference = torch.tensor([[0.1, 0.1], [0.5, 0.5]]), torch.tensor([[0.3, 0.3], [0.2, 0.2]])
    loss, z = dpo.dpo_loss(error, reference, torch.tensor([1.0, 0.5]), 4.0)
    assert z.tolist() == pytest.approx([1, 1])
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.e)  # −log σ(1), −log σ(−1)
    assert loss.tolist() == pytest.approx([right, (right + wrong) / 2])


def test_a_better_winner_lowers_the_loss_and_a_better_loser_raises_it():
    error = torch.full((2, 3), 0.4, requires_grad=True)
    loss, _ = dpo.dpo_loss(error, torch.full((2, 3), 0.4), torch.ones(3), 10.0)
    (found,) = torch.autograd.grad(loss.sum(), error)
    assert found[0].tolist() == pytest.approx([2.5] * 3)  # β / 4: smaller errors of winners are rewarded
    assert found[1].tolist() == pytest.approx([-2.5] * 3)


def test_what_winner_and_loser_have_in_common_cancels():
    error, reference = Key("e").uniform(2, 5), Key("r").uniform(2, 5)
    loss, z = dpo.dpo_loss(error, reference, torch.ones(5), 3.0)
    for shifted in ((error + 0.7, reference), (error, reference - 0.2), (error + 1, reference + 1)):
        torch.testing.assert_close(dpo.dpo_loss(*shifted, torch.ones(5), 3.0)[0], loss)
    flipped, minus = dpo.dpo_loss(error.flip(0), reference.flip(0), torch.ones(5), 3.0)
    torch.testing.assert_close(minus, -z)
    torch.testing.assert_close(flipped, loss + z)  # −log σ(−z) = −log σ(z) + z


def test_beta_over_means_is_beta_over_sums_divided_by_twice_the_elements():
    """The paper's form: squared norms, no factor ½."""
    residual, reference = Key("a").normal(2, 6, 12), Key("b").normal(2, 6, 12)
    mean, total = ((x.square().mean(-1), x.square().sum(-1)) for x in (residual, reference))
    (error, sums), (ours, theirs) = mean, total
    _, z = dpo.dpo_loss(error, ours, torch.ones(6), 50.0)
    paper = -(50.0 / (2 * 12)) * ((sums - theirs)[0] - (sums - theirs)[1])
    torch.testing.assert_close(z, paper)


def test_at_the_reference_the_loss_is_ln_2_and_its_gradient_a_quarter_of_betas(policy, batch):
    """∇ loss = (β / 4) ∇ mean(L_w − L_l)."""
    algorithm = dpo.DiffusionDPO(beta=7.0, caption_dropout=0.0)
    loss, seen = algorithm.loss(policy, batch, KEYS)
    torch.testing.assert_close(loss, torch.full((8,), math.log(2)), atol=1e-7, rtol=0)
    assert seen.z.abs().max() == 0
    drawn = noising(KEYS, batch.winner, batch.condition, policy)
    winner, loser = dpo.pair_errors(policy, batch, drawn)
    expected = 7 / 4 * gradient((winner - loser).mean(), policy)
    torch.testing.assert_close(gradient(loss.mean(), policy), expected, atol=1e-7, rtol=1e-4)


def test_swapping_winners_and_losers_negates_z_off_the_reference(policy, batch):
    algorithm = dpo.DiffusionDPO(beta=7.0)
    _, one = algorithm.loss(moved(policy), batch, KEYS)
    _, other = algorithm.loss(policy, swapped(batch), KEYS)
    assert one.z.abs().min() > 0
    torch.testing.assert_close(other.z, -one.z)


def test_one_forward_over_both_equals_two(policy, batch):
    drawn = noising(KEYS, batch.winner, batch.condition, policy)
    together = dpo.pair_errors(moved(policy), batch, drawn)
    for x0, found in zip((batch.winner, batch.loser), together, strict=True):
        torch.testing.assert_close(denoising_error(policy, x0, drawn.noise, drawn.t, drawn.condition), found)


def test_the_reference_is_the_policy_before_training_and_not_after(policy, mixture, batch):
    drawn = noising(KEYS, batch.winner, batch.condition, policy)
    frozen = dpo.pair_errors(mixture, batch, drawn)
    moved(policy)
    assert torch.equal(dpo.pair_errors(policy.reference, batch, drawn), frozen)
    assert not torch.equal(dpo.pair_errors(policy, batch, drawn), frozen)


@pytest.mark.parametrize(("kind", "fields"), [(dpo.DiffusionDPO, {"beta": 3.0}), (sft.SFT, {})])
def test_the_gradient_is_that_of_finite_differences(kind, fields, policy, pairs):
    """In float64, along one direction in weight space."""
    policy.network.double()
    moved(policy)
    algorithm = kind(caption_dropout=0.0, batch=5, **fields)

    class Double:
        def __len__(self):
            return len(pairs)

        def batch(self, indices):
            found = pairs.batch(indices)
            doubled = (found.winner.double(), found.loser.double(), found.condition, found.label.double())
            return PairBatch(*doubled, found.rows)

    def value():
        return torch.stack(list(algorithm.losses(policy, Double(), range(8), range(8), Key("update"), []))).sum()

    exact, found = slopes(value, policy.parameters())
    assert found == pytest.approx(exact, rel=1e-5)


def test_the_denoising_error_by_hand(mixture, monkeypatch):
    """ᾱ = 0.64: x_t = 0.8 x_0 + 0.6 ε; ε̂ = x_t here, so that ε − ε̂ = 0.4 ε − 0.8 x_0."""

    def echo(latents, t, condition, guidance):
        return Prediction(latents, latents, torch.full((len(latents),), 0.64, dtype=torch.float64), "epsilon")

    monkeypatch.setattr(mixture, "add_noise", lambda x0, noise, t: 0.8 * x0 + 0.6 * noise)
    monkeypatch.setattr(mixture, "predict", echo)
    condition = mixture.condition([Prompt("p0", "point 0"), Prompt("p1", "point 1")])
    x0, noise = torch.tensor([[1.0, 0.0], [0.5, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    found = denoising_error(mixture, x0, noise, torch.tensor([5, 6]), condition)
    # ((0.8 - 0.8)² + 0.4²)/2 and (0² + 0.8²)/2
    torch.testing.assert_close(found, torch.tensor([0.08, 0.32]))


@pytest.mark.parametrize(("kind", "fields"), [(dpo.DiffusionDPO, {"beta": 5.0}), (sft.SFT, {})])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_batches_of_any_size_have_the_gradient_of_the_whole(kind, fields, size, policy, pairs):
    def whole(batch):
        algorithm = kind(batch=batch, pairs_per_update=12, **fields)
        losses = algorithm.losses(moved_once, pairs, epochs(Key("order"), 40, 0, 12), range(12), Key("update"), [])
        return gradient(sum(losses), moved_once)

    moved_once = moved(policy)
    torch.testing.assert_close(whole(size), whole(5), atol=1e-6, rtol=1e-4)


def test_pairs_that_cannot_be_read_are_left_out_and_the_others_keep_their_draws(policy, pairs):
    """With the third of six pairs unreadable, the five others contribute what they contributed before."""

    class Holey:
        def __len__(self):
            return len(pairs)

        def batch(self, indices):
            rows = [row for row, i in enumerate(indices) if i != 2]
            whole = pairs.batch([indices[row] for row in rows])
            return PairBatch(whole.winner, whole.loser, whole.condition, whole.label, rows)

    algorithm = dpo.DiffusionDPO(batch=2, pairs_per_update=6, beta=5.0)
    moved(policy)
    each = {i: one(algorithm, policy, pairs, i)[0] for i in range(6)}
    seen = []
    total = sum(algorithm.losses(policy, Holey(), range(6), range(6), Key("update"), seen))
    expected = sum(each[i] for i in range(6) if i != 2) / 6
    torch.testing.assert_close(total, expected)
    assert sum(len(s.z) for s in seen) == 5


def one(algorithm, policy, pairs, i):
    loss, _ = algorithm.loss(policy, pairs.batch([i]), [Key("update")("pair", i)])
    return loss


def test_winner_and_loser_share_timestep_and_noise_and_pairs_do_not(mixture, batch, monkeypatch):
    seen = []
    real = mixture.add_noise
    monkeypatch.setattr(mixture, "add_noise", lambda x0, noise, t: seen.append((noise, t)) or real(x0, noise, t))
    dpo.pair_errors(mixture, batch, noising(KEYS, batch.winner, batch.condition, mixture))
    noise, t = seen[0]
    assert torch.equal(noise[:8], noise[8:])
    assert torch.equal(t[:8], t[8:])
    assert len(set(t[:8].tolist())) > 4
    assert len({tuple(row) for row in noise[:8].tolist()}) == 8


def test_timesteps_are_uniform_and_prompts_are_dropped_as_often_as_asked(mixture):
    keys = [Key("many", i) for i in range(4000)]
    like = torch.zeros(4000, 2)
    condition = Condition({"text": torch.ones(4000, 1)}, {"text": torch.zeros(4000, 1)})
    drawn = noising(keys, like, condition, mixture, 0.2)
    assert drawn.t.min() >= 0
    assert drawn.t.max() <= 999
    assert drawn.t.double().mean().item() == pytest.approx(499.5, abs=3 * 289 / 4000**0.5)
    assert float((drawn.condition.tensors["text"] == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert noising(keys, like, condition, mixture).condition is condition


def test_sft_looks_at_winners_alone(policy, batch, pairs):
    algorithm = sft.SFT(caption_dropout=0.0, batch=8, pairs_per_update=8)

    class Fixed:
        def __len__(self):
            return 8

        def batch(self, indices):
            return self.pairs

    fixed = Fixed()
    fixed.pairs = batch
    moved(policy)
    (loss,) = algorithm.losses(policy, fixed, range(8), range(8), Key("update"), [])
    keys = [Key("update")("pair", i) for i in range(8)]
    drawn = noising(keys, batch.winner, batch.condition, policy)
    expected = denoising_error(policy, batch.winner, drawn.noise, drawn.t, batch.condition).mean()
    torch.testing.assert_close(loss, expected)
    fixed.pairs = PairBatch(batch.winner, batch.loser + 9, batch.condition, batch.label, batch.rows)
    (other,) = algorithm.losses(policy, fixed, range(8), range(8), Key("update"), [])
    assert torch.equal(loss, other)


def test_the_summary_counts_ties_half_and_sorts_by_timestep():
    z = torch.tensor([1.0, 0.0, -1.0, 2.0])
    t = torch.tensor([10, 20, 999, 999])
    found = dpo.summary([dpo.Seen(t, z, torch.ones(4), torch.tensor([[1.0, 1, 1, 1], [3.0, 3, 3, 3]]))], 1000)
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["accuracy_t0"] == pytest.approx(0.75)
    assert found["accuracy_t3"] == pytest.approx(0.5)
    assert "accuracy_t1" not in found
    assert found["margin"] == pytest.approx(0.5)
    assert (found["winner_moved"], found["loser_moved"]) == (1, 3)


def test_the_learning_rate_warms_up_and_then_stays_or_falls():
    assert [warmed_up(1.0, u, 4) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [warmed_up(1.0, u, 0) for u in range(2)] == [1.0, 1.0]
    falling = dpo.DiffusionDPO(rounds=2, updates_per_round=2, warmup=0, learning_rate=1.0, anneal=True)
    assert [falling.rate(u) for u in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_adafactor_moves_by_the_learning_rate_whatever_the_weights_size():
    for size in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.full((4, 4), size))
        optimiser = optimiser_of([weight], "adafactor", 0.1, 0.0)
        weight.grad = torch.ones(4, 4)
        optimiser.step()
        torch.testing.assert_close(weight.detach(), torch.full((4, 4), size - 0.1), atol=1e-3, rtol=1e-6)


def test_the_plan_names_the_batch_the_rate_and_beta_in_both_conventions(make_problem, pairs, monkeypatch):
    """Points have two elements: β over sums is a quarter of β over means."""
    problem, plans = make_problem(Brightness()), []  # the reward is not asked for
    problem.pairs = pairs
    monkeypatch.setattr(problem, "check", lambda policy, plan, probe: plans.append(plan))
    dpo.DiffusionDPO(rounds=1, updates_per_round=2, pairs_per_update=8, batch=8, beta=20.0, warmup=0).align(problem)
    expected = {"pairs": 40, "pairs an update": 8, "updates a round": 2, "learning rate": 2.048e-5}
    assert plans == [expected | {"beta": 20.0, "beta over sums": 5.0}]


def test_a_start_is_checked_on_the_first_pairs_that_can_be_read(pairs):
    class Broken:
        def __init__(self, readable):
            self.readable = readable

        def __len__(self):
            return 40

        def batch(self, indices):
            rows = [row for row, i in enumerate(indices) if i in self.readable]
            whole = pairs.batch([indices[row] for row in rows] or [0])
            keep = slice(len(rows))
            condition, label = whole.condition[keep], whole.label[keep]
            return PairBatch(whole.winner[keep], whole.loser[keep], condition, label, rows)

    batch, keys = first_batch(Broken({9, 11, 30}), Key("check"), 8)
    assert torch.equal(batch.winner, pairs.batch([9, 11]).winner)
    assert keys == [Key("check")("pair", 9), Key("check")("pair", 11)]
    with pytest.raises(RunError, match="none of the 40 pairs can be read"):
        first_batch(Broken(set()), Key("check"), 8)


@pytest.mark.parametrize("kind", [dpo.DiffusionDPO, sft.SFT])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs_per_update": 0}, "pairs_per_update must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"caption_dropout": 1.0}, r"caption_dropout must lie in \[0, 1\), got 1.0"),
        ({"warmup": -1}, "warmup must not be negative, got -1"),
    ],
)
def test_fields_that_make_no_sense_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
