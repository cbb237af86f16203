"""Reward-weighted regression: its weights by hand and at both ends of the temperature, its loss as equivalences."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from differences import slopes
from places import TOY

from alignbench import Key, LoRA, Prompt, Prompts, Sampling, plugins, sample_rewarded
from alignbench.diffusion.objectives import denoising_error, noising
from alignbench.experiment.problem import CellProblem
from alignbench.progress import Progress

rwr = importlib.import_module("alignbench.algorithms.reward_weighted_regression")
KEY = Key("test", "rwr")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
KEYS = [KEY("noise", i) for i in range(8)]
RWR = rwr.RewardWeightedRegression
REWARDS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, 0.9, -0.2, 0.4])


@pytest.fixture
def problem(mixture, tmp_path):
    def build(guidance=1.0):
        return CellProblem(
            pipeline=mixture, reward=plugins.load("rewards", f"{TOY}:FirstCoordinate")(), prompts=Prompts(PROMPTS),
            sampling=Sampling(6, guidance, 1.0), key=KEY("cell"), meter=mixture.meter, folder=tmp_path,
            progress=Progress(quiet=True),
        )  # fmt: skip

    return build


@pytest.fixture
def policy(mixture):
    made = mixture.adapt(LoRA(), KEY("adapter"))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.02 * KEY("moved", i).normal(*parameter.shape))
    return made


def weighted(weights):
    points = 2 * KEY("points").normal(8, 2)
    return [rwr.Weighted(*row) for row in zip(points, PROMPTS, weights.tolist(), strict=True)]


def plain_errors(policy, rows=range(8), guidance=1.0):
    """The errors of some images, without weights."""
    x0 = (2 * KEY("points").normal(8, 2))[list(rows)]
    t, noise, condition = noising([KEYS[i] for i in rows], x0, policy.condition([PROMPTS[i] for i in rows]), policy)
    return denoising_error(policy, x0, noise, t, condition, guidance)


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def loss_gradient(problem, policy, weights, batch=8):
    return gradient(policy, RWR(batch=batch).losses(problem, policy, weighted(weights), KEYS, len(KEYS), []))


def test_the_weights_by_hand():
    """Rewards 0 and ln 3 at τ = 1: softmax ¼ and ¾, times two; the authors' factor 1/5 is τ = 5."""
    assert rwr.softmax_weights(torch.tensor([0.0, math.log(3)]), 1.0).tolist() == pytest.approx([0.5, 1.5])
    theirs = 8 * (REWARDS * (1 / 5)).softmax(0)
    torch.testing.assert_close(rwr.softmax_weights(REWARDS, 5.0), theirs)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_weights_sum_to_their_number_and_ignore_a_shift_of_the_reward(temperature):
    weights = rwr.softmax_weights(REWARDS, temperature)
    assert float(weights.sum()) == pytest.approx(8, rel=1e-5)
    torch.testing.assert_close(rwr.softmax_weights(REWARDS + 100, temperature), weights, atol=1e-4, rtol=1e-3)
    assert weights.argsort().tolist() == REWARDS.argsort().tolist()


def test_an_infinite_temperature_is_plain_regression(problem, policy):
    weights = RWR(temperature=1e9).weigh([p.id for p in PROMPTS], REWARDS)
    torch.testing.assert_close(weights, torch.ones(8))
    found = loss_gradient(problem(), policy, weights)
    torch.testing.assert_close(found, gradient(policy, [plain_errors(policy).mean()]), atol=1e-6, rtol=1e-4)


def test_a_temperature_of_zero_is_regression_on_the_best_of_the_round(problem, policy):
    """One-hot weights: the gradient of N times that image's share of the mean, the single image's own."""
    weights = RWR(temperature=1e-3).weigh([p.id for p in PROMPTS], REWARDS)
    assert weights.tolist() == [0, 0, 8, 0, 0, 0, 0, 0]
    found = loss_gradient(problem(), policy, weights)
    torch.testing.assert_close(found, gradient(policy, [plain_errors(policy, [2])[0]]), atol=1e-6, rtol=1e-4)


def test_the_images_of_a_prompt_are_weighed_among_themselves():
    rewards, prompts = torch.tensor([0.0, 100.0, math.log(3), 101.0]), ["a", "b", "a", "b"]
    found = RWR(temperature=1.0, per_prompt=True).weigh(prompts, rewards)
    b = 2 / (1 + math.e)
    assert found.tolist() == pytest.approx([0.5, b, 1.5, 2 - b], rel=1e-5)
    assert RWR(temperature=1.0).weigh(prompts, rewards)[0] < 1e-6


