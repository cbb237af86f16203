"""EDICT's exact inversion, gradients through whole chains, and DOODL's ascent on the initial latents."""

from __future__ import annotations

import importlib
from functools import partial
from typing import ClassVar

import pytest
import torch
from closed_form import Bowl, Constant, NoGradient

from alignbench import Key, Prompt, Sampling
from alignbench.diffusion.edict import Edict
from alignbench.diffusion.recompute import chain_gradient
from alignbench.diffusion.rollout import PipelineSampler, transition
from alignbench.diffusion.schedule import Schedule
from alignbench.meter import Meter
from alignbench.quantities import Condition
from alignbench.testbed.pipeline import MixturePipeline

doodl = importlib.import_module("alignbench.algorithms.doodl")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
KEYS = [Key("doodl", i) for i in range(8)]
POINTS = {"renormalise": False, "perturbation": 0.0}


def estimating(mixture, noise):
    """A pipeline with this noise estimate, down to ᾱ = 1."""
    pipeline = MixturePipeline(mixture.mixture, Schedule(mixture.schedule.alpha_bar, 1.0), Meter())

    def predict(latents, t, condition, guidance=1.0):
        return pipeline.schedule.predict(noise(latents), latents, t)

    pipeline.predict = predict
    return pipeline


@pytest.fixture
def smooth(mixture):
    """A nonlinear noise estimate in 16 dimensions."""
    weights = Key("weights").normal(16, 16).double() / 16
    return estimating(mixture, lambda latents: (latents @ weights.to(latents.dtype)).tanh())


def edict(pipeline, steps, mixing=0.93):
    return Edict(pipeline, steps, Condition({}, {}), mixing=mixing)


@pytest.mark.parametrize("mixing", [0.93, 1.0])
@pytest.mark.parametrize("n", [25, 40, 50])
@pytest.mark.parametrize("first", [0, 7])
def test_a_chain_is_undone_exactly_whatever_its_length_and_where_it_begins(smooth, n, mixing, first):
    chain = edict(smooth, smooth.timesteps(n), mixing)
    for dtype in (torch.float64, torch.float32):
        tolerance = 1e-12 if dtype == torch.float64 else (4 * mixing ** (-2 * n) + n) * torch.finfo(dtype).eps
        z = Key("z").normal(3, 16).to(dtype)
        pair = torch.stack([z, z])
        clean = chain.reconstruct(pair, first)
        assert clean.dtype == dtype
        assert (chain.invert(clean, first) - pair).abs().max() < tolerance
        assert (chain.reconstruct(chain.invert(pair, first), first) - pair).abs().max() < tolerance


def test_rounding_grows_by_the_mixing_weight_to_the_power_of_minus_two_a_step(smooth):
    """p = 0.93 over 50 steps: 1.4e3. With p = 0.7 it is 3e15, and nothing is left of float64."""
    z = Key("z").normal(3, 16)
    pair = torch.stack([z, z])

    def error(pair, mixing):
        chain = edict(smooth, smooth.timesteps(50), mixing)
        return float((chain.invert(chain.reconstruct(pair)) - pair).abs().max())

    epsilon = torch.finfo(torch.float32).eps
    assert 0.1 < error(pair, 0.93) / (0.93**-100 * epsilon) < 4
    assert error(pair.double(), 0.93) < 1e-12
    assert error(pair.double(), 0.7) > 1e6 * error(pair.double(), 0.93)
    assert error(pair.bfloat16(), 0.93) > 1e-2


