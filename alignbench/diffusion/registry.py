"""Models by name, and the families that know how to load them. Imports no torch.

A family is declared by being there: it is named in the `__all__` of a room's `families.py`. The Stable Diffusion family
stands in alignbench/diffusion, the toy worlds' in their own rooms, and those of other packages are found by the entry
point group `alignbench.families`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from alignbench import plugins
from alignbench.choices import Attending, Compiling, Guiding, Sigmas
from alignbench.diffusion import conversion
from alignbench.diffusion.hub import HUB_ID, Part, Repository, local
from alignbench.errors import InputError, UnknownName
from alignbench.reading import is_folder, json_of, read_bytes

if TYPE_CHECKING:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pairs, Pipeline, Policy, Prompt, Prompts
    from alignbench.keys import Key
    from alignbench.meter import Meter

LARGEST_CONFIG = 2**26  # bytes of a JSON file of a pipeline; vocabularies have a few million
USUAL = "stable_diffusion"  # the family of folders and hub ids that no family says it reads


@dataclass(frozen=True)
class Model:
    """A model by name. `source` is a folder or a hub id; steps, guidance and eta are how it is sampled by default.

    A model whose `denoiser`, `adapter` or `refiner` comes from elsewhere is the model `like` with something done to it:
    results of both pair in a table where they are sampled alike. It is for evaluation only.
    """

    name: str
    source: str
    family: str = USUAL
    revision: str | None = None
    steps: int = 50
    guidance: float = 7.5
    eta: float = 0.0
    resolution: int | None = None  # native, in pixels; None: what the weights' configuration says
    prediction: str = ""  # what the denoiser predicts; the scheduler's configuration decides
    guiding: Guiding = "classifier_free"  # embedded: the denoiser is told the scale; none: it was distilled without
    sigmas: Sigmas | None = None  # a flow model's usual grid; None of other models
    tokens: int | None = None  # of T5's or Qwen's text, or the zeros in T5's place; None: the pipeline's
    licence: str = ""
    denoiser: Repository | None = None
    adapter: Repository | None = None  # a LoRA of the denoiser
    refiner: Repository | None = None
    like: str | None = None
    note: str = ""

    @property
    def preset(self) -> str:
        """The preset of algorithms that serves this model; `other` for folders and hub ids, whatever their name."""
        return self.name if named().get(self.name) == self else "other"

    @property
    def typed(self) -> str:
        """What a user types to have it fetched: its name, or the hub id that the name was made of."""
        return self.source if self.name == self.source.replace("/", "--") else self.name

    @property
    def identity(self) -> str:
        """What tells this model from others in a configuration: its name, of a folder its path."""
        return self.source if Path(self.source).is_absolute() else self.name

    @property
    def trainable(self) -> bool:
        """Whether it is a plain model, and not one that somebody has aligned or put together."""
        return self.denoiser is None and self.adapter is None and self.refiner is None


@dataclass(frozen=True)
class Hold:
    """How a model is held and computed with."""

    device: str = "cpu"
    dtype: str = "float32"
    resolution: tuple[int, int] | None = None  # height and width in pixels; None: the model's own
    checkpointing: bool = False  # policies compute activations again in the backward pass instead of keeping them
    slicing: bool = False  # decode one image after another
    tiling: bool = False  # decode large images in overlapping tiles, which changes pixels near the seams
    autoencoder: str | None = None  # a folder or hub id whose autoencoder takes the place of the model's own
    sigmas: Sigmas | None = None  # a flow model's grid; None: the model's own
    tokens: int | None = None  # of T5's or Qwen's text; None: the model's own
    compiling: Compiling | None = None  # the denoiser
    channels_last: bool = False  # the layout of convolutions' weights
    attention: Attending = "auto"  # the denoiser's kernel


@runtime_checkable
class Wishes(Protocol):
    """What is asked of a model, as far as a family may have to refuse it: options of `alignbench run`."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def resolution(self) -> tuple[int, int] | None: ...
    @property
    def vae(self) -> str | None: ...
    @property
    def vae_slicing(self) -> bool: ...
    @property
    def vae_tiling(self) -> bool: ...
    @property
    def compile(self) -> str | None: ...
    @property
    def channels_last(self) -> bool: ...
    @property
    def attention(self) -> str: ...
    @property
    def checkpointing(self) -> bool: ...
    @property
    def guidance(self) -> float | None: ...
    @property
    def kernel(self) -> str: ...
    @property
    def task(self) -> str: ...


