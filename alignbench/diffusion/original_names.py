"""Layers by the names of the original code, by which kohya's scripts, ai-toolkit and others save LoRAs: of SDXL's UNet
(CompVis' latent diffusion, Stability's generative-models), of Stable Diffusion 3 (sd3.5), and of FLUX.1 and FLUX.2
(Black Forest Labs' code; XLabs' names its attention by processors).

A UNet's blocks are numbered through: after the first convolution, each resolution on the way down has
`layers_per_block` blocks and one that halves it; each on the way up has one block more, the last of which also doubles
it. A transformer's blocks keep their numbers; but a layer of the original may be several here, whose outputs it makes
one after another. Its modulations of a shift and a scale have their halves the other way round here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
IN_RESNETS = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
OF_FLUX = {  # by what stands before them: the original's, and what it is here in one of both generations
    ("double_blocks", "transformer_blocks"): (
        ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        ("img_attn.proj", ("attn.to_out.0",)),
        ("txt_attn.proj", ("attn.to_add_out",)),
        ("img_mod.lin", ("norm1.linear",)),
        ("txt_mod.lin", ("norm1_context.linear",)),
        ("img_mlp.0", ("ff.net.0.proj",)),
        ("img_mlp.2", ("ff.net.2",)),
        ("txt_mlp.0", ("ff_context.net.0.proj",)),
        ("txt_mlp.2", ("ff_context.net.2",)),
        ("img_mlp.0", ("ff.linear_in",)),
        ("img_mlp.2", ("ff.linear_out",)),
        ("txt_mlp.0", ("ff_context.linear_in",)),
        ("txt_mlp.2", ("ff_context.linear_out",)),
        ("qkv_lora1", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("qkv_lora2", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        ("proj_lora1", ("attn.to_out.0",)),
        ("proj_lora2", ("attn.to_add_out",)),
    ),
    ("single_blocks", "single_transformer_blocks"): (
        ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        ("linear2", ("proj_out",)),
        ("modulation.lin", ("norm.linear",)),
        ("linear1", ("attn.to_qkv_mlp_proj",)),
        ("linear2", ("attn.to_out",)),
        ("qkv_lora", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("proj_lora", ("proj_out",)),
    ),
}
OUTSIDE_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
OF_SD3 = {
    ("joint_blocks", "transformer_blocks"): (
        ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("x_block.attn.proj", ("attn.to_out.0",)),
        ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
        ("x_block.attn2.proj", ("attn2.to_out.0",)),
        ("x_block.mlp.fc1", ("ff.net.0.proj",)),
        ("x_block.mlp.fc2", ("ff.net.2",)),
        ("x_block.adaLN_modulation.1", ("norm1.linear",)),
        ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        ("context_block.attn.proj", ("attn.to_add_out",)),
        ("context_block.mlp.fc1", ("ff_context.net.0.proj",)),
        ("context_block.mlp.fc2", ("ff_context.net.2",)),
        ("context_block.adaLN_modulation.1", ("norm1_context.linear",)),
    ),
}
OUTSIDE_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


def transformer_names(layers: Collection[str]) -> dict[str, Sequence[str]]:
    """By each name of the original code of FLUX or of SD3, the layers that this is here; empty for a UNet."""
    is_flux = any(layer.startswith("single_transformer_blocks.") for layer in layers)
    blocks, outside = (OF_FLUX, OUTSIDE_FLUX) if is_flux else (OF_SD3, OUTSIDE_SD3)
    found: dict[str, Sequence[str]] = {}
    for (theirs, ours), names in blocks.items():
        numbers = {block[1] for layer in layers if (block := re.match(rf"{ours}\.(\d+)\.", layer))}
        for number in numbers:
            for name, parts in names:
                meant = [f"{ours}.{number}.{part}" for part in parts]
                if all(layer in layers for layer in meant):
                    found[f"{theirs}.{number}.{name}"] = meant
    return found | {theirs: [ours] for ours, theirs in outside.items() if found and ours in layers}


def has_halves_swapped(original: str, outputs: int, inputs: int) -> bool:
    """Whether a layer makes a scale and a shift that the original makes the other way round. Its modulations of three
    outputs and more are in the same order here."""
    return "adaLN_modulation" in original and outputs == 2 * inputs


def original_names(layers: Iterable[str], layers_per_block: object) -> dict[str, str]:
    """The original name of each layer that has one. Blocks of unequal depth are nothing that the original code knew."""
    names = list(layers)
    if not isinstance(layers_per_block, int):
        return {}
    attending = {found[2] for name in names if (found := BLOCK.match(name)) and found[1] == "up" and "attn" in name}
    originals = {name: _original(name, layers_per_block + 1, attending) for name in names}
    return {name: original for name, original in originals.items() if original is not None}


def _original(name: str, blocks: int, attending: set[str]) -> str | None:
    if name in OUTSIDE:
        return OUTSIDE[name]
    if middle := MIDDLE.fullmatch(name):
        part, number, rest = middle.groups()
        return f"middle_block.{1 if part == 'attentions' else 2 * int(number)}.{IN_RESNETS.get(rest, rest)}"
    if not (block := BLOCK.fullmatch(name)):
        return None
    way, level, part, number, rest = block.groups()
    if part == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * blocks}.0.op"
    if part == "upsamplers":
        return f"output_blocks.{(int(level) + 1) * blocks - 1}.{2 if level in attending else 1}.conv"
    place = int(level) * blocks + int(number) + (1 if way == "down" else 0)
    inner = f"1.{rest}" if part == "attentions" else f"0.{IN_RESNETS.get(rest, rest)}"
    return f"{'input' if way == 'down' else 'output'}_blocks.{place}.{inner}"
