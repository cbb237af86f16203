"""DDPO: its losses and advantages by hand, its gradients as equivalences, and that it improves a reward."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from alignbench import LoRA, Prompt, Prompts, Sampling
from alignbench.diffusion.episodes import moves_of
from alignbench.diffusion.rollout import rollout
from alignbench.experiment.problem import TrainingRound
from alignbench.keys import Key

ddpo = importlib.import_module("alignbench.algorithms.ddpo")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "flows"),
    [
        (1.5, 2.0, -2.4, False),  # better than expected and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, True),  # better but less likely: pushed up
        (1.5, -2.0, 3.0, True),  # worse but likelier: pushed down
        (0.5, -2.0, 1.6, False),  # worse and already less likely: clipped at 0.8
        (1.1, 2.0, -2.2, True),  # inside the range
    ],
)
def test_the_clip_lets_gradients_through_only_where_they_restore(ratio, advantage, loss, flows):
    log_prob = torch.tensor([ratio]).log().requires_grad_()
    value = ddpo.clipped_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), 0.2)
    assert value.item() == pytest.approx(loss, rel=1e-5)
    value.sum().backward()
    assert (log_prob.grad.abs().item() > 0) is flows


def test_at_the_old_policy_the_clipped_gradient_is_reinforces():
    log_prob = Key("log_prob").normal(6).requires_grad_()
    advantage = Key("advantage").normal(6)
    (clipped,) = torch.autograd.grad(ddpo.clipped_loss(log_prob, log_prob.detach(), advantage, 1e-4).sum(), log_prob)
    (reinforce,) = torch.autograd.grad(ddpo.reinforce_loss(log_prob, advantage).sum(), log_prob)
    torch.testing.assert_close(clipped, reinforce)
    torch.testing.assert_close(reinforce, -advantage)


def test_advantages_are_standardised_over_the_round_while_prompts_are_few():
    """Rewards 1, 2, 3, 6: mean 3, population standard deviation √3.5."""
    advantages = ddpo.PromptStatistics(32, 16).advantages(["a", "b", "c", "d"], torch.tensor([1.0, 2.0, 3.0, 6.0]))
    expected = [(x - 3) / 3.5**0.5 for x in (1, 2, 3, 6)]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-5)


def test_advantages_use_the_prompts_own_statistics_once_there_are_enough():
    """Prompt a has seen 0 and 2 (mean 1, deviation 1); b only 10, so the round's statistics serve it."""
    statistics = ddpo.PromptStatistics(32, 2)
    advantages = statistics.advantages(["a", "a", "b"], torch.tensor([0.0, 2.0, 10.0]))
    assert advantages[:2].tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert advantages[2].item() == pytest.approx((10 - 4) / (56 / 3) ** 0.5, abs=1e-5)


def test_integer_rewards_keep_their_fractions_and_constant_ones_give_nothing():
    statistics = ddpo.PromptStatistics(32, 16)
    assert statistics.advantages(["a", "b", "c"], torch.tensor([0.0, 0.0, 1.0])).tolist() == pytest.approx(
        [-0.70711, -0.70711, 1.41421], abs=1e-4
    )
    assert ddpo.PromptStatistics(32, 16).advantages(["a", "b"], torch.tensor([3.0, 3.0])).abs().max() == 0


def test_the_buffer_forgets_the_oldest_rewards_and_survives_saving():
    statistics = ddpo.PromptStatistics(2, 1)
    statistics.advantages(["a", "a", "a"], torch.tensor([1.0, 2.0, 3.0]))
    restored = ddpo.PromptStatistics(2, 1)
    restored.load_state_dict(statistics.state_dict())
    assert list(restored.rewards["a"]) == [2.0, 3.0]
    more = torch.tensor([7.0])
    assert torch.equal(statistics.advantages(["a"], more), restored.advantages(["a"], more))


