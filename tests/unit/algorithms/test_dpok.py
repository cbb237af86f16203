"""DPOK: its KL against closed forms and sampling, its gradients as equivalences, and what `future_kl` adds to them."""

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
from alignbench.diffusion.episodes import Episode, clipped_loss, joined, moves_of
from alignbench.diffusion.rollout import path_divergence, rollout, step_noise, transition
from alignbench.diffusion.transition import divergence, log_density
from alignbench.experiment.problem import CellProblem
from alignbench.meter import Meter
from alignbench.processes import ALONE
from alignbench.progress import Progress
from alignbench.testbed.exact_problem import problem_of
from alignbench.testbed.pipeline import MixturePipeline, exact_schedule

dpok = importlib.import_module("alignbench.algorithms.dpok")
KEY = Key("test", "dpok")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
SAMPLING = Sampling(6, 1.0, 1.0)
QUADRANTS = [(1.5, 2.0), (0.5, 2.0), (1.5, -2.0), (0.5, -2.0)]  # (ρ, A), ε = 0.2


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
        for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
            loss.backward()
        return 0.0


class Line(dpok.Value):
    """A value network without layers, begun."""

    def __init__(self, foreseen, returns):
        super().__init__(3, returns.shape[1], KEY("line"))
        self.begin(foreseen, returns)

    def forward(self, moves, foreseen):
        return self.start[moves.actions] + self.slope[moves.actions] * foreseen


class Baseline(dpok.Value):
    """A value that is known: one number per action."""

    def __init__(self, values):
        super().__init__(3, len(values), KEY("baseline"))
        self.known = values

    def forward(self, moves, foreseen):
        return self.known[moves.actions]


@pytest.fixture
def policy(mixture):
    return moved(mixture.adapt(LoRA(), KEY("adapter")), 0.02)


def moved(policy, scale):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * KEY("moved", i).normal(*parameter.shape))
    return policy


def episode_of(policy, n=8, sampling=SAMPLING, reduction="mean", start=0):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(n)]
    keys = [KEY("episode", i) for i in range(start, start + n)]
    path = rollout(policy, policy.condition(prompts), keys, sampling, reduction)
    return Episode(path, path.final[:, 0])


def data_of(algorithm, policy, episodes):
    returns = torch.cat([algorithm.returns(ALONE, policy, episode) for episode in episodes])
    return dpok.Experience(joined(episodes).path, returns, torch.zeros_like(returns))


def value_of(episode):
    return dpok.Value(3, len(episode.path.actions), KEY("value"))


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize(("ratio", "advantage"), QUADRANTS)
def test_unlike_the_authors_clamp_the_loss_has_a_gradient_wherever_it_restores(ratio, advantage):
    """All four lie outside the range; in two of them a step on A brings ρ back, and clamping alone would take none."""
    log_prob = torch.tensor([ratio]).log().requires_grad_()
    restores = (ratio - 1) * advantage < 0
    (ours,) = torch.autograd.grad(
        clipped_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), 0.2).sum(), log_prob
    )
    (clamped,) = torch.autograd.grad((-advantage * log_prob.exp().clamp(0.8, 1.2)).sum(), log_prob)
    assert clamped.item() == 0
    assert ours.item() == pytest.approx(-advantage * ratio if restores else 0, rel=1e-5)


