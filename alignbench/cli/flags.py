"""Flags from options models: every option of a command is written once, in the model."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic.fields import FieldInfo

from alignbench.asking.options import HEADINGS, Options, option_of
from alignbench.errors import shown


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number. What is none is refused: it would be rounded by itself."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{shown(text)}; expected a whole number.") from None


Command = Callable[..., int]
Flag = Annotated[bool, Parameter(negative=())]  # has no --no-... beside it
Whole = Annotated[int, Parameter(converter=_whole)]
SOME = 1  # values at least of an option that takes several: none would mean the default, or nothing at all
Names = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=SOME, negative=())]
Paths = Annotated[tuple[Path, ...] | None, Parameter(consume_multiple=SOME, negative=())]

COMMAND = Group("Command", sort_key=len(HEADINGS))  # what a command itself takes, below the options
GROUPS = {heading: Group(heading, sort_key=place) for place, heading in enumerate(HEADINGS)}


def takes(model: type[Options]) -> Callable[[Command], Command]:
    """Give a command a flag for each option of a model, before its own. The command's first argument is what was
    given of them, typed or by the environment; what was not given is absent."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*places: Any, **values: Any) -> int:
            typed = {name: values.pop(name, None) for name in model.model_fields}
            return command({name: value for name, value in typed.items() if value is not None}, *places, **values)

        signature = inspect.signature(command, eval_str=True)
        _, *own = signature.parameters.values()
        own_first = sorted(model.model_fields, key=lambda name: name not in model.__annotations__)
        flags = [_parameter(model, name, model.model_fields[name]) for name in own_first]
        ours = [p.replace(annotation=Annotated[p.annotation, Parameter(group=COMMAND)]) for p in own]
        parameters = sorted([*flags, *ours], key=lambda parameter: parameter.kind)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        setattr(call, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
        del call.__wrapped__
        return call

    return decorate


def _parameter(model: type[Options], name: str, field: FieldInfo) -> inspect.Parameter:
    option = option_of(model, name)
    kind = option.typed or _plain(field.annotation)
    marks = Parameter(
        help=field.description,
        group=GROUPS[option.heading],
        negative=(),
        metavar=option.metavar,
        consume_multiple=SOME if get_origin(kind) is tuple else None,
        converter=_whole if kind is int else None,
        show_default=(lambda _: str(field.default)) if _worth_showing(field.default) else False,
        required=field.is_required(),
    )
    default = inspect.Parameter.empty if field.is_required() else None
    kind = kind if field.is_required() else kind | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, marks])


def _plain(annotation: Any) -> Any:
    """A type without None and without what pydantic checks."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        others = [_plain(part) for part in get_args(annotation) if part is not type(None)]
        return functools.reduce(lambda one, other: one | other, others)
    return annotation


def _worth_showing(default: Any) -> bool:
    return default is not None and default is not False and default not in ({}, ())
