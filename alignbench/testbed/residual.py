"""Trained policies of the mixture from disk: the residual network that `MixturePolicy.save` wrote."""

from __future__ import annotations

from pathlib import Path

from alignbench.diffusion.adapters import filled
from alignbench.diffusion.states import State, read_state, state_digest
from alignbench.errors import InputError, RunError
from alignbench.interface import LoRA, Pipeline, Policy
from alignbench.keys import Key
from alignbench.testbed.pipeline import RESIDUAL, WIDTH_PER_RANK


def open_policy(pipeline: Pipeline, place: Path) -> Policy:
    """The policy that was saved in a folder, or in this file.

    Raises InputError where nothing was saved, RunError where it is damaged or of another model.
    """
    path = _file(place)
    state, _ = read_state(path)
    return filled(pipeline.adapt(_tuning(path, state), Key("open")), path, state)


def digest(place: Path) -> str:
    """SHA-256 over what `open_policy` reads."""
    state, metadata = read_state(_file(place))
    return state_digest(state, metadata, RESIDUAL)


def _file(place: Path) -> Path:
    """The file of weights that a path is, or that lies in its folder. Raises InputError where there is none."""
    if not place.exists():
        raise InputError(f"there is no adapter folder {place}; a run of a method that trains leaves one.")
    path = place / RESIDUAL if place.is_dir() else place
    if path.name != RESIDUAL or not path.is_file():
        held = ", ".join(str(each.relative_to(place)) for each in sorted(place.rglob("*.safetensors"))) or "no weights"
        what = f"{place} holds {held}" if place.is_dir() else f"{place} is another file"
        raise InputError(f"{what}; expected {RESIDUAL}, as this model's runs leave.")
    return path


def _tuning(path: Path, state: State) -> LoRA:
    square = state.get("2.weight")
    width = 0 if square is None or square.dim() != 2 or square.shape[0] != square.shape[1] else len(square)
    if not width or width % WIDTH_PER_RANK:
        raise RunError(f"{path} is no residual network: 2.weight must be square, a multiple of {WIDTH_PER_RANK} wide.")
    return LoRA(width // WIDTH_PER_RANK)
