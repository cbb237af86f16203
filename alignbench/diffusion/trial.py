"""What networks that were just loaded are asked, before anything is spent on them."""

from __future__ import annotations

from typing import Any

import torch

from alignbench.diffusion.latent_scale import LatentScale
from alignbench.diffusion.text import SizedText, TextEncoder, added
from alignbench.errors import InputError, RunError
from alignbench.keys import Key


def check_fit(source: str, config: Any, text: TextEncoder) -> None:
    """Raise InputError where a denoiser does not take what the text encoders make."""
    made = text.width
    wide = config.cross_attention_dim
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


@torch.no_grad()
def without_overflow(vae: Any, source: str, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """The autoencoder, in float32 where its half precision overflows on latents as wide as those that sampling makes,
    and what to say then. Raises InputError where it does not help."""
    if vae.dtype != torch.float16:
        return vae, []
    noise = Key("overflow").normal(1, vae.config.latent_channels, *size).to(vae.device)
    latents = LatentScale.of(vae.config).to_autoencoder(noise)

    def works() -> bool:
        pictures = vae.decode(latents.to(vae.dtype)).sample
        return bool(pictures.isfinite().all() and vae.encode(pictures.clamp(-1, 1)).latent_dist.mean.isfinite().all())

    if works():
        return vae, []
    vae = vae.float()
    if not works():
        raise InputError(f"{source}: its autoencoder makes values that are not finite; choose another --vae.")
    return vae, ["the autoencoder overflows in float16 and runs in float32"]


@torch.no_grad()
def check_runs(source: str, text: TextEncoder, network: Any, vae: Any) -> None:
    """Run each network once, on the smallest latents that it takes. Raises RunError where one cannot be run: a value of
    a wrong kind in a configuration file is noticed by no library before."""
    try:
        tensors = text.encode([""])
        side = 2 ** (len(network.config.block_out_channels) - 1)
        latents = torch.zeros(1, network.config.in_channels, side, side, dtype=network.dtype, device=network.device)
        time = torch.zeros(1, dtype=torch.long, device=network.device)
        network(latents, time, encoder_hidden_states=tensors["text"].to(network.dtype), **added(tensors, network.dtype))
        vae.decode(latents.to(vae.dtype))
    except Exception as error:  # whatever a library makes of such a value
        raise RunError(f"cannot run {source}: {' '.join(str(error).split())}") from error
