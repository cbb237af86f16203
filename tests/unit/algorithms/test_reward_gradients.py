"""DRaFT, AlignProp and ReFL: their gradients against chains written out by hand, finite differences and counts."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from alignbench import Key, LoRA, Prompt, Prompts, RewardInfo, Sampling, plugins
from alignbench.diffusion.backprop import before_steps, sample_through
from alignbench.diffusion.rollout import initial_noise, rollout, step_noise
from alignbench.diffusion.transition import ddim
from alignbench.errors import InputError, RunError
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import CellProblem
from alignbench.meter import Cost, Meter
from alignbench.progress import Progress
from alignbench.testbed.pipeline import MixturePipeline, exact_schedule
from alignbench.testbed.toys import grid

draft = importlib.import_module("alignbench.algorithms.draft")
refl = importlib.import_module("alignbench.algorithms.refl")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
KEYS = [Key("gradient", i) for i in range(8)]
PATH = Sampling(6, 1.0, 1.0)
DRAFT, REFL = (
    draft.DRaFT(last_steps="all", batch=8),
    refl.ReFL(margin="none", reward_weight=1.0, steps=6, batch=8, tuning="lora"),
)


@dataclass(frozen=True)
class Bowl:
    """−‖x − (1, 2)‖² / 8: a reward whose gradient depends on the image."""

    differentiable: ClassVar[bool] = True

    def __call__(self, images, prompts):
        return -(images - torch.tensor([1.0, 2.0])).square().sum(1) / 8

    with_grad = __call__

    def info(self):
        return RewardInfo(id="bowl")

    def unsupported(self, prompts, image_shape):
        return None


class Flat(Bowl):
    def with_grad(self, images, prompts):
        return 0 * images.sum(1) + 3


class Detached(Bowl):
    def with_grad(self, images, prompts):
        return self(images.detach(), prompts)


class Rewarded:
    """A problem of which nothing but the reward is used."""

    pipeline = prompts = pairs = sampling = key = budget = None

    def __init__(self, reward):
        self.reward = reward

    def rounds(self, n, state):
        raise AssertionError("a gradient runs no rounds")

    def check(self, policy, plan, probe):
        raise AssertionError("a gradient is not checked")

    def shard(self, items, together=1):
        return items

    def gather(self, parts):
        return list(parts)

    def step(self, losses, optimiser, max_norm=None):
        raise AssertionError("a gradient takes no step")


def moved(policy):
    """The policy away from its reference, so that no gradient is special."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * Key("moved", i).normal(*parameter.shape))
    return policy


@pytest.fixture
def policy(mixture):
    return moved(mixture.adapt(LoRA(1), Key("adapter")))


@pytest.fixture
def precise(policy):
    """The policy in float64, for finite differences."""
    policy.network.double()
    policy.initial_noise = lambda keys: initial_noise(keys, policy.latent_shape).double()
    return policy


@pytest.fixture
def problem(mixture, tmp_path):
    def build(folder="run", reward=None, sampling=PATH):
        (tmp_path / folder).mkdir(exist_ok=True)
        return CellProblem(
            pipeline=mixture,
            reward=MeteredReward("bowl", reward or Bowl(), mixture.meter),
            prompts=Prompts(PROMPTS),
            sampling=sampling,
            key=Key("align", 0),
            meter=mixture.meter,
            folder=tmp_path / folder,
            progress=Progress(quiet=True),
        )

    return build


def gradient(loss, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


def accumulated(algorithm, policy, *arguments, reward=None, prompts=PROMPTS, keys=KEYS):
    """The gradient of an algorithm's losses, one backward pass each, and the rewards it saw."""
    rewards = []
    meter = policy.meter if isinstance(policy, MixturePipeline) else Meter()
    problem = Rewarded(MeteredReward("test", reward or Bowl(), meter))
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in algorithm.losses(problem, policy, prompts, keys, *arguments, rewards):
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()]), torch.cat(rewards)


def steps_by_hand(policy, latents, first, keys=KEYS, sampling=PATH):
    """x_0 by the sampler's formula alone, from the latents that step number `first` starts from."""
    steps, condition = policy.timesteps(sampling.steps), policy.condition(PROMPTS)
    for i in range(first, sampling.steps):
        gaussian = ddim(policy.predict(latents, int(steps.t[i]), condition), steps[i], sampling.eta)
        latents = gaussian.mean + gaussian.std[:, None] * step_noise(keys, i, latents)
    return latents


