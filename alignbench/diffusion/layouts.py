"""Folders in the layout of diffusers: which files each class of pipeline has. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alignbench.choices import Guiding
from alignbench.diffusion import conversion, hub, weights
from alignbench.diffusion.hub import Part, Repository
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError, RunError

UNET, TRANSFORMER = "unet", "transformer"  # where a denoiser lies, and what stands before its layers in LoRA files
DENOISERS = (UNET, TRANSFORMER)
REFINER = "StableDiffusionXLImg2ImgPipeline"
CLIP, PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
QWEN = "Qwen3ForCausalLM"


@dataclass(frozen=True)
class Layout:
    """Which parts a class of pipelines has, and of which classes they are."""

    pipeline: str
    encoders: Mapping[str, str] = field(hash=False)  # the class of each text encoder
    denoiser: str = UNET
    network: str = "UNet2DConditionModel"
    optional: tuple[str, ...] = ()  # text encoders that an index may leave out
    autoencoder: bool = True
    autoencoders: str = "AutoencoderKL"  # their class
    flow: bool = False
    packed: int = 1  # side of the square of latents that the pipeline packs into one channel vector
    folded: int = 1  # side of the square of the autoencoder's latents that is one of the denoiser's
    tokens: int | None = None  # of T5's or Qwen's text, whose length is the pipeline's choice
    distilled: bool = False  # FLUX.2 by its index: without guidance

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Of the text encoders, in their order."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.encoders)

    @property
    def networks(self) -> list[str]:
        """The parts that have weights."""
        return [self.denoiser, *self.encoders, *(["vae"] if self.autoencoder else [])]

    @property
    def sized(self) -> bool:
        """Whether the denoiser is told sizes, as SDXL's and its refiner's."""
        return self.denoiser == UNET and PROJECTED in self.encoders.values()

    @property
    def config(self) -> str:
        """The denoiser's configuration file."""
        return f"{self.denoiser}/config.json"

    def channels(self, config: Mapping[str, Any]) -> int:
        """Of the latents, by the denoiser's configuration. Raises InputError."""
        return self._number(config, "in_channels", 4) // self.packed**2

    def patch(self, config: Mapping[str, Any]) -> int:
        """The side in latents of what the denoiser takes as one token; 1 of a UNet. Raises InputError."""
        return self.packed * self._number(config, "patch_size", 2 if self.network == "SD3Transformer2DModel" else 1)

    def _number(self, config: Mapping[str, Any], name: str, usual: int) -> int:
        value = config.get(name, usual)
        if type(value) is not int or value < 1:
            raise InputError(f"{self.config} has {name} {value!r}; expected a positive whole number.")
        return value

    def guiding(self, config: Mapping[str, Any]) -> Guiding:
        """How guidance enters: FLUX.1 was distilled, so that it is told the scale, or has none; FLUX.2 [klein] has none
        where its index says that it was distilled."""
        if self.distilled:
            return "none"
        if self.network != "FluxTransformer2DModel":
            return "classifier_free"
        return "embedded" if config.get("guidance_embeds") else "none"

    def missing(self, folder: Path) -> list[str]:
        """The files that are not there. Without a vocabulary every word would be read as unknown."""
        names = ["model_index.json", "scheduler/scheduler_config.json", *(f"{p}/config.json" for p in self.networks)]
        for part, kind in zip(self.tokenizers, self.encoders.values(), strict=True):
            merges = [f"{part}/vocab.json", f"{part}/merges.txt"]
            if (folder / part / "tokenizer.json").is_file() or all((folder / name).is_file() for name in merges):
                continue
            names += [f"{part}/tokenizer.json"] if kind == T5 else merges
        absent = [name for name in names if not (folder / name).is_file()]
        for part in self.networks:
            absent += [f"{part}/{name}" for name in weights.missing(folder / part, weights.stem_of(part))]
        return absent

    def check(self, folder: Path, source: str) -> None:
        """Raise RunError naming the files that are missing, and what lies there instead of weights."""
        if not (absent := self.missing(folder)):
            return
        parts = [part for part in self.networks if f"{part}/{weights.stem_of(part)}.safetensors" in absent]
        left_out = [part for part in self.optional if part not in self.encoders]
        left_out += [part.replace("text_encoder", "tokenizer") for part in left_out]  # diffusers wants to be told
        found = (conversion.instead(folder, part, self.pipeline, absent=left_out) for part in parts)
        said = next(filter(None, found), "")
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.{said}")


