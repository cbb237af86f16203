"""Folders in the layout of diffusers: which files each class of pipeline has. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignbench.diffusion import conversion, weights
from alignbench.diffusion.hub import Part, Repository
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError, RunError

DENOISER = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
AUTOENCODER = ("config.json", "diffusion_pytorch_model.safetensors")
REFINER = "StableDiffusionXLImg2ImgPipeline"


@dataclass(frozen=True)
class Layout:
    """Which parts a class of pipelines has."""

    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    autoencoder: bool = True

    @property
    def networks(self) -> list[str]:
        """The parts that have weights."""
        return ["unet", *self.encoders, *(["vae"] if self.autoencoder else [])]

    def missing(self, folder: Path) -> list[str]:
        """The files that are not there. Without a vocabulary every word would be read as unknown."""
        names = ["model_index.json", "scheduler/scheduler_config.json", *(f"{p}/config.json" for p in self.networks)]
        for part in self.tokenizers:
            if not (folder / part / "tokenizer.json").is_file():
                names += [f"{part}/vocab.json", f"{part}/merges.txt"]
        absent = [name for name in names if not (folder / name).is_file()]
        for part in self.networks:
            absent += [f"{part}/{name}" for name in weights.missing(folder / part, weights.stem_of(part))]
        return absent

    def check(self, folder: Path, source: str) -> None:
        """Raise RunError naming the files that are missing, and what lies there instead of weights."""
        if not (absent := self.missing(folder)):
            return
        kind = next((name for name, layout in LAYOUTS.items() if layout is self), REFINER)
        parts = [part for part in self.networks if f"{part}/{weights.stem_of(part)}.safetensors" in absent]
        said = next(filter(None, (conversion.instead(folder, part, kind) for part in parts)), "")
        raise RunError(f"cannot load {source}: {', '.join(absent)} missing.{said}")


LAYOUTS: Mapping[str, Layout] = {
    "StableDiffusionPipeline": Layout(("text_encoder",), ("tokenizer",)),
    "StableDiffusionXLPipeline": Layout(("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")),
}
REFINER_LAYOUT = Layout(("text_encoder_2",), ("tokenizer_2",), autoencoder=False)


def layout_of(folder: Path, source: str) -> Layout:
    """What the folder's index says it is. Raises InputError for what is not supported."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if name == REFINER:
        raise InputError(f"{source} refines images and draws none; --model sdxl_refiner is SDXL with its refiner.")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise InputError(
            f"{source}: pipelines of class {name!r} are not supported; "
            f"expected {' or '.join(LAYOUTS)} (Stable Diffusion 1.x, 2.x or XL)."
        )
    return LAYOUTS[name]


def pipeline_of(repository: Repository) -> Part:
    """A whole pipeline of the hub: the files of every layout, since only its index says which it has."""
    layouts = (*LAYOUTS.values(), REFINER_LAYOUT)
    networks = dict.fromkeys(part for layout in layouts for part in layout.networks)
    files = [f"{part}/{name}" for part in networks for name in weights.patterns(weights.stem_of(part))]
    vocabularies = {f"{part}/*": None for layout in layouts for part in layout.tokenizers}
    return Part(
        repository,
        patterns=("model_index.json", "scheduler/*", *vocabularies, "*/config.json", *files),
        contents="model_index.json, unet, vae, text_encoder, tokenizer, scheduler",
        advice="Copy the diffusers folder here and pass its path as --model. `--model tiny` works offline.",
        missing=_missing,
    )


def _missing(snapshot: Path) -> list[str]:
    """What a snapshot lacks of the pipeline that its index names; whoever loads a class not known says so."""
    try:
        name = read_json(snapshot / "model_index.json").get("_class_name")
    except InputError:
        return ["model_index.json"]
    layout = {**LAYOUTS, REFINER: REFINER_LAYOUT}.get(str(name))
    return layout.missing(snapshot) if layout else []
