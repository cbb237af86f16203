"""Which files an adapter is made of: those of a LoRA, or of a denoiser trained in full. Imports no torch.

Read are safetensors alone. Pickles and whole checkpoints in one file are refused with the line that converts them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from alignbench.diffusion import conversion, hub, weights
from alignbench.diffusion.conversion import python_line, quoted
from alignbench.diffusion.hub import Part, Repository
from alignbench.diffusion.layouts import DENOISERS, TRANSFORMER
from alignbench.errors import InputError, RunError

LORA = "pytorch_lora_weights.safetensors"  # as diffusers names it, and alignbench saves it
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NETWORK = "diffusion_pytorch_model.safetensors"
INDEX = f"{NETWORK}.index.json"
USUAL = tuple(name.partition(".")[0] for name in (LORA, PEFT, NETWORK))  # what files of weights are called
BESIDE = (PEFT_CONFIG, INDEX)  # what may be named instead of the weights that it is about
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
EXPECTED = (
    f"one of {LORA}, {PEFT} with {PEFT_CONFIG}, another .safetensors file with a LoRA, or unet/config.json (of SD3 and "
    f"FLUX transformer/config.json) with {NETWORK}"
)


@dataclass(frozen=True)
class Found:
    """The files of an adapter: of weights, and the configuration beside them."""

    files: tuple[Path, ...]
    config: Path | None
    lora: bool

    @property
    def shown(self) -> Path:
        """What messages name."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent


def find(place: Path) -> Found:
    """What lies in a folder, or what a file is. Raises InputError naming what lies there where that is no adapter, and
    RunError where files of it are missing."""
    if place.is_file():
        return _of_file(place)
    if not place.is_dir():
        raise InputError(f"there is no adapter folder {place}; a run of a method that trains leaves one.")
    found = [of for folder in (*(place / part for part in DENOISERS), place) if (of := _network(folder)) is not None]
    names = (LORA, PEFT, *(f"{part}/{PEFT}" for part in DENOISERS))
    found += [_lora(path) for name in names if (path := place / name).is_file()]
    encoders = [path for path in place.glob(f"text_encoder*/{PEFT}") if found]
    if encoders:
        raise InputError(f"{place} changes a text encoder too ({encoders[0]}); expected a LoRA of the denoiser alone.")
    if not found:  # a LoRA by another name
        found = [_lora(path) for path in sorted(place.glob("*.safetensors"))]
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_pickles(place)
    named = [str(one.shown.relative_to(place)) for one in found]
    held = " and ".join(named) if 0 < len(named) < 4 else _listed(place)
    raise InputError(f"{place} holds {held}; expected {EXPECTED}.")


def repository(of: Repository) -> Part:
    """An adapter of the hub: the file that is meant of it, or its usual files in the folder that is meant. Which of
    them it has, only its listing says."""
    place = PurePosixPath(of.inside)
    if place.suffix == ".safetensors":
        return hub.files_of(of, [of.inside])
    files = ("config.json", NETWORK, INDEX, "diffusion_pytorch_model-*-of-*.safetensors")
    network = [f"{part}/{file}" for part in DENOISERS for file in files]

    def missing(snapshot: Path) -> list[str]:
        try:
            find(snapshot / place)
        except (InputError, RunError):
            return [f"unet/{NETWORK}, {LORA} or {PEFT}"]
        return []

    def instead(absent: Sequence[str]) -> list[list[str]]:
        return weights.half_precision(str(place / part / NETWORK) for part in DENOISERS) if absent else []

    return Part(
        of,
        [str(place / name) for name in (*network, LORA, PEFT, PEFT_CONFIG)],
        f"an adapter: {LORA}, {PEFT} or unet/{NETWORK}",
        hub.copied(of),
        missing,
        instead,
    )


