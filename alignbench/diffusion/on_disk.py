"""What the files of a pipeline say before its networks are loaded: schedule, size of the latents, tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.choices import Sigmas
from alignbench.diffusion.layouts import CLIP, FLUX, QWEN, SD, T5, Layout, layout_of
from alignbench.diffusion.registry import Hold, read_json
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule

EMBEDDED = "embedded"  # the source of a model that comes with alignbench
LARGEST = 4096  # of a side of the latents
ROWS = {CLIP: 49408, T5: 32128, QWEN: 151936}  # for tokens, where a file of the class does not say how many
FLUX_SIDE = 128  # of the autoencoder's latents that FLUX's pipelines draw by default; no file says it


def shape_and_schedule_in(
    folder: Path,
    source: str,
    resolution: tuple[int, int] | None,
    sigmas: Sigmas | None = None,
    autoencoder: Path | None = None,
) -> tuple[tuple[int, int, int], Schedule | FlowSchedule]:
    """Shape of the latents and noise schedule at a resolution. Raises InputError for what no run can be made of."""
    shape = latent_shape_in(folder, source, resolution, autoencoder)
    if shape is None:
        raise InputError(f"{source}: {layout_of(folder, source).config} has no sample_size; pass --resolution.")
    return shape, schedule_in(folder, source, shape[1:], sigmas)


def schedule_in(
    folder: Path, source: str, size: tuple[int, int] | None = None, sigmas: Sigmas | None = None
) -> Schedule | FlowSchedule:
    """The noise schedule of a pipeline's folder; that of a flow model for latents of a size, on a grid by name.

    Stable Diffusion's pipeline reads two fields of old files in its own way, as here: steps_offset is 1 and clip_sample
    false, whatever stands there. Raises InputError.
    """
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule

    layout, config = layout_of(folder, source), dict(read_json(folder / "scheduler" / "scheduler_config.json"))
    if layout.pipeline == SD.pipeline:
        config |= {"steps_offset": 1, "clip_sample": False}
    try:
        if not layout.flow:
            return Schedule.from_config(config)
        patch = layout.patch(read_json(folder / layout.config))
        height, width = size or (FLUX_SIDE // layout.folded,) * 2
        by_steps = layout.folded > 1
        return FlowSchedule.from_config(config, (height // patch) * (width // patch), sigmas, by_steps)
    except InputError as error:
        raise InputError(f"{source}: scheduler/scheduler_config.json: {error}") from None


def sample_size(source: str, layout: Layout, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the latents by a denoiser's configuration; None where it does not say. Files of Stable
    Diffusion older than diffusers 0.9 say 32 where 64 is meant, as its pipeline knows. Raises InputError."""
    own = config.get("sample_size", FLUX_SIDE // layout.folded if layout.packed * layout.folded > 1 else None)
    both = [own, own] if type(own) is int else own
    if both is None:
        return None
    fits = isinstance(both, list | tuple) and len(both) == 2
    if not fits or not all(type(side) is int and 0 < side < LARGEST for side in both):
        raise InputError(f"{source}: {layout.config} has sample_size {own!r}; expected the latents' size, such as 64.")
    version = re.match(r"0\.(\d+)\.", str(config.get("_diffusers_version", "")))
    if layout.pipeline == SD.pipeline and type(own) is int and own < 64 and version and int(version[1]) < 9:
        return (64, 64)
    return (both[0], both[1])


def latent_shape_in(
    folder: Path, source: str, resolution: tuple[int, int] | None, autoencoder: Path | None = None
) -> tuple[int, int, int] | None:
    """Channels, height and width of the latents at a resolution, by default the model's own; None where its files do
    not say. The autoencoder may be another folder's. Raises InputError for sides that cannot be made."""
    layout = layout_of(folder, source)
    config = read_json(folder / layout.config)
    levels = read_json((autoencoder or folder / "vae") / "config.json").get("block_out_channels")
    enlarged = layout.folded * 2 ** (len(levels or [0]) - 1)
    channels, patch = layout.channels(config), layout.patch(config)
    size = sample_size(source, layout, config)
    if resolution is not None:
        check_resolution(resolution, enlarged * patch)
        size = (resolution[0] // enlarged, resolution[1] // enlarged)
    if size is None:
        return None
    most = config.get("pos_embed_max_size")
    if type(most) is int and max(size) > most * patch:
        raise InputError(
            f"{size[0] * enlarged}x{size[1] * enlarged} pixels: {source} has positions for {most * patch * enlarged}; "
            "choose a smaller --resolution."
        )
    return (channels, *size)


def check_resolution(resolution: tuple[int, int], multiple: int) -> None:
    """Raise InputError for sides in pixels that are no multiples."""
    if any(side % multiple for side in resolution):
        raise InputError(f"--resolution {resolution[0]}x{resolution[1]}: expected multiples of {multiple} pixels.")


def text_tokens(layout: Layout, config: Mapping[str, Any], wanted: int | None = None) -> int | None:
    """How many tokens T5's or Qwen's text has, or the zeros in T5's place: as wanted, or the pipeline's default; FLUX.1
    without guidance was distilled with 256. None of a model without such a text."""
    if layout.tokens is None or wanted is not None:
        return wanted if layout.tokens is not None else None
    return 256 if layout.pipeline == FLUX.pipeline and layout.guiding(config) == "none" else layout.tokens


def tokenizers_of(folder: Path, source: str, layout: Layout, hold: Hold | None = None) -> list[Any]:
    """The tokenizers of a pipeline's folder. Raises RunError for a broken file, InputError where one does not fit."""
    from alignbench.diffusion.text import open_tokenizer

    wanted = None if hold is None else hold.tokens
    longest = text_tokens(layout, read_json(folder / layout.config), wanted) if layout.tokens else None
    found = []
    for tokenizer, (encoder, kind) in zip(layout.tokenizers, layout.encoders.items(), strict=True):
        config = read_json(folder / encoder / "config.json")
        positions = longest if kind in (T5, QWEN) else config.get("max_position_embeddings", 77)
        rows = config.get("vocab_size", ROWS.get(kind, ROWS[CLIP]))
        if type(positions) is not int or type(rows) is not int:
            raise InputError(
                f"{source}: {encoder}/config.json has max_position_embeddings {positions!r} and vocab_size {rows!r}; "
                "expected whole numbers."
            )
        found.append(open_tokenizer(folder, source, tokenizer, positions, rows, kind))
    return found