@pytest.mark.parametrize("k", [1, 2, 5])
def test_drafts_gradient_is_that_of_the_last_k_steps_alone(policy, k):
    stored = rollout(policy, policy.condition(PROMPTS), KEYS, PATH).latents
    x0 = steps_by_hand(policy, stored[6 - k], 6 - k)
    torch.testing.assert_close(x0, stored[-1])
    expected = gradient(-Bowl()(x0, PROMPTS).mean(), policy)
    found, rewards = accumulated(DRAFT, policy, PATH, k)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rewards, Bowl()(x0, PROMPTS).detach())


def test_with_all_steps_it_is_backpropagation_through_the_whole_chain(policy):
    x0 = steps_by_hand(policy, policy.initial_noise(KEYS), 0)
    expected = gradient(-Bowl()(x0, PROMPTS).mean(), policy)
    found, _ = accumulated(DRAFT, policy, PATH, 6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    truncated, _ = accumulated(DRAFT, policy, PATH, 5)
    assert (truncated - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_is_the_derivative_of_the_reward_of_the_same_noise(precise, eta):
    """Central differences in float64 along four random directions."""
    sampling = Sampling(4, 1.0, eta)
    found, _ = accumulated(DRAFT, precise, sampling, 4)
    parameters = precise.parameters()

    def loss():
        condition = precise.condition(PROMPTS)
        return -float(Bowl()(before_steps(precise, condition, KEYS, sampling, [4] * 8), PROMPTS).mean())

    for i in range(4):
        direction = [Key("direction", i, j).normal(*p.shape).double() for j, p in enumerate(parameters)]
        values = []
        for step in (1e-5, -2e-5):
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.data += step * along
            values.append(loss())
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.data += 1e-5 * along
        expected = (values[0] - values[1]) / 2e-5
        assert float(found @ torch.cat([d.flatten() for d in direction])) == pytest.approx(expected, rel=1e-6)


def renoised(policy, x0, n):
    """x_0 at the level of the last step, with the noise of resample n."""
    fresh = [key("resample", n) for key in KEYS]
    noise = torch.stack([key("noise").normal(2) for key in fresh])
    return policy.add_noise(x0, noise, policy.timesteps(6).t[-1].expand(8)), fresh


def test_low_variance_draft_averages_the_last_step_over_the_image_and_its_resamples(policy):
    stored = rollout(policy, policy.condition(PROMPTS), KEYS, PATH).latents
    starts = [(stored[5], KEYS), *(renoised(policy, stored[6], n) for n in range(3))]
    each = [gradient(-Bowl()(steps_by_hand(policy, x, 5, keys), PROMPTS).mean(), policy) for x, keys in starts]
    found, rewards = accumulated(draft.DRaFT(resamples=3, batch=8), policy, PATH, 1)
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-4, atol=1e-7)
    assert len(rewards) == 8  # of the sampled images


def test_low_variance_draft_deserves_its_name():
    """Variance over thirty images. This schedule's last of two steps starts from so much noise that draws differ."""
    policy = moved(MixturePipeline(grid().mixture, exact_schedule(), Meter()).adapt(LoRA(1), Key("adapter")))

    def variance(resamples):
        algorithm, once = draft.DRaFT(resamples=resamples, batch=1), Sampling(2, 1.0, 1.0)
        draws = [
            accumulated(algorithm, policy, once, 1, prompts=PROMPTS[:1], keys=[Key("variance", i)])[0]
            for i in range(30)
        ]
        return float(torch.stack(draws).var(0).sum())

    assert variance(0) > 1.2 * variance(1) > 1.5 * variance(5)


def test_alignprop_draws_one_depth_an_update_from_the_key_alone(problem, monkeypatch):
    seen = []

    def watch(policy, condition, keys, sampling, last_steps):
        seen.append(last_steps)
        return sample_through(policy, condition, keys, sampling, last_steps)

    monkeypatch.setattr(draft, "sample_through", watch)
    fields = {"rounds": 4, "updates_per_round": 2, "samples_per_update": 6, "batch": 2, "last_steps": "all"}
    algorithm = draft.DRaFT(**fields, truncation="random")
    algorithm.align(problem())
    updates = [seen[i : i + 3] for i in range(1, len(seen), 3)]  # the first is the start-up check's
    assert len(updates) == 8
    assert all(len(set(depths)) == 1 for depths in updates)
    assert [u[0] for u in updates] == [
        algorithm.depth(Key("align", 0, "round", i, "update", k), PATH) for i in range(4) for k in range(2)
    ]
    counts = torch.tensor([algorithm.depth(Key("many", i), PATH) for i in range(600)]).bincount(minlength=7)
    assert counts[0] == 0
    assert len(counts) == 7
    assert counts[1:].min() > 70  # 100 expected of each


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (draft.DRaFT(last_steps="all"), (PATH, 6)),
        (draft.DRaFT(resamples=2), (PATH, 1)),
        (refl.ReFL(margin="none", steps=6, window=0.9), (PATH,)),
        (refl.ReFL(margin=-0.5, steps=6, window=0.9, prior_weight=0.0), (PATH,)),
    ],
)
def test_splitting_an_update_into_other_forward_passes_leaves_the_gradient(policy, algorithm, arguments):
    one, three = (accumulated(dataclasses.replace(algorithm, batch=batch), policy, *arguments)[0] for batch in (8, 3))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("last_steps", "refused"), [(6, False), (7, True)])
