"""Adapters that a user names: of a cell, of its result file, a folder or file of weights, or a repository of the
hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.diffusion import adapter_files, hub
from alignbench.diffusion.hub import HUB_ID
from alignbench.diffusion.layouts import DENOISERS
from alignbench.errors import AlignbenchError, InputError
from alignbench.record import result as results
from alignbench.record.listing import STATE, WEIGHTS

if TYPE_CHECKING:
    from alignbench.interface import Pipeline


def adapter_folder(path: Path) -> Path:
    """The folder or file of weights a user means by it, by the folder of its cell, by the cell's result file, or by a
    hub id."""
    is_file = path.suffix in (".json", ".safetensors", *adapter_files.PICKLES)
    if not path.exists():
        if HUB_ID.fullmatch(str(path)) and not is_file:
            return hub.snapshot(adapter_files.repository(hub.Repository(str(path))), str(path))
        raise InputError(f"--adapter {path}: there is no such file or folder; expected a cell's adapter folder.")
    if path.is_file() and path.suffix != ".json":
        return path
    if path.name in adapter_files.BESIDE:
        return path.parent
    folder = path.with_suffix("") if path.suffix == ".json" else path
    if (folder / WEIGHTS).is_dir():
        return folder / WEIGHTS
    if folder != path or (folder / STATE).is_file():
        raise InputError(f"{path}: there is no {folder / WEIGHTS}; only methods that train weights leave one.")
    return folder


def name_of(place: Path) -> str:
    """The name of an adapter's cell, of a repository of the hub, else of its folder, or of its file where that has a
    name of its own."""
    path = place.absolute()
    if path.suffix == ".safetensors":
        if not path.name.startswith(adapter_files.USUAL):
            return path.stem
        path = path.parent
    path = path.parent if path.name in DENOISERS else path
    if path.parent.name == "snapshots":  # of the hub's cache
        return f"{path.parents[1].name.removeprefix('models--').replace('--', '/')}@{path.name[:12]}"
    return path.parent.name if path.name == WEIGHTS else path.name


def check_model(place: Path, pipeline: Pipeline) -> None:
    """Refuse an adapter whose result says that it was trained on other weights, which its own file does not know."""
    folder = (place if place.is_dir() else place.parent).absolute()
    path = folder.parents[1] / f"{folder.parent.name}.json" if folder.name == WEIGHTS else None
    try:
        trained_on = results.read(path).evaluation.model if path is not None and path.is_file() else None
    except AlignbenchError:
        return
    own = json.loads(json.dumps(dict(pipeline.info())))
    for name in ("sha256", "revision"):
        if trained_on is not None and trained_on.get(name) != own.get(name):
            raise InputError(
                f"{folder} was trained on model {trained_on['name']!r} with {name} {trained_on.get(name)}, but "
                f"--model is {own['name']!r} with {own.get(name)} (see {path}); name the model it was trained on."
            )