def whole_checkpoint(path: Path, names: Sequence[str]) -> str | None:
    """Why a file is refused that holds a whole model, as single-file checkpoints do, or a part of one; None where it
    holds neither."""
    ours = [name for name in names if name.startswith(("model.diffusion_model.", "first_stage_model."))]
    if not ours or any("lora" in name for name in names):
        return None
    held = f"{ours[0]}, and {len(names) - 1} more tensors"
    if whole := conversion.whole_model(names, path, "--adapter"):
        return f"{path} is a whole checkpoint in one file ({held}); expected {EXPECTED}. It is {whole}"
    return f"{path} is no adapter ({held}); expected {EXPECTED}. It is {conversion.part(names)}."


def _of_file(path: Path) -> Found:
    """The adapter that one file is, or is a part of."""
    if path.suffix in PICKLES:
        _refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file; expected {EXPECTED}.")
    found = _network(path.parent) if path.name.startswith("diffusion_pytorch_model") else None
    if found is None:
        return _lora(path)
    if path not in found.files:
        raise InputError(f"{path} is not what {path.parent} is read from: {found.files[0].name}; name the folder.")
    return found


def _lora(path: Path) -> Found:
    config = path.with_name(PEFT_CONFIG)
    if path.name == PEFT and not config.is_file():
        raise RunError(f"{config} is missing, and {PEFT} does not say its alpha; copy the folder again.")
    return Found((path,), config if path.name == PEFT else None, lora=True)


def _network(folder: Path) -> Found | None:
    """The weights of a network as diffusers saves it: in one file or in shards, in full precision where there is a
    choice."""
    held = weights.weights_in(folder, weights.NETWORK)
    if held is None:
        return None
    if absent := weights.missing(folder, weights.NETWORK):
        raise RunError(f"{folder / absent[0]} is missing, which the index beside it names; copy it again.")
    return Found(held.files, folder / "config.json", lora=False)


def _refuse_pickles(folder: Path) -> None:
    """Raise InputError where all that a folder holds are pickles; an optimiser's may lie beside those of weights."""
    places = (folder, *(folder / part for part in DENOISERS))
    inside = [path for part in places for path in sorted(part.glob("*")) if path.suffix in PICKLES]
    if inside:
        _refuse_pickle(min(inside, key=lambda path: not path.name.startswith(USUAL)))


def _refuse_pickle(path: Path) -> None:
    """Raise InputError with the line that writes the same weights as safetensors, without running what a pickle says:
    diffusers reads one with weights_only, and so does torch where it is told to."""
    folder = path.parent
    if path.name.startswith("diffusion_pytorch_model"):
        variant = re.search(r"\.(fp16|bf16)[.-]", path.name)
        asked = f", variant={quoted(variant[1])}" if variant else ""
        kind = "AutoModel" if folder.name == TRANSFORMER else "UNet2DConditionModel"
        line = (
            f"from diffusers import {kind} as U; "
            f"U.from_pretrained({quoted(folder)}, use_safetensors=False{asked}).save_pretrained({quoted(folder)})"
        )
    elif path.suffix == ".ckpt":
        raise InputError(f"{path} is a pickle, which may run code and is not read. If you trust it, {_folder_of(path)}")
    else:
        line = (
            "import torch; from safetensors.torch import save_file; "
            f"state = torch.load({quoted(path)}, weights_only=True); save_file("
            f"{{k: v.contiguous().clone() for k, v in state.items()}}, {quoted(path.with_suffix('.safetensors'))})"
        )
    raise InputError(
        f"{path} is a pickle, which may run code and is not read. Convert it with `{python_line(line)}`, "
        "then type the same command again."
    )


def _folder_of(path: Path) -> str:
    """How a checkpoint in one file becomes a folder, which holds its denoiser in a folder of its own."""
    line = conversion.conversion(conversion.SD, "from_single_file", path, "--adapter")
    return f"make {conversion.ONCE}: {line}"


def _listed(folder: Path) -> str:
    """The weights in a folder and in those inside of it, as far as a message has room."""
    inside = (*folder.glob("*"), *folder.glob("*/*"))  # not all below: somebody may name the whole disk
    paths = sorted(path for path in inside if path.suffix in (".safetensors", *PICKLES))
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(str(path.relative_to(folder)) for path in paths[:3]) + more or "no weights"