def test_the_clipped_loss_by_finite_differences_and_at_the_old_policy():
    old, advantage = KEY("old").normal(6).double(), KEY("advantage").normal(6).double()
    log_prob = (old + 0.1 * KEY("shift").normal(6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_loss(x, old, advantage, 0.12), [log_prob])
    at_old = old.clone().requires_grad_()
    (found,) = torch.autograd.grad(clipped_loss(at_old, old, advantage, 0.12).sum(), at_old)
    torch.testing.assert_close(found, -advantage)


def test_the_penalty_is_the_divergence_that_sampling_measures(policy):
    """Over paths of the policy, the mean of log p_θ − log p_ref is E KL_t, step by step."""
    path = episode_of(policy, 3000, reduction="sum").path
    algorithm = dpok.DPOK(reduction="sum")
    for action in range(len(path.actions)):
        moves = moves_of(path, range(3000), [action] * 3000)
        with torch.no_grad():
            log_prob, kl = algorithm.measure(policy, moves)
        sampled = log_prob - path.log_density(policy.reference, action, "sum")
        assert kl.mean() > 1e-3
        assert (sampled - kl).mean().abs() < 4 * (sampled - kl).std() / 3000**0.5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_density_and_penalty_are_those_of_the_stored_path(policy, reduction):
    path = episode_of(policy, reduction=reduction).path
    images, actions = [3, 0, 7], [5, 1, 1]
    log_prob, kl = dpok.DPOK(reduction=reduction).measure(policy, moves := moves_of(path, images, actions))
    torch.testing.assert_close(log_prob, moves.log_prob, atol=1e-4, rtol=1e-5)
    for row, (image, action) in enumerate(zip(images, actions, strict=True)):
        p, q = (path.transition(pipeline, action) for pipeline in (policy, policy.reference))
        torch.testing.assert_close(kl[row], divergence(p, q, reduction)[image], atol=1e-6, rtol=1e-4)


def test_the_sum_of_the_penalties_bounds_the_divergence_of_the_images():
    """One Gaussian and a constant shift of ε̂: both chains are affine with the same noise, so the images differ by one
    vector u and their divergence is ½ uᵀS⁻¹u."""
    policy = gaussian_model().adapt(LoRA(), KEY("adapter"))
    with torch.no_grad():
        policy.network[-1].bias.copy_(torch.tensor([-0.2, 0.1]))
    path = episode_of(policy, 2000, Sampling(20, 1.0, 1.0)).path
    base = rollout(policy.reference, path.condition, [KEY("episode", i) for i in range(2000)], path.sampling)
    shifts = (path.final - base.final).double()
    torch.testing.assert_close(shifts, shifts[:1].expand_as(shifts), atol=1e-3, rtol=0)
    u, covariance = shifts[0], base.final.double().T.cov()
    images = float(u @ covariance.inverse() @ u) / 2
    steps = path_divergence(policy, path)
    assert images > 0.2
    assert float(steps.min()) > images


def gaussian_model():
    problem = problem_of(plugins.load("benchmarks", "gaussian")().prompts("test")[:1])
    return MixturePipeline(problem.mixture, exact_schedule(), Meter())


def test_the_authors_penalty_is_the_squared_difference_of_the_noise_and_lacks_the_steps_factor(policy):
    path = episode_of(policy).path
    for reduction in ("mean", "sum"):
        for action in range(len(path.actions)):
            moves = moves_of(path, range(8), [action] * 8)
            _, exact = dpok.DPOK(reduction=reduction).measure(policy, moves)
            _, theirs = dpok.DPOK(reduction=reduction, kl="eps_mse").measure(policy, moves)
            difference = moves.predict(policy).eps - moves.predict(policy.reference).eps
            torch.testing.assert_close(theirs, getattr(difference.square(), reduction)(1))
            a, s = (float(level[0]) for level in (moves.steps.alpha_bar, moves.steps.next_alpha_bar))
            variance = (1 - s) / (1 - a) * (1 - a / s)
            c = math.sqrt(1 - s - variance) - math.sqrt(s * (1 - a) / a)
            torch.testing.assert_close(exact, c**2 / (2 * variance) * theirs, atol=1e-6, rtol=1e-3)


def test_returns_are_the_reward_less_what_the_later_steps_cost(policy):
    assert dpok.sum_of_later(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[5.0, 3.0, 0.0]]
    episode = episode_of(policy)
    plain = dpok.DPOK().returns(ALONE, policy, episode)
    assert torch.equal(plain, episode.rewards[:, None].expand(8, 6))
    charged = dpok.DPOK(future_kl=True, reward_weight=2.0, kl_weight=6.0, reduction="sum").returns(
        ALONE, policy, episode
    )
    torch.testing.assert_close(charged[:, -1], episode.rewards)
    first = moves_of(episode.path, range(8), [0] * 8)
    _, kl = dpok.DPOK(reduction="sum").measure(policy, first)
    torch.testing.assert_close(
        charged[:, 0], episode.rewards - 3 * (path_divergence(policy, episode.path) - kl), atol=1e-5, rtol=1e-4
    )


def test_the_loss_is_the_mean_over_moves(policy):
    """Against a loss written out in one expression."""
    episode = episode_of(policy)
    algorithm, value = dpok.DPOK(reward_weight=3.0, kl_weight=0.7, batch=100), value_of(episode)
    data, rows = data_of(algorithm, policy, [episode]), [0, 7, 13, 25, 47]  # six actions an image
    found = gradient(policy, algorithm.losses(ALONE, policy, value, data, rows, []))
    terms = []
    for image, action in [(0, 0), (1, 1), (2, 1), (4, 1), (7, 5)]:
        p, q = (episode.path.transition(pipeline, action) for pipeline in (policy, policy.reference))
        log_prob = log_density(episode.path.latents[action + 1], p)[image]
        known = value(moves_of(episode.path, [image], [action]), torch.zeros(1))[0].detach()
        advantage = 3 * (episode.rewards[image] - known)
        terms.append(-advantage * log_prob + 0.7 * divergence(p, q, "mean")[image])
    torch.testing.assert_close(found, gradient(policy, [sum(terms) / 5]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [8]), (3, [2, 6]), (48, [1, 3, 4])])
