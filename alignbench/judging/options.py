"""The options of the commands that judge scorers, aligned models and pictures. Imports no torch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from alignbench import plugins
from alignbench.asking.options import (
    DATA,
    EVALUATION,
    FILES,
    MEMORY,
    TRAINING,
    WHAT,
    Count,
    DeviceOptions,
    Option,
    PairChoice,
    ScoringOptions,
    Seed,
)
from alignbench.choices import Crop, FirstNumber
from alignbench.errors import InputError

PAIRS = "Preference pairs: a Pick-a-Pic parquet file or folder, an HPDv2 .json, or a folder with pairs.jsonl."


class AccuracyOptions(PairChoice, DeviceOptions):
    """The options of `alignbench accuracy`."""

    pairs: Annotated[Path, Option(DATA)] = Field(description=PAIRS)
    limit: Annotated[Count | None, Option(DATA)] = Field(None, description="The first pairs only.")
    pair_crop: Annotated[Crop, Option(DATA)] = Field(
        "centre", description="How images are cropped to the model's size."
    )
    model: Annotated[str | None, Option(WHAT)] = Field(
        None, description="The model that was aligned; images then have its size, else their own."
    )
    adapter: Annotated[tuple[Path, ...], Option(WHAT)] = Field(
        (), description="Aligned models: folders or files of adapters, cells' folders, or cells' result files."
    )
    scorers: Annotated[tuple[str, ...], Option(WHAT)] = Field(
        (), description="Scorers; with --model and no --adapter, by default the model's own."
    )
    timesteps: Annotated[Count, Option(EVALUATION)] = Field(
        10, description="Draws of timestep and noise for each pair."
    )
    seed: Annotated[Seed, Option(EVALUATION)] = Field(0, description="Seed of timesteps and noise.")

    @model_validator(mode="after")
    def _measurable(self) -> AccuracyOptions:
        if self.model is not None:
            return self
        if self.adapter:
            raise InputError(f"--adapter {self.adapter[0]}: name the model it was trained on with --model.")
        if not self.scorers:
            raise InputError(
                "nothing to measure: pass --scorers NAME, or --model NAME for its own scorers, or --model NAME "
                "--adapter FOLDER for an aligned model (see `alignbench list`)."
            )
        if self.pair_crop != "centre":
            raise InputError(f"--pair-crop {self.pair_crop}: without --model images keep their own size; leave it out.")
        return self


class AuditOptions(PairChoice, ScoringOptions):
    """The options of `alignbench audit`."""

    pairs: Annotated[Path, Option(DATA)] = Field(description=PAIRS)
    limit: Annotated[Count | None, Option(DATA)] = Field(None, description="The first pairs only.")
    scorers: Annotated[tuple[str, ...], Option(WHAT)] = Field(description="Scorers, as in `alignbench run`.")
    seed: Annotated[Seed, Option(EVALUATION)] = Field(0, description="Seed of the noise and of the intervals.")
    device: Annotated[str, Option(MEMORY)] = Field("auto", description="auto, cpu, cuda, or cuda:1.")
    batch_size: Annotated[Count, Option(MEMORY)] = Field(32, description="Pictures scored at once.")

    @field_validator("scorers")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise InputError("nothing to audit: pass --scorers NAME (see `alignbench list`).")
        return value


class ScoreOptions(ScoringOptions):
    """The options of `alignbench score`."""

    scorers: Annotated[tuple[str, ...], Option(WHAT)] = Field(description="Scorers, as in `alignbench run`.")
    prompts: Annotated[str | None, Option(DATA)] = Field(
        None,
        description="What a folder's pictures were made for: a name or a file. Pictures are named by the prompts' "
        "ids or words, by their numbers (00012.png, image_12.png, 00012-1.png for the second of a prompt), or without "
        "any number, one for each prompt. The folders of HPSv2, GenEval and ImageReward are read too.",
    )
    first_number: Annotated[FirstNumber | None, Option(DATA)] = Field(
        None, description="The number of the first prompt's pictures, where the names do not show it."
    )
    split: Annotated[str, Option(DATA)] = Field("test", description="Split of the prompts.")
    device: Annotated[str, Option(MEMORY)] = Field("auto", description="auto, cpu, cuda, or cuda:1.")
    batch_size: Annotated[Count, Option(MEMORY)] = Field(32, description="Pictures scored at once.")


class ServeOptions(ScoringOptions):
    """The options of `alignbench serve`."""

    port: Annotated[int, Option(EVALUATION)] = Field(
        8000, description="Port to listen on, at 127.0.0.1 alone; 0 takes a free one."
    )
    allowed_hosts: Annotated[tuple[str, ...], Option(EVALUATION)] = Field(
        (), description="Names beside 127.0.0.1 and localhost under which it may be asked, such as a proxy's."
    )
    device: Annotated[str, Option(MEMORY)] = Field("auto", description="auto, cpu, cuda, or cuda:1.")

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[A-Za-z0-9.-]+", host):
                raise ValueError(f"{host!r} is no host name; expected one such as scorers.example.org, without a port")
        return hosts


class TrainRewardOptions(PairChoice):
    """The options of `alignbench train-reward`."""

    pairs: Annotated[Path, Option(DATA)] = Field(description=f"{PAIRS} Prompts in words of the shapes world.")
    start: Annotated[str, Option(WHAT)] = Field(
        "shapes_preference",
        description="Network to start from: shapes_preference, none, or a .safetensors file of this command.",
    )
    steps: Annotated[Count | None, Option(TRAINING)] = Field(
        None, description="Training steps; by default three passes over the pairs. From nothing it takes more."
    )
    batch_size: Annotated[Count, Option(TRAINING)] = Field(64, description="Pairs per step.")
    learning_rate: Annotated[float, Option(TRAINING)] = Field(
        1e-4, gt=0, lt=math.inf, description="Its highest value; it rises and falls again."
    )
    held_out: Annotated[float, Option(TRAINING)] = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the prompts that is not trained on but measured; which ones, their words alone decide.",
    )
    seed: Annotated[Seed, Option(TRAINING)] = Field(0, description="Seed of new weights and of the pairs' order.")
    output: Annotated[Path, Option(FILES)] = Field(description="File to write, .safetensors.")

    @field_validator("output")
    @classmethod
    def _weights(cls, value: Path) -> Path:
        if value.suffix != plugins.WEIGHTS:
            raise InputError(f"--output {value}: expected a file name that ends in {plugins.WEIGHTS}.")
        return value

    @property
    def folder(self) -> Path:
        """Where the checkpoint is until the weights are there."""
        return self.output.with_suffix(".training")
