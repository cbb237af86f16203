"""Keeps jaxtyping's import hook to functions with shapes in their signature. The others are three of four calls, and
checking them takes a third of the tests' time. To be imported before what is checked."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import jaxtyping

_every = jaxtyping.jaxtyped


def _of_shapes(*, typechecker: Any) -> Any:
    decorate = _every(typechecker=typechecker)
    return lambda target: decorate(target) if has_shapes(target) else target


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
