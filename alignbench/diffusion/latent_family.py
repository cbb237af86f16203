"""A family of latent models: pipelines with a denoiser, an autoencoder and text encoders. Imports no torch before one
is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignbench.diffusion import adapter_files, hub, registry
from alignbench.diffusion.configs import check_denoiser_in, check_folder
from alignbench.diffusion.hub import Part, Repository
from alignbench.diffusion.layouts import layout_of, network_of, pipeline_of
from alignbench.diffusion.on_disk import (
    check_resolution,
    latent_shape_in,
    schedule_in,
    shape_and_schedule_in,
    tokenizers_of,
)
from alignbench.diffusion.registry import Hold, Model, Wishes
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pairs, Pipeline, Policy, Prompt, Prompts
    from alignbench.keys import Key
    from alignbench.meter import Meter


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
    pipelines: tuple[str, ...] = ()  # the classes whose folders it reads
    described: Callable[[Path], Mapping[str, Any]] = lambda folder: {}  # fields of a folder's Model
    channels: int = 4  # of the latents of its named models
    enlarged: int = 8  # of pixels by latents, likewise
    patch: int = 1  # side in latents of a token, likewise

    own_pairs = None

    def reads(self, pipeline_class: str) -> bool:
        return pipeline_class in self.pipelines

    def unnamed(self, name: str, source: str, folder: Path | None) -> Model:
        fields = self.described(folder) if folder is not None else {}
        return Model(name, source=source, family=self.name, **fields)

    def fetch(self, model: Model, folder: Path | None = None) -> Path:
        parts = self.needs(model)
        if not parts:
            raise InputError(f"model {model.name!r} needs no download; leave it out.")
        if len(parts) > 1 and folder is not None:
            raise InputError(
                f"model {model.name!r} has parts of several repositories; fetch it without --to and copy the hub's "
                "cache."
            )
        first, *_ = [hub.snapshot(part, model.typed, folder) for part in parts]
        return first

    def device(self, wanted: str) -> str:
        from alignbench.devices import device_of

        return device_of(wanted)

    def refuse(self, model: Model, wishes: Wishes, algorithm: str, trains: bool) -> None:
        if wishes.kernel == "exact":
            raise InputError(
                f"--kernel exact: the reverse kernel of model {model.name!r} is not known; only mixture's is. "
                "Leave it out."
            )
        if wishes.compile is not None and wishes.checkpointing:
            raise InputError("--compile: with --checkpointing it would compile nothing; leave one of them out.")
        if self.at_hand:
            return
        if not registry.missing(model):
            folder = self.place(model).folder
            layout = check_folder(folder, model.source)
            if model.denoiser is not None:
                check_denoiser_in(hub.placed(network_of(model.denoiser), model.typed)[0], layout)
            shape_and_schedule_in(folder, model.source, self._resolution(model, wishes.resolution))
        elif model in self.models and wishes.resolution is not None:
            check_resolution(wishes.resolution, self.enlarged * self.patch)

    def _resolution(self, model: Model, wanted: tuple[int, int] | None) -> tuple[int, int] | None:
        """As wanted, or the model's own where that is not what its files say."""
        return wanted or ((model.resolution, model.resolution) if model.resolution is not None else None)

    def refuse_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Any will do."""

    def latent_shape(
        self, model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
    ) -> tuple[int, ...] | None:
        if model in self.models and self.needs(model):
            size = self._resolution(model, resolution)
            return (self.channels, size[0] // self.enlarged, size[1] // self.enlarged) if size else None
        if registry.missing(model):
            return None
        folder, source, _ = self.place(model)
        return latent_shape_in(folder, source, self._resolution(model, resolution))

    def truncated(self, model: Model, prompts: Sequence[Prompt]) -> list[bool] | None:
        """Which prompts are longer than a text encoder of the model reads; None before it is on this machine."""
        if registry.missing(model):
            return None
        from alignbench.diffusion.text import truncated

        folder, source, _ = self.place(model)
        tokenizers = tokenizers_of(folder, source, layout_of(folder, source), Hold(tokens=model.tokens))
        return truncated(tokenizers, [p.text for p in prompts])

    def typical_schedule(self, model: Model) -> Schedule | FlowSchedule:
        from alignbench.diffusion.flow_schedule import FlowSchedule
        from alignbench.diffusion.schedule import Schedule

        if not registry.missing(model):
            return schedule_in(self.place(model).folder, model.source, sigmas=model.sigmas)
        if model.sigmas is not None:
            return FlowSchedule(sigmas=model.sigmas)
        levels = Schedule.scaled_linear()
        return Schedule(levels, float(levels[0]), steps_offset=1)

    def load(self, model: Model, meter: Meter, hold: Hold, prompts: Sequence[Prompt] = ()) -> Pipeline:
        from alignbench.diffusion.loading import load_pipeline

        size, sigmas = self._resolution(model, hold.resolution), hold.sigmas or model.sigmas
        hold = dataclasses.replace(hold, resolution=size, sigmas=sigmas, tokens=hold.tokens or model.tokens)
        place = self.place(model)
        if self.pipelines and (kind := layout_of(place.folder, model.source).pipeline) not in self.pipelines:
            raise InputError(
                f"{model.source} is a {kind}: how it is sampled by default was not known before it was downloaded; "
                "type the same command again."
            )
        return load_pipeline(model, *place, meter, hold)

    def open_policy(self, pipeline: Pipeline, folder: Path) -> Policy:
        from alignbench.diffusion.adapters import open_policy

        return open_policy(pipeline, folder)

    def adapter_digest(self, folder: Path) -> str:
        from alignbench.diffusion.adapters import digest

        return digest(folder)

    def pairs(self, pipeline: Pipeline, reward: str, prompts: Prompts, key: Key, count: int) -> Pairs | None:
        return None


def needs_of(model: Model) -> list[Part]:
    """The repositories of a model of the hub."""
    if Path(model.source).is_dir():
        return []
    parts = [pipeline_of(Repository(model.source, model.revision))]
    parts += [network_of(model.denoiser)] if model.denoiser else []
    parts += [adapter_files.repository(model.adapter)] if model.adapter else []
    return parts + ([pipeline_of(model.refiner)] if model.refiner else [])


def place_of(model: Model) -> Place:
    """A folder, or a snapshot of the hub's cache, whose name is the commit."""
    if Path(model.source).is_dir():
        return Place(Path(model.source), "folder")
    first, *_ = [hub.snapshot(part, model.typed) for part in needs_of(model)]
    return Place(first, model.source, first.name)