@pytest.mark.parametrize("future_kl", [False, True])
def test_batches_and_accumulation_leave_the_gradient(policy, batch, sizes, future_kl):
    episodes = [episode_of(policy, n, start=sum(sizes[:i])) for i, n in enumerate(sizes)]
    rows, value = [5, 46, 17, 17, 30, 2, 11], value_of(episodes[0])
    whole = dpok.DPOK(batch=7, kl_weight=5.0, future_kl=future_kl)
    expected = gradient(
        policy, whole.losses(ALONE, policy, value, data_of(whole, policy, [episode_of(policy)]), rows, [])
    )
    other = replace(whole, batch=batch)
    losses = list(other.losses(ALONE, policy, value, data_of(other, policy, episodes), rows, []))
    assert len(losses) == len(chunked(rows, batch))
    torch.testing.assert_close(gradient(policy, losses), expected, atol=1e-5, rtol=1e-3)


def test_the_gradient_is_that_of_finite_differences(policy):
    """In float64, along one direction in weight space, penalty included."""
    algorithm = dpok.DPOK(reward_weight=3.0, kl_weight=5.0, clip=0.5, batch=7)
    data = data_of(algorithm, policy, [episode_of(policy)])
    policy.network.double()
    data = data._replace(path=replace(data.path, latents=data.path.latents.double()))

    def value():
        return torch.stack(list(algorithm.losses(ALONE, policy, Baseline(torch.ones(6)), data, range(48), []))).sum()

    exact, found = slopes(value, policy.parameters(), 1e-6)
    assert found == pytest.approx(exact, rel=1e-5)


def test_at_the_reference_the_gradient_is_that_of_the_reward_alone(mixture):
    policy = mixture.adapt(LoRA(), KEY("adapter"))
    episode = episode_of(policy)
    update, gradients = None, []
    for kl_weight in (0.0, 50.0):
        algorithm = dpok.DPOK(kl_weight=kl_weight, moves_per_update=48)
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
        data = data_of(algorithm, policy, [episode])
        update = algorithm.update(Recorder(), policy, value_of(episode), optimiser, data, range(48))
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert update.ratio_error < 1e-5
    assert (update.clip_fraction, update.kl_term) == (0, 0)
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients)


def test_mean_and_sum_are_one_gradient_up_to_the_number_of_elements(policy):
    """So that β is in reward per nat under both."""
    found = {}
    for reduction in ("mean", "sum"):
        algorithm = dpok.DPOK(reduction=reduction, kl_weight=20.0, batch=48)
        data = data_of(algorithm, policy, [episode_of(policy, reduction=reduction)])
        found[reduction] = gradient(
            policy, algorithm.losses(ALONE, policy, Baseline(torch.zeros(6)), data, range(48), [])
        )
    torch.testing.assert_close(2 * found["mean"], found["sum"], atol=1e-4, rtol=1e-4)


