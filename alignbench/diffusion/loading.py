"""Networks from folders in the layout of diffusers: of the Stable Diffusion family and of SDXL's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion import hub
from alignbench.diffusion.experts import RefinedPipeline
from alignbench.diffusion.hub import Repository
from alignbench.diffusion.latent import Components, LatentPipeline, sides
from alignbench.diffusion.layouts import AUTOENCODER, DENOISER, REFINER_LAYOUT, Layout, layout_of, pipeline_of
from alignbench.diffusion.registry import Hold, Model, read_json
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.text import SingleText, SizedText, TextEncoder
from alignbench.errors import InputError, RunError
from alignbench.files import sha256_of
from alignbench.interface import Pipeline
from alignbench.meter import Meter
from alignbench.quiet import quieten

AESTHETIC, NULL_AESTHETIC = 6.0, 2.5  # what the refiner is told of the picture to draw, and of the one to avoid


def load_pipeline(model: Model, folder: Path, source: str, revision: str | None, meter: Meter, hold: Hold) -> Pipeline:
    """The pipeline of a model whose weights lie in a folder; with its own denoiser, refiner or autoencoder from
    elsewhere. `source` and `revision` are what a result says of where they come from."""
    quieten("diffusers", "transformers")
    info: dict[str, Any] = {"name": model.like or model.name, "source": source}
    info |= {"revision": revision} if revision else {}
    autoencoder = find_autoencoder(hold.autoencoder) if hold.autoencoder else None
    if autoencoder is not None:
        info["autoencoder_sha256"] = autoencoder_digest(autoencoder)
    aligned, denoiser = {}, None
    if model.denoiser is not None:
        denoiser = hub.snapshot(hub.files_of(model.denoiser, DENOISER), model.name)
        aligned = {"denoiser": f"{model.denoiser.name}@{denoiser.name}"}
    pipeline = LatentPipeline(
        load_components(folder, model.source, info, meter, hold, denoiser, autoencoder), aligned=aligned
    )
    if model.refiner is None:
        return pipeline
    refiner = hub.snapshot(pipeline_of(model.refiner), model.name)
    experts = LatentPipeline(load_refiner(refiner, pipeline.components, hold))
    return RefinedPipeline(pipeline, experts, {"refiner": f"{model.refiner.name}@{refiner.name}"})


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: one that holds it, a pipeline's, or a repository's. Raises InputError."""
    folder = Path(name)
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
    elif hub.HUB_ID.fullmatch(name):
        folder = hub.snapshot(hub.files_of(Repository(name), AUTOENCODER), name)
    absent = [file for file in AUTOENCODER if not (folder / file).is_file()]
    if absent:
        raise InputError(f"--vae {name!r}: {absent[0]} missing; expected a folder or hub id of an autoencoder.")
    return folder


def autoencoder_digest(folder: Path) -> str:
    """SHA-256 over an autoencoder's weights and configuration: its scaling factor stands in the latter."""
    parts = [sha256_of(folder / name) for name in AUTOENCODER]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def load_components(
    folder: Path,
    source: str,
    info: Mapping[str, Any],
    meter: Meter,
    hold: Hold,
    denoiser: Path | None = None,
    autoencoder: Path | None = None,
) -> Components:
    """The networks of a folder; the denoiser's and the autoencoder's are another folder's where one is named. Weights
    that `info` gives no revision of are known by their digest."""
    layout = layout_of(folder, source)
    schedule = Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    if absent := layout.missing(folder):
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.")
    dtype = getattr(torch, hold.dtype)
    unet = _network(denoiser or folder, source, "unet", dtype)
    if unet.config.in_channels != 4:
        raise InputError(
            f"{source}: its denoiser takes {unet.config.in_channels} channels; expected the 4 of a text-to-image model."
        )
    place, of, part = (folder, source, "vae") if autoencoder is None else (autoencoder, str(autoencoder), "")
    vae = _network(place, of, part, dtype)
    if vae.config.latent_channels != unet.config.in_channels:
        raise InputError(
            f"{of}: its latents have {vae.config.latent_channels} channels, the denoiser's of {source} "
            f"{unet.config.in_channels}; choose another --vae."
        )
    if dtype == torch.float16 and vae.config.force_upcast:
        vae = vae.float()  # its activations overflow in half precision
    if hold.slicing:
        vae.enable_slicing()
    if hold.tiling:
        vae.enable_tiling()
    enlarged = 2 ** (len(vae.config.block_out_channels) - 1)
    size = _latent_size(unet.config.sample_size, hold.resolution, enlarged)
    pixels = [enlarged * side for side in size]
    info = {**info, "image_shape": [3, *pixels], "dtype": str(dtype).removeprefix("torch.")}
    info |= {} if "revision" in info else {"sha256": digest(folder)}
    info |= {"tiling": True} if hold.tiling else {}
    return Components(
        text=_text(folder, source, layout, dtype, hold.device, pixels),
        unet=unet.to(hold.device),
        autoencoder=vae.to(hold.device),
        schedule=schedule,
        sides=size,
        info=info,
        meter=meter,
        checkpointing=hold.checkpointing,
    )


