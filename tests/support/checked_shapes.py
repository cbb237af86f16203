"""Keeps jaxtyping's import hook to functions with shapes in their signature, and to calls of a kind that was not seen
before. The other functions are three of four calls, and checking each call anew takes a third of the tests' time. To be
imported before what is checked."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any

import jaxtyping
import numpy as np
from torch import Tensor

FEW = 8
CONTAIN = (Tensor, np.ndarray, tuple, list, set, frozenset, dict, str, type)  # of which not only the type matters
_every = jaxtyping.jaxtyped


def _of_shapes(*, typechecker: Any) -> Any:
    decorate = _every(typechecker=typechecker)

    def checked(target: Any) -> Any:
        if not has_shapes(target):
            return target
        if isinstance(target, property) and inspect.isfunction(target.fget):
            return property(once(target.fget, decorate), target.fset, target.fdel)
        if dataclasses.is_dataclass(target) and inspect.isfunction(vars(target).get("__init__")):
            target.__init__ = once(target.__init__, decorate)
            return target
        return once(target, decorate) if inspect.isfunction(target) else decorate(target)

    return checked


def once(function: Callable[..., Any], decorate: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function whose arguments and result are checked where none of their kind were before.

    All that a check looks at is in the kind, so a call that it leaves out would have passed.
    """
    checked = functools.cache(lambda: decorate(function))  # made where it is called: that takes milliseconds
    passed: set[Hashable] = set()

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        asked = (kind(given), kind(named))
        if asked not in passed:
            result = checked()(*given, **named)
            passed.update((asked, (asked, kind(result))))
            return result
        result = function(*given, **named)
        if (asked, kind(result)) not in passed:
            decorate(_giving(result, function))(*given, **named)
            passed.add((asked, kind(result)))
        return result

    return call


def _giving(result: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same signature that returns this result at once."""

    def give(*_: Any, **__: Any) -> Any:
        return result

    made = types.FunctionType(give.__code__, function.__globals__, function.__name__, None, give.__closure__)
    functools.update_wrapper(made, function)
    del made.__wrapped__  # type: ignore[attr-defined]
    made.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return made


def kind(value: Any) -> Hashable:
    """What a check can tell a value by: of an array its type and shape, of a collection its members' kinds."""
    of = type(value)
    if isinstance(value, Tensor | np.ndarray):
        return of, value.dtype, tuple(value.shape)
    if isinstance(value, tuple) and len(value) <= FEW:
        return of, tuple(map(kind, value))
    if isinstance(value, list | tuple | set | frozenset):
        members = frozenset(map(type, value))
        plain = not any(issubclass(member, CONTAIN) for member in members)
        return of, members if plain else frozenset(map(kind, value))
    if isinstance(value, dict):
        return of, frozenset((key, kind(each)) for key, each in value.items())
    # Of a Literal, the value matters, and of a class, which one it is.
    return (of, value) if isinstance(value, str | type) else of


def has_shapes(target: Any) -> bool:
    """Whether an annotation of a function, a property or a dataclass names one of jaxtyping's types."""
    if isinstance(target, property):
        return has_shapes(target.fget)
    if inspect.isclass(target):
        names, annotations = vars(sys.modules[target.__module__]), inspect.get_annotations(target)
    else:
        function = inspect.unwrap(getattr(target, "__func__", target))
        names, annotations = function.__globals__, function.__annotations__
    words = {word for text in annotations.values() for word in re.findall(r"\w+", str(text))}
    return any(type(names.get(word)).__module__.startswith("jaxtyping") for word in words)


jaxtyping.jaxtyped = _of_shapes  # the decorator that the hook writes above every function and class