def test_the_sparse_form_keeps_the_top_share_with_equal_weights():
    prompts = [p.id for p in PROMPTS]
    assert RWR(keep=0.25).weigh(prompts, REWARDS).tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert RWR(keep=0.01).weigh(prompts, REWARDS).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert RWR(keep=1.0).weigh(prompts, REWARDS).tolist() == [1] * 8
    by_prompt = RWR(keep=0.5, per_prompt=True).weigh(["a", "a", "b", "b"], torch.tensor([5.0, 6.0, 1.0, 0.0]))
    assert by_prompt.tolist() == [0, 1, 1, 0]
    assert rwr.best(torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.5).tolist() == [1, 1, 0, 0]


def test_the_loss_is_the_weighted_mean_error(problem, policy):
    weights = rwr.softmax_weights(REWARDS, 1.0)
    seen = []
    found = gradient(policy, RWR(batch=3).losses(problem(), policy, weighted(weights), KEYS, len(KEYS), seen))
    expected = (weights * plain_errors(policy)).mean()
    assert float(torch.stack(seen).sum()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(found, gradient(policy, [expected]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_leave_the_gradient(problem, policy, batch):
    weights = rwr.softmax_weights(REWARDS, 1.0)
    expected = loss_gradient(problem(), policy, weights)
    torch.testing.assert_close(loss_gradient(problem(), policy, weights, batch), expected, atol=1e-6, rtol=1e-4)


def test_the_gradient_is_that_of_finite_differences(problem, policy):
    """In float64, along one direction in weight space."""
    policy.network.double()
    data = [row._replace(latent=row.latent.double()) for row in weighted(rwr.softmax_weights(REWARDS, 1.0))]
    exact, found = slopes(
        lambda: sum(RWR(batch=3).losses(problem(), policy, data, KEYS, len(KEYS), [])), policy.parameters()
    )
    assert found == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("guided", "evaluations"), [(True, 16), (False, 8)])
def test_the_guided_prediction_is_fitted_only_where_asked(problem, policy, guided, evaluations, mixture):
    """Guidance takes two evaluations an image."""
    before = mixture.meter.total.denoiser_forward
    RWR(guided=guided).error(problem(guidance=3.0), policy, weighted(torch.ones(8)), KEYS)
    assert mixture.meter.total.denoiser_forward - before == evaluations


def test_every_pass_sees_every_image_once_under_new_noise(problem, policy):
    data, optimiser = weighted(torch.ones(8)), torch.optim.SGD(policy.parameters(), lr=0.0)
    algorithm, run = RWR(updates_per_round=2, batch=3), problem()
    passes = [algorithm.update(run, policy, optimiser, data, KEY("pass", k)) for k in (0, 0, 1)]
    assert [len(updates) for updates in passes] == [2, 2, 2]
    first, again, other = ([update.error for update in updates] for updates in passes)
    assert first == again
    assert first != other
    fixed = [KEY("pass", 0)("image", i) for i in KEY("pass", 0)("order").permutation(8)]
    ordered = [data[i] for i in KEY("pass", 0)("order").permutation(8)]
    whole = float(
        torch.stack(list(replace(algorithm, batch=8).losses(run, policy, ordered, fixed, len(fixed), [])))
        .sum()
        .detach()
    )
    assert sum(first) / 2 == pytest.approx(whole, rel=1e-5)


def test_a_round_samples_from_the_policy_whatever_the_batch(problem, policy):
    keys = [KEY("sample", i) for i in range(8)]
    latents, rewards = sample_rewarded(problem(), policy, PROMPTS, keys, 8)
    some, _ = sample_rewarded(problem(), policy, PROMPTS, keys, 3)
    torch.testing.assert_close(some, latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards, latents[:, 0])
    reference, _ = sample_rewarded(problem(), problem().pipeline.adapt(LoRA(), KEY), PROMPTS, keys, 8)
    assert not torch.allclose(latents, reference, atol=1e-3)


def test_what_is_kept_is_all_that_is_fitted(problem, mixture):
    """Eight images a round, two kept, five passes: sampling takes 6 evaluations an image, fitting one."""
    fields = {"rounds": 1, "samples_per_round": 8, "updates_per_round": 1, "passes": 5, "tuning": "lora"}
    run = problem()
    RWR(**fields, keep=0.25).align(run)
    assert mixture.meter.total.denoiser_forward == 8 * 6 + 2 * 5
    assert mixture.meter.total.denoiser_backward == 2 * 5
    (line,) = run.curve()
    assert line["effective_share"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"keep": 0.0}, r"keep must lie in \(0, 1\] or be left out, got 0.0"),
        ({"keep": 1.5}, r"keep must lie in \(0, 1\] or be left out, got 1.5"),
        ({"passes": 0}, "passes must be at least 1, got 0"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RWR(**fields)


def test_the_defaults_are_those_of_the_authors_code():
    d = RWR()
    assert (d.rounds, d.samples_per_round, d.passes, d.temperature) == (10, 10_240, 5, 5.0)
    assert d.samples_per_round // d.updates_per_round == 128
    assert (d.learning_rate, d.weight_decay, d.max_norm, d.tuning, d.guided) == (1e-5, 1e-4, 1.0, "full", True)