def load_refiner(folder: Path, base: Components, hold: Hold) -> Components:
    """SDXL's second expert: a denoiser and one text encoder, on the base model's latents and schedule."""
    source = "the refiner"
    if absent := REFINER_LAYOUT.missing(folder):
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.")
    dtype = getattr(torch, hold.dtype)
    pixels = base.info["image_shape"][1:]
    return Components(
        text=_text(folder, source, REFINER_LAYOUT, dtype, hold.device, pixels),
        unet=_network(folder, source, "unet", dtype).to(hold.device),
        autoencoder=base.autoencoder,
        schedule=base.schedule,
        sides=base.sides,
        info=base.info,
        meter=base.meter,
    )


def _latent_size(own: int | Sequence[int], wanted: tuple[int, int] | None, enlarged: int) -> tuple[int, int]:
    if wanted is None:
        return sides(own)
    if any(side % enlarged for side in wanted):
        raise InputError(f"--resolution {wanted[0]}x{wanted[1]}: expected multiples of {enlarged} pixels.")
    return (wanted[0] // enlarged, wanted[1] // enlarged)


def _text(
    folder: Path, source: str, layout: Layout, dtype: torch.dtype, device: str, pixels: Sequence[int]
) -> TextEncoder:
    from transformers import CLIPTokenizer

    try:
        tokenizers = [CLIPTokenizer.from_pretrained(folder, subfolder=part) for part in layout.tokenizers]
    except Exception as error:  # the library raises all kinds for a broken file
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    encoders = [_network(folder, source, part, dtype).to(device) for part in layout.encoders]
    if layout.encoders == ("text_encoder",):
        return SingleText(tokenizers[0], encoders[0])
    index = read_json(folder / "model_index.json")
    if layout is REFINER_LAYOUT:
        return SizedText(
            tokenizers, encoders, [*pixels, 0, 0, AESTHETIC], [*pixels, 0, 0, NULL_AESTHETIC], zeros_for_null=False
        )
    ids = [*pixels, 0, 0, *pixels]
    return SizedText(tokenizers, encoders, ids, ids, bool(index.get("force_zeros_for_empty_prompt", True)))


def _network(folder: Path, source: str, part: str, dtype: torch.dtype) -> Any:
    """One network, from a part of the folder; the autoencoder from a folder that is it. Raises RunError where its file
    is broken or lacks weights, which the libraries would draw at random."""
    import diffusers
    import transformers

    kinds: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    network = kinds.get(part, diffusers.AutoencoderKL)
    where = {"subfolder": part} if part else {}
    try:
        found, report = network.from_pretrained(folder, dtype=dtype, output_loading_info=True, **where)
    except Exception as error:  # the libraries raise all kinds for a broken file, down to a bare Exception
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    if absent := sorted(report["missing_keys"]):
        raise RunError(f"cannot load {source}: {part or 'vae'} lacks {len(absent)} weights, such as {absent[0]}.")
    return found


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weight files and of the noise schedule."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*/*.safetensors"), *folder.glob("scheduler/scheduler_config.json")]):
        found.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()
