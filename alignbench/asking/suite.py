"""Suites: grids of cells as data.

A suite file holds `defaults` and `cells`, both with the options of `alignbench run` as keys, and with what a cell needs
of a machine (`processes`, `gpus`). A list as the value of an option that takes one value spans a grid:

    defaults: {model: tiny, output: results}
    cells:
      - {algo: base}
      - {algo: best_of_n, set: {n: [2, 4, 8]}}
      - {algo: ddpo, seed: [1, 2, 3], gpus: 1}
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from alignbench import plugins
from alignbench.asking.options import RunOptions
from alignbench.asking.yaml_files import read_yaml
from alignbench.errors import AlignbenchError, InputError, UnknownName, described, shown
from alignbench.reading import is_file

MOST_CELLS = 10_000  # of a suite: more is a slip of the pen, and takes the machine's memory before it says so

RESOURCES = ("processes", "gpus")  # keys of a cell that are no options of `alignbench run`

Item = TypeVar("Item")


@dataclass(frozen=True)
class Resources:
    """What a cell needs of a machine: processes that share its work, and GPUs. Without `gpus` it is one for each
    process where its model uses one and there are any."""

    processes: int = 1
    gpus: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Resources:
        """From the keys of a cell. Raises InputError."""
        for name, least in (("processes", 1), ("gpus", 0)):
            value = values.get(name, least)
            if type(value) is not int or value < least:
                raise InputError(f"{where}: {name} {shown(value)}: expected a whole number of at least {least}.")
        found = cls(**values)
        if found.gpus and found.gpus < found.processes:
            raise InputError(f"{where}: gpus {found.gpus}: each of {found.processes} processes takes one, or none do.")
        return found


@dataclass(frozen=True)
class SuiteCell:
    """A cell of a suite file: what is asked for, and what it needs."""

    options: RunOptions
    resources: Resources


def find_suite(name: str) -> Path:
    """The file of a suite: a path, or the name of one that is shipped. Raises UnknownName."""
    path = Path(name)
    if path.suffix or is_file(path):
        return path
    if name not in (known := suite_names()):
        raise UnknownName("suite", name, known)
    return _folder() / f"{name}.yaml"


def suite_names() -> list[str]:
    """The suites that are shipped."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def _folder() -> Path:
    return plugins.folder_of("benchmarks") / "suites"


def read_suite(path: Path, output: Path | None = None) -> list[RunOptions]:
    """What the cells of a suite file ask for, as `suite_cells`."""
    return [cell.options for cell in suite_cells(path, output)]


def suite_cells(path: Path, output: Path | None = None) -> list[SuiteCell]:
    """The cells of a suite file in order, perhaps with another folder for their results. Raises InputError naming the
    file and the key."""
    content = read_yaml(path)
    for name in content:
        if name not in ("defaults", "cells"):
            raise InputError(f"{path}: unknown key {name!r}; expected 'defaults' and 'cells'.")
    cells, defaults = content.get("cells"), content.get("defaults") or {}
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, dict) for cell in cells):
        raise InputError(f"{path}: 'cells' must be a list of cells such as {{algo: base}}.")
    if not isinstance(defaults, dict):
        raise InputError(f"{path}: 'defaults' must hold options such as {{model: tiny}}.")
    asked, place = list[SuiteCell](), {} if output is None else {"output": output}
    for i, cell in enumerate(cells):
        where = f"{path}, cell {i + 1}"
        values = {**defaults, **cell, **place}
        resources = Resources.parse({name: values.pop(name) for name in RESOURCES if name in values}, where)
        asked += [SuiteCell(RunOptions.parse(one, where), resources) for one in _grid(values, where)]
        if asked[-1].options.algo is None:
            raise InputError(f"{where}: names no algorithm; expected a key such as algo: ddpo.")
        if len(asked) > MOST_CELLS:
            raise InputError(f"{path}: has more than {MOST_CELLS:,} cells; make several suites of it.")
    return asked


def shard_of(items: Sequence[Item], shard: str) -> list[Item]:
    """Every n-th of some items, from the i-th on, where the shard is `i/n`: all n shards together are all items.
    Raises InputError."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    i, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"--shard {shard}: expected i/n with i from 1 to n, such as 1/8.")
    return list(items[i - 1 :: n])


def matches(pattern: str, *names: str) -> bool:
    """Whether a pattern of a shell, such as '*-seed1', is the whole of one of these names."""
    return any(fnmatchcase(name, pattern) for name in names)


def _grid(cell: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """One dictionary per combination of list-valued options and fields; `scorers` is a list in itself. Raises
    InputError where there are none, or too many to be meant."""
    named: list[tuple[str | None, str, Any]] = []
    for name, value in cell.items():
        inner = value if name == "set" and isinstance(value, dict) else None
        named += [(None, name, value)] if inner is None else [("set", k, v) for k, v in inner.items()]
    axes: list[list[tuple[str | None, str, Any]]] = []
    for parent, name, value in named:
        several = value if isinstance(value, list) and (parent, name) != (None, "scorers") else [value]
        if not several:
            raise InputError(f"{where}: {shown(name)} is an empty list; expected a value, or several of them.")
        axes.append([(parent, name, one) for one in several])
    if (cells := math.prod(map(len, axes))) > MOST_CELLS:
        raise InputError(f"{where}: spans a grid of {cells:,} cells; expected {MOST_CELLS:,} at most.")
    combinations = []
    for choice in itertools.product(*axes):
        values: dict[str, Any] = {name: value for parent, name, value in choice if parent is None}
        fields = {name: value for parent, name, value in choice if parent == "set"}
        combinations.append(values | ({"set": fields} if fields else {}))
    return combinations


def explained(error: Exception) -> str:
    """An error in a line: one that was raised on purpose explains itself."""
    return " ".join(str(error).split()) if isinstance(error, AlignbenchError) else described(error)


def describe(options: RunOptions) -> str:
    """A cell in one line."""
    fields = " ".join(f"{k}={v}" for k, v in options.set.items())
    reward = f" reward={options.reward}" if options.reward else ""
    return f"{options.algo} on {options.model}{reward} {fields} seed={options.seed}".replace("  ", " ")