def test_future_kl_makes_the_gradient_exact():
    """Of E r − β Σ E KL_t, for the last bias of the network: from densities and returns alone, and by differentiating
    through every step of the same paths. Without it a part is missing."""
    n, beta, sampling = 10_000, 2.0, Sampling(4, 1.0, 1.0)
    policy = gaussian_model().adapt(LoRA(), KEY("adapter"))
    weight, bias, condition = *policy.network[-1].parameters(), policy.condition([PROMPTS[0]] * n)
    with torch.no_grad():
        weight.copy_(0.04 * KEY("moved").normal(*weight.shape))  # what a step costs now depends on where it starts
    keys = [KEY("path", i) for i in range(n)]
    path = rollout(policy, condition, keys, sampling, "sum")

    def reward(x):
        return x @ torch.tensor([1.0, 0.5])

    found = {}
    for future_kl in (False, True):
        algorithm = dpok.DPOK(
            reward_weight=1.0, kl_weight=beta, future_kl=future_kl, reduction="sum", batch=n * 4, clip=0.2
        )
        data = data_of(algorithm, policy, [Episode(path, reward(path.final))])
        (loss,) = algorithm.losses(ALONE, policy, Baseline(data.returns.mean(0)), data, range(n * 4), [])
        found[future_kl] = -4 * torch.autograd.grad(loss, bias)[0]  # the mean over moves, as the sum over actions

    latents, steps = policy.initial_noise(keys), policy.timesteps(4)
    kl = torch.zeros(n)
    for i in range(4):
        p, q = (transition(pipeline, latents, steps[i], condition, sampling) for pipeline in (policy, policy.reference))
        kl = kl + divergence(p, q)
        latents = p.sample(step_noise(keys, i, latents))
    (exact,) = torch.autograd.grad((reward(latents) - beta * kl).mean(), bias)
    torch.testing.assert_close(latents.detach(), path.final, atol=1e-4, rtol=1e-4)
    missing = (found[False] - exact).norm()
    assert missing > 0.05 * exact.norm()
    assert (found[True] - exact).norm() < 0.15 * missing


def test_the_value_network_learns_a_constant_reward(policy):
    episode = episode_of(policy)._replace(rewards=torch.full((8,), 3.0))
    algorithm, value = dpok.DPOK(value_batch=48), value_of(episode)
    data = data_of(algorithm, policy, [episode])
    optimiser = torch.optim.AdamW(value.parameters(), lr=1e-3)
    problem = Recorder()

    def step(losses, optimiser, max_norm=None):
        Recorder.step(problem, losses, optimiser)
        optimiser.step()
        return 0.0

    problem.step = step
    errors = [float(algorithm.fit(problem, value, optimiser, data, KEY("fit", k))) for k in range(300)]
    assert errors[0] > 1
    assert errors[-1] < 1e-3


def test_the_value_network_starts_at_the_line_of_each_action_and_weighs_the_text(policy):
    episode = episode_of(policy)
    value, moves = value_of(episode), moves_of(episode.path, [2, 2], [1, 4])
    before = value(moves, torch.tensor([5.0, 7.0]))
    value.start.copy_(torch.tensor([0.0, 28.0, 0.0, 0.0, 20.0, 0.0]))
    value.slope.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0]))
    torch.testing.assert_close(value(moves, torch.tensor([5.0, 7.0])), before + torch.tensor([33.0, 34.0]))
    assert value.state_dict()["start"][1] == 28  # a resumed run goes on from it
    assert value.state_dict()["slope"][4] == 2
    scaled = dpok.Value(3, 6, KEY("value"), 4.0)
    condition = replace(moves.condition, tensors={k: v / 4 for k, v in moves.condition.tensors.items()})
    found = scaled(moves._replace(condition=condition), torch.zeros(2))
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)