@runtime_checkable
class Family(Protocol):
    """A kind of model: what it needs, how it is loaded, and what it refuses."""

    @property
    def name(self) -> str: ...

    @property
    def models(self) -> Sequence[Model]:
        """Those with a name of their own."""

    @property
    def at_hand(self) -> bool:
        """Whether its models come with alignbench, so that a dry run may load one to time it."""

    @property
    def own_pairs(self) -> int | None:
        """How many preference pairs it draws by itself by default; None where images have to be made and labelled."""

    def reads(self, pipeline_class: str) -> bool:
        """Whether it loads folders whose model_index.json names this class."""

    def unnamed(self, name: str, source: str, folder: Path | None) -> Model:
        """A model that has no name of its own, from a folder or a hub id, sampled as its pipeline is by default.
        `folder` is where it lies, None before it is downloaded."""

    def needs(self, model: Model) -> Sequence[Part]:
        """What of the hub a model is made of; nothing where it lies in a folder or comes with alignbench."""

    def fetch(self, model: Model, folder: Path | None = None) -> Path:
        """Download what the model needs, into the folder where one is named. Returns where it lies."""

    def device(self, wanted: str) -> str:
        """The device a user's word means. Raises InputError where it is not there."""

    def refuse(self, model: Model, wishes: Wishes, algorithm: str, trains: bool) -> None:
        """Raise InputError naming an option that a model of this family would have to ignore, or what of the model's
        own files, where they are on this machine."""

    def refuse_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise InputError where one model cannot serve all of these prompts."""

    def latent_shape(
        self, model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
    ) -> tuple[int, ...] | None:
        """The shape of one latent where it is known without loading or downloading, else None."""

    def typical_schedule(self, model: Model) -> Schedule | FlowSchedule:
        """The noise schedule of a model, or one like it before it is downloaded, for counting what a run would cost."""

    def load(self, model: Model, meter: Meter, hold: Hold, prompts: Sequence[Prompt] = ()) -> Pipeline:
        """The pipeline of a model, frozen. Raises RunError where files are missing, InputError where they do not fit.
        `prompts` are those it will meet: what a model of an exact problem is depends on them."""

    def open_policy(self, pipeline: Pipeline, folder: Path) -> Policy:
        """The policy that was saved in a folder. Raises InputError where there is none, RunError where it is damaged or
        of another model."""

    def adapter_digest(self, folder: Path) -> str:
        """SHA-256 over what `open_policy` reads. Raises as it does."""

    def pairs(self, pipeline: Pipeline, reward: str, prompts: Prompts, key: Key, count: int) -> Pairs | None:
        """Its own preference pairs, labelled by a reward; None where it has none."""


@runtime_checkable
class TellsTruncated(Protocol):
    """A family whose models read so many words of a prompt and no more."""

    def truncated(self, model: Model, prompts: Sequence[Prompt]) -> Sequence[bool] | None:
        """Which prompts are longer than a model reads, without loading its networks; None before it is on this
        machine."""


@functools.cache
def families() -> Mapping[str, Family]:
    """All families by name."""
    found = {family.name: family for family in plugins.families()}
    for name, family in found.items():
        if absent := plugins.lacking(family, Family):
            raise InputError(f"model family {name!r} lacks {', '.join(absent)}; see alignbench.diffusion.registry.")
    return found


def family_of(model: Model) -> Family:
    """The family of a model."""
    return families()[model.family]


@functools.cache
def named() -> Mapping[str, Model]:
    """The models that have a name, those of the worlds first."""
    models = [model for family in families().values() for model in family.models]
    return {model.name: model for model in sorted(models, key=lambda model: not family_of(model).at_hand)}


def find(name: str) -> Model:
    """The model a name, folder or hub id means. Raises UnknownName; loads nothing."""
    if name in named():
        return named()[name]
    folder = Path(name)
    if name and is_folder(folder):
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"{name!r} is a folder without model_index.json; expected a saved diffusers pipeline."
                f"{conversion.of_folder(folder)}"
            )
        return families()[_reader(folder)].unnamed(folder.resolve().name, str(folder.resolve()), folder)
    if folder.is_file():
        raise InputError(f"{name!r} is a file: {conversion.of_file(folder)}")
    if folder.suffix in conversion.ENDINGS:
        raise InputError(f"there is no file {name!r}; {conversion.EXPECTED}, or a hub id such as org/name.")
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _of_hub(name)
    raise UnknownName("model", name, [*named(), "a diffusers folder", "a hub id such as org/name"])


def _of_hub(name: str) -> Model:
    """A repository, of the family that reads what of it is on this machine."""
    short = name.replace("/", "--")
    parts = families()[USUAL].needs(Model(short, source=name))
    here = local(parts[0]) if parts else None
    return families()[USUAL if here is None else _reader(here)].unnamed(short, name, here)


def _reader(folder: Path) -> str:
    """The family that reads a folder; the usual one, which says what it expected, where none does."""
    kind = read_json(folder / "model_index.json").get("_class_name")
    return next((name for name, family in families().items() if family.reads(str(kind))), USUAL)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object of a pipeline's folder. Raises InputError."""
    try:
        if not path.exists():
            raise InputError(f"{path} is missing; expected a saved diffusers pipeline.")
        content = json_of(read_bytes(path, LARGEST_CONFIG))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object; copy it again.")
    return content


def load(model: Model, meter: Meter, hold: Hold | None = None, prompts: Sequence[Prompt] = ()) -> Pipeline:
    """The pipeline of a model; see `Family.load`."""
    return family_of(model).load(model, meter, hold or Hold(), prompts)


def latent_shape(
    model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
) -> tuple[int, ...] | None:
    """See `Family.latent_shape`."""
    return family_of(model).latent_shape(model, prompts, resolution)


def missing(model: Model) -> list[str]:
    """The repositories of a model that are not on this machine."""
    return [part.repository.name for part in family_of(model).needs(model) if local(part) is None]
