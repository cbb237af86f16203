"""FLUX.2's folded latents, positions, and the shift of its grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu

from alignbench import Key
from alignbench.diffusion.flow_schedule import FlowSchedule, empirical
from alignbench.diffusion.flux2 import places, positions
from alignbench.diffusion.latent_scale import LatentScale
from alignbench.diffusion.layouts import FLUX2, layout_of
from alignbench.errors import InputError

CONFIG = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tokens", "steps", "mu"),
    [
        (4300, 200, 0.00016927 * 4300 + 0.45666666),
        (4301, 4, 0.00016927 * 4301 + 0.45666666),  # the number of steps no longer counts
        (4096, 10, 8.73809524e-05 * 4096 + 1.89833333),
        (1024, 105, (0.62999914 + 1.98781143) / 2),  # half way between the lines, at 0.63 and 1.99
    ],
)
def test_mu_lies_on_the_line_between_ten_and_two_hundred_steps(tokens, steps, mu):
    assert empirical(tokens, steps) == pytest.approx(mu, abs=1e-7)
    assert empirical(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), abs=1e-9)


@pytest.mark.parametrize("n", [1, 4, 28, 50])
@pytest.mark.parametrize("tokens", [1024, 4096, 8100])
def test_grids_are_those_that_diffusers_makes(n, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(**CONFIG)
    for sigmas, how in {
        "linspace": {"sigmas": np.linspace(1, 1 / n, n)},
        "scheduler": {"num_inference_steps": n},
    }.items():
        scheduler.set_timesteps(**how, mu=compute_empirical_mu(tokens, n))
        ours = FlowSchedule.from_config(CONFIG, tokens, sigmas, by_steps=True).grid(n)
        assert torch.allclose(ours.float(), scheduler.sigmas, atol=2e-6), sigmas


def test_training_draws_by_the_line_of_flux_1_which_is_that_at_two_hundred_steps():
    schedule, older = (FlowSchedule.from_config(CONFIG, 4096, by_steps=by_steps) for by_steps in (True, False))
    uniform = torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(schedule.draw(uniform), older.draw(uniform))
    assert schedule.shift == pytest.approx(math.exp(empirical(4096, 200)), abs=1e-4)
    assert schedule.shift_of(4) == pytest.approx(9.8866, abs=1e-3)  # e^2.29118
    assert schedule.sha256 != older.sha256


def test_a_static_shift_is_the_same_for_each_number_of_steps():
    schedule = FlowSchedule.from_config({"shift": 3.0}, 4096, by_steps=True)
    assert (schedule.shift_of(4), schedule.shift_of(50), schedule.tokens) == (3.0, 3.0, None)


def test_a_square_of_latents_is_folded_channel_by_channel_and_row_by_row_before_it_is_scaled():
    """Latents numbered 0 … 15, 4 by 4: the second pixel is columns 2 and 3 of rows 0 and 1, 2 3 6 7. Of each 1 is
    taken away, and what is left doubled."""
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    scale = LatentScale([1.0] * 4, [2.0] * 4, folded=2)
    folded = scale.to_denoiser(latents)
    assert folded.shape == (1, 4, 2, 2)
    assert folded[0, :, 0, 1].tolist() == [2, 4, 10, 12]
    assert torch.equal(scale.to_autoencoder(folded), latents)
    many = Key("x").normal(2, 3, 6, 4)
    assert torch.equal(
        LatentScale([0.0] * 12, [1.0] * 12, folded=2).to_denoiser(many), Flux2KleinPipeline._patchify_latents(many)
    )


def test_positions_have_four_columns_of_which_the_image_has_the_inner_and_the_text_the_last():
    assert positions(2, 3, CPU).tolist() == [[0, row, column, 0] for row in (0, 1) for column in (0, 1, 2)]
    assert places(3, CPU).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
    assert torch.equal(positions(2, 3, CPU), Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, 2, 3))[0])
    assert torch.equal(places(3, CPU), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 3, 1))[0])


def test_the_index_says_whether_there_is_guidance(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "Flux2KleinPipeline"}')
    assert layout_of(tmp_path, "x") == FLUX2
    assert layout_of(tmp_path, "x").guiding({}) == "classifier_free"
    index.write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": true}')
    assert layout_of(tmp_path, "x").guiding({}) == "none"
    assert (FLUX2.channels({"in_channels": 128}), FLUX2.patch({})) == (128, 1)
    index.write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": 1}')
    with pytest.raises(InputError, match="is_distilled 1; expected true or false"):
        layout_of(tmp_path, "x")
