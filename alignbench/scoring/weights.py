"""A scorer's weights: found, verified, read as data and put into a network.

Files are safetensors, or PyTorch's format read with `weights_only=True`, so that a file can hold tensors and nothing
that runs. Both are memory-mapped: what is not used is not read, and processes of one machine share the pages.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench.downloads import File, content_of, look_up, obtain
from alignbench.errors import InputError, RunError
from alignbench.interface import RewardInfo
from alignbench.scoring.preprocessing import Preprocessing

DType = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that was found: where, what its content is, and whether that is the published content."""

    place: str
    path: Path
    sha256: str
    published: bool


def locate(file: File, weights: Path | None = None, allow_unverified: bool = False) -> WeightFile:
    """The weights to use: of the path where one is named, else of this machine, else downloaded.

    Raises InputError where the content is not the published one, unless `allow_unverified`; RunError where there is
    none and downloading fails.
    """
    path = weights or look_up(file) or obtain(file)
    if not path.is_file():
        raise InputError(f"there is no file of weights {str(path)!r}; expected {file.place} ({file.identity}).")
    found = content_of(path)
    if found != file.sha256 and not allow_unverified:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) has sha256 {found}, expected {file.place} ({file.identity}); "
            "replace it, or use it as it is with --allow-unverified."
        )
    return WeightFile(file.place, path, found, found == file.sha256)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; of a training checkpoint, those below `state_dict`.

    Raises RunError where the file holds something else: code is never run to find out what.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{path} cannot be read as a file of tensors alone ({reason}); it is not loaded.") from None
    except Exception as error:  # safetensors' own error is no subclass of these
        raise RunError(f"{path} cannot be read as a file of tensors alone ({error}); it is not loaded.") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RunError(f"{path} holds no dictionary of tensors; expected the weights of a network.")
    return dict(content)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights, which take the place of its own without a copy. Raises RunError where they do
    not fit."""
    own = network.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    for problem, names in (("lacks", missing), ("has other tensors:", foreign), ("has other shapes:", other)):
        if names:
            raise RunError(
                f"{path} {problem} {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}; "
                "expected the weights of another architecture."
            )
    network.load_state_dict(dict(tensors), assign=True)


def frozen(network: nn.Module, dtype: DType) -> nn.Module:
    """The network for scoring: no dropout, no gradients of its weights, in one dtype."""
    return network.eval().requires_grad_(False).to(getattr(torch, dtype))


def describe(
    name: str, weights: Sequence[WeightFile], fit: Preprocessing, dtype: DType, range_: str, library: str
) -> RewardInfo:
    """The identity of a scorer. Weights that are not the published ones and a dtype other than float32 are part of it,
    so that such scores never meet others in one column."""
    foreign = [file for file in weights if not file.published]
    return RewardInfo(
        id=f"{name} unverified {' '.join(file.sha256[:12] for file in foreign)}" if foreign else name,
        files={file.place: file.sha256 for file in weights},
        preprocessing=fit.describe() if dtype == "float32" else f"{fit.describe()}; {dtype}",
        range=range_,
        versions={package: metadata.version(package) for package in (library, *fit.libraries)},
    )
