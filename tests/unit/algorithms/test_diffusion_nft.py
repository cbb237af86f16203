"""DiffusionNFT: its loss by hand and from velocities, its gradient at the old policy, and how that follows."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from alignbench import Key, LoRA, Prompt, Prompts, flow_scale, flow_sigma, normal
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.interface import Sampling
from alignbench.meter import Meter
from alignbench.quantities import Prediction
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid

nft = importlib.import_module("alignbench.algorithms.diffusion_nft")
KEY = Key("test", "diffusion_nft")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(6)]
KEYS = [KEY("image", i) for i in range(6)]


@pytest.fixture
def pipelines(mixture):
    return {"diffusion": mixture, "flow": MixturePipeline(grid().mixture, FlowSchedule(shift=3.0), Meter())}


def algorithm(**changes):
    small = {"samples_per_round": 8, "samples_per_prompt": 4, "steps": 5, "batch": 8}
    return nft.DiffusionNFT(**{**small, **changes})


def moved(policy, scale=0.02, name="moved"):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * KEY(name, i).normal(*parameter.shape))
    return policy


def sampling_of(own):
    return Sampling(own.steps, 1.0)


def data(r):
    points = 3 * KEY("points").normal(6, 2)
    return [nft.Judged(*row) for row in zip(points, PROMPTS, [r] * 6, strict=True)]


class FirstCoordinate:
    differentiable = False

    def __call__(self, images, prompts):
        return images[:, 0]


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_the_relative_error_and_its_gradient_by_hand():
    """Errors 1 and −3: mean square 5, mean size 2, which is a constant for the gradient 2 e / (D · 2)."""
    estimate = torch.tensor([[2.0, 0.0]], requires_grad=True)
    found = nft.relative_error(estimate, torch.tensor([[1.0, 3.0]]))
    assert found.item() == 2.5
    found.sum().backward()
    assert estimate.grad.tolist() == [[0.5, -1.5]]


def test_an_error_of_nothing_is_divided_by_no_zero():
    estimate = torch.zeros(1, 4, requires_grad=True)
    found = nft.relative_error(estimate, torch.zeros(1, 4))
    found.sum().backward()
    assert found.item() == 0
    assert estimate.grad.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("advantage", "r"), [(-9.0, 0.0), (-5.0, 0.0), (-2.5, 0.25), (0.0, 0.5), (2.5, 0.75), (5.0, 1.0), (9.0, 1.0)]
)
def test_an_advantage_as_a_probability(advantage, r):
    assert nft.optimality(torch.tensor([advantage]), 5.0).item() == r


def test_the_loss_on_numbers_worked_by_hand():
    """b = ½, x̂_θ = 2, x̂_old = 1, x_0 = 0: x̂₊ = 1.5 and x̂₋ = 0.5, whose relative errors are themselves."""
    positive, negative = nft.implicit_errors(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.zeros(1, 1), 0.5)
    assert (positive.item(), negative.item()) == (1.5, 0.5)
    level = torch.tensor([0.5], dtype=torch.float64)  # σ = ½, where x̂ = ρ x − v / 2 and ρ = √½
    at = torch.zeros(1, 1)

    def estimate(x0):
        return Prediction(torch.tensor([[-2 * x0]]), at, level, "flow")

    assert estimate(2.0).x0.item() == pytest.approx(2)
    own = algorithm(mixing=0.5)
    loss, distance = own.loss(estimate(2.0), estimate(1.0), estimate(0.0), at, torch.tensor([0.75]))
    assert loss.item() == pytest.approx(5 / 0.5 * (0.75 * 1.5 + 0.25 * 0.5))
    assert distance.item() == pytest.approx(16)


@pytest.mark.parametrize("model", ["diffusion", "flow"])
@pytest.mark.parametrize("mixing", [1.0, 0.1])
def test_the_estimates_are_those_of_the_mixed_velocities(pipelines, model, mixing):
    """x̂± = x_σ − σ v± in a flow model's coordinates, on a diffusion model with ε̂ − x̂_0 as its velocity."""
    pipeline = pipelines[model]
    policy, old = (moved(pipeline.adapt(LoRA(), KEY("adapter")), 0.02, name) for name in ("policy", "old"))
    steps, x0 = pipeline.timesteps(5), 3 * KEY("points").normal(4, 2)
    at = steps[[1, 2, 3, 4]]
    x = pipeline.add_noise(x0, KEY("noise").normal(4, 2), at.t)
    condition = pipeline.condition(PROMPTS[:4])
    own, before = (one.predict(x, at.t, condition) for one in (policy, old))
    sigma, scale = (value.float()[:, None] for value in (flow_sigma(at.alpha_bar), flow_scale(at.alpha_bar)))
    expected = [
        nft.relative_error(x * scale - sigma * velocity, x0)
        for velocity in (
            mixing * own.velocity + (1 - mixing) * before.velocity,
            (1 + mixing) * before.velocity - mixing * own.velocity,
        )
    ]
    for found, theirs in zip(nft.implicit_errors(own.x0, before.x0, x0, mixing), expected, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["diffusion", "flow"])
