"""What a model is evaluated on and aligned with by default, and an algorithm's fields on it.

`algorithms/presets/<model>.toml` holds a `[model]` table and one per algorithm; models without one take `other.toml`.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from alignbench import plugins
from alignbench.asking.refused import expected
from alignbench.diffusion.registry import Model
from alignbench.errors import InputError, UnknownName
from alignbench.interface import Algorithm, Prompt


class Defaults(BaseModel):
    """The `[model]` table of a preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: str
    train_prompts: str | None = None
    rewards: Annotated[tuple[str, ...], Field(min_length=1)]  # the first that can score the prompts is optimised
    scorers: tuple[str, ...] = ()
    pair_count: int = 2000  # made where none are given
    pair_candidates: int = 2

    def reward(self, evaluated: Sequence[Prompt]) -> str:
        """The reward to optimise where none is named."""
        if len(self.rewards) == 1:
            return self.rewards[0]
        usable = (name for name in self.rewards if plugins.reward_of(name).unsupported(evaluated, ()) is None)
        return next(usable, self.rewards[0])


def defaults_of(model: Model) -> Defaults:
    """The `[model]` table of a model's preset."""
    return Defaults(**preset_of(model.preset)["model"])


def build_algorithm(
    name: str, kind: type[Any], preset_name: str, overrides: Mapping[str, Any]
) -> tuple[Algorithm, str | None]:
    """An algorithm with the model's preset and then the user's overrides applied, and the preset's name.

    Raises InputError naming the field.
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(f"algorithm {name!r} is no dataclass; expected one, with its hyper-parameters as fields.")
    if absent := plugins.lacking(kind, Algorithm):
        raise InputError(f"algorithm {name!r} lacks {', '.join(absent)}; see alignbench.Algorithm.")
    types = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    preset = preset_of(preset_name).get(name, {})
    values: dict[str, Any] = {}
    for source in (preset, overrides):
        for field, value in source.items():
            if field not in known:
                raise InputError(f"{name}: {UnknownName('field', field, known)}")
            try:
                values[field] = TypeAdapter(_written(types[field])).validate_python(value)
            except ValidationError as error:
                raise InputError(f"{name}: {field}={value!r}: {expected(error)}.") from None
    try:
        algorithm = kind(**values)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    return cast(Algorithm, algorithm), preset_name if preset else None


def _written(kind: Any) -> Any:
    """A field's type as it is written: neither command lines nor TOML have a None, so a field that may be one takes
    "none"."""
    return Annotated[kind, BeforeValidator(_none)] if type(None) in get_args(kind) else kind


def _none(value: Any) -> Any:
    return None if value == "none" else value


@functools.cache
def preset_of(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The tables of a preset; of `other` where there is none of this name."""
    folder = plugins.folder_of("algorithms") / "presets"
    own = folder / f"{name}.toml"
    return tomllib.loads((own if own.is_file() else folder / "other.toml").read_text(encoding="utf-8"))


def preset_names() -> list[str]:
    """The models that have a preset of their own, and `other`."""
    return sorted(path.stem for path in (plugins.folder_of("algorithms") / "presets").glob("*.toml"))
