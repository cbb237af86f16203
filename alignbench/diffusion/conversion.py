"""What is said of weights that are not read: what they are, and the line that makes a folder of them that is.
Imports no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".gguf")
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# How a checkpoint in one file names its tensors: what it is then, and the class that reads all of it.
CHECKPOINTS = (
    ("conditioner.embedders.1.", "Stable Diffusion XL", SDXL),
    ("cond_stage_model.model.", "Stable Diffusion 2", SD),
    ("cond_stage_model.", "Stable Diffusion 1", SD),
)
PARTS = (
    ("model.diffusion_model.double_blocks.", "a FLUX model, which is not supported"),
    ("double_blocks.", "a FLUX model, which is not supported"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 model, which is not supported"),
    ("model.diffusion_model.", "a denoiser without its text encoders"),
    ("lora_", "a LoRA; name its base model as --model and this as --adapter"),
    ("unet.", "a LoRA; name its base model as --model and this as --adapter"),
    ("base_model.model.", "a LoRA; name its base model as --model and this as --adapter"),
    ("first_stage_model.", "an autoencoder; for --vae it must be in the layout of diffusers"),
    ("encoder.", "an autoencoder; give its folder, with config.json, as --vae"),
    ("down_blocks.", "a denoiser alone; give the folder of the whole pipeline, which holds model_index.json"),
    ("conv_in.", "a denoiser alone; give the folder of the whole pipeline, which holds model_index.json"),
)
EXPECTED = "expected the folder of a saved diffusers pipeline"


def weights_among(folder: Path) -> list[str]:
    """The names of the files in a folder that hold weights of some kind."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in ENDINGS and path.is_file())


def instead(folder: Path, part: str, kind: str) -> str:
    """Behind the message that the weights of a part are missing: what its folder holds instead, and what to type where
    that can be converted. `kind` is the class of the whole pipeline."""
    held = weights_among(folder / part)
    if not held:
        return ""
    said = f" {part} holds {_listed(held)}"
    if not any(name.endswith(".bin") for name in held):
        return f"{said}, which is not read."
    return (
        f"{said}: pickled weights, which can run code and are not read. If you trust them, convert the folder once: "
        f"{conversion(kind, 'from_pretrained', folder, 'use_safetensors=False')}"
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
        if not any(name.startswith("model.diffusion_model.") for name in names):
            whole = None
        else:
            whole = next((c for c in CHECKPOINTS if any(name.startswith(c[0]) for name in names)), None)
        if whole is None:
            what = next((w for start, w in PARTS if any(name.startswith(start) for name in names)), EXPECTED)
            return f"{path.name} holds {len(names)} tensors: {what}."
        what, kind = f"a checkpoint of {whole[1]} in one file", whole[2]
    elif path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        what, kind = "pickled weights, which can run code and are not read; if you trust them and they are SD's", SD
    else:
        return f"{path.name} is a file; {EXPECTED}."
    line = conversion(kind, "from_single_file", path)
    return f"{what}. Make a folder of it once, where the model hub can be reached: {line}"


def conversion(kind: str, reader: str, path: Path, further: str = "") -> str:
    """The line that makes a folder which is read of a folder or file that is not, and the option that names it."""
    made = path.with_name(f"{path.stem if path.is_file() else path.name}-safetensors")
    given = ", ".join([json.dumps(str(path)), *([further] if further else [])])
    code = f"from diffusers import {kind} as P; P.{reader}({given}).save_pretrained({json.dumps(str(made))})"
    return f"python -c {shlex.quote(code)}, then --model {shlex.quote(str(made))}"


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
