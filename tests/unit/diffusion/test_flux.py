"""FLUX's tokens, and how guidance is counted."""

from __future__ import annotations

import pytest
import torch

from alignbench import Key, Sampling
from alignbench.diffusion.flux import pack, positions, unpack
from alignbench.diffusion.layouts import FLUX, SD, SD3, layout_of
from alignbench.errors import InputError


def test_packing_is_undone_to_the_bit():
    latents = Key("x").normal(2, 3, 6, 4)
    assert pack(latents).shape == (2, 6, 12)
    assert torch.equal(unpack(pack(latents), 6, 4), latents)


def test_a_token_is_a_square_of_latents_channel_by_channel_and_row_by_row():
    """Latents numbered 0 … 31 of two channels, 4 by 4: the second token is columns 2 and 3 of rows 0 and 1."""
    tokens = pack(torch.arange(32.0).reshape(1, 2, 4, 4))
    assert tokens[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_positions_are_the_row_and_column_of_each_token():
    assert positions(4, 6, torch.device("cpu")).tolist() == [[0, row, column] for row in (0, 1) for column in (0, 1, 2)]


@pytest.mark.parametrize(
    ("guidance", "embedded", "evaluations"), [(3.5, True, 1), (3.5, False, 2), (1.0, False, 1), (0.0, True, 1)]
)
def test_guidance_that_the_denoiser_is_told_takes_one_evaluation(guidance, embedded, evaluations):
    assert Sampling(4, guidance, embedded_guidance=embedded).evaluations == evaluations


def test_what_the_denoiser_is_told_is_a_fact_of_the_model_and_no_part_of_a_cells_sampling():
    assert Sampling(4, 3.5, embedded_guidance=True).as_dict() == Sampling(4, 3.5).as_dict()


def test_layouts_know_channels_tokens_and_guidance_by_the_denoisers_file():
    assert (FLUX.channels({"in_channels": 64}), FLUX.patch({})) == (16, 2)
    assert (SD3.channels({"in_channels": 16}), SD3.patch({}), SD3.patch({"patch_size": 1})) == (16, 2, 1)
    assert (SD.channels({}), SD.patch({})) == (4, 1)
    told = [FLUX.guiding({"guidance_embeds": True}), FLUX.guiding({}), SD3.guiding({}), SD.guiding({})]
    assert told == ["embedded", "none", "classifier_free", "classifier_free"]
    with pytest.raises(InputError, match=r"transformer/config\.json has in_channels '64'; expected a positive whole"):
        FLUX.channels({"in_channels": "64"})


def test_an_index_that_leaves_t5_out_has_two_encoders(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": [null, null]}')
    assert layout_of(tmp_path, "x").tokenizers == ("tokenizer", "tokenizer_2")
    index.write_text(
        '{"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": ["transformers", "T5EncoderModel"]}'
    )
    assert layout_of(tmp_path, "x") == SD3