def test_more_steps_with_gradient_than_a_path_has_are_refused(problem, last_steps, refused):
    reason = draft.DRaFT(last_steps=last_steps).unsupported(problem())
    assert reason == ("last_steps=7 is more than a path's 6 steps; set it lower." if refused else None)


@pytest.mark.parametrize("algorithm", [DRAFT, REFL])
def test_a_reward_without_gradient_is_a_sentence(problem, algorithm):
    reward = plugins.load("rewards", "shapes_truth")()
    assert algorithm.unsupported(problem(reward=reward)) == (
        f"{type(algorithm).__name__} follows the gradient of the reward, and 'shapes_truth-1' has none; choose a "
        "differentiable --reward, or an algorithm that needs no gradient, such as ddpo or steering."
    )


@pytest.mark.parametrize("algorithm", [DRAFT, draft.DRaFT(resamples=2), dataclasses.replace(REFL, prior_weight=0.0)])
def test_a_constant_reward_teaches_nothing_and_the_start_up_check_says_so(problem, policy, algorithm):
    arguments = (PATH,) if isinstance(algorithm, refl.ReFL) else (PATH, 1)
    found, _ = accumulated(algorithm, policy, *arguments, reward=Flat())
    assert found.abs().max() == 0
    with pytest.raises(RunError, match="the start-up check failed: 6 of 6 trained weights have no gradient"):
        algorithm.align(problem(reward=Flat()))


@pytest.mark.parametrize("algorithm", [DRAFT, REFL])
def test_a_reward_that_loses_its_gradient_is_named(problem, algorithm):
    with pytest.raises(RunError, match="reward 'bowl' says that it is differentiable, but what its with_grad returns"):
        algorithm.align(problem(reward=Detached()))


def clipping(policy):
    """A decoder that clamps to [0, 1] where it is asked to."""
    policy.decode = lambda latents, clamp=True: latents.clamp(0, 1) if clamp else latents
    return policy


@pytest.mark.parametrize(("algorithm", "arguments"), [(DRAFT, (PATH, 6)), (REFL, (PATH,))])
def test_the_reward_is_handed_what_the_decoder_gives_without_clamping(policy, algorithm, arguments):
    images = []

    class Spy(Bowl):
        def with_grad(self, given, prompts):
            images.append(given.detach())
            return self(given, prompts)

    accumulated(algorithm, clipping(policy), *arguments, reward=Spy())
    assert ((images[0] < 0) | (images[0] > 1)).any()
    if algorithm is DRAFT:
        assert torch.equal(images[0], before_steps(policy, policy.condition(PROMPTS), KEYS, PATH, [6] * 8))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    ("algorithm", "depth", "forward", "backward"),
    [(DRAFT, 6, 6, 6), (DRAFT, 2, 6, 2), (draft.DRaFT(resamples=3, batch=4), 1, 6 + 3, 1 + 3)],
)
def test_drafts_costs_are_the_closed_form(policy, algorithm, depth, forward, backward, guidance):
    before, twice = policy.meter.total, 1 if guidance == 1 else 2
    accumulated(algorithm, policy, Sampling(6, guidance, 1.0), depth)
    images = 1 + algorithm.resamples
    assert policy.meter.total - before == Cost(
        8 * twice * forward, 8 * twice * backward, 8 * images, 0, 8 * images, 8 * images
    )


