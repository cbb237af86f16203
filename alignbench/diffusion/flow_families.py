"""Stable Diffusion 3 and 3.5, FLUX.1 and FLUX.2 [klein]. Imports no torch before one is loaded.

Steps, guidance and resolution are those of the model cards; where a folder or another repository is named, those that
diffusers' pipelines have as defaults. The grid is what the pipelines ask their scheduler for: SD3's nothing, FLUX's
linspace. Flow-GRPO and DiffusionNFT evaluate SD3.5 medium with 40 steps at 512 pixels, with guidance 4.5 and 1, and a
text of 128 tokens (`--resolution 512 --text-length 128`), and so do their released weights by default (released.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignbench.diffusion import layouts
from alignbench.diffusion.latent_family import LatentFamily, needs_of, place_of
from alignbench.diffusion.on_disk import text_tokens
from alignbench.diffusion.registry import Model, read_json
from alignbench.diffusion.released import with_released

COMMUNITY = "Stability AI Community License (accept it on the hub)"


def _of_sd3(folder: Path) -> Mapping[str, Any]:
    """As StableDiffusion3Pipeline samples by default."""
    return {"steps": 28, "guidance": 7.0, "prediction": "flow", "sigmas": "scheduler", "tokens": layouts.SD3.tokens}


def _of_flux(folder: Path) -> Mapping[str, Any]:
    """As FluxPipeline samples by default; without guidance, as FLUX.1 [schnell]."""
    path = folder / layouts.FLUX.config
    config = read_json(path) if path.is_file() else {}
    guiding = layouts.FLUX.guiding(config)
    sampling = {"steps": 4, "guidance": 1.0} if guiding == "none" else {"steps": 28, "guidance": 3.5}
    tokens = text_tokens(layouts.FLUX, config)
    return {**sampling, "prediction": "flow", "guiding": guiding, "sigmas": "linspace", "tokens": tokens}


def _of_flux2(folder: Path) -> Mapping[str, Any]:
    """As Flux2KleinPipeline samples by default; distilled, as the model cards of those."""
    guiding = layouts.layout_of(folder, str(folder)).guiding({})
    sampling = {"steps": 4, "guidance": 1.0} if guiding == "none" else {"steps": 50, "guidance": 4.0}
    tokens = layouts.FLUX2.tokens
    return {**sampling, "prediction": "flow", "guiding": guiding, "sigmas": "linspace", "tokens": tokens}


SD3 = LatentFamily(
    "sd3",
    with_released(
        Model(
            "sd3",
            source="stabilityai/stable-diffusion-3-medium-diffusers",
            family="sd3",
            revision="ea42f8cef0f178587cf766dc8129abd379c90671",
            steps=28,
            guidance=7.0,
            resolution=1024,
            prediction="flow",
            sigmas="scheduler",
            tokens=256,
            licence=COMMUNITY,
            note="Stable Diffusion 3 medium, 1024 pixels",
        ),
        Model(
            "sd35_medium",
            source="stabilityai/stable-diffusion-3.5-medium",
            family="sd3",
            revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
            steps=40,
            guidance=4.5,
            resolution=1024,
            prediction="flow",
            sigmas="scheduler",
            tokens=256,
            licence=COMMUNITY,
            note="Stable Diffusion 3.5 medium, 1024 pixels",
        ),
        Model(
            "sd35_large",
            source="stabilityai/stable-diffusion-3.5-large",
            family="sd3",
            revision="ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
            steps=28,
            guidance=3.5,
            resolution=1024,
            prediction="flow",
            sigmas="scheduler",
            tokens=256,
            licence=COMMUNITY,
            note="Stable Diffusion 3.5 large, 1024 pixels",
        ),
    ),
    needs=needs_of,
    place=place_of,
    pipelines=(layouts.SD3.pipeline,),
    described=_of_sd3,
    channels=16,
    patch=2,
)
FLUX = LatentFamily(
    "flux",
    with_released(
        Model(
            "flux_dev",
            source="black-forest-labs/FLUX.1-dev",
            family="flux",
            revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            steps=50,
            guidance=3.5,
            resolution=1024,
            prediction="flow",
            guiding="embedded",
            sigmas="linspace",
            tokens=512,
            licence="FLUX.1 [dev] Non-Commercial License (accept it on the hub)",
            note="FLUX.1 [dev], 1024 pixels; the denoiser is told the guidance",
        ),
        Model(
            "flux_schnell",
            source="black-forest-labs/FLUX.1-schnell",
            family="flux",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            steps=4,
            guidance=1.0,
            resolution=1024,
            prediction="flow",
            guiding="none",
            sigmas="linspace",
            tokens=256,
            licence="Apache-2.0 (accept its conditions on the hub)",
            note="FLUX.1 [schnell], 1024 pixels, distilled to four steps without guidance",
        ),
    ),
    needs=needs_of,
    place=place_of,
    pipelines=(layouts.FLUX.pipeline,),
    described=_of_flux,
    channels=16,
    patch=2,
)
FLUX2 = LatentFamily(
    "flux2",
    (
        Model(
            "flux2_klein_4b",
            source="black-forest-labs/FLUX.2-klein-4B",
            family="flux2",
            revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
            steps=4,
            guidance=1.0,
            resolution=1024,
            prediction="flow",
            guiding="none",
            sigmas="linspace",
            tokens=512,
            licence="Apache-2.0",
            note="FLUX.2 [klein] 4B, 1024 pixels, distilled to four steps without guidance",
        ),
        Model(
            "flux2_klein_base_4b",
            source="black-forest-labs/FLUX.2-klein-base-4B",
            family="flux2",
            revision="a3b4f4849157f664bdbc776fd7453c2783562f4d",
            steps=50,
            guidance=4.0,
            resolution=1024,
            prediction="flow",
            sigmas="linspace",
            tokens=512,
            licence="Apache-2.0",
            note="FLUX.2 [klein] 4B before it was distilled, 1024 pixels",
        ),
    ),
    needs=needs_of,
    place=place_of,
    pipelines=(layouts.FLUX2.pipeline,),
    described=_of_flux2,
    channels=128,
    enlarged=16,
)
