"""What can be asked of alignbench, each option written once. Imports no torch.

A model per command. A field is the flag, the key of a `--config` file and of a suite, the environment variable
(`ALIGNBENCH_RUN_MODEL`) and, by its description, the help text. Its `Option` says under which heading it stands and
what it is to a cell's identity.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from alignbench import plugins
from alignbench.asking.refused import explained
from alignbench.choices import (
    NO_REWARD,
    Attending,
    BudgetKind,
    Compiling,
    Crop,
    DType,
    Kernel,
    ScorerDType,
    Sigmas,
    Ties,
    TrackerName,
)  # fmt: skip
from alignbench.errors import InputError, UnknownName, shown

Asked = TypeVar("Asked", bound="Options")

WHAT, DATA, TRAINING, EVALUATION, MEMORY, FILES = HEADINGS = (
    "What", "Data", "Training", "Evaluation", "Memory and device", "Files"
)  # fmt: skip


class Role(enum.Enum):
    """What an option is to the identity of a cell."""

    NAMED = "part of the identity, with a place of its own in the result's file name"
    HASHED = "part of the identity; where it is not at its default, it changes the hash in the file name"
    RUNTIME = "how a cell is computed, not what: it may change when the cell is continued"
    PLACE = "where the result is written"


NAMED, HASHED, RUNTIME, PLACE = Role


@dataclass(frozen=True)
class Option:
    """What is said of a field besides its type, default and description."""

    heading: str
    role: Role | None = None  # every option of `run` has one
    typed: Any = None  # its type on the command line, where that is not the field's
    metavar: str | None = None


def assignments(value: Any) -> Any:
    """`name=value` strings as a dictionary; a dictionary as it is."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for text in value:
        name, equals, rest = str(text).partition("=")
        if not equals or not name:
            raise ValueError("expected NAME=VALUE such as clip=1e-4 or nfe=800")
        if name in found:
            raise ValueError(f"{name} is {shown(found[name])} and {shown(rest)}; leave one out")
        found[name] = rest
    return found


def _pixels(value: Any) -> Any:
    """512 or 768x512 (height and width) as a pair."""
    if not isinstance(value, int | str):
        return value
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(value))
    if not found:
        raise ValueError("expected pixels such as 512, or HEIGHTxWIDTH such as 768x512")
    return (int(found[1]), int(found[2] or found[1]))


def _reward_name(value: str) -> str:
    """A scorer under the name that results use, whichever the user typed."""
    return plugins.full_name("rewards", value)


Count = Annotated[int, Field(ge=1, le=1_000_000)]  # of things that are kept in memory, all of them
Tokens = Annotated[int, Field(ge=1, le=512)]  # of T5's or Qwen's text; diffusers' pipelines take no more either
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
Fields = Annotated[dict[str, Any], BeforeValidator(assignments)]
Budget = Annotated[dict[BudgetKind, Positive] | None, BeforeValidator(assignments)]
Pixels = Annotated[tuple[int, int] | None, BeforeValidator(_pixels)]


class Options(BaseModel):
    """Options of a command. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def parse(cls: type[Asked], values: Mapping[str, Any], where: str | None = None) -> Asked:
        """From plain values. Raises InputError naming the key as it stands in the file `where`, or the flag."""
        for key, value in values.items():
            place = f"{where}: " if where else ""
            if key not in cls.model_fields:
                raise InputError(f"{place}{UnknownName('option', str(key), cls.model_fields)}")
            if "" in (value if isinstance(value, list | tuple) else [value]):
                name = f"{place}{key}" if where else f"--{str(key).replace('_', '-')}"
                raise InputError(f"{name}: an empty value; say what is meant, or leave the option out.")
        try:
            return cls(**values)
        except UnicodeEncodeError as error:
            raise InputError(f"{where or 'an option'}: {shown(error.object)} has bytes that are no text.") from None
        except ValidationError as error:
            own = error.errors()[0].get("ctx", {}).get("error")
            raise (own if isinstance(own, InputError) else InputError(explained(error, where))) from None


def option_of(model: type[Options], name: str) -> Option:
    """What a field's `Option` says. Raises TypeError where it has none."""
    for mark in model.model_fields[name].metadata:
        if isinstance(mark, Option):
            return mark
    raise TypeError(f"{model.__name__}.{name} has no Option: give it a heading and, if it is of a cell, a role.")


