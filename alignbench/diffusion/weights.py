"""Where the weights of a network lie in its folder: in one file, in shards with an index, or in a half-precision copy.

Only safetensors are read: pickled weights can run code, and the digest of a model would not cover them. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError

VARIANTS = (None, "fp16", "bf16")  # in the order in which they are looked for
ENDING = ".safetensors"
NETWORK, TEXT = "diffusion_pytorch_model", "model"  # what diffusers and transformers call the weights of a network


@dataclass(frozen=True)
class Weights:
    """The files of one network's weights, and which copy of them they are; None: the only or the usual one."""

    files: tuple[Path, ...]
    variant: str | None


def stem_of(part: str) -> str:
    """What the weights of a part of a pipeline are called."""
    return TEXT if part.startswith("text_encoder") else NETWORK


def weights_in(folder: Path, stem: str) -> Weights | None:
    """The weights in a folder, whole or not; None where there are none to read. Raises InputError for an index that
    cannot be read, and where both one file and shards are there."""
    for variant in VARIANTS:
        single = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"
        index = folder / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
        if single.is_file() and index.is_file():
            raise InputError(f"{folder} holds both {single.name} and {index.name}; remove one of them.")
        if single.is_file():
            return Weights((single,), variant)
        if index.is_file():
            return Weights(tuple(folder / name for name in _shards(index)), variant)
    return None


def missing(folder: Path, stem: str) -> list[str]:
    """Names of the weight files that are not there: a network without any lacks the one file that it usually is."""
    found = weights_in(folder, stem)
    if found is None:
        return [f"{stem}.safetensors"]
    return [path.name for path in found.files if not path.is_file()]


def patterns(stem: str, variant: str | None = None) -> list[str]:
    """Names of the weight files to fetch: those of one file, and of shards with their index. Two spellings of shards of
    a half-precision copy are about."""
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-*-of-*.safetensors"]
    shards = [f"{stem}.{variant}-*-of-*.safetensors", f"{stem}-*-of-*.{variant}.safetensors"]
    return [f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json", *shards]


def half_precision(absent: Iterable[str]) -> list[list[str]]:
    """What to fetch in the place of weight files that a repository lacks, such as `unet/diffusion_pytorch_model
    .safetensors`: their half-precision copies, kind by kind in the order in which they are looked for."""
    lacking = [PurePosixPath(name) for name in absent if name.endswith(ENDING)]
    stems = [name.with_name(name.name.removesuffix(ENDING)) for name in lacking]
    kinds = [variant for variant in VARIANTS if variant and stems]
    return [[found for stem in stems for found in patterns(str(stem), kind)] for kind in kinds]


def _shards(index: Path) -> list[str]:
    """The names of an index's files. Raises InputError where it is not one, or names a file elsewhere."""
    names = read_json(index).get("weight_map")
    files = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if not files or any(Path(name).name != name or not name.endswith(".safetensors") for name in files):
        raise InputError(f"{index} is no index of shards; expected a weight_map to .safetensors files beside it.")
    return files
