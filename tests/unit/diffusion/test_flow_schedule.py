"""The levels and grids of flow models, and how their predictions read in variance-preserving coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.transition import ddim
from alignbench.errors import InputError
from alignbench.keys import Key
from alignbench.quantities import Prediction, flow_level, flow_scale, flow_sigma

SD3 = {"shift": 3.0, "num_train_timesteps": 1000}
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def test_level_and_sigma_are_inverses_and_scale_is_the_norm_of_both_coefficients():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    level = flow_level(sigma)
    assert torch.allclose(flow_sigma(level), sigma, atol=1e-15)
    assert torch.allclose(flow_scale(level), ((1 - sigma) ** 2 + sigma**2).sqrt(), atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 10, 28, 40])
@pytest.mark.parametrize(("config", "tokens", "mu"), [(SD3, 1024, None), (FLUX, 1024, 0.63), (FLUX, 4096, 1.15)])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_both_grids_are_those_that_diffusers_makes(n, config, tokens, mu, terminal):
    config = {**config, "shift_terminal": terminal}
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if terminal is not None and n == 1:
        return  # diffusers divides by zero
    asked = {"linspace": {"sigmas": np.linspace(1, 1 / n, n)}, "scheduler": {"num_inference_steps": n}}
    for sigmas, how in asked.items():
        scheduler.set_timesteps(**how, mu=mu)
        ours = FlowSchedule.from_config(config, tokens, sigmas).grid(n)
        assert torch.allclose(ours.float(), scheduler.sigmas, atol=2e-6), sigmas


def test_the_schedulers_own_grid_of_sd3_ends_in_a_step_that_is_nearly_empty():
    own = FlowSchedule.from_config(SD3, 1024, "scheduler").grid(10)
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    assert own.tolist() == pytest.approx(expected, abs=6e-5)
    assert FlowSchedule.from_config(SD3, 1024).grid(10)[-2] == pytest.approx(3 / (10 + 3 - 1))


def test_flux_shifts_by_the_number_of_tokens():
    grid = FlowSchedule.from_config(FLUX, 1024).grid(6)
    assert grid.tolist() == pytest.approx([1, 0.904, 0.790, 0.653, 0.484, 0.273, 0], abs=6e-4)
    assert FlowSchedule.from_config(FLUX, 4096).shift == pytest.approx(math.exp(1.15))


def test_the_grid_is_part_of_what_a_schedule_is_known_by():
    kinds = [FlowSchedule(), FlowSchedule(shift=3.0), FlowSchedule(sigmas="scheduler"), FlowSchedule(terminal=0.1)]
    assert len({schedule.sha256 for schedule in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas True is not supported"),
        ({"invert_sigmas": True}, "invert_sigmas True"),
        ({"stochastic_sampling": True}, "stochastic_sampling True"),
        ({"time_shift_type": "odd"}, "time_shift_type 'odd'"),
        ({"shift": 0}, "shift 0: expected a positive number"),
        ({"shift": "3"}, "shift '3': expected a number"),
        ({"shift_terminal": 1.0}, "shift_terminal 1.0"),
        ({"num_train_timesteps": 0.5}, "num_train_timesteps 0.5"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": 4096}, "base_image_seq_len 4096"),
    ],
)
def test_a_scheduler_that_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        FlowSchedule.from_config({**SD3, **change}, 1024)


@pytest.mark.parametrize("n", [0, 1001])
def test_a_number_of_steps_that_no_grid_has_is_refused(n):
    with pytest.raises(InputError, match=rf"\[1, 1000\], got {n}"):
        FlowSchedule().steps(n)


def test_ddim_without_noise_is_the_euler_step():
    schedule = FlowSchedule(shift=3.0)
    sigma, steps = schedule.grid(7), schedule.steps(7)
    y = Key("flow").normal(3, 4).double()
    for i in range(7):
        x = flow_scale(steps.alpha_bar[i]) * y
        v = torch.sin(x) + 0.3
        euler = x + (sigma[i + 1] - sigma[i]) * v
        prediction = schedule.predict(v, y, steps.t[i].item())
        after = ddim(prediction, steps[i], 0.0).mean
        assert torch.allclose(after * flow_scale(steps.next_alpha_bar[i]), euler, atol=1e-14)
        y = after


def test_every_reading_of_a_flow_prediction_agrees_with_the_noised_latents():
    x0, noise = Key("x0").normal(5, 3).double(), Key("eps").normal(5, 3).double()
    t = torch.tensor([0.0, 250.0, 499.5, 900.0, 1000.0], dtype=torch.float64)
    schedule = FlowSchedule()
    y = schedule.add_noise(x0, noise, t)
    sigma = (t / 1000)[:, None]
    assert torch.allclose(schedule.scaled(y, t), (1 - sigma) * x0 + sigma * noise, atol=1e-12)
    read = schedule.predict(noise - x0, y, t)
    assert torch.allclose(read.x0, x0, atol=1e-12)
    assert torch.allclose(read.eps, noise, atol=1e-12)
    assert torch.allclose(read.velocity, noise - x0, atol=1e-12)
    assert torch.allclose(read.v, read.alpha_bar.sqrt()[:, None] * noise - (1 - read.alpha_bar).sqrt()[:, None] * x0)
    assert torch.equal(read.error(x0, noise), torch.zeros(5, dtype=torch.float64))
    assert read[[1]].x0.equal(read.x0[[1]])


def test_a_flow_model_is_trained_on_its_velocity_and_a_diffusion_model_on_its_noise():
    x0, noise, native = (Key(name).normal(2, 6) for name in ("x0", "eps", "native"))
    level = torch.full((2,), 0.36, dtype=torch.float64)
    flow = Prediction(native, x0, level, "flow").error(x0, noise)
    assert torch.allclose(flow, (native - (noise - x0)).square().mean(1))
    eps = Prediction(native, x0, level, "epsilon").error(x0, noise)
    assert torch.allclose(eps, (native - noise).square().mean(1))
    v = Prediction(native, x0, level, "v_prediction").error(x0, noise)
    assert torch.allclose(v, (0.6 * native + 0.8 * x0 - noise).square().mean(1))


def test_training_draws_a_shifted_logit_normal_level():
    u = (torch.arange(20_000) + 0.5) / 20_000
    logits = torch.logit(FlowSchedule().draw(u) / 1000)
    assert float(logits.mean()) == pytest.approx(0, abs=1e-3)
    assert float(logits.std()) == pytest.approx(1, abs=5e-3)
    shifted = torch.logit(FlowSchedule(shift=3.0).draw(u) / 1000)
    assert torch.allclose(shifted, logits + math.log(3), atol=1e-6)  # the shift moves the logit by its logarithm
    uniform = FlowSchedule(density="uniform").draw(u)
    assert torch.allclose(uniform, 1000 * u.double(), atol=0.6)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_one_draw_in_as_many_as_there_are_levels_is_moved_from_the_ends_and_no_other(density):
    """Of 100 levels those below 0.005 and above 0.995; the others are σ = u, or the logistic of the normal quantile."""
    schedule, u = (
        FlowSchedule(density=density, timesteps=100),
        (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000,
    )
    exact = u if density == "uniform" else torch.special.ndtri(u).sigmoid()
    moved = (schedule.draw(u) / 100 - exact).abs() > 1e-9
    assert moved.double().mean() == 1 / 100
    assert torch.equal(moved, (u < 0.005) | (u > 0.995))
    assert torch.equal(schedule.draw(u[:1]), schedule.draw(torch.tensor([0.005])))


def test_training_never_draws_a_level_without_noise_or_without_signal():
    ends = torch.tensor([0.0, 1 - 2**-24])
    for density in ("uniform", "logit_normal"):
        drawn = FlowSchedule(density=density).draw(ends)
        assert bool(((drawn > 0) & (drawn < 1000)).all())