SD = Layout("StableDiffusionPipeline", {"text_encoder": CLIP})
SDXL = Layout("StableDiffusionXLPipeline", {"text_encoder": CLIP, "text_encoder_2": PROJECTED})
REFINER_LAYOUT = Layout(REFINER, {"text_encoder_2": PROJECTED}, autoencoder=False)
SD3 = Layout(
    "StableDiffusion3Pipeline",
    {"text_encoder": PROJECTED, "text_encoder_2": PROJECTED, "text_encoder_3": T5},
    denoiser=TRANSFORMER,
    network="SD3Transformer2DModel",
    optional=("text_encoder_3",),
    flow=True,
    tokens=256,
)
FLUX = Layout(
    "FluxPipeline",
    {"text_encoder": CLIP, "text_encoder_2": T5},
    denoiser=TRANSFORMER,
    network="FluxTransformer2DModel",
    flow=True,
    packed=2,
    tokens=512,
)
FLUX2 = Layout(
    "Flux2KleinPipeline",
    {"text_encoder": QWEN},
    denoiser=TRANSFORMER,
    network="Flux2Transformer2DModel",
    autoencoders="AutoencoderKLFlux2",
    flow=True,
    folded=2,
    tokens=512,
)
LAYOUTS: Mapping[str, Layout] = {layout.pipeline: layout for layout in (SD, SDXL, SD3, FLUX, FLUX2)}


def layout_of(folder: Path, source: str) -> Layout:
    """What the folder's index says it is, without the text encoders that it leaves out. Raises InputError for what is
    not supported."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name == REFINER:
        raise InputError(f"{source} refines images and draws none; --model sdxl_refiner is SDXL with its refiner.")
    if isinstance(name, str) and name.startswith("Flux2") and name not in LAYOUTS:
        raise InputError(
            f"{source} is a {name}: of FLUX.2 only [klein] is supported, as a {FLUX2.pipeline}, such as --model "
            "flux2_klein_4b."
        )
    if not isinstance(name, str) or name not in LAYOUTS:
        raise InputError(
            f"{source}: pipelines of class {name!r} are not supported; "
            f"expected {', '.join(list(LAYOUTS)[:-1])} or {list(LAYOUTS)[-1]} (Stable Diffusion 1 to 3.5, XL, FLUX.1, "
            "FLUX.2 [klein])."
        )
    layout = LAYOUTS[name]
    if layout.pipeline == FLUX2.pipeline:
        distilled = index.get("is_distilled", False)
        if type(distilled) is not bool:
            raise InputError(f"{source}: model_index.json has is_distilled {distilled!r}; expected true or false.")
        layout = dataclasses.replace(layout, distilled=distilled)
    absent = [part for part in layout.optional if index.get(part) in (None, [None, None])]
    kept = {part: kind for part, kind in layout.encoders.items() if part not in absent}
    return dataclasses.replace(layout, encoders=kept) if absent else layout


def pipeline_of(repository: Repository) -> Part:
    """A whole pipeline of the hub: the files of every layout, since only its index says which it has."""
    layouts = (*LAYOUTS.values(), REFINER_LAYOUT)
    networks = dict.fromkeys(part for layout in layouts for part in layout.networks)
    files = [f"{part}/{name}" for part in networks for name in weights.patterns(weights.stem_of(part))]
    vocabularies = {f"{part}/*": None for layout in layouts for part in layout.tokenizers}
    return Part(
        repository,
        patterns=("model_index.json", "scheduler/*", *vocabularies, "*/config.json", *files),
        contents="model_index.json, denoiser, vae, text encoders, tokenizers, scheduler",
        advice="Copy the diffusers folder here and pass its path as --model. `--model tiny` works offline.",
        missing=_missing,
        instead=weights.half_precision,
    )


def network_of(repository: Repository) -> Part:
    """One network of the hub, in the folder that is meant: its configuration, and its weights in one file or shards."""
    folder = PurePosixPath(repository.inside)
    names = [str(folder / name) for name in ("config.json", *weights.patterns(weights.NETWORK))]

    def missing(snapshot: Path) -> list[str]:
        absent = [] if (snapshot / names[0]).is_file() else ["config.json"]
        return [str(folder / name) for name in (*absent, *weights.missing(snapshot / folder, weights.NETWORK))]

    return Part(repository, names, ", ".join(names[:2]), hub.copied(repository), missing, weights.half_precision)


def _missing(snapshot: Path) -> list[str]:
    """What a snapshot lacks of the pipeline that its index names; whoever loads a class not known says so."""
    try:
        name = read_json(snapshot / "model_index.json").get("_class_name")
    except InputError:
        return ["model_index.json"]
    if name == REFINER:
        return REFINER_LAYOUT.missing(snapshot)
    return layout_of(snapshot, "").missing(snapshot) if name in LAYOUTS else []