class Recorder:
    """A problem that collects the gradient of one update instead of taking the step."""

    pipeline = reward = prompts = pairs = sampling = key = budget = None

    def rounds(self, n, state):
        raise AssertionError("an update runs no rounds")

    def check(self, policy, plan, probe):
        """The start-up check has its own tests."""

    def shard(self, items, together=1):
        return items

    def gather(self, parts):
        return list(parts)

    def step(self, losses, optimiser, max_norm=None):
        optimiser.zero_grad()
        for loss in losses:
            loss.backward()
        return 0.0


def update_gradient(policy, path, advantages, batch=4, **fields):
    algorithm = ddpo.DDPO(updates_per_round=1, batch=batch, **fields)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    (update,) = algorithm.update(Recorder(), policy, optimiser, path, advantages, Key("update"))
    return update, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.fixture
def policy(mixture):
    made = mixture.adapt(LoRA(), Key("adapter"))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.02 * Key("moved", i).normal(*parameter.shape))
    return made


def path_of(policy):
    keys = [Key("episode", i) for i in range(len(PROMPTS))]
    return rollout(policy, policy.condition(PROMPTS), keys, Sampling(6, 1.0, 1.0))


ADVANTAGE = torch.tensor([1.0, -0.5, 0.3, -1.2, 0.7, 0.1, -0.9, 2.0])


def test_the_first_update_of_a_round_has_ratio_one_and_clips_nothing(policy):
    update, _ = update_gradient(policy, path_of(policy), ADVANTAGE)
    assert update.ratio_error <= 1e-6  # other rows stand beside a row than when it was sampled
    assert update.clip_fraction == 0.0


def test_importance_and_reinforce_have_the_same_gradient_in_the_first_update(policy):
    path = path_of(policy)
    _, importance = update_gradient(policy, path, ADVANTAGE)
    _, reinforce = update_gradient(policy, path, ADVANTAGE, estimator="reinforce")
    torch.testing.assert_close(importance, reinforce, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
@pytest.mark.parametrize("action_fraction", [1.0, 0.5])
def test_a_forward_pass_of_another_size_leaves_the_gradient(policy, batch, action_fraction):
    path = path_of(policy)
    _, expected = update_gradient(policy, path, ADVANTAGE, action_fraction=action_fraction)
    _, other = update_gradient(policy, path, ADVANTAGE, batch, action_fraction=action_fraction)
    torch.testing.assert_close(other, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 16, 64])
@pytest.mark.parametrize("updates", [1, 3, 4, 8])
def test_a_pass_makes_the_updates_that_it_announces(policy, batch, updates):
    algorithm = ddpo.DDPO(updates_per_round=updates, batch=batch)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    done = algorithm.update(Recorder(), policy, optimiser, path_of(policy), ADVANTAGE, Key("update"))
    assert len(done) == updates


def test_more_updates_than_images_are_refused():
    with pytest.raises(ValueError, match="updates_per_round=20 cannot be cut from the 16 images of a round"):
        ddpo.DDPO(samples_per_round=16, updates_per_round=20)


def test_the_loss_is_the_mean_over_images_and_actions(policy):
    """Against a loss written out in one expression."""
    path = path_of(policy)
    log_prob = torch.stack([path.log_density(policy, a) for a in range(len(path.actions))], 1)
    expected = torch.autograd.grad(-(ADVANTAGE[:, None] * log_prob).mean(), policy.parameters())
    _, gradient = update_gradient(policy, path, ADVANTAGE)
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), atol=1e-6, rtol=1e-4)


def test_constant_rewards_leave_the_weights_without_gradient(policy):
    _, gradient = update_gradient(policy, path_of(policy), torch.zeros(8))
    assert gradient.abs().max() == 0


@pytest.mark.slow
def test_training_on_some_actions_is_unbiased(policy):
    """The mean over many drawn halves is near the gradient over all actions."""
    path = path_of(policy)
    _, whole = update_gradient(policy, path, ADVANTAGE)
    algorithm = ddpo.DDPO(updates_per_round=1, batch=8, action_fraction=0.5)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    total = torch.zeros_like(whole)
    for i in range(200):
        algorithm.update(Recorder(), policy, optimiser, path, ADVANTAGE, Key("some", i))
        total += torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert torch.nn.functional.cosine_similarity(total, whole, dim=0) > 0.99
    assert (total / 200).norm() == pytest.approx(whole.norm().item(), rel=0.1)