class ScoringOptions(Options):
    """How learned rewards and scorers are made, where that is not as usual."""

    scorer_dtype: Annotated[ScorerDType, Option(MEMORY, HASHED)] = Field(
        "float32", description="Precision of learned rewards and scorers."
    )
    allow_unverified: Annotated[bool, Option(DATA, HASHED)] = Field(
        False,
        description="Use weights of learned rewards and scorers that are not the published ones; results name them.",
    )

    @property
    def scoring(self) -> dict[str, Any]:
        """What a reward is made with: only what differs from its own defaults."""
        chosen = {"dtype": self.scorer_dtype, "allow_unverified": self.allow_unverified}
        return {name: value for name, value in chosen.items() if value not in ("float32", False)}


class PairChoice(Options):
    """Which pairs of a source are used."""

    pair_ties: Annotated[Ties, Option(DATA, HASHED)] = Field("drop", description="Ties among preference pairs.")
    pair_models: Annotated[str | None, Option(DATA, HASHED)] = Field(
        None, description="Only pairs both of whose source models contain this, such as dream."
    )


class SamplingOptions(Options):
    """How images are sampled; each is by default the model's own."""

    steps: Annotated[int | None, Option(EVALUATION, HASHED)] = Field(None, description="Sampling steps.")
    guidance: Annotated[Finite | None, Option(EVALUATION, HASHED)] = Field(
        None,
        description="Classifier-free guidance scale; at most 1 is none, and 0 means the same as 1. A denoiser that is "
        "told the scale (FLUX.1 [dev]) is told any.",
    )
    eta: Annotated[Finite | None, Option(EVALUATION, HASHED)] = Field(
        None,
        description="Noise of sampling: of DDIM 0 is deterministic, 1 ancestral; of the other kernels see --kernel.",
    )
    sigmas: Annotated[Sigmas | None, Option(EVALUATION, HASHED)] = Field(
        None,
        description="Grid of a flow model's noise levels: linspace, or scheduler, which diffusers' scheduler makes by "
        "itself, shifted twice; by default its pipeline's. The same model makes other pictures on the other.",
    )
    text_length: Annotated[Tokens | None, Option(EVALUATION, HASHED)] = Field(
        None,
        description="Tokens of T5's or Qwen's text, padded or cut to that, such as 128; by default the model's own (256"
        " or 512). It changes pictures. For SD3 (of which T5 may be left out: zeros are in their place) and FLUX.",
    )


class DeviceOptions(Options):
    """How a model is held."""

    device: Annotated[str, Option(MEMORY, RUNTIME)] = Field("auto", description="auto, cpu, cuda, or cuda:1.")
    dtype: Annotated[DType, Option(MEMORY, HASHED)] = Field("float32", description="Precision of the model.")
    batch_size: Annotated[Count | None, Option(MEMORY, RUNTIME)] = Field(
        None,
        description="Images made at once: by default up to 32 pictures, and on a processor no more large ones than fit "
        "into memory.",
    )


