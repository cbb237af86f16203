"""The denoiser of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Real
from torch import Tensor

from alignbench.diffusion.architecture import Architecture, precision
from alignbench.diffusion.text import SingleText, SizedText, TextEncoder, TextParts
from alignbench.errors import InputError

AESTHETIC, NULL_AESTHETIC = 6.0, 2.5  # what the refiner is told of the picture to draw, and of the one to avoid


def call(
    network: Any, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
) -> Float[Tensor, "n c h w"]:
    """The text goes to cross-attention; SDXL's is told its pooled embedding and sizes with the time."""
    dtype, added = precision(network), {}
    if "size" in tensors:
        added = {"text_embeds": tensors["pooled"].to(dtype), "time_ids": tensors["size"].to(dtype)}
    output: Tensor = network(
        latents.to(dtype), t, encoder_hidden_states=tensors["text"].to(dtype), added_cond_kwargs=added or None
    ).sample
    return output


def text(parts: TextParts) -> TextEncoder:
    """One encoder, or SDXL's two with sizes, or its refiner's one with an aesthetic score."""
    if not parts.layout.sized:
        return SingleText(parts.tokenizers[0], parts.encoders[0])
    pixels = parts.pixels
    if not parts.layout.autoencoder:
        ids, null_ids = ([*pixels, 0, 0, score] for score in (AESTHETIC, NULL_AESTHETIC))
        return SizedText(parts.tokenizers, parts.encoders, ids, null_ids, zeros_for_null=False)
    ids = [*pixels, 0, 0, *pixels]
    zeros = bool(parts.index.get("force_zeros_for_empty_prompt", True))
    return SizedText(parts.tokenizers, parts.encoders, ids, ids, zeros)


def check_fit(source: str, config: Any, text: TextEncoder) -> None:
    """Raise InputError where a denoiser does not take what the text encoders make."""
    made, wide = text.width, config.cross_attention_dim
    if set(wide if isinstance(wide, list | tuple) else [wide]) != {made}:
        raise InputError(f"{source}: unet/config.json has cross_attention_dim {wide!r}, its text encoders make {made}.")
    if isinstance(text, SizedText):
        told = text.pooled_width + len(text.ids) * int(config.addition_time_embed_dim or 0)
        taken = config.projection_class_embeddings_input_dim
        if taken != told:
            raise InputError(
                f"{source}: unet/config.json has projection_class_embeddings_input_dim {taken!r}, but the pooled text "
                f"and {len(text.ids)} ids make {told}."
            )


def least(config: Any) -> int:
    """Each level but the last halves the sides."""
    return int(2 ** (len(config.block_out_channels) - 1))


UNET = Architecture(
    call,
    text,
    check_fit,
    least,
    targets=("to_q", "to_k", "to_v", "to_out.0"),
    matrices={"lora_A": "lora.down", "lora_B": "lora.up"},
)
