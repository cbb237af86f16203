"""Trained policies of latent models from disk: what `Policy.save` wrote, on the pipeline it was trained on.

A LoRA names its rank, alpha and targets in the file; a fine-tuned denoiser is a diffusers `unet` folder, which holds
every weight also where only the biases were trained, and opens as a full fine-tune. Files are safetensors and nothing
in them is trusted: every tensor must have the name and shape of one of the policy's, and the other way round.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignbench.diffusion.latent import LatentPipeline
from alignbench.errors import InputError, RunError
from alignbench.files import sha256_of
from alignbench.interface import FullFineTune, LoRA, Pipeline, Policy, Tuning
from alignbench.keys import Key

LORA = "pytorch_lora_weights.safetensors"
DENOISER = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"
FILES = (LORA, DENOISER)
LAYER = re.compile(r"unet\.(.+)\.lora\.(down|up)\.weight")  # a key of `load_lora_weights`
PEFT_NAMES = {"down": "lora_A", "up": "lora_B"}
NOT_OURS = ("alpha_pattern", "use_rslora")  # change what a LoRA computes, but neither its keys nor their shapes

State = dict[str, Tensor]


def open_policy(pipeline: Pipeline, folder: Path) -> Policy:
    """The policy that was saved in a folder; it predicts what it did, to the bit.

    Raises InputError where nothing was saved, RunError where it is damaged or of another model.
    """
    path = weights_file(folder, FILES)
    state, metadata = read_state(path)
    if path.name == LORA:
        lora, state = _lora_tuning(path, state, metadata), _renamed(state)
        _check_targets(pipeline, path, lora)
        tuning: Tuning = lora
    else:
        tuning = FullFineTune()
        _check_config(pipeline, folder / CONFIG)
    try:
        with warnings.catch_warnings():  # several LoRAs on one denoiser are what is wanted
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            policy = pipeline.adapt(tuning, Key("open"))
    except ValueError as error:  # peft knows no LoRA of such a layer
        raise RunError(f"{path} does not fit model {_name(pipeline)!r}: {' '.join(str(error).split())}") from error
    return filled(policy, path, state)


def digest(folder: Path) -> str:
    """SHA-256 over what `open_policy` reads."""
    config = sha256_of(folder / CONFIG) if (folder / CONFIG).is_file() else ""
    return state_digest(weights_file(folder, FILES), config)


def weights_file(folder: Path, names: Sequence[str]) -> Path:
    """The one file of weights in a folder that has one of these names. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"there is no adapter folder {folder}; a run of a method that trains leaves one.")
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        held = " and ".join(str(path.relative_to(folder)) for path in found or sorted(folder.rglob("*.safetensors")))
        expected = f"expected {'one of ' if len(names) > 1 else ''}{', '.join(names)}, as this model's runs leave"
        raise InputError(f"{folder} holds {held or 'no weights'}; {expected}.")
    return found[0]


def read_state(path: Path) -> tuple[State, Mapping[str, str]]:
    """Tensors and metadata of a file of weights. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read as safetensors ({error}); copy it again.") from error


def state_digest(path: Path, config: str = "") -> str:
    """SHA-256 over tensors by name, metadata and configuration. Not over the file, whose header safetensors writes in
    random order."""
    state, metadata = read_state(path)
    found = hashlib.sha256(json.dumps([path.name, sorted(metadata.items()), config]).encode())
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _lora_tuning(path: Path, state: State, metadata: Mapping[str, str]) -> LoRA:
    """The LoRA that a file's metadata describes. The rank is compared with the tensors before anything is allocated."""
    try:
        config = json.loads(metadata["lora_adapter_metadata"])
        rank, alpha, targets = (config[f"unet.{name}"] for name in ("r", "lora_alpha", "target_modules"))
    except (KeyError, TypeError, ValueError):
        raise RunError(
            f"{path} does not say its rank, alpha and targets (lora_adapter_metadata); expected a file that "
            "alignbench or diffusers 0.35 or newer has saved."
        ) from None
    down = {name: value for name, value in state.items() if (layer := LAYER.fullmatch(name)) and layer[2] == "down"}
    wrong = [name for name, value in down.items() if value.shape[:1] != (rank,)]
    if type(rank) is not int or rank < 1 or wrong:
        seen = f", but {wrong[0]} has shape {tuple(down[wrong[0]].shape)}" if wrong else "; expected a positive integer"
        raise RunError(f"{path} says rank {rank!r}{seen}.")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise RunError(f"{path} says alpha {alpha!r}; expected a number.")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise RunError(f"{path} says target modules {targets!r}; expected a list of names.")
    if other := [name for name in NOT_OURS if config.get(f"unet.{name}")]:
        raise RunError(f"{path} has {other[0]} {config[f'unet.{other[0]}']!r}, which is not supported.")
    return LoRA(rank, float(alpha), tuple(targets))


def _renamed(state: State) -> State:
    """Keys as the policy names its weights; others stay, and are found not to belong."""
    layers = {name: LAYER.fullmatch(name) for name in state}
    return {
        f"{layer[1]}.{PEFT_NAMES[layer[2]]}.weight" if (layer := layers[name]) else name: value
        for name, value in state.items()
    }


def _check_targets(pipeline: Pipeline, path: Path, lora: LoRA) -> None:
    """Raise RunError where no layer has one of the names: peft would refuse too, but with the adapter half made."""
    assert isinstance(pipeline, LatentPipeline)
    ends = tuple(f".{name}" for name in lora.targets)
    if not any(f".{name}".endswith(ends) for name, _ in pipeline.components.unet.named_modules()):
        raise RunError(
            f"{path} does not fit model {_name(pipeline)!r}: it has no layer {' or '.join(lora.targets)}; "
            "was it trained on another model?"
        )


def _check_config(pipeline: Pipeline, path: Path) -> None:
    """Raise RunError where a denoiser is built otherwise than the model's: heads, for one, change no shape."""
    assert isinstance(pipeline, LatentPipeline)
    own: dict[str, Any] = json.loads(pipeline.components.unet.to_json_string())
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in own if not name.startswith("_") and found.get(name, own[name]) != own[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); copy the folder again.") from error
    if different:
        name = different[0]
        raise RunError(
            f"{path} does not fit model {_name(pipeline)!r}: {name} is {found[name]!r}, not {own[name]!r}; "
            "was it trained on another model?"
        )


def filled(policy: Policy, path: Path, state: State) -> Policy:
    """The policy with the weights of a file. Raises RunError naming the first tensor that is missing, unexpected, or of
    another shape."""
    own = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [
        *(f"{name} is missing" for name in own if name not in found),
        *(f"{name} is not the model's" for name in found if name not in own),
        *(
            f"{name} has shape {found[name]}, not {own[name]}"
            for name in own
            if found.get(name, own[name]) != own[name]
        ),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(
            f"{path} does not fit model {_name(policy)!r}: {problems[0]}{more}; was it trained on another model?"
        )
    policy.load_state_dict(state)
    return policy


def _name(pipeline: Pipeline) -> str:
    return str(pipeline.info()["name"])
