"""What the files of a pipeline say before its networks are loaded: schedule, size of the latents, tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.diffusion.layouts import LAYOUTS, Layout
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.diffusion.schedule import Schedule

EMBEDDED = "embedded"  # the source of a model that comes with alignbench
SINGLE = LAYOUTS["StableDiffusionPipeline"]


def schedule_in(folder: Path, source: str) -> Schedule:
    """The noise schedule of a pipeline's folder. Stable Diffusion's pipeline reads two fields of old files in its own
    way, as here: steps_offset is 1 and clip_sample false, whatever stands there. Raises InputError."""
    from alignbench.diffusion.schedule import Schedule

    config = dict(read_json(folder / "scheduler" / "scheduler_config.json"))
    if read_json(folder / "model_index.json").get("_class_name") == "StableDiffusionPipeline":
        config |= {"steps_offset": 1, "clip_sample": False}
    try:
        return Schedule.from_config(config)
    except InputError as error:
        raise InputError(f"{source}: scheduler/scheduler_config.json: {error}") from None


def sample_size(source: str, layout: Layout, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the latents by a denoiser's configuration; None where it does not say. Files of Stable
    Diffusion older than diffusers 0.9 say 32 where 64 is meant, as its pipeline knows. Raises InputError."""
    own = config.get("sample_size")
    both = [own, own] if type(own) is int else own
    if both is None:
        return None
    if not isinstance(both, list | tuple) or len(both) != 2 or not all(type(n) is int and 0 < n < 4096 for n in both):
        raise InputError(f"{source}: unet/config.json has sample_size {own!r}; expected the latents' size, such as 64.")
    version = re.match(r"0\.(\d+)\.", str(config.get("_diffusers_version", "")))
    if layout is SINGLE and type(own) is int and own < 64 and version and int(version[1]) < 9:
        return (64, 64)
    return (both[0], both[1])


def tokenizers_of(folder: Path, source: str, layout: Layout) -> list[Any]:
    """The tokenizers of a pipeline's folder. Raises RunError for a broken file, InputError where one does not fit."""
    from alignbench.diffusion.text import open_tokenizer

    found = []
    for tokenizer, encoder in zip(layout.tokenizers, layout.encoders, strict=True):
        config = read_json(folder / encoder / "config.json")
        positions, rows = config.get("max_position_embeddings", 77), config.get("vocab_size", 49408)
        if type(positions) is not int or type(rows) is not int:
            raise InputError(
                f"{source}: {encoder}/config.json has max_position_embeddings {positions!r} and vocab_size {rows!r}; "
                "expected whole numbers."
            )
        found.append(open_tokenizer(folder, source, tokenizer, positions, rows))
    return found
