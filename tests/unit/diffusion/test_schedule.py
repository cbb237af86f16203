"""Noise schedules and predictions, against diffusers and against algebra."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.transition import ddim
from alignbench.errors import InputError
from alignbench.keys import Key

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS = {
    "sd15": STABLE_DIFFUSION | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
    "no offset": STABLE_DIFFUSION | {"steps_offset": 0, "set_alpha_to_one": False, "clip_sample": False},
    "clipped": STABLE_DIFFUSION | {"clip_sample": True, "clip_sample_range": 0.7},
    "linear": {"clip_sample": False},
    "zero snr": STABLE_DIFFUSION
    | {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "clip_sample": False,
    },
    "sample": STABLE_DIFFUSION | {"timestep_spacing": "linspace", "prediction_type": "sample", "clip_sample": False},
}


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_and_updates_equal_diffusers(name, steps):
    theirs = DDIMScheduler(**CONFIGS[name])
    theirs.set_timesteps(steps)
    schedule = Schedule.from_config(theirs.config)
    ours = schedule.steps(steps)
    assert ours.t.tolist() == theirs.timesteps.tolist()
    x, output, noise = (Key("diffusers", part).normal(3, 4, 8, 8) for part in "xon")
    for i in {0, steps // 2, steps - 1}:
        expected = theirs.step(output, int(ours.t[i]), x, eta=0.6, variance_noise=noise)
        prediction = schedule.predict(output, x, int(ours.t[i]))
        torch.testing.assert_close(
            ddim(prediction, ours[i], 0.6).sample(noise), expected.prev_sample, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(prediction.x0, expected.pred_original_sample, atol=1e-4, rtol=1e-4)


def test_steps_offset_decides_where_the_last_step_ends():
    with_offset, without = (Schedule.from_config(CONFIGS[name]).steps(50) for name in ("sd15", "no offset"))
    assert with_offset.t[-1] == 1
    assert without.t[-1] == 0
    assert with_offset.alpha_bar[-1] < with_offset.next_alpha_bar[-1]
    assert without.alpha_bar[-1] == without.next_alpha_bar[-1]  # nothing left to remove


def test_only_a_config_that_says_so_clips_the_clean_estimate():
    assert Schedule.from_config(STABLE_DIFFUSION).clip is None
    assert Schedule.from_config(CONFIGS["clipped"]).clip == 0.7
    wild = Schedule.from_config(CONFIGS["clipped"]).predict(torch.zeros(1, 2), torch.full((1, 2), 9.0), 10)
    assert wild.x0.abs().max() == pytest.approx(0.7)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_three_parametrisations_agree(kind):
    config = STABLE_DIFFUSION | {"prediction_type": kind}
    schedule = Schedule.from_config(config)
    x0, eps = Key("x0").normal(5, 3).double(), Key("eps").normal(5, 3).double()
    t = torch.tensor([0, 10, 400, 800, 999])
    level = schedule.alpha_bar[t][:, None]
    latents = schedule.add_noise(x0, eps, t)
    native = {"epsilon": eps, "sample": x0, "v_prediction": level.sqrt() * eps - (1 - level).sqrt() * x0}[kind]
    prediction = schedule.predict(native, latents, t)
    torch.testing.assert_close(prediction.eps, eps, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(prediction.x0, x0, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(prediction.v, level.sqrt() * eps - (1 - level).sqrt() * x0, atol=1e-10, rtol=1e-10)


def test_velocity_is_exact_at_pure_noise_and_at_pure_signal():
    schedule = Schedule(torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0, kind="v_prediction")
    x0, eps = Key("x0").normal(2, 3), Key("eps").normal(2, 3)
    clean = schedule.predict(eps, x0, 0)  # alpha 1, sigma 0: v = eps
    torch.testing.assert_close(clean.x0, x0)
    torch.testing.assert_close(clean.eps, eps)
    noise = schedule.predict(-x0, eps, 1)  # alpha 0, sigma 1: v = -x0
    torch.testing.assert_close(noise.x0, x0)
    torch.testing.assert_close(noise.eps, eps)


@pytest.mark.parametrize("n", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(n):
    with pytest.raises(ValueError, match=rf"must lie in \[1, 1000\], got {n}"):
        Schedule.from_config(CONFIGS["sd15"]).steps(n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported"),
        ({"prediction_type": "flow"}, "prediction_type 'flow' is not supported"),
        ({"timestep_spacing": "odd"}, "timestep_spacing 'odd' is not supported"),
        ({"thresholding": True}, "dynamic thresholding is not supported"),
    ],
)
def test_a_scheduler_that_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        Schedule.from_config(STABLE_DIFFUSION | change)