class RunOptions(ScoringOptions, PairChoice, SamplingOptions, DeviceOptions):
    """The options of `alignbench run`."""

    algo: Annotated[str | None, Option(WHAT, NAMED)] = Field(
        None, description="Algorithm: a name from `alignbench list`, package.module:Name, or path/file.py:Name."
    )
    model: Annotated[str, Option(WHAT, NAMED)] = Field(
        "tiny",
        description="tiny, mixture, sd15, sdxl, sd35_medium, another name of `alignbench list models`, a diffusers "
        "folder, or a hub id.",
    )
    reward: Annotated[str | None, Option(WHAT, NAMED)] = Field(
        None,
        description="Reward to optimise: a name, package.module:Name, or path/file.py:Name; a learned one with weights "
        "of your own as NAME=FILE; a served one (alignbench serve) by its URL, or NAME=URL. By default the model's. "
        "`none` for base, and for methods that learn from --pairs.",
    )
    set: Annotated[Fields, Option(WHAT, HASHED, list[str], "NAME=VALUE")] = Field(
        {}, description="A hyper-parameter, such as --set clip=1e-4; may be repeated."
    )
    adapter: Annotated[Path | None, Option(WHAT, HASHED)] = Field(
        None,
        description="A trained adapter (a cell's folder or result file, a LoRA's folder or file, a folder or hub id "
        "with either or with a fine-tuned denoiser) that the model has from the start; for methods that do not train.",
    )
    vae: Annotated[str | None, Option(WHAT, HASHED)] = Field(
        None,
        description="An autoencoder in the place of the model's own, such as madebyollin/sdxl-vae-fp16-fix: a folder "
        "or a hub id.",
    )
    resolution: Annotated[Pixels, Option(WHAT, HASHED, str, "PIXELS")] = Field(
        None, description="Pixels of the images, such as 512, or HEIGHTxWIDTH; by default the model's own."
    )

    prompts: Annotated[str | None, Option(DATA, NAMED)] = Field(
        None, description="Prompts to evaluate on: a name, or a .txt, .tsv, .csv, .jsonl, .json or .parquet file."
    )
    split: Annotated[str, Option(DATA, HASHED)] = Field(
        "test", description="Split of the prompts; tune on dev, report on test."
    )
    train_prompts: Annotated[str | None, Option(DATA, HASHED)] = Field(
        None,
        description="Prompts to train on; by default the train split of --prompts, else the model's own.",
    )
    pairs: Annotated[Path | None, Option(DATA, HASHED)] = Field(
        None,
        description="Preference pairs to learn from: a Pick-a-Pic parquet file or folder, an HPDv2 .json, or a folder "
        "with pairs.jsonl. By default the base model makes pairs on --train-prompts and --reward labels them.",
    )
    pair_count: Annotated[Annotated[int, Field(ge=2, le=1_000_000)] | None, Option(DATA, HASHED)] = Field(
        None, description="How many pairs are made where none are given (2000 unless the model's preset says more)."
    )
    pair_candidates: Annotated[Annotated[int, Field(ge=2, le=10_000)] | None, Option(DATA, HASHED)] = Field(
        None,
        description="How many images are drawn for each of them (2); of more, the reward's best and worst are kept.",
    )
    pair_crop: Annotated[Crop, Option(DATA, HASHED)] = Field(
        "centre", description="How a pair's images are cropped to the model's size."
    )

    seed: Annotated[Seed, Option(TRAINING, NAMED)] = Field(0, description="Seed of the alignment only.")
    checkpointing: Annotated[bool, Option(TRAINING, RUNTIME)] = Field(
        False,
        description="Keep no activations while training but compute them again: less memory, a third more time.",
    )
    budget: Annotated[Budget, Option(WHAT, HASHED, list[str], "KIND=LIMIT")] = Field(
        None,
        description="What a test-time method may spend on an image, such as nfe=800 (denoiser evaluations, backward "
        "ones and guidance included), reward_evals=20, or seconds=2 (turned into counts once); it chooses its free "
        "parameter.",
    )

    scorers: Annotated[tuple[str, ...] | None, Option(EVALUATION, HASHED)] = Field(
        None,
        description="Held-out scorers, besides the reward. They replace the model's default scorers; to keep those, "
        "name them too.",
    )
    limit: Annotated[Count | None, Option(EVALUATION, HASHED)] = Field(
        None, description="Evaluate the first prompts only."
    )
    images_per_prompt: Annotated[Count, Option(EVALUATION, HASHED)] = Field(
        1, description="Images evaluated per prompt."
    )
    eval_seed: Annotated[Seed, Option(EVALUATION, HASHED)] = Field(
        0, description="Seed of the evaluation's noise, the same for every algorithm."
    )
    kernel: Annotated[Kernel, Option(EVALUATION, HASHED)] = Field(
        "ddim",
        description="Reverse steps: ddim (of a flow model with --eta 0 Euler's); with noise of --eta flow_sde "
        "(Flow-GRPO: 0.7), dance_sde (DanceGRPO: 0.3) and cps (0.8); exact, which only mixture has.",
    )
    task: Annotated[Literal["generate", "sdedit"], Option(EVALUATION, HASHED)] = Field(
        "generate", description="generate, or sdedit: edit the images of --images."
    )
    images: Annotated[Path | None, Option(EVALUATION, NAMED)] = Field(
        None, description="A .jsonl file with a prompt and an image a line, for --task sdedit."
    )
    strength: Annotated[Annotated[Finite, Field(gt=0, le=1)] | None, Option(EVALUATION, HASHED)] = Field(
        None, description="Share of the steps that an edit runs, in (0, 1]."
    )

    vae_slicing: Annotated[bool, Option(MEMORY, RUNTIME)] = Field(False, description="Decode one image at a time.")
    vae_tiling: Annotated[bool, Option(MEMORY, HASHED)] = Field(
        False, description="Decode large images in tiles: less memory, other pixels near the seams."
    )

    compile: Annotated[Compiling | None, Option(MEMORY, RUNTIME)] = Field(
        None, description="Compile the denoiser, which is kept; reduce-overhead: as CUDA graphs, for small models."
    )
    channels_last: Annotated[bool, Option(MEMORY, RUNTIME)] = Field(
        False, description="Keep weights of convolutions in the layout channels-last, which may be faster."
    )
    attention: Annotated[Attending, Option(MEMORY, RUNTIME)] = Field(
        "auto", description="Kernel of the denoiser's attention; by default torch chooses."
    )

    output: Annotated[Path, Option(FILES, PLACE)] = Field(
        Path("results"), description="Folder for the result and its files."
    )
    name: Annotated[str | None, Option(FILES, PLACE)] = Field(
        None, description="A name in the result's file name, instead of a hash of what is not default."
    )
    report_to: Annotated[tuple[TrackerName, ...], Option(FILES, RUNTIME)] = Field(
        (),
        description="Also show the training curve in tensorboard, wandb, trackio or mlflow (the extra `trackers`); one "
        "that fails is left out and never ends a run.",
    )

    @field_validator("reward", "scorers")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return tuple(map(_reward_name, value)) if isinstance(value, tuple) else value and _reward_name(value)

    @property
    def named_reward(self) -> str | None:
        """The reward that was named, where it is one."""
        return None if self.reward == NO_REWARD else self.reward

    @property
    def algorithm(self) -> str:
        """The algorithm's name. Raises InputError where none was given."""
        if self.algo is None:
            raise InputError("name an algorithm: alignbench run --algo NAME (see `alignbench list`).")
        return self.algo

    @property
    def changed(self) -> dict[str, Any]:
        """The options of the identity that have no place of their own in the file name and are not at their default."""
        return self._not_default(HASHED)

    @property
    def asked(self) -> dict[str, Any]:
        """The options of the identity that are not at their default, as JSON holds them: `parse` makes the same again,
        but for where results go and how they are computed."""
        return self.model_dump(mode="json", include=set(self._not_default(NAMED, HASHED)))

    def _not_default(self, *roles: Role) -> dict[str, Any]:
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if option_of(type(self), name).role in roles and (value := getattr(self, name)) != field.default
        }


