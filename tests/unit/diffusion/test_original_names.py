"""Layers by the names of the original code, for two models whose published files have them."""

from __future__ import annotations

import pytest

from alignbench.diffusion.original_names import original_names

SDXL = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks.4.1.transformer_blocks.1.attn1.to_q",
    "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.2": "middle_block.1.transformer_blocks.9.ff.net.2",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k": "output_blocks.2.1.transformer_blocks.0.attn2.to_k",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
SD15 = {
    "time_embedding.linear_1": "time_embed.0",
    "down_blocks.0.attentions.1.proj_out": "input_blocks.2.1.proj_out",
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",  # no attention before it
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v": "output_blocks.3.1.transformer_blocks.0.attn1.to_v",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
}


@pytest.mark.parametrize("names", [SDXL, SD15], ids=["sdxl", "sd15"])
def test_names_are_those_of_the_published_files(names):
    assert original_names(names, 2) == names


def test_a_layer_or_a_model_that_the_original_code_did_not_know_has_no_name():
    assert original_names(["encoder_hid_proj.x", "mid_block.motion_modules.0.proj_in"], 2) == {}
    assert original_names(SDXL, (1, 2)) == {}