@pytest.mark.parametrize("prior_weight", [0.0, 1.0])
def test_refls_costs_are_the_closed_form(policy, prior_weight):
    """A step per image and those before it; the prior samples an image of the reference and denoises it once."""
    algorithm = refl.ReFL(margin="none", steps=6, window=0.5, prior_weight=prior_weight, batch=1)
    before, prior = policy.meter.total, prior_weight > 0
    accumulated(algorithm, policy, PATH)
    steps = sum(algorithm.place(key, PATH) + 1 for key in KEYS)
    assert policy.meter.total - before == Cost(steps + 8 * 7 * prior, 8 + 8 * prior, 8, 0, 8, 8)


def test_refl_differentiates_one_step_and_its_estimate_of_the_image(policy):
    """At each image's own step the estimate is (x − σ ε̂)/α, with x held constant."""
    algorithm = refl.ReFL(margin=0.0, steps=6, window=0.9, reward_weight=0.1, prior_weight=0.0)
    stored = rollout(policy, policy.condition(PROMPTS), KEYS, PATH).latents
    places = [algorithm.place(key, PATH) for key in KEYS]
    assert len(set(places)) > 2
    steps, losses = policy.timesteps(6), []
    for i, place in enumerate(places):
        x, level = stored[place, i : i + 1], steps.alpha_bar[place].float()
        eps = policy.predict(x, int(steps.t[place]), policy.condition(PROMPTS[:1])).eps
        losses.append(-Bowl()((x - (1 - level).sqrt() * eps) / level.sqrt(), PROMPTS[:1]))
    assert min(losses) > 0  # below the margin: the gate is open
    expected = gradient(0.1 * torch.cat(losses).mean(), policy)
    found, _ = accumulated(algorithm, policy, PATH)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_gate_by_hand():
    """Margin 2: rewards 0.5 and 2.5 cost 1.5 and nothing, with gradients −1 and 0; without a gate −0.5 and −2.5."""
    rewards = torch.tensor([0.5, 2.5], requires_grad=True)
    loss = refl.gated_loss(rewards, 2.0)
    assert loss.tolist() == [1.5, 0.0]
    assert torch.autograd.grad(loss.sum(), rewards)[0].tolist() == [-1.0, 0.0]
    loss = refl.gated_loss(rewards, "none")
    assert loss.tolist() == [-0.5, -2.5]
    assert torch.autograd.grad(loss.sum(), rewards)[0].tolist() == [-1.0, -1.0]


def test_images_above_the_margin_have_no_gradient_and_are_named_at_the_start(policy, problem):
    algorithm = dataclasses.replace(REFL, margin=-1e4, prior_weight=0.0)
    found, _ = accumulated(algorithm, policy, PATH)
    assert found.abs().max() == 0
    with pytest.raises(InputError, match=r"margin=-10000, but the model's own images earn -[\d.]+ and -[\d.]+ already"):
        algorithm.align(problem())


def test_the_step_that_refl_differentiates_lies_in_the_last_quarter():
    """The authors' 30 to 39 of 40, each as often as the others."""
    counts = torch.tensor([refl.ReFL().place(Key("place", i), Sampling(40, 1.0)) for i in range(1000)]).bincount(
        minlength=40
    )
    assert len(counts) == 40
    assert counts[:30].sum() == 0
    assert counts[30:].min() > 60
    assert {refl.ReFL().place(key, Sampling(2, 1.0)) for key in KEYS} == {1}


