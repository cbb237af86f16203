"""Layers of a UNet by the names of the original code (CompVis' latent diffusion, Stability's generative-models), by
which kohya's scripts and others save LoRAs of SDXL.

Its blocks are numbered through: after the first convolution, each resolution on the way down has `layers_per_block`
blocks and one that halves it; each on the way up has one block more, the last of which also doubles it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
