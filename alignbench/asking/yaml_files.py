"""Suites and run configurations as YAML: a mapping within bounds.

YAML names a value once and repeats it anywhere, so that a few lines can stand for more values than a machine holds;
such a file is refused before anything is built of it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import InputError, shown
from alignbench.reading import read_text

if TYPE_CHECKING:
    import yaml

LARGEST = 2**18  # bytes of a file: the parser takes a second for as much
MOST_VALUES = 200_000  # in a file, repeated ones counted as often as they stand there


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises InputError."""
    import yaml

    text = read_text(path, LARGEST)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            _check(root, {}, frozenset())
        content = loader.construct_document(root) if root is not None else None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be meant.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date of a month 99 is a ValueError
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold options such as 'algo: ddpo'.")
    # YAML reads 1e-4 as text because it lacks a dot; options of numbers parse such text themselves.
    return content


def _check(node: yaml.Node, sizes: dict[int, int], above: frozenset[int]) -> int:
    """How many values a node stands for. Raises InputError for too many, for one that holds itself, and for a name that
    stands twice in a mapping: one of the two would be ignored."""
    import yaml

    if id(node) in above:
        raise InputError("a value holds itself, as *name within &name.")
    if id(node) not in sizes:
        size = 1
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise InputError(f"{shown(twice[0])} stands twice in one mapping; leave one out.")
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        for part in inner:
            size += _check(part, sizes, above | {id(node)})
            if size > MOST_VALUES:
                raise InputError(f"repeated values make more than {MOST_VALUES:,} of it; write out what is meant.")
        sizes[id(node)] = size
    return sizes[id(node)]
