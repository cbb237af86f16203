"""The reverse steps of the flow literature: their formulas, their marginals, their log densities."""

from __future__ import annotations

import math

import pytest
import torch

from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.flow_transition import flow_rate, flow_std, flow_step, official_log_density
from alignbench.diffusion.lookahead import shift_per_gradient
from alignbench.diffusion.rollout import noise_of, reverse
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.transition import ddim, divergence, log_density
from alignbench.diffusion.variance_exploding import ProbabilityFlow
from alignbench.interface import Prompt, Sampling
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.quantities import Prediction, flow_level, flow_scale, flow_sigma
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid

SD3 = FlowSchedule.from_config({"shift": 3.0}, 1024, "scheduler")


def test_the_rates_of_flow_sde_on_the_grid_of_sd3_are_those_of_the_authors_code():
    steps = SD3.steps(10)
    rate = flow_rate(steps, "flow_sde", 0.7)
    assert rate.tolist() == pytest.approx([3.51, 3.44, 2.27, 1.72, 1.36, 1.09, 0.86, 0.65, 0.43, 0.066], abs=6e-3)
    std = flow_std(steps, "flow_sde", 0.7) * flow_scale(steps.next_alpha_bar)
    assert std.tolist() == pytest.approx([0.70, 0.74, 0.54, 0.45, 0.39, 0.35, 0.32, 0.28, 0.23, 0.006], abs=6e-3)


def _own_step(x, v, sigma, after, rate):
    """(2) of the paper in the flow's own coordinates, written out."""
    dt = after - sigma
    return x * (1 + rate**2 / (2 * sigma) * dt) + v * (1 + rate**2 * (1 - sigma) / (2 * sigma)) * dt


@pytest.mark.parametrize("i", [0, 4, 9])
def test_a_flow_sde_step_is_the_papers_formula(i):
    steps, grid = SD3.steps(10), SD3.grid(10)
    x, v = Key("x").normal(2, 5).double(), Key("v").normal(2, 5).double()
    y = x / flow_scale(steps.alpha_bar[i])
    made = flow_step(SD3.predict(v, y, steps.t[i].item()), steps[i], "flow_sde", 0.7)
    rate = flow_rate(steps, "flow_sde", 0.7)[i]
    scale = flow_scale(steps.next_alpha_bar[i])
    assert torch.allclose(made.mean * scale, _own_step(x, v, grid[i], grid[i + 1], rate), atol=1e-12)
    assert float(made.std[0] * scale) == pytest.approx(float(rate * (grid[i] - grid[i + 1]).sqrt()))


def test_velocity_counts_more_by_half_the_squared_noise_level():
    steps = SD3.steps(10)
    y = torch.zeros(1, 3, dtype=torch.float64)
    step = flow_step(SD3.predict(torch.ones_like(y), y, steps.t[4].item()), steps[4], "flow_sde", 0.7)
    dt = float(SD3.grid(10)[5] - SD3.grid(10)[4])
    assert float(step.mean[0, 0] * flow_scale(steps.next_alpha_bar[4]) / dt) == pytest.approx(1 + 0.7**2 / 2)


def test_dance_sde_is_flow_sde_at_the_same_rate():
    steps = SD3.steps(10)
    prediction = SD3.predict(Key("v").normal(3, 4), Key("y").normal(3, 4), steps.t[3].item())
    rate = float(flow_rate(steps, "flow_sde", 0.7)[3])
    flow, dance = (flow_step(prediction, steps[3], kernel, a) for kernel, a in (("flow_sde", 0.7), ("dance_sde", rate)))
    assert torch.allclose(flow.mean, dance.mean)
    assert torch.allclose(flow.std, dance.std)


@pytest.mark.parametrize("kernel", ["flow_sde", "dance_sde", "cps"])
def test_without_noise_every_kernel_is_the_euler_step(kernel):
    steps = SD3.steps(10)
    prediction = SD3.predict(Key("v").normal(3, 4).double(), Key("y").normal(3, 4).double(), steps.t[3].item())
    step = flow_step(prediction, steps[3], kernel, 0.0)
    assert torch.allclose(step.mean, ddim(prediction, steps[3], 0.0).mean, atol=1e-14)
    assert not step.std.any()