def actions_trained(policy, monkeypatch, **fields):
    """The actions of each image whose densities one update recomputes."""
    seen: dict[int, list[int]] = {image: [] for image in range(len(PROMPTS))}

    def watched(path, images, actions):
        for image, action in zip(images, actions, strict=True):
            seen[image].append(action)
        return moves_of(path, images, actions)

    monkeypatch.setattr(ddpo, "moves_of", watched)
    update_gradient(policy, path_of(policy), ADVANTAGE, **fields)
    return seen


def test_skipped_final_actions_are_never_trained_on(policy, monkeypatch):
    assert all(sorted(own) == [0, 1, 2, 3, 4, 5] for own in actions_trained(policy, monkeypatch).values())
    skipped = actions_trained(policy, monkeypatch, skip_last=2)
    assert all(sorted(own) == [0, 1, 2, 3] for own in skipped.values())


@pytest.mark.parametrize("batch", [1, 8])
def test_every_image_draws_its_own_actions_whatever_batch_it_stands_in(batch, policy, monkeypatch):
    some = actions_trained(policy, monkeypatch, batch=batch, skip_last=2, action_fraction=0.5)
    assert all(len(set(own)) == 2 and set(own) <= {0, 1, 2, 3} for own in some.values())
    assert len({tuple(own) for own in some.values()}) > 1
    assert some == actions_trained(policy, monkeypatch, batch=3, skip_last=2, action_fraction=0.5)


@pytest.mark.parametrize(("skip_last", "refused"), [(5, False), (6, True), (99, True)])
def test_skipping_every_action_is_refused(mixture, skip_last, refused):
    problem = Recorder()
    problem.pipeline, problem.prompts, problem.sampling = mixture, PROMPTS, Sampling(6, 1.0, 1.0)
    reason = ddpo.DDPO(skip_last=skip_last).unsupported(problem)
    expected = f"skip_last={skip_last} leaves none of a path's 6 actions to train; set it lower."
    assert reason == (expected if refused else None)


def test_an_annealed_learning_rate_falls_linearly_and_depends_on_the_round_alone(mixture):
    rates = []

    class Rounds(Recorder):
        pipeline, reward, key, sampling = mixture, staticmethod(lambda images, prompts: images[:, 0]), Key("a"), None
        prompts = Prompts(PROMPTS)

        def rounds(self, n, state):
            for index in range(2, n):  # as after a restart
                yield TrainingRound(index, Key("round", index))

        def step(self, losses, optimiser, max_norm=None):
            rates.append(optimiser.param_groups[0]["lr"])
            return super().step(losses, optimiser, max_norm)

    for anneal, expected in ((True, [0.6, 0.4, 0.2]), (False, [1.0, 1.0, 1.0])):
        rates.clear()
        problem = Rounds()
        problem.sampling = Sampling(4, 1.0, 1.0)
        fields = {"rounds": 5, "samples_per_round": 8, "updates_per_round": 1}
        ddpo.DDPO(**fields, learning_rate=0.01, anneal=anneal).align(problem)
        assert rates == pytest.approx([0.01 * x for x in expected])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"clip": -1.0}, "clip must be positive, got -1.0"),
        ({"eta": 0.0}, r"eta must lie in \(0, 1\], got 0.0"),
        ({"action_fraction": 2.0}, "action_fraction must lie in"),
        ({"skip_last": -1}, "skip_last must not be negative, got -1"),
        ({"estimator": "reinforce"}, "one update per round"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ddpo.DDPO(**fields)


def test_the_defaults_are_those_of_the_authors_code():
    d = ddpo.DDPO()
    assert (d.clip, d.advantage_clip, d.learning_rate, d.weight_decay, d.max_norm) == (1e-4, 5.0, 3e-4, 1e-4, 1.0)
    assert (d.samples_per_round, d.eta, d.rank, d.reduction, d.estimator) == (256, 1.0, 4, "mean", "importance")
    assert dataclasses.asdict(d)["tuning"] == "lora"
