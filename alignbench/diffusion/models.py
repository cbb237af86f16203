"""Names of models, and how each is loaded: a preset, a diffusers folder, or a hub id."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.downloads import reachable
from alignbench.errors import InputError, RunError, UnknownName

if TYPE_CHECKING:
    import torch

    from alignbench.diffusion.meter import Meter
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pipeline, Prompt
    from alignbench.testbed.problem import ExactProblem

SUPPORTED = ("StableDiffusionPipeline",)
WEIGHT_PATTERNS = [
    "model_index.json",
    "scheduler/*",
    "tokenizer/*",
    "*/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


@dataclass(frozen=True)
class Model:
    """A model by name. `source` is a folder or a hub id; steps, guidance and eta are how it is sampled by default."""

    name: str
    source: str
    revision: str | None = None
    steps: int = 50
    guidance: float = 7.5
    eta: float = 0.0
    note: str = ""

    @property
    def preset(self) -> str:
        """The preset of algorithms that serves this model; `other` for folders and hub ids, whatever their name."""
        return self.name if self.name in PRESETS and PRESETS[self.name] == self else "other"

    @property
    def identity(self) -> str:
        """What tells this model from others in a configuration: its name, of a folder its path."""
        return self.source if Path(self.source).is_absolute() else self.name


PRESETS = {
    model.name: model
    for model in (
        Model(
            "tiny",
            source="embedded",
            steps=20,
            guidance=3.0,
            eta=1.0,
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
        Model(
            "sd15",
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
            note="Stable Diffusion 1.5, 512 pixels (the mirror that replaced the removed repository)",
        ),
        Model("sd21", source="stabilityai/stable-diffusion-2-1-base", note="Stable Diffusion 2.1 base, 512 pixels"),
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
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return Model(name.replace("/", "--"), source=name)
    raise UnknownName("model", name, [*PRESETS, "a diffusers folder", "a hub id such as org/name"])


def load(
    model: Model,
    meter: Meter,
    device: str = "cpu",
    dtype: str = "float32",
    prompts: Sequence[Prompt] = (),
    checkpointing: bool = False,
) -> Pipeline:
    """The pipeline of a model, frozen. Raises RunError where files are missing, InputError where they do not fit.

    The exact model is of the problem that the prompts carry, or of the grid where they carry none. With
    `checkpointing`, policies keep no activations but compute them again in the backward pass.
    """
    if model.source == "exact":
        from alignbench.diffusion.mixture import MixturePipeline

        problem, toy = _exact(prompts)
        return MixturePipeline(toy.mixture, exact_schedule(), meter, model.name, problem, checkpointing)
    import torch

    if model.source == "embedded":
        folder, revision = _embedded(), None
    elif Path(model.source).is_dir():
        folder, revision = Path(model.source), None
    else:
        folder = fetch(model)
        revision = folder.name  # the hub's cache names a snapshot by its commit
    return _load_folder(folder, model, revision, meter, device, getattr(torch, dtype), checkpointing)


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


def latent_shape(model: Model, prompts: Sequence[Prompt] = ()) -> tuple[int, ...] | None:
    """The shape of one latent where it is known without loading or downloading, else None."""
    if model.source == "exact":
        return (_exact(prompts)[1].mixture.dimension,)
    if model in (PRESETS["sd15"], PRESETS["sd21"]):
        return (4, 64, 64)
    folder = _embedded() if model.source == "embedded" else Path(model.source)
    if not folder.is_dir():
        return None
    from alignbench.diffusion.latent import sides

    config = _read_json(folder / "unet" / "config.json")
    return (int(config["in_channels"]), *sides(config["sample_size"]))


def _embedded() -> Path:
    return Path(str(resources.files("alignbench.shapes") / "weights" / "tiny"))


def _load_folder(
    folder: Path,
    model: Model,
    revision: str | None,
    meter: Meter,
    device: str,
    dtype: torch.dtype,
    checkpointing: bool,
) -> Pipeline:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from alignbench.diffusion.latent import Components, LatentPipeline, sides
    from alignbench.diffusion.schedule import Schedule

    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") not in SUPPORTED:
        raise InputError(
            f"{model.source}: pipelines of class {index.get('_class_name')!r} are not supported; "
            f"expected {', '.join(SUPPORTED)} (Stable Diffusion 1.x or 2.x)."
        )
    schedule = Schedule.from_config(_read_json(folder / "scheduler" / "scheduler_config.json"))
    if missing := _missing(folder):
        raise RunError(f"cannot load {model.source}: {', '.join(missing)} missing.")
    how: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        text_encoder, text_report = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **how)
        unet, unet_report = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **how)
        autoencoder, vae_report = AutoencoderKL.from_pretrained(folder, subfolder="vae", **how)
    except Exception as error:  # the libraries raise all kinds for a broken file, down to a bare Exception
        raise RunError(f"cannot load {model.source}: {' '.join(str(error).split())}") from error
    for part, report in (("text_encoder", text_report), ("unet", unet_report), ("vae", vae_report)):
        if absent := sorted(report["missing_keys"]):  # the libraries would draw them at random
            raise RunError(f"cannot load {model.source}: {part} lacks {len(absent)} weights, such as {absent[0]}.")
    if dtype == torch.float16 and autoencoder.config.force_upcast:
        autoencoder = autoencoder.float()  # its activations overflow in half precision
    enlarged = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    info: dict[str, Any] = {
        "name": model.name,
        "source": model.source if revision else "embedded" if model.source == "embedded" else "folder",
        "image_shape": [3, *(enlarged * side for side in sides(unet.config.sample_size))],
        "dtype": str(dtype).removeprefix("torch."),
    }
    info |= {"revision": revision} if revision else {"sha256": _digest(folder)}
    components = Components(
        tokenizer,
        text_encoder.to(device),
        unet.to(device),
        autoencoder.to(device),
        schedule,
        info,
        meter,
        checkpointing,
    )
    return LatentPipeline(components)


def _missing(folder: Path) -> list[str]:
    """The files of a pipeline that are not there. Without a vocabulary every word would be read as unknown."""
    names = [name for name in WEIGHT_PATTERNS if "*" not in name]
    names += ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder"))]
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        names += ["tokenizer/vocab.json", "tokenizer/merges.txt"]
    return [name for name in names if not (folder / name).is_file()]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a saved diffusers pipeline.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return content


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weight files and of the noise schedule."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*/*.safetensors"), folder / "scheduler" / "scheduler_config.json"]):
        digest.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def fetch(model: Model, folder: Path | None = None) -> Path:
    """The local snapshot of a hub model: from the cache, else downloaded; in the folder where one is named."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    arguments: dict[str, Any] = {"revision": model.revision, "allow_patterns": WEIGHT_PATTERNS, "local_dir": folder}
    try:
        snapshot = Path(snapshot_download(model.source, local_files_only=True, **arguments))
        if not _missing(snapshot):  # an interrupted download leaves part of a snapshot
            return snapshot
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"{model.source!r} is neither a folder nor a hub id: {error}") from None
    missing = (
        f"model {model.name!r} is not on this machine: {model.source} (model_index.json, unet, vae, text_encoder, "
        f"tokenizer, scheduler) was looked for in {constants.HF_HUB_CACHE}"
    )
    advice = "Copy the diffusers folder here and pass its path as --model. `--model tiny` works offline."
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise RunError(f"{missing}, and the model hub cannot be reached. {advice}")
    try:
        return Path(snapshot_download(model.source, **arguments))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{missing}, and downloading failed: {reason} {advice}") from error