def test_at_the_old_policy_half_optimal_images_give_no_gradient(pipelines, model):
    policy, old = (moved(pipelines[model].adapt(LoRA(), KEY("adapter"))) for _ in range(2))
    own = algorithm(beta=0.0)
    sampling = sampling_of(own)
    none, good, bad = (
        gradient(policy, own.losses(policy, old, data(r), KEYS, len(KEYS), sampling, [])) for r in (0.5, 1.0, 0.0)
    )
    assert none.abs().max() <= 1e-6 * good.abs().max()
    torch.testing.assert_close(bad, -good)
    assert good.abs().max() > 0


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_at_the_old_policy_the_gradient_is_that_of_matching_the_flow_whatever_b_is(pipelines, r):
    """5 (2r − 1) times the gradient of the relative error."""
    policy, old = (moved(pipelines["flow"].adapt(LoRA(), KEY("adapter"))) for _ in range(2))
    own = algorithm(beta=0.0)
    sampling = sampling_of(own)
    positive = gradient(policy, own.losses(policy, old, data(1.0), KEYS, len(KEYS), sampling, []))
    for mixing in (1.0, 0.1):
        found = gradient(
            policy, replace(own, mixing=mixing).losses(policy, old, data(r), KEYS, len(KEYS), sampling, [])
        )
        torch.testing.assert_close(found, (2 * r - 1) * positive, rtol=1e-3, atol=1e-4)


class Watched:
    """A policy that notes the timesteps it is asked at."""

    def __init__(self, policy):
        self.policy, self.asked = policy, []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def predict(self, latents, t, condition, guidance=1.0):
        self.asked.append(t)
        return self.policy.predict(latents, t, condition, guidance)


def test_levels_are_the_grids_own_numbers_and_each_image_skips_one(pipelines):
    """The authors' sampler cuts timesteps to whole numbers; on a grid of shift 3 that is seen."""
    policy = Watched(pipelines["flow"].adapt(LoRA(), KEY("adapter")))
    own = algorithm()
    list(own.losses(policy, policy.policy, data(0.7), KEYS, len(KEYS), sampling_of(own), []))
    grid_of = policy.timesteps(5).t
    asked = torch.stack(policy.asked)
    assert asked.shape == (4, 6)
    assert not torch.equal(grid_of, grid_of.floor())
    for image in range(6):
        assert len(set(asked[:, image].tolist()) & set(grid_of.tolist())) == 4
    assert len({tuple(row) for row in asked.T.tolist()}) > 1


def test_noise_is_fresh_at_each_level_and_the_images_own(pipelines):
    """The same image under the same key has the same terms in another batch."""
    policy, old = (moved(pipelines["flow"].adapt(LoRA(), KEY("adapter"))) for _ in range(2))
    own = algorithm()
    sampling = sampling_of(own)
    whole = gradient(policy, own.losses(policy, old, data(0.9), KEYS, len(KEYS), sampling, []))
    single = gradient(policy, replace(own, batch=1).losses(policy, old, data(0.9), KEYS, len(KEYS), sampling, []))
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)
    noises = normal([KEYS[0]("noise", k) for k in range(4)], (2,))
    assert len({tuple(row) for row in noises.tolist()}) == 4


def test_the_penalty_is_the_mean_squared_velocity_from_the_reference(pipelines):
    policy = moved(pipelines["flow"].adapt(LoRA(), KEY("adapter")))
    old = pipelines["flow"].adapt(LoRA(), KEY("adapter"))
    own, seen = algorithm(), []
    sampling = sampling_of(own)
    plain = sum(
        float(loss.detach())
        for loss in replace(own, beta=0.0).losses(policy, old, data(0.5), KEYS, len(KEYS), sampling, [])
    )
    paid = sum(
        float(loss.detach())
        for loss in replace(own, beta=2.0).losses(policy, old, data(0.5), KEYS, len(KEYS), sampling, seen)
    )
    distance = sum(float(each[1]) for each in seen)
    assert distance > 0
    assert paid - plain == pytest.approx(2 * distance, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "updates", "decay"),
    [
        ({}, 1, 0.001),
        ({}, 600, 0.5),  # type 1 of the authors' code
        (nft.OCR, 75, 0.0),
        (nft.OCR, 77, 0.015),
        (nft.OCR, 300, 0.999),  # type 2
        ({"decay_rate": 0.0}, 300, 0.0),  # type 0: the old policy is the last one
    ],
)
def test_the_old_policys_decay_is_the_authors(fields, updates, decay):
    assert algorithm(**fields).decay(updates) == pytest.approx(decay)


class Stopped(Exception):
    """Stands for the end of the process."""


def test_a_round_samples_from_the_old_policy_which_follows_and_is_kept(make_problem, pipelines):
    """After the first round old is half of the new policy; a run that goes on has both."""
    own = algorithm(rounds=2, decay_rate=0.5, learning_rate=1e-2, rank=2)
    states = {}

    def problem(last):
        made = make_problem(FirstCoordinate(), pipelines["flow"])
        made.prompts, rounds = Prompts(PROMPTS), made.rounds

        def watched(n, state):
            for current in rounds(n, state):
                states[last, current.index] = {
                    name: [value.clone() for value in state[name].state_dict().values()] for name in ("policy", "old")
                }
                if current.index == last:
                    raise Stopped
                yield current

        made.rounds = watched
        return made

    with pytest.raises(Stopped):
        own.align(problem(1))
    own.align(problem(9))
    first, second = states[1, 0], states[1, 1]
    for start, old, new in zip(first["old"], second["old"], second["policy"], strict=True):
        torch.testing.assert_close(old, (start + new) / 2)
    assert all(torch.equal(one, other) for one, other in zip(second["old"], states[9, 1]["old"], strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixing": 0.0}, r"mixing must lie in \(0, 1\], got 0.0"),
        ({"decay_most": 1.0}, "the old policy would never change"),
        ({"skipped": -1}, "skipped must not be negative"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**fields)


def test_a_path_without_levels_to_train_at_is_refused(make_problem, pipelines):
    problem = make_problem(FirstCoordinate(), pipelines["flow"])
    problem.prompts = Prompts(PROMPTS)
    assert algorithm(skipped=4).unsupported(problem) is None
    reason = "skipped=5 leaves none of a path's 5 levels to train at; set it lower."
    assert algorithm(skipped=5).unsupported(problem) == reason