def test_a_step_of_cps_keeps_the_coefficients_and_splits_the_noise():
    steps, grid = SD3.steps(10), SD3.grid(10)
    x0, noise = Key("x0").normal(2, 5).double(), Key("eps").normal(2, 5).double()
    y = SD3.add_noise(x0, noise, steps.t[3].expand(2))
    made = flow_step(SD3.predict(noise - x0, y, steps.t[3].item()), steps[3], "cps", 0.8)
    scale, s = flow_scale(steps.next_alpha_bar[3]), float(grid[4]) * math.sin(0.4 * math.pi)
    kept = math.sqrt(float(grid[4]) ** 2 - s**2)
    assert torch.allclose(made.mean * scale, (1 - grid[4]) * x0 + kept * noise, atol=1e-12)
    assert float(made.std[0] * scale) == pytest.approx(s)


def _final_std(kernel: str, eta: float, n: int) -> float:
    """Of N(0.5, 0.3²), sampled with its exact velocity: mean and variance of a linear chain, without sampling error."""
    schedule, steps = FlowSchedule(shift=3.0), FlowSchedule(shift=3.0).steps(n)
    mean, variance = 0.0, 1.0
    for i in range(n):
        level = steps.alpha_bar[i]
        ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # two points tell an affine map
        signal = level * 0.3**2 + 1 - level
        x0 = 0.5 + level.sqrt() * 0.3**2 / signal * (ends - level.sqrt() * 0.5)
        eps = (ends - level.sqrt() * x0) / (1 - level).sqrt()
        step = reverse(schedule.predict(eps - x0, ends, steps.t[i].item()), steps[i], Sampling(n, 1.0, eta, kernel))
        at_zero, slope = float(step.mean[0, 0]), float(step.mean[1, 0] - step.mean[0, 0])
        mean, variance = at_zero + slope * mean, slope**2 * variance + float(step.std[0]) ** 2
    assert mean == pytest.approx(0.5, abs=0.02)
    return math.sqrt(variance)


@pytest.mark.slow
def test_flow_and_dance_sde_keep_the_marginals_of_the_flow_and_cps_makes_less_spread():
    assert _final_std("ddim", 0.0, 1000) == pytest.approx(0.3, rel=0.01)
    assert _final_std("flow_sde", 0.7, 1000) == pytest.approx(0.3, rel=0.01)
    assert _final_std("dance_sde", 0.3, 1000) == pytest.approx(0.3, rel=0.01)
    assert _final_std("cps", 0.8, 1000) == pytest.approx(0.24, abs=0.005)


def test_the_divergence_of_two_velocities_has_the_closed_form_of_flow_sde():
    steps, grid, a = SD3.steps(10), SD3.grid(10), 0.7
    y = Key("y").normal(4, 6).double()
    one, other = (SD3.predict(Key(name).normal(4, 6).double(), y, steps.t[5].item()) for name in ("p", "q"))
    p, q = (flow_step(prediction, steps[5], "flow_sde", a) for prediction in (one, other))
    sigma, dt = grid[5], grid[5] - grid[6]
    factor = (1 + a**2 / 2) ** 2 * dt * (1 - sigma) / (2 * a**2 * sigma)
    expected = factor * (one.native - other.native).square().sum(1)
    assert torch.allclose(divergence(p, q, "sum"), expected, rtol=1e-10)


def test_the_official_log_density_is_the_mean_in_the_flows_own_coordinates():
    steps, grid = SD3.steps(10), SD3.grid(10)
    prediction = SD3.predict(Key("v").normal(3, 4).double(), Key("y").normal(3, 4).double(), steps.t[5].item())
    step = flow_step(prediction, steps[5], "flow_sde", 0.7)
    after = step.sample(Key("z").normal(3, 4).double())
    scale = flow_scale(steps.next_alpha_bar[5])
    s, dt = flow_rate(steps, "flow_sde", 0.7)[5], grid[5] - grid[6]
    residual = (after - step.mean) * scale
    written = -(residual**2) / (2 * s**2 * dt) - (s * dt.sqrt()).log() - math.log(math.sqrt(2 * math.pi))
    assert torch.allclose(official_log_density(after, step, steps[5], "flow_sde"), written.mean(1), atol=1e-10)
    true = log_density(after, step, "sum")
    assert torch.allclose(official_log_density(after, step, steps[5], "flow_sde") * 4, true - 4 * scale.log())

    cps = flow_step(prediction, steps[5], "cps", 0.8)
    official = official_log_density(after, cps, steps[5], "cps")
    assert torch.allclose(official, -((after - cps.mean) * scale).square().mean(1))


