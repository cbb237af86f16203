"""What networks that were just loaded are asked, before anything is spent on them."""

from __future__ import annotations

from typing import Any

import torch

from alignbench.diffusion.architecture import Architecture
from alignbench.diffusion.latent_scale import scale_of
from alignbench.diffusion.text import TextEncoder
from alignbench.errors import InputError, RunError
from alignbench.keys import Key


@torch.no_grad()
def without_overflow(vae: Any, source: str, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """The autoencoder, in float32 where its half precision overflows on latents as wide as those that sampling makes,
    and what to say then. Raises InputError where it does not help."""
    if vae.dtype != torch.float16:
        return vae, []
    scale = scale_of(vae)
    latents = scale.to_autoencoder(Key("overflow").normal(1, len(scale.mean), *size).to(vae.device))

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
def check_runs(source: str, text: TextEncoder, network: Any, vae: Any, architecture: Architecture) -> None:
    """Run each network once, on the smallest latents that it takes. Raises RunError where one cannot be run: a value of
    a wrong kind in a configuration file is noticed by no library before."""
    try:
        side = architecture.least(network.config)
        scale = scale_of(vae)
        latents = torch.zeros(1, len(scale.mean), side, side, device=network.device)
        told = text.encode([""])
        if network.config.get("guidance_embeds"):
            told["guidance"] = torch.ones(1, device=network.device)
        architecture.call(network, latents, torch.zeros(1, dtype=torch.long, device=network.device), told)
        vae.decode(scale.to_autoencoder(latents).to(vae.dtype))
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of such a value
        raise RunError(f"cannot run {source}: {' '.join(str(error).split())}") from error
