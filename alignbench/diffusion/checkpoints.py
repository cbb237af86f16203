"""Networks from folders in the layout of diffusers: of the Stable Diffusion family and of SDXL's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion.latent import Components, sides
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.text import SingleText, SizedText, TextEncoder
from alignbench.errors import InputError, RunError

DENOISER = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
AESTHETIC, NULL_AESTHETIC = 6.0, 2.5  # what the refiner is told of the picture to draw, and of the one to avoid


@dataclass(frozen=True)
class Family:
    """A class of pipelines and which parts it has."""

    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    autoencoder: bool = True

    @property
    def files(self) -> list[str]:
        """Those without which nothing can be loaded."""
        names = ["model_index.json", "scheduler/scheduler_config.json", *DENOISER]
        names += [f"{part}/{file}" for part in self.encoders for file in ("config.json", "model.safetensors")]
        if self.autoencoder:
            names += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
        return names


FAMILIES = {
    "StableDiffusionPipeline": Family(("text_encoder",), ("tokenizer",)),
    "StableDiffusionXLPipeline": Family(("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")),
}
REFINER = "StableDiffusionXLImg2ImgPipeline"
REFINER_PARTS = Family(("text_encoder_2",), ("tokenizer_2",), autoencoder=False)


@dataclass(frozen=True)
class Options:
    """How a model is held and computed with."""

    device: str = "cpu"
    dtype: str = "float32"
    resolution: tuple[int, int] | None = None  # height and width in pixels; None: the model's own
    checkpointing: bool = False  # policies compute activations again in the backward pass instead of keeping them
    slicing: bool = False  # decode one image after another
    tiling: bool = False  # decode large images in overlapping tiles, which changes pixels near the seams


def family_of(folder: Path, source: str) -> Family:
    """What the folder's index says it is. Raises InputError for what is not supported."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if name == REFINER:
        raise InputError(f"{source} refines images and draws none; --model sdxl_refiner is SDXL with its refiner.")
    if name not in FAMILIES:
        raise InputError(
            f"{source}: pipelines of class {name!r} are not supported; "
            f"expected {' or '.join(FAMILIES)} (Stable Diffusion 1.x, 2.x or XL)."
        )
    return FAMILIES[name]


def missing(folder: Path, family: Family) -> list[str]:
    """The files of a pipeline that are not there. Without a vocabulary every word would be read as unknown."""
    names = family.files
    for part in family.tokenizers:
        if not (folder / part / "tokenizer.json").is_file():
            names += [f"{part}/vocab.json", f"{part}/merges.txt"]
    return [name for name in names if not (folder / name).is_file()]


def load_components(
    folder: Path,
    source: str,
    info: Mapping[str, Any],
    meter: Meter,
    options: Options,
    denoiser: Path | None = None,
    autoencoder: Path | None = None,
) -> Components:
    """The networks of a folder; the denoiser's and the autoencoder's are another folder's where one is named. Weights
    that `info` gives no revision of are known by their digest."""
    family = family_of(folder, source)
    schedule = Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    if absent := missing(folder, family):
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.")
    dtype = getattr(torch, options.dtype)
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
    if options.slicing:
        vae.enable_slicing()
    if options.tiling:
        vae.enable_tiling()
    enlarged = 2 ** (len(vae.config.block_out_channels) - 1)
    size = _latent_size(unet.config.sample_size, options.resolution, enlarged)
    pixels = [enlarged * side for side in size]
    info = {**info, "image_shape": [3, *pixels], "dtype": str(dtype).removeprefix("torch.")}
    info |= {} if "revision" in info else {"sha256": digest(folder)}
    info |= {"tiling": True} if options.tiling else {}
    return Components(
        text=_text(folder, source, family, dtype, options.device, pixels),
        unet=unet.to(options.device),
        autoencoder=vae.to(options.device),
        schedule=schedule,
        sides=size,
        info=info,
        meter=meter,
        checkpointing=options.checkpointing,
    )


def load_refiner(folder: Path, base: Components, options: Options) -> Components:
    """SDXL's second expert: a denoiser and one text encoder, on the base model's latents and schedule."""
    source = "the refiner"
    if absent := missing(folder, REFINER_PARTS):
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.")
    dtype = getattr(torch, options.dtype)
    pixels = base.info["image_shape"][1:]
    return Components(
        text=_text(folder, source, REFINER_PARTS, dtype, options.device, pixels),
        unet=_network(folder, source, "unet", dtype).to(options.device),
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
    folder: Path, source: str, family: Family, dtype: torch.dtype, device: str, pixels: Sequence[int]
) -> TextEncoder:
    from transformers import CLIPTokenizer

    try:
        tokenizers = [CLIPTokenizer.from_pretrained(folder, subfolder=part) for part in family.tokenizers]
    except Exception as error:  # the library raises all kinds for a broken file
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    encoders = [_network(folder, source, part, dtype).to(device) for part in family.encoders]
    if family.encoders == ("text_encoder",):
        return SingleText(tokenizers[0], encoders[0])
    index = read_json(folder / "model_index.json")
    if family is REFINER_PARTS:
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


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object of a pipeline's folder. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a saved diffusers pipeline.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weight files and of the noise schedule."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*/*.safetensors"), *folder.glob("scheduler/scheduler_config.json")]):
        found.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()