def test_the_noise_of_a_sampling_is_that_of_its_steps():
    steps = SD3.steps(10)
    prediction = SD3.predict(torch.zeros(10, 2), torch.zeros(10, 2), steps.t)
    for kernel, eta in (("ddim", 0.5), ("flow_sde", 1.2), ("dance_sde", 0.3), ("cps", 0.8)):
        sampling = Sampling(10, 1.0, eta, kernel)
        assert torch.allclose(noise_of(steps, sampling).float(), reverse(prediction, steps, sampling).std)


def test_a_noise_level_that_a_kernel_does_not_have_is_refused():
    assert Sampling(10, 1.0, 1.2, "flow_sde").eta == 1.2
    for kernel, whose in (("ddim", "eta"), ("cps", "eta of kernel 'cps'")):
        with pytest.raises(ValueError, match=f"^{whose} must lie in"):
            Sampling(10, 1.0, 1.2, kernel)
    with pytest.raises(ValueError, match="eta of kernel 'flow_sde'"):
        Sampling(10, 1.0, math.inf, "flow_sde")


def test_a_diffusion_models_prediction_takes_the_same_steps():
    level = flow_level(torch.tensor([0.6], dtype=torch.float64))
    eps, y = Key("eps").normal(1, 4).double(), Key("y").normal(1, 4).double()
    diffusion = Prediction(eps, y, level, "epsilon")
    flow = Prediction(diffusion.velocity, y, level, "flow")
    steps = FlowSchedule().steps(10)[4]
    assert float(flow_sigma(steps.alpha_bar)) == pytest.approx(0.6)
    one, other = (flow_step(prediction, steps, "flow_sde", 0.7).mean for prediction in (diffusion, flow))
    assert torch.allclose(one, other, atol=1e-12)


def test_guidance_moves_nothing_where_no_signal_is_left():
    """At σ = 1 the score's shift would be 1/√ᾱ of a gradient that says nothing; the step after it is moved as ever."""
    steps = FlowSchedule().steps(8)
    shift = shift_per_gradient(steps, 0.0, "score")
    assert shift[0] == 0
    t, s = steps.alpha_bar[1], steps.next_alpha_bar[1]
    expected = s.sqrt() * (1 - t) / t.sqrt() - ((1 - s) * (1 - t)).sqrt()
    assert float(shift[1]) == pytest.approx(float(expected))


def test_the_variance_exploding_view_is_entered_behind_a_level_without_signal():
    meter = Meter()
    pipeline = MixturePipeline(grid().mixture, FlowSchedule(), meter)
    condition = pipeline.condition([Prompt("a", "a point")] * 3)
    flow = ProbabilityFlow(pipeline, pipeline.timesteps(8))
    noise = Key("x").normal(3, 2)
    latents, level = flow.entered(noise, 0, condition)
    assert (flow.blind, level, meter.total.denoiser_forward) == (1, 1, 3)
    euler = ddim(pipeline.predict(noise, 1000.0, condition), flow.steps[0], 0.0).mean
    assert torch.equal(latents, euler)
    assert math.isinf(flow.sigma[0])
    assert flow.sigma[1] == pytest.approx(7.0)  # σ / (1 − σ) at σ = 7/8
    assert flow.entered(latents, 1, condition)[1] == 1


def test_an_sde_of_much_stochasticity_begins_where_heuns_steps_are_not_too_long():
    """A grid that is shifted by 3 begins at σ / (1 − σ) of hundreds, where the usual 0.1 multiplies the noise."""
    schedule = FlowSchedule(shift=3.0, sigmas="scheduler")
    pipeline = MixturePipeline(grid().mixture, schedule, Meter())
    flow = ProbabilityFlow(pipeline, pipeline.timesteps(64), stochasticity=0.1)
    assert flow.blind > 1
    assert flow.sigma[flow.blind] <= 20 < flow.sigma[flow.blind - 1]
    latents, level = flow.entered(Key("x").normal(2, 2), 0, pipeline.condition([Prompt("a", "a point")] * 2))
    assert level == flow.blind
    assert float(latents.std()) < 3
    assert ProbabilityFlow(pipeline, flow.steps, stochasticity=None).blind == 1
    plain = Schedule.scaled_linear()
    usual = MixturePipeline(grid().mixture, Schedule(plain, float(plain[0])), Meter())
    assert ProbabilityFlow(usual, usual.timesteps(50)).blind == 0