def test_the_prior_is_the_denoising_error_of_the_references_images(policy, mixture):
    """Whatever the policy has become."""
    algorithm = refl.ReFL(margin="none", steps=6, batch=8)
    fresh = [key("prior") for key in KEYS]
    x0 = rollout(mixture, mixture.condition(PROMPTS), fresh, PATH).final
    draws = [(key("timestep", "dropout").uniform(2), key("noise").normal(2)) for key in fresh]
    expected = []
    for i, (uniform, noise) in enumerate(draws):
        t = int(float(uniform[0]) * 1000)
        level = policy.schedule.alpha_bar[t].float()
        noised = level.sqrt() * x0[i : i + 1] + (1 - level).sqrt() * noise
        eps = policy.predict(noised, t, policy.condition(PROMPTS[:1])).eps
        expected.append((eps - noise).square().mean())
    found = algorithm.prior(policy, PROMPTS, KEYS, PATH)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algorithm", [DRAFT, REFL])
def test_a_chain_with_noise_logs_its_divergence_and_one_without_does_not(problem, algorithm):
    few = dataclasses.replace(algorithm, rounds=2, updates_per_round=2, samples_per_update=8)
    for eta, logged in ((1.0, True), (0.0, False)):
        run = problem(f"eta{eta}")
        dataclasses.replace(few, eta=eta).align(run)
        curve = run.curve()
        assert [("kl" in line) for line in curve] == [logged, logged]
        assert all(line["gradient_norm"] > 0 for line in curve)


@pytest.mark.parametrize("algorithm", [draft.DRaFT(last_steps="all", truncation="random"), REFL])
def test_a_run_that_stops_and_goes_on_ends_with_the_same_weights(problem, algorithm):
    few = dataclasses.replace(
        algorithm, rounds=4, updates_per_round=2, samples_per_update=8, learning_rate=1e-2, anneal=True
    )

    class Stop(Exception):
        pass

    class Dying(Bowl):
        calls: ClassVar[list[int]] = []

        def with_grad(self, images, prompts):
            self.calls.append(1)
            if len(self.calls) == 7:  # in the third round: one call in the check, two a round
                raise Stop
            return self(images, prompts)

    whole = few.align(problem("whole")).pipeline.state_dict()
    with pytest.raises(Stop):
        few.align(problem("stopped", reward=Dying()))
    again = problem("stopped")
    resumed = few.align(again).pipeline.state_dict()
    assert again.resumed_at > 0
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (draft.DRaFT, {"rounds": 0}, "rounds must be at least 1, got 0"),
        (draft.DRaFT, {"last_steps": 0}, "last_steps must be at least 1, got 0"),
        (draft.DRaFT, {"steps": 0}, "steps must be at least 1, got 0"),
        (draft.DRaFT, {"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        (draft.DRaFT, {"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        (draft.DRaFT, {"resamples": -1}, "resamples must not be negative, got -1"),
        (draft.DRaFT, {"resamples": 2, "last_steps": 3}, "resamples are of the last step alone; set last_steps=1"),
        (draft.DRaFT, {"truncation": "random"}, "truncation 'random' has nothing to draw with last_steps=1"),
        (draft.DRaFT, {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        (refl.ReFL, {"samples_per_update": 0}, "samples_per_update must be at least 1, got 0"),
        (refl.ReFL, {"window": 0.0}, r"window must lie in \(0, 1\], got 0.0"),
        (refl.ReFL, {"eta": -0.1}, r"eta must lie in \[0, 1\], got -0.1"),
        (refl.ReFL, {"prior_weight": -1.0}, "prior_weight must not be negative, got -1.0"),
        (refl.ReFL, {"reward_weight": 0.0}, "reward_weight must be positive, got 0.0"),
    ],
)
def test_impossible_fields_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_the_defaults_are_the_papers():
    d, r = draft.DRaFT(), refl.ReFL()
    assert (d.last_steps, d.learning_rate, d.weight_decay, d.samples_per_update) == (1, 4e-4, 0.1, 4)
    assert d.rounds * d.updates_per_round == 2000
    assert (r.steps, r.guidance, r.eta, r.margin, r.reward_weight) == (40, 1.0, 1.0, 2.0, 1e-3)
    assert (r.learning_rate, r.weight_decay, r.samples_per_update) == (1e-5, 1e-2, 64)
    assert r.rounds * r.updates_per_round == 100
