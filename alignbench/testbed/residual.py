"""Trained policies of the mixture from disk: the residual network that `MixturePolicy.save` wrote."""

from __future__ import annotations

from pathlib import Path

from alignbench.diffusion.adapters import State, filled, read_state, state_digest, weights_file
from alignbench.errors import RunError
from alignbench.interface import LoRA, Pipeline, Policy
from alignbench.keys import Key
from alignbench.testbed.pipeline import RESIDUAL, WIDTH_PER_RANK


def open_policy(pipeline: Pipeline, folder: Path) -> Policy:
    """The policy that was saved in a folder. Raises InputError where nothing was saved, RunError where it is damaged or
    of another model."""
    path = weights_file(folder, (RESIDUAL,))
    state, _ = read_state(path)
    return filled(pipeline.adapt(_tuning(path, state), Key("open")), path, state)


def digest(folder: Path) -> str:
    """SHA-256 over what `open_policy` reads."""
    return state_digest(weights_file(folder, (RESIDUAL,)))


def _tuning(path: Path, state: State) -> LoRA:
    square = state.get("2.weight")
    width = 0 if square is None or square.dim() != 2 or square.shape[0] != square.shape[1] else len(square)
    if not width or width % WIDTH_PER_RANK:
        raise RunError(f"{path} is no residual network: 2.weight must be square, a multiple of {WIDTH_PER_RANK} wide.")
    return LoRA(width // WIDTH_PER_RANK)