def test_mixing_contracts_the_difference_of_a_pair_by_p_squared_and_keeps_equal_halves(mixture):
    p, pipeline = 0.93, estimating(mixture, torch.zeros_like)
    still = edict(pipeline, pipeline.timesteps(4), p)
    a, _ = still.coefficients(1)
    eye = torch.eye(2, dtype=torch.float64)[:, :, None]  # rows of a pair: its two halves
    matrix = torch.stack([still.step(eye[i][:, None], 1)[:, 0, 0] for i in range(2)], 1) / a
    eigenvalues = torch.linalg.eigvals(matrix).real.sort().values
    torch.testing.assert_close(eigenvalues, torch.tensor([p**2, 1.0], dtype=torch.float64))
    equal = torch.ones(2, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(still.step(equal, 0), a_of(still, 0) * equal)


def a_of(chain, i):
    return chain.coefficients(i)[0]


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_noise_estimate_that_does_not_look_at_the_latents_makes_the_pair_a_ddim_chain(level, mixture):
    pipeline = estimating(mixture, lambda latents: torch.full_like(latents, level))
    steps = pipeline.timesteps(20)
    z = Key("z").normal(3, 5).double()
    pair, x = edict(pipeline, steps).reconstruct(torch.stack([z, z])), z
    for i in range(20):
        x = transition(pipeline, x, steps[i], Condition({}, {}), Sampling(20, 1.0, 0.0)).mean
    torch.testing.assert_close(pair, torch.stack([x, x]), atol=1e-9, rtol=1e-9)


def test_a_sweep_gives_autograds_gradient_to_the_bit(smooth):
    chain = edict(smooth, smooth.timesteps(6))
    steps = [doodl.twice, *((lambda pair, i=i: chain.step(pair, i)) for i in range(6))]
    z = Key("z").normal(3, 16).double()

    def score(end):
        return (end.sin() * end).sum((0, 2))

    swept = chain_gradient(steps, z, score)
    x = z.clone().requires_grad_()
    end = x
    for step in steps:
        end = step(end)
    values = score(end)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert torch.equal(swept.gradient, gradient)
    assert torch.equal(swept.values, values)
    for j in (0, 5):
        nudge = torch.zeros_like(z)
        nudge[1, j] = 1e-6
        up, down = (score(doodl.run(steps, z + sign * nudge))[1] for sign in (1, -1))
        assert float((up - down) / 2e-6) == pytest.approx(float(gradient[1, j]), rel=1e-5, abs=1e-7)


class Kept:
    """How many tensors autograd keeps at once."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Kept.alive += 1
        Kept.most = max(Kept.most, Kept.alive)

    def __del__(self):
        Kept.alive -= 1


def swept_over(chain, n):
    """A gradient through n steps of a chain: how many tensors autograd kept at once, and how many states there were."""
    stored = []

    def step(pair, i):
        if not torch.is_grad_enabled():
            stored.append(pair)
        return chain.step(pair, i)

    Kept.alive = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        steps = [doodl.twice, *(partial(step, i=i) for i in range(n))]
        chain_gradient(steps, Key("z").normal(2, 16), lambda end: end.square().sum((0, 2)))
    return Kept.most, len({state.data_ptr() for state in stored})


def test_activations_kept_do_not_grow_with_the_number_of_steps_and_states_grow_by_one_a_step(smooth):
    measured = [swept_over(edict(smooth, smooth.timesteps(n)), n) for n in (10, 20, 50)]
    (kept, *others), states = zip(*measured, strict=True)
    assert others == [kept, kept]
    assert kept > 0
    assert states == (10, 20, 50)


@pytest.mark.parametrize("chain", ["edict", "recompute"])
def test_ascent_raises_the_reward_and_the_best_iterate_is_rendered(chain, make_problem, mixture):
    problem = make_problem(Bowl())
    algorithm = doodl.DOODL(updates=6, chain=chain, steps=8, learning_rate=0.1, clip=0.2, **POINTS)
    samples = algorithm.align(problem)(PROMPTS, KEYS)
    none = doodl.DOODL(updates=1, chain=chain, steps=8, learning_rate=1e-9, **POINTS).align(problem)(PROMPTS, KEYS)
    gained = Bowl()(samples.images, PROMPTS) - Bowl()(none.images, PROMPTS)
    assert (gained >= 0).all()
    assert gained.mean() > 0.3


def test_nothing_moves_without_a_gradient_and_the_first_iterate_is_the_deterministic_chain(make_problem, mixture):
    plain = PipelineSampler(mixture, Sampling(8, 1.0, 0.0))(PROMPTS, KEYS).images
    algorithm = doodl.DOODL(updates=3, chain="recompute", steps=8, renormalise=True, perturbation=0.0)
    found = algorithm.align(make_problem(Constant()))(PROMPTS, KEYS).images
    assert torch.equal(found, plain)


def test_a_step_is_cut_element_by_element_and_momentum_bounds_the_velocity():
    gradient = torch.tensor([[5.0, -5.0, 1e-4]])
    step = doodl.step_of(gradient, 0.5, 1e-3)
    torch.testing.assert_close(step, torch.tensor([[1e-3, -1e-3, 5e-5]]))
    velocity = torch.zeros(1, 3)
    for _ in range(500):
        velocity = 0.9 * velocity + step
    assert velocity.abs().max() <= 1e-3 / (1 - 0.9) + 1e-9


def test_a_quadratic_reward_of_a_linear_chain_is_climbed_as_the_recursion_says(make_problem, mixture):
    """x_0 = a z with a = Π √(ᾱ_s/ᾱ_t), so z ← z + lr a ∇r(a z), and the iterates are known."""
    linear = estimating(mixture, torch.zeros_like)
    problem = make_problem(Bowl(), pipeline=linear)
    algorithm = doodl.DOODL(
        updates=4, chain="recompute", steps=5, learning_rate=0.003, clip=1e9, momentum=0.5, **POINTS
    )
    found = algorithm.align(problem)(PROMPTS, KEYS).images
    steps = linear.timesteps(5)
    a = float((steps.next_alpha_bar / steps.alpha_bar).sqrt().prod())
    z, velocity = linear.initial_noise(KEYS), 0
    iterates = [a * z]
    for _ in range(4):
        velocity = 0.5 * velocity + 0.003 * a * -2 * (a * z) * torch.tensor([0.01, 1.0])
        z = z + velocity
        iterates.append(a * z)
    rewards = torch.stack([Bowl()(x, PROMPTS) for x in iterates])
    best = torch.stack(iterates)[rewards.argmax(0), range(8)]
    torch.testing.assert_close(found, best, atol=1e-4, rtol=1e-4)


def test_latents_stay_on_their_shell(make_problem, mixture, monkeypatch):
    norms = []

    def watch(steps, start, function):
        norms.append(start.norm(dim=1))
        return chain_gradient(steps, start, function)

    monkeypatch.setattr(doodl, "chain_gradient", watch)
    doodl.DOODL(updates=4, chain="recompute", steps=6, clip=0.5, perturbation=0.1).align(make_problem(Bowl()))(
        PROMPTS, KEYS
    )
    for norm in norms[1:]:
        torch.testing.assert_close(norm, norms[0], atol=1e-5, rtol=1e-6)


def test_a_reward_without_a_gradient_is_refused(make_problem):
    assert "doodl follows the gradient" in doodl.DOODL().unsupported(make_problem(NoGradient()))
