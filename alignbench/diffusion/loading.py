"""Networks from folders in the layout of diffusers: of Stable Diffusion 1 to 3.5, SDXL, FLUX.1 and FLUX.2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignbench.devices import keep_freed
from alignbench.diffusion import adapter_files, configs, conversion, hub, ways, weights
from alignbench.diffusion.adapters import open_frozen
from alignbench.diffusion.architectures import ARCHITECTURES
from alignbench.diffusion.experts import RefinedPipeline
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.hub import Repository
from alignbench.diffusion.latent import Components, LatentPipeline
from alignbench.diffusion.layouts import QWEN, REFINER_LAYOUT, Layout, layout_of, network_of, pipeline_of
from alignbench.diffusion.on_disk import EMBEDDED, shape_and_schedule_in, text_tokens, tokenizers_of
from alignbench.diffusion.registry import Hold, Model, read_json
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.text import TextEncoder, TextParts
from alignbench.diffusion.trial import check_runs, without_overflow
from alignbench.errors import InputError, RunError
from alignbench.files import canonical_json, sha256_of
from alignbench.interface import Pipeline
from alignbench.meter import Meter
from alignbench.quiet import quieten

AUTOENCODER_CLASS = "AutoencoderKL"


def load_pipeline(model: Model, folder: Path, source: str, revision: str | None, meter: Meter, hold: Hold) -> Pipeline:
    """The pipeline of a model whose weights lie in a folder; with its own denoiser, LoRA, refiner or autoencoder from
    elsewhere. `source` and `revision` are what a result says of where they come from."""
    keep_freed()
    ways.check(hold)
    quieten("diffusers", "transformers")
    info: dict[str, Any] = {"name": model.like or model.name, "source": source}
    info |= {"revision": revision} if revision else {}
    autoencoder = find_autoencoder(hold.autoencoder, str(folder)) if hold.autoencoder else None
    if autoencoder is not None:
        info["autoencoder_sha256"] = autoencoder_digest(autoencoder)
    aligned, denoiser = {}, None
    if model.denoiser is not None:
        denoiser, aligned["denoiser"] = hub.placed(network_of(model.denoiser), model.typed)
    pipeline = LatentPipeline(
        load_components(folder, model.source, info, meter, hold, denoiser, autoencoder), aligned=aligned
    )
    if model.adapter is not None:
        place, said = hub.placed(adapter_files.repository(model.adapter), model.typed)
        return open_frozen(pipeline, place, said)
    if model.refiner is None:
        return pipeline
    refiner = hub.snapshot(pipeline_of(model.refiner), model.typed)
    experts = LatentPipeline(load_refiner(refiner, pipeline.components, hold))
    return RefinedPipeline(pipeline, experts, {"refiner": f"{model.refiner.name}@{refiner.name}"})


def find_autoencoder(name: str, of: str) -> Path:
    """The folder of an autoencoder: one that holds it, a pipeline's, or a repository's. Raises InputError, for a file
    with the line that makes a folder of it: as an autoencoder of the model `of`, a folder or a repository, since a file
    does not say how its latents are scaled, for which diffusers would take Stable Diffusion 1's."""
    folder = Path(name)
    if folder.is_file():
        as_its = {"config": of, "subfolder": "vae"}
        line = conversion.conversion(AUTOENCODER_CLASS, "from_single_file", folder, "--vae", **as_its)
        raise InputError(f"--vae {name!r} is a file; expected a folder or hub id. Make a folder of it once: {line}")
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
    elif hub.HUB_ID.fullmatch(name):
        folder = hub.snapshot(network_of(Repository(name)), name)
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
    shape, schedule = shape_and_schedule_in(folder, source, hold.resolution, hold.sigmas, autoencoder)
    size = shape[1:]
    part = layout.denoiser if denoiser is None else ""
    network = _network(denoiser or folder, source, part, layout.network, hold.dtype)
    vae, of = _autoencoder(folder, source, layout, shape[0], hold, autoencoder)
    pixels = [layout.folded * 2 ** (len(vae.config.block_out_channels) - 1) * side for side in size]
    text = _text(folder, source, layout, hold, pixels, network.config)
    architecture = ARCHITECTURES[layout.network]
    architecture.check_fit(source, network.config, text)
    vae, notes = without_overflow(ways.arranged(vae, hold), of, size)
    check_runs(source, text, ways.arranged(network, hold), vae, architecture)
    info = {**info, "image_shape": [3, *pixels], "dtype": hold.dtype}
    info |= _of_flow(schedule, text_tokens(layout, network.config, hold.tokens))
    info |= {} if "revision" in info else {"sha256": digest(folder, layout)}
    if "revision" not in info and source != EMBEDDED:
        info["configuration_sha256"] = configuration_digest(folder, layout)
    info |= {"tiling": True} if hold.tiling else {}
    return Components(
        text=text,
        denoiser=network,
        autoencoder=vae,
        schedule=schedule,
        sides=size,
        info=info,
        meter=meter,
        layout=layout,
        checkpointing=hold.checkpointing,
        notes=notes,
        ways=ways.Ways(hold.compiling, hold.attention),
    )


