"""Tensors of weights from safetensors files: read, known by a digest, compared with what a model has.

Files are data and nothing in them is trusted: every tensor must have the name and shape of one of the model's, and the
other way round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignbench.errors import RunError

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def read_state(*paths: Path) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a file of weights, or of several that are one. Raises RunError."""
    state: State = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if twice := next((name for name in names if name in state), None):
                    raise RunError(f"{path} holds {twice}, which another file beside it holds too; expected one.")
                state |= {name: file.get_tensor(name) for name in names}
                metadata |= file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path} cannot be read as safetensors ({error}); copy it again.") from error
    return state, metadata


def state_digest(state: State, metadata: Mapping[str, str], name: str, config: str = "") -> str:
    """SHA-256 over tensors by name, metadata, what the weights are called, and their configuration. Not over files:
    safetensors writes headers in random order, and the same weights may lie in one file or in several."""
    found = hashlib.sha256(json.dumps([name, sorted(metadata.items()), config]).encode())
    for key in sorted(state):
        tensor = state[key].contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def refuse_misfits(path: Path, model: str, own: Shapes, state: State) -> None:
    """Raise RunError naming the first tensor that is missing, unexpected, of another shape, or holds no numbers."""
    found = shapes(state)
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
        raise RunError(f"{path} does not fit model {model!r}: {_first(problems)}; was it trained on another model?")
    problems = [f"{name} holds {wrong}" for name, value in state.items() if (wrong := _no_weights(value))]
    if problems:
        raise RunError(f"{path} cannot be used: {_first(problems)}; copy or train it again.")


def _no_weights(value: Tensor) -> str | None:
    """Why a tensor cannot be weights: quantised ones need a scale that no plain file has."""
    if not value.is_floating_point() or str(value.dtype).endswith("_x2"):  # two numbers in a byte
        return f"{str(value.dtype).removeprefix('torch.')}, not floating-point numbers"
    return None if torch.isfinite(value.float()).all() else "values that are not finite"


def _first(problems: Sequence[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