def test_the_line_is_that_of_least_squares_and_flat_where_nothing_is_foreseen():
    """Nothing: zeros, a number but for its rounding, and rounding about zero where returns are of order one."""
    value = dpok.Value(3, 5, KEY("value"))
    foreseen = torch.tensor([[0.0, 1.0, 0.0, 0.1, 1e-8], [1.0, 1.0, 0.0, 0.1000001, -1e-8], [2.0, 2.0, 0.0, 0.1, 0.0]])
    returns = torch.tensor([[1.0, 2.0, 4.0, 9.0, 1.0], [3.0, 4.0, 5.0, -9.0, 0.0], [5.0, 9.0, 6.0, 9.0, -1.0]])
    value.begin(foreseen, returns)
    # the second: means 4/3 and 5, covariance (1 + 1/3 + 8/3)/3 = 4/3, variance (1/9 + 1/9 + 4/9)/3 = 2/9
    torch.testing.assert_close(value.slope, torch.tensor([2.0, 6.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(value.start, torch.tensor([1.0, -3.0, 5.0, 3.0, 0.0]))


def test_what_is_foreseen_is_the_reward_of_the_x0_estimate_before_each_action(policy):
    problem = Recorder()
    problem.reward = lambda images, prompts: images[:, 0] - 2 * images[:, 1]
    condition = policy.condition(PROMPTS)
    keys = [KEY("episode", i) for i in range(8)]
    path = rollout(policy, condition, keys, SAMPLING, keep_x0=True)
    episodes = [Episode(part, part.final[:, 0]) for part in (path.rows(slice(8)), path.rows(slice(3)))]
    asked = [*PROMPTS, *PROMPTS[:3]]
    data = dpok.DPOK(lookahead=True, skip_first=2, skip_last=1, batch=8).experience(
        problem, policy, joined(episodes), asked
    )
    assert data.foreseen.shape == (11, 3)
    for action in (2, 3, 4):
        with torch.no_grad():
            x0 = moves_of(path, range(8), [action] * 8).predict(policy).x0
        torch.testing.assert_close(data.foreseen[:8, action - 2], x0[:, 0] - 2 * x0[:, 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(data.foreseen[8:], data.foreseen[:3])
    moves, returns, foreseen = data.pick([3 * 9 + 2, 1])  # image 9 (1 again) at action 4, image 0 at action 3
    torch.testing.assert_close(returns, path.final[[1, 0], 0])
    assert torch.equal(foreseen, data.foreseen[[9, 0], [2, 1]])
    assert torch.equal(moves.latents, path.latents[[4, 3], [1, 0]])
    assert torch.equal(moves.log_prob, path.log_prob[[1, 0], [4, 3]])


def test_the_actions_that_are_skipped_are_not_charged(policy):
    problem, episode = Recorder(), episode_of(policy)
    algorithm = dpok.DPOK(future_kl=True, reward_weight=2.0, kl_weight=6.0, reduction="sum", skip_first=1, skip_last=2)
    data = algorithm.experience(problem, policy, episode, PROMPTS)
    kl = [dpok.DPOK(reduction="sum").measure(policy, moves_of(episode.path, range(8), [a] * 8))[1] for a in (2, 3)]
    charged = torch.stack([kl[0] + kl[1], kl[1], torch.zeros(8)], 1)
    torch.testing.assert_close(data.returns, episode.rewards[:, None] - 3 * charged, atol=1e-5, rtol=1e-4)


def test_the_lookahead_takes_noise_out_of_the_gradient_and_leaves_its_mean(policy):
    """Over twenty sets of paths, for the network's last bias; x0 estimates say ever more of a reward linear in x0."""
    problem = Recorder()
    problem.reward = lambda images, prompts: images @ torch.tensor([1.0, 0.5])
    n, sets = 200, 20
    algorithm = dpok.DPOK(reward_weight=1.0, kl_weight=0.0, batch=n * 6, clip=0.2, lookahead=True)
    bias, found = policy.network[-1].bias, {True: [], False: []}
    for k in range(sets):
        prompts, keys = [PROMPTS[0]] * n, [KEY("noise", k, i) for i in range(n)]
        path = rollout(policy, policy.condition(prompts), keys, SAMPLING, keep_x0=True)
        data = algorithm.experience(problem, policy, Episode(path, problem.reward(path.final, prompts)), prompts)
        for lookahead in found:
            value = Line(data.foreseen * lookahead, data.returns)
            (loss,) = algorithm.losses(ALONE, policy, value, data, range(n * 6), [])
            found[lookahead] += [torch.autograd.grad(loss, bias)[0]]
    plain, ahead = torch.stack(found[False]), torch.stack(found[True])
    error = ((plain.var(0) + ahead.var(0)) / sets).sqrt()
    assert ((plain.mean(0) - ahead.mean(0)).abs() < 4 * error).all()
    assert (ahead.std(0) < 0.7 * plain.std(0)).all()


def test_the_value_network_is_the_authors_and_tells_steps_and_prompts_apart(policy):
    episode = episode_of(policy)
    value = value_of(episode)
    again = dpok.Value(3, 6, KEY("value"))
    moves = moves_of(episode.path, [2, 2], [1, 4])
    moves = moves._replace(latents=moves.latents[:1].expand(2, -1))
    with torch.no_grad():
        one, other = value(moves, torch.zeros(2)).tolist()
    assert one != other
    assert torch.equal(again(moves, torch.zeros(2)), value(moves, torch.zeros(2)))
    x = torch.cat([moves.latents[0], moves.condition.pooled[0]])
    for layer, scale in zip(value.layers, value.scales, strict=False):
        x = ((layer.weight @ x + layer.bias) * scale[1]).relu()
    assert one == pytest.approx((value.layers[-1].weight[0] @ x + value.layers[-1].bias).item(), rel=1e-4)
    assert all(scale.min().item() >= 0 and 0.9 < scale.max().item() < 1 for scale in value.scales)


def test_moves_are_drawn_without_repetition_and_pick_their_own_returns(policy):
    episode = episode_of(policy)
    returns = torch.arange(40.0).reshape(8, 5)  # the last of six actions is left out
    data = dpok.Experience(episode.path, returns, -returns)
    rows = data.draw(40, KEY("draw"))
    assert sorted(rows) == list(range(40))
    moves, returns, foreseen = data.pick(rows)
    assert returns.tolist() == rows
    assert torch.equal(foreseen, -returns)
    assert moves.actions == [row % 5 for row in rows]
    torch.testing.assert_close(moves.latents[0], episode.path.latents[rows[0] % 5, rows[0] // 5])
    torch.testing.assert_close(moves.next_latents[0], episode.path.latents[rows[0] % 5 + 1, rows[0] // 5])


class Killed(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize(("lookahead", "skipped", "calls"), [(False, 0, 3), (True, 0, 1 + 2 * 7), (True, 1, 1 + 2 * 5)])
def test_a_run_killed_and_continued_ends_with_the_same_weights(mixture, tmp_path, lookahead, skipped, calls):
    """The value network with its line and both optimisers are part of what is kept."""
    algorithm = dpok.DPOK(
        rounds=4, samples_per_round=8, updates_per_round=2, moves_per_update=16, value_batch=16, learning_rate=1e-2,
        value_learning_rate=1e-2, kl_weight=1.0, clip=0.2, lookahead=lookahead, skip_first=skipped, skip_last=skipped,
    )  # fmt: skip

    def run(name, last=99):
        rewarded = []

        class Deadly(plugins.load("rewards", f"{TOY}:FirstCoordinate")):
            def __call__(self, images, prompts):
                rewarded.append(1)
                if len(rewarded) > last:
                    raise Killed
                return images[:, 0]

        (tmp_path / name).mkdir(exist_ok=True)
        problem = CellProblem(
            pipeline=mixture, reward=Deadly(), prompts=Prompts(PROMPTS), sampling=SAMPLING, key=KEY("cell"),
            meter=mixture.meter, folder=tmp_path / name, progress=Progress(quiet=True),
        )  # fmt: skip
        return algorithm.align(problem).pipeline.state_dict(), problem

    whole, _ = run("whole")
    with pytest.raises(Killed):
        run("killed", calls)  # once by the check, then by two rounds
    continued, problem = run("killed")
    assert problem.resumed_at == 2
    assert all(torch.equal(continued[name], weights) for name, weights in whole.items())
    for line in problem.curve():
        assert {"reward", "kl", "value_error", "ratio_error", "clip_fraction", "gradient_norm", "kl_term"} <= set(line)
        assert line["ratio_error"] < 1e-4


@pytest.mark.parametrize(("first", "last", "refused"), [(0, 5, False), (3, 2, False), (0, 6, True), (4, 2, True)])
def test_skipping_every_action_is_refused(mixture, first, last, refused):
    problem = Recorder()
    problem.pipeline, problem.prompts, problem.sampling = mixture, PROMPTS, SAMPLING
    reason = dpok.DPOK(skip_first=first, skip_last=last).unsupported(problem)
    expected = "skip_first + skip_last = 6 leaves none of a path's 6 actions; set them lower."
    assert reason == (expected if refused else None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"value_batch": 0}, "value_batch must be at least 1, got 0"),
        ({"reward_weight": 0.0}, "reward_weight must be positive, got 0.0"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative, got -1.0"),
        ({"eta": 0.0}, r"eta must lie in \(0, 1\], got 0.0"),
        ({"skip_first": -1}, "skip_first must not be negative, got -1"),
        ({"skip_last": -1}, "skip_last must not be negative, got -1"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dpok.DPOK(**fields)


def test_the_defaults_are_those_of_the_authors_code():
    d = dpok.DPOK()
    assert (d.reward_weight, d.kl_weight, d.clip, d.learning_rate, d.max_norm) == (10.0, 0.01, 1e-4, 1e-5, 0.1)
    assert (d.samples_per_round, d.updates_per_round, d.moves_per_update) == (10, 5, 48)
    assert (d.value_learning_rate, d.value_updates, d.value_batch) == (1e-4, 5, 256)
    assert (d.eta, d.rank, d.tuning, d.reduction, d.kl) == (1.0, 4, "lora", "mean", "gaussian")
    assert (d.future_kl, d.lookahead, d.guided, d.skip_first, d.skip_last) == (False, False, True, 0, 0)
    assert d.rounds * d.samples_per_round == 20_000
