"""Trained policies of latent models from disk: what `Policy.save` wrote, and what others have trained.

A LoRA adds to layers of the model's own denoiser; a denoiser trained in full is a diffusers `unet` or `transformer`
folder, which holds every weight also where only the biases were trained, and opens as a full fine-tune.
"""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion import adapter_files, lora_files
from alignbench.diffusion.adapter_files import LORA, NETWORK, Found
from alignbench.diffusion.latent import LatentPipeline, LatentPolicy
from alignbench.diffusion.registry import read_json
from alignbench.diffusion.states import State, read_state, refuse_misfits, shapes, state_digest
from alignbench.errors import InputError, RunError, shown
from alignbench.files import sha256_of
from alignbench.interface import FullFineTune, Pipeline, Policy
from alignbench.keys import Key

ROUNDED = 1e-2  # by which numbers of at most 1 may differ in half precision


def open_policy(pipeline: Pipeline, place: Path) -> Policy:
    """The policy that was saved in a folder or a file; one of ours predicts what it did, to the bit.

    Raises InputError where nothing that is read was saved, RunError where it is damaged or of another model.
    """
    assert isinstance(pipeline, LatentPipeline)
    if pipeline.adapter is not None:
        raise InputError(f"model {_name(pipeline)!r} has an adapter already; name its base model, to read {place}.")
    found = adapter_files.find(place)
    state, metadata = read_state(*found.files)
    if found.lora:
        lora = lora_files.placed(
            lora_files.parsed(found, state, metadata), pipeline.components.denoiser, _name(pipeline)
        )
        with warnings.catch_warnings():  # several LoRAs on one denoiser are what is wanted
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            policy = pipeline.adapt_with(lora.config, Key("open"))
        return filled(policy, found.shown, lora.state)
    _refuse_other_tensors(found, state)
    assert found.config is not None
    _check_config(pipeline, found.config)
    return filled(pipeline.adapt(FullFineTune(), Key("open")), found.shown, _trained(pipeline, found.shown, state))


def open_frozen(pipeline: LatentPipeline, place: Path, said: str) -> LatentPipeline:
    """A pipeline with the weights of a place switched on, to be evaluated: no gradient reaches them. `said` is what a
    result says of them. Raises as `open_policy`."""
    policy = open_policy(pipeline, place)
    assert isinstance(policy, LatentPolicy)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    policy.aligned = {**pipeline.aligned, "lora": said}
    return policy


def digest(place: Path) -> str:
    """SHA-256 over what `open_policy` reads, the same for weights in one file and in several. Raises as it does, as far
    as that can be told without the model."""
    found = adapter_files.find(place)
    state, metadata = read_state(*found.files)
    if found.lora:
        lora_files.parsed(found, state, metadata)
    else:
        _refuse_other_tensors(found, state)
    config = sha256_of(found.config) if found.config is not None and found.config.is_file() else ""
    return state_digest(state, metadata, LORA if found.lora else NETWORK, config)


def filled(policy: Policy, path: Path, state: State) -> Policy:
    """The policy with the weights of a file. Raises RunError naming the first tensor that does not fit."""
    refuse_misfits(path, _name(policy), shapes(policy.state_dict()), state)
    policy.load_state_dict(state)
    return policy


def _refuse_other_tensors(found: Found, state: State) -> None:
    if reason := adapter_files.whole_checkpoint(found.files[0], list(state)):
        raise InputError(reason)


def _trained(pipeline: LatentPipeline, path: Path, state: State) -> State:
    """The tensors of a file that training changes: without layers that are idle, and without tables such as SD3's of
    positions, which files hold too. Raises RunError where a table is not the model's."""
    tables = {name: table for name, table in pipeline.components.denoiser.named_buffers() if name in state}
    for name, table in tables.items():
        given = state[name].to(table.device, torch.float32)
        if given.shape != table.shape or not torch.allclose(given, table.float(), atol=ROUNDED):
            raise RunError(
                f"{path} does not fit model {_name(pipeline)!r}: its {name} is another one; "
                "was it trained on another model?"
            )
    idle = pipeline.components.idle
    return {n: value for n, value in state.items() if n not in tables and n.rpartition(".")[0] not in idle}


def _check_config(pipeline: LatentPipeline, path: Path) -> None:
    """Raise RunError where a denoiser is built otherwise than the model's: heads, for one, change no shape. A field
    that a file leaves out has the class's default."""
    own: dict[str, Any] = json.loads(pipeline.components.denoiser.to_json_string())
    defaults = inspect.signature(type(pipeline.components.denoiser).__init__).parameters
    left_out = {name: defaults[name].default for name in own if name in defaults}
    said = read_json(path)  # its class first, by which the others are explained
    for name, value in {"_class_name": said.get("_class_name", own["_class_name"]), **left_out, **said}.items():
        known = name in own and (name == "_class_name" or not name.startswith("_"))
        if known and not _same(value, own[name]):
            raise RunError(
                f"{path} does not fit model {_name(pipeline)!r}: {name} is {shown(value)}, not {shown(own[name])}; "
                "was it trained on another model?"
            )
        if not known and not name.startswith("_") and value not in (None, False):
            raise InputError(
                f"{path} has {name} {shown(value)}, which this version of diffusers does not know; install a newer one."
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a field mean the same: a number stands for all blocks, null for a switch that is off."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, list | tuple) or isinstance(other, list | tuple):
        many, single = (one, other) if isinstance(one, list | tuple) else (other, one)
        return bool(many) and all(_same(value, single) for value in many)
    return bool(one == other) or (one in (None, False) and other in (None, False))


def _name(pipeline: Pipeline) -> str:
    return str(pipeline.info()["name"])