class EvaluateOptions(Options):
    """The options of `alignbench evaluate`. What is not given is as it was."""

    prompts: Annotated[str | None, Option(DATA)] = Field(
        None, description="Other prompts: a name, or a .txt, .tsv, .csv, .jsonl, .json or .parquet file."
    )
    split: Annotated[str | None, Option(DATA)] = Field(None, description="Another split of the prompts.")
    limit: Annotated[Count | None, Option(EVALUATION)] = Field(None, description="Evaluate the first prompts only.")
    images_per_prompt: Annotated[Count | None, Option(EVALUATION)] = Field(
        None, description="Images evaluated per prompt."
    )
    eval_seed: Annotated[Seed | None, Option(EVALUATION)] = Field(None, description="Seed of the evaluation's noise.")
    scorers: Annotated[tuple[str, ...] | None, Option(EVALUATION)] = Field(
        None, description="Held-out scorers in the place of those it had, besides the reward."
    )
    device: Annotated[str, Option(MEMORY)] = Field("auto", description="auto, cpu, cuda, or cuda:1.")
    batch_size: Annotated[Count | None, Option(MEMORY)] = Field(None, description="Images made at once.")
    output: Annotated[Path | None, Option(FILES)] = Field(
        None, description="Folder for the new result and its files; by default that of the old one."
    )
    name: Annotated[str | None, Option(FILES)] = Field(
        None, description="A name in the new result's file name, instead of a hash of what is not default."
    )


class PairsOptions(SamplingOptions, DeviceOptions):
    """The options of `alignbench pairs`."""

    model: Annotated[str, Option(WHAT)] = Field(
        "tiny", description="tiny, another name of `alignbench list models`, a diffusers folder, or a hub id."
    )
    reward: Annotated[str | None, Option(WHAT)] = Field(
        None, description="Reward that says which image is preferred; by default the model's own."
    )
    prompts: Annotated[str | None, Option(DATA)] = Field(
        None, description="Prompts of the pairs: a name or a file, by default what the model is trained on."
    )
    split: Annotated[str | None, Option(DATA)] = Field(
        None, description="Split of the prompts (train where there is one)."
    )
    count: Annotated[Count, Option(DATA)] = Field(2000, description="How many pairs.")
    candidates: Annotated[int, Field(ge=2, le=10_000), Option(DATA)] = Field(
        2, description="Images drawn per pair; of more, the reward's best and worst are kept."
    )
    seed: Annotated[Seed, Option(DATA)] = Field(0, description="Seed of prompts and images.")
    output: Annotated[Path, Option(FILES)] = Field(Path("pairs"), description="Folder for images and pairs.jsonl.")

    @field_validator("reward")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return value and _reward_name(value)
