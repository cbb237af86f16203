"""The kinds of denoisers, by the class of diffusers that their networks are of."""

from __future__ import annotations

from collections.abc import Mapping

from alignbench.diffusion import flux, flux2, sd3, unet
from alignbench.diffusion.architecture import Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    "UNet2DConditionModel": unet.UNET,
    "SD3Transformer2DModel": sd3.SD3,
    "FluxTransformer2DModel": flux.FLUX,
    "Flux2Transformer2DModel": flux2.FLUX2,
}
