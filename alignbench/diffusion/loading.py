"""Networks from folders in the layout of diffusers: of the Stable Diffusion family and of SDXL's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion import configs, conversion, hub, weights
from alignbench.diffusion.experts import RefinedPipeline
from alignbench.diffusion.hub import Repository
from alignbench.diffusion.latent import Components, LatentPipeline
from alignbench.diffusion.layouts import AUTOENCODER, DENOISER, REFINER_LAYOUT, Layout, layout_of, pipeline_of
from alignbench.diffusion.on_disk import EMBEDDED, sample_size, schedule_in, tokenizers_of
from alignbench.diffusion.registry import Hold, Model, read_json
from alignbench.diffusion.text import SingleText, SizedText, TextEncoder
from alignbench.diffusion.trial import check_fit, check_runs, without_overflow
from alignbench.errors import InputError, RunError
from alignbench.files import canonical_json, sha256_of
from alignbench.interface import Pipeline
from alignbench.meter import Meter
from alignbench.quiet import quieten

AUTOENCODER_CLASS = "AutoencoderKL"
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
    if folder.is_file():
        line = conversion.conversion(AUTOENCODER_CLASS, "from_single_file", folder, "--vae")
        raise InputError(f"--vae {name!r} is a file; expected a folder or hub id. Make a folder of it once: {line}")
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
    elif hub.HUB_ID.fullmatch(name):
        folder = hub.snapshot(hub.files_of(Repository(name), AUTOENCODER), name)
    absent = [] if (folder / "config.json").is_file() else ["config.json"]
    absent += weights.missing(folder, weights.NETWORK)
    if absent:
        said = conversion.instead(folder, "", AUTOENCODER_CLASS, "--vae")
        raise InputError(f"--vae {name!r}: {absent[0]} missing; expected a folder or hub id of an autoencoder.{said}")
    return folder


def autoencoder_digest(folder: Path) -> str:
    """SHA-256 over an autoencoder's weights and configuration: its scaling factor stands in the latter."""
    found = weights.weights_in(folder, weights.NETWORK)
    parts = [sha256_of(path) for path in (folder / "config.json", *(found.files if found else ()))]
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
    layout.check(folder, source)
    configs.check_files(folder, source, layout, denoiser, autoencoder)
    schedule = schedule_in(folder, source)
    dtype = getattr(torch, hold.dtype)
    network = _network(denoiser or folder, source, "unet", dtype)
    place, of, part = (folder, source, "vae") if autoencoder is None else (autoencoder, str(autoencoder), "")
    vae = _network(place, of, part, dtype)
    if vae.config.latent_channels != network.config.in_channels:
        raise InputError(
            f"{of}: its latents have {vae.config.latent_channels} channels, the denoiser's of {source} "
            f"{network.config.in_channels}; choose another --vae."
        )
    if dtype == torch.float16 and vae.config.force_upcast:
        vae = vae.float()  # its activations overflow in half precision
    if hold.slicing:
        vae.enable_slicing()
    if hold.tiling:
        vae.enable_tiling()
    enlarged = 2 ** (len(vae.config.block_out_channels) - 1)
    own = sample_size(source, layout, network.config)
    size = _latent_size(source, own, hold.resolution, enlarged)
    pixels = [enlarged * side for side in size]
    info = {**info, "image_shape": [3, *pixels], "dtype": str(dtype).removeprefix("torch.")}
    info |= {} if "revision" in info else {"sha256": digest(folder, layout)}
    if "revision" not in info and source != EMBEDDED:
        info["configuration_sha256"] = configuration_digest(folder, layout)
    info |= {"tiling": True} if hold.tiling else {}
    text = _text(folder, source, layout, dtype, hold.device, pixels)
    check_fit(source, network.config, text)
    vae, notes = without_overflow(vae.to(hold.device), of, size)
    check_runs(source, text, network.to(hold.device), vae)
    return Components(
        text=text,
        denoiser=network,
        autoencoder=vae,
        schedule=schedule,
        sides=size,
        info=info,
        meter=meter,
        checkpointing=hold.checkpointing,
        notes=notes,
    )


def load_refiner(folder: Path, base: Components, hold: Hold) -> Components:
    """SDXL's second expert: a denoiser and one text encoder, on the base model's latents and schedule."""
    source = "the refiner"
    REFINER_LAYOUT.check(folder, source)
    configs.check_files(folder, source, REFINER_LAYOUT)
    dtype = getattr(torch, hold.dtype)
    text = _text(folder, source, REFINER_LAYOUT, dtype, hold.device, base.info["image_shape"][1:])
    network = _network(folder, source, "unet", dtype)
    check_fit(source, network.config, text)
    check_runs(source, text, network.to(hold.device), base.autoencoder)
    return Components(
        text=text,
        denoiser=network,
        autoencoder=base.autoencoder,
        schedule=base.schedule,
        sides=base.sides,
        info=base.info,
        meter=base.meter,
    )


def _latent_size(
    source: str, own: tuple[int, int] | None, wanted: tuple[int, int] | None, enlarged: int
) -> tuple[int, int]:
    if wanted is None:
        if own is None:
            raise InputError(f"{source}: unet/config.json has no sample_size; pass --resolution.")
        return own
    if any(side % enlarged for side in wanted):
        raise InputError(f"--resolution {wanted[0]}x{wanted[1]}: expected multiples of {enlarged} pixels.")
    return (wanted[0] // enlarged, wanted[1] // enlarged)


def _text(
    folder: Path, source: str, layout: Layout, dtype: torch.dtype, device: str, pixels: Sequence[int]
) -> TextEncoder:
    tokenizers = tokenizers_of(folder, source, layout)
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
    held = weights.weights_in(folder / part, weights.stem_of(part))
    variant = held.variant if held else None
    try:
        found, report = network.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True, **where
        )
    except Exception as error:  # the libraries raise all kinds for a broken file, down to a bare Exception
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    if absent := sorted(report["missing_keys"]):
        raise RunError(f"cannot load {source}: {part or 'vae'} lacks {len(absent)} weights, such as {absent[0]}.")
    return found


def digest(folder: Path, layout: Layout) -> str:
    """SHA-256 over the names and contents of the weight files that are read and of the noise schedule."""
    found = hashlib.sha256()
    held = [weights.weights_in(folder / part, weights.stem_of(part)) for part in layout.networks]
    paths = [path for weights_of_part in held if weights_of_part for path in weights_of_part.files]
    for path in sorted([*paths, folder / "scheduler" / "scheduler_config.json"]):
        found.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()


def configuration_digest(folder: Path, layout: Layout) -> str:
    """SHA-256 over what the configuration files of the networks and the tokenizers say, without the libraries' notes:
    the same weights under another configuration are another model."""
    names = [f"{part}/config.json" for part in layout.networks]
    names += [f"{part}/tokenizer_config.json" for part in layout.tokenizers]
    said = {name: read_json(folder / name) for name in ["model_index.json", *names] if (folder / name).is_file()}
    plain = {name: {k: v for k, v in config.items() if not k.startswith("_")} for name, config in said.items()}
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()