def load_refiner(folder: Path, base: Components, hold: Hold) -> Components:
    """SDXL's second expert: a denoiser and one text encoder, on the base model's latents and schedule."""
    source = "the refiner"
    REFINER_LAYOUT.check(folder, source)
    configs.check_files(folder, source, REFINER_LAYOUT)
    network = _network(folder, source, REFINER_LAYOUT.denoiser, REFINER_LAYOUT.network, hold.dtype)
    text = _text(folder, source, REFINER_LAYOUT, hold, base.info["image_shape"][1:], network.config)
    architecture = ARCHITECTURES[REFINER_LAYOUT.network]
    architecture.check_fit(source, network.config, text)
    check_runs(source, text, ways.arranged(network, hold), base.autoencoder, architecture)
    return Components(
        text=text,
        denoiser=network,
        autoencoder=base.autoencoder,
        schedule=base.schedule,
        sides=base.sides,
        info=base.info,
        meter=base.meter,
        layout=REFINER_LAYOUT,
        ways=base.ways,
    )


def _of_flow(schedule: Schedule | FlowSchedule, tokens: int | None) -> dict[str, Any]:
    """What a result says of a flow model besides: the grid on which it is sampled, and the length of T5's or Qwen's
    text."""
    if not isinstance(schedule, FlowSchedule):
        return {}
    said: dict[str, Any] = {"sigmas": schedule.sigmas, "shift": round(schedule.shift, 9)}
    said |= {} if schedule.terminal is None else {"shift_terminal": schedule.terminal}
    said |= {} if schedule.tokens is None else {"shift_by_steps": True}
    return said | {"text_tokens": tokens}


def _autoencoder(
    folder: Path, source: str, layout: Layout, channels: int, hold: Hold, other: Path | None
) -> tuple[Any, str]:
    """The autoencoder of the folder or of another one, and what messages call that. Raises InputError where its latents
    are not the denoiser's."""
    place, of, part = (folder, source, "vae") if other is None else (other, str(other), "")
    vae = _network(place, of, part, layout.autoencoders, hold.dtype)
    if (own := vae.config.latent_channels * layout.folded**2) != channels:
        raise InputError(
            f"{of}: its latents have {own} channels, the denoiser's of {source} {channels}; choose another --vae."
        )
    if hold.dtype == "float16" and vae.config.get("force_upcast"):
        vae = vae.float()  # its activations overflow in half precision
    if hold.slicing:
        vae.enable_slicing()
    if hold.tiling:
        vae.enable_tiling()
    return vae, of


def _text(folder: Path, source: str, layout: Layout, hold: Hold, pixels: Sequence[int], config: Any) -> TextEncoder:
    tokenizers = tokenizers_of(folder, source, layout, hold)
    encoders = [
        _network(folder, source, part, kind, hold.dtype).to(hold.device) for part, kind in layout.encoders.items()
    ]
    index, tokens = read_json(folder / "model_index.json"), text_tokens(layout, config, hold.tokens)
    parts = TextParts(layout, tokenizers, encoders, pixels, index, config, tokens)
    return ARCHITECTURES[layout.network].text(parts)


def _network(folder: Path, source: str, part: str, kind: str, dtype: str) -> Any:
    """One network of a class, from a part of the folder, or from a folder that is it. Raises RunError where its file is
    broken or lacks weights, which the libraries would draw at random."""
    import diffusers
    import transformers

    network: Any = getattr(transformers if part.startswith("text_encoder") else diffusers, kind)
    where = {"subfolder": part} if part else {}
    held = weights.weights_in(folder / part, weights.stem_of(part))
    variant = held.variant if held else None
    try:
        found, report = network.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
            **where,
        )
    except Exception as error:  # the libraries raise all kinds for a broken file, down to a bare Exception
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    if absent := sorted(report["missing_keys"]):
        lacks = f"{part or kind} lacks {len(absent)} weights, such as {absent[0]}"
        raise RunError(f"cannot load {source}: {lacks}; copy it again.")
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
    plain: dict[str, Any] = {
        name: {k: v for k, v in config.items() if not k.startswith("_")} for name, config in said.items()
    }
    templates = [f"{part}/chat_template.jinja" for part in layout.tokenizers if QWEN in layout.encoders.values()]
    plain |= {name: (folder / name).read_text("utf-8") for name in templates if (folder / name).is_file()}
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()
