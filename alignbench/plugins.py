"""Finds a plug-in by name and loads that one.

A plug-in is declared by being there: `algorithms/ddpo.py` is `ddpo`, and the single entry of its `__all__` is the
object. Others come from the entry-point groups `alignbench.algorithms`, `alignbench.rewards` and
`alignbench.benchmarks`, or are given as `package.module:Name` or `path/file.py:Name`. A reward may also be a file of
weights, `path/file.safetensors`, whose metadata names the installed reward that reads it, `name=path/file`, an
installed reward with weights of one's own, or the URL of a scorer that is served, `name=URL` to name it. A folder's
`aliases.toml` says which plug-in a shorter name means. Listing reads docstrings with `ast` and imports nothing. What is
not alignbench's own is known by its source as well (`provenance`), wherever it comes from.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from alignbench import provenance
from alignbench.errors import InputError, UnknownName, described
from alignbench.provenance import Place
from alignbench.reading import is_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from alignbench.interface import Reward

Group = Literal["algorithms", "rewards", "benchmarks"]
KINDS: dict[Group, str] = {"algorithms": "algorithm", "rewards": "reward", "benchmarks": "prompt set"}
WEIGHTS = ".safetensors"
REMOTE_SCORER = "alignbench.remote.client:RemoteScorer"  # the reward that a URL means
READER = "alignbench.reward"  # in the metadata of a file of weights: the name of the reward that reads it
EXPECTED = f"expected weights with {READER!r} in their metadata, as `alignbench train-reward` writes them"


def folder_of(group: Group) -> Path:
    """Where the group's own plug-ins lie. Raises InputError when alignbench is not installed."""
    spec = importlib.util.find_spec(f"alignbench.{group}")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"alignbench.{group} cannot be imported; run `pip install -e .` in the repository.")
    return Path(next(iter(spec.submodule_search_locations)))


def _entry_points(group: str) -> Iterable[EntryPoint]:
    from importlib import metadata  # takes longer to import than all else here

    return metadata.entry_points(group=f"alignbench.{group}")


def own_names(group: Group) -> list[str]:
    """The names of the plug-ins that come with alignbench."""
    return sorted(path.stem for path in folder_of(group).glob("*.py") if not path.stem.startswith("_"))


def _is_own(group: Group, name: str) -> bool:
    return name.isidentifier() and name[0] != "_" and is_file(folder_of(group) / f"{name}.py")


def names(group: Group) -> list[str]:
    """All installed names: our own and those of other packages."""
    return sorted({*own_names(group), *(point.name for point in _entry_points(group))})


def known(group: Group, name: str) -> bool:
    """Whether a plug-in of this name is installed."""
    return _is_own(group, name) or any(point.name == name for point in _entry_points(group))


def families() -> list[Any]:
    """The families of models: the `__all__` of every room's `families.py`, and other packages' entry points."""
    rooms = sorted(path.parent.name for path in Path(__file__).parent.glob("*/families.py"))
    modules = [importlib.import_module(f"alignbench.{room}.families") for room in rooms]
    own = [getattr(module, name) for module in modules for name in module.__all__]
    return [*own, *map(_loaded, _entry_points("families"))]


def _loaded(point: EntryPoint) -> Any:
    """What an entry point of another package names. Raises InputError where it cannot be imported."""
    try:
        return point.load()
    except Exception as error:  # somebody's code may raise anything
        raise InputError(
            f"{point.value}, which an installed package names, cannot be imported: {described(error)}."
        ) from error


def aliases(group: Group) -> dict[str, str]:
    """What our own shorter names mean, such as a scorer's name without its version."""
    path = folder_of(group) / "aliases.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def full_name(group: Group, name: str) -> str:
    """The one name under which a plug-in stands in configurations and results."""
    if group == "rewards" and served(name):
        return name
    plain, equals, rest = name.partition("=")
    return f"{aliases(group).get(plain, plain)}{equals}{rest}"


def served(name: str) -> tuple[str, str] | None:
    """What a scorer that is served is called and its URL, of `URL` and `name=URL`; None for other names."""
    own, _, url = ("", "", name) if name.startswith("http") else name.partition("=")
    if not url.startswith(("http://", "https://")):
        return None
    if own and not own.replace("-", "_").isidentifier():
        raise InputError(f"reward {name!r}: expected a name of letters, digits, '-' and '_' before the '='.")
    try:
        reachable = urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        reachable = False
    if not reachable:
        raise InputError(f"reward {name!r}: expected a URL such as http://127.0.0.1:8000.")
    return own or "-".join(part for part in re.split(r"[^\w.]+", url.partition("://")[2]) if part), url


def summary(group: Group, name: str) -> str:
    """The first line of a plug-in's docstring, without importing it; '' for other packages' plug-ins."""
    path = folder_of(group) / f"{name}.py"
    if not path.is_file():
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


def load(group: Group, name: str) -> Any:
    """The plug-in a name means. Raises UnknownName with near names, InputError when the file does not fit."""
    if group == "rewards" and (remote := served(name)):
        return functools.partial(_load_elsewhere(KINDS[group], REMOTE_SCORER), remote[1])
    name = full_name(group, name)
    plain, equals, weights = name.partition("=")
    if group == "rewards" and equals and known(group, plain):
        return _with_weights(plain, Path(weights))
    if group == "rewards" and name.endswith(WEIGHTS):
        return _load_weights(Path(name))
    check(group, name)
    if ":" in name:
        return _load_elsewhere(KINDS[group], name)
    if _is_own(group, name):
        module = importlib.import_module(f"alignbench.{group}.{name}")
        exported = getattr(module, "__all__", [])
        if len(exported) != 1:
            raise InputError(f"{group}/{name}.py must export exactly one name in __all__, has {list(exported)}.")
        return getattr(module, exported[0])
    return _loaded(next(point for point in _entry_points(group) if point.name == name))


def find(name: str) -> tuple[Group, Any]:
    """A plug-in of any kind, and what it is: by the folder that has the name, else by what the object has most of.
    Raises UnknownName, InputError."""
    from alignbench.interface import Algorithm, PromptSet, Reward

    roles: dict[Group, type] = {"algorithms": Algorithm, "rewards": Reward, "benchmarks": PromptSet}
    for group in roles:
        if name in (*names(group), *aliases(group)):
            return group, load(group, name)
    if ":" not in name and not name.endswith((".py", WEIGHTS)):
        raise UnknownName("plug-in", name, {other for group in roles for other in names(group)})
    if name.endswith(WEIGHTS):
        return "rewards", load("rewards", name)
    _check_place("plug-in", name)
    kind = _load_elsewhere("plug-in", name)

    def fits(group: Group) -> tuple[int, int]:
        absent = len(lacking(kind, roles[group]))
        return len(_members(roles[group])) - absent, -absent

    return max(roles, key=fits), kind


def check(group: Group, name: str) -> None:
    """Raise UnknownName with near names, or InputError, where a name cannot be meant. Imports no plug-in."""
    if group == "rewards" and (served(name) or (name.endswith(WEIGHTS) and "=" not in name)):
        return
    if group == "rewards":
        name = name.partition("=")[0]
    _check_place(KINDS[group], name)
    if ":" not in name and not known(group, full_name(group, name)):
        raise UnknownName(KINDS[group], name, [*names(group), *aliases(group)])


def _check_place(what: str, name: str) -> None:
    """Raise InputError for a file that is not there, or one without the object that is meant."""
    place, colon, _ = name.rpartition(":")
    if place.endswith(".py") and not is_file(Path(place)):
        raise InputError(f"{what} {name!r}: there is no file {place}.")
    if not colon and name.endswith(".py"):
        raise InputError(f"{what} {name!r}: say which object of the file: {_objects_of(Path(name))}.")


def _objects_of(path: Path) -> str:
    """The references that a file offers: its classes, without importing it."""
    if not is_file(path):
        return f"{path}:Name, but there is no file {path}"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        return f"{path}:Name, but it is no Python that can be read ({error})"
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return " or ".join(f"{path}:{name}" for name in names) or f"{path}:Name"


def _load_elsewhere(what: str, reference: str) -> Any:
    """`package.module:Name` or `path/file.py:Name`."""
    place, _, attribute = reference.rpartition(":")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(f"{what} {reference!r}: cannot import {error.name!r}.") from error
    except Exception as error:  # somebody's code may raise anything
        raise InputError(f"{what} {reference!r}: {place} cannot be imported: {described(error)}.") from error
    if not hasattr(module, attribute):
        raise InputError(f"{what} {reference!r}: {place} has no {attribute!r}.")
    return getattr(module, attribute)


def _module_of_file(path: Path) -> ModuleType:
    """The module of a Python file. Raises whatever the file raises."""
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _module_name(path: Path) -> str:
    """What the module of a file is called: files of one stem are two modules."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"alignbench_plugin_{path.stem}_{place}"


def _load_weights(path: Path) -> Any:
    """The reward that a file of weights names, called with the path when it is made."""
    reader = _reader_of(path)
    kind = load("rewards", reader)
    try:
        inspect.signature(kind).bind(path)
    except TypeError:
        raise InputError(f"reward {str(path)!r} is for {reader!r}, which reads no weights; {EXPECTED}.") from None
    return functools.partial(kind, path)


def _reader_of(path: Path) -> str:
    """The installed reward that a file of weights names. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not is_file(path):
        raise InputError(f"reward {str(path)!r}: there is no such file.")
    try:
        with safe_open(path, framework="numpy") as handle:
            reader = (handle.metadata() or {}).get(READER)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"reward {str(path)!r} cannot be read as safetensors ({error}); make or copy it again."
        ) from None
    if reader is None:
        raise InputError(f"reward {str(path)!r} does not say which reward reads it; {EXPECTED}.")
    if not known("rewards", reader):  # nor a path: weights are data, and data does not choose what code runs
        raise InputError(f"reward {str(path)!r} is for {reader!r}, which is no installed reward; {EXPECTED}.")
    return reader


def _with_weights(name: str, path: Path) -> Any:
    """An installed reward, made with a file of weights."""
    kind = load("rewards", name)
    if "weights" not in inspect.signature(kind).parameters:
        raise InputError(f"reward {name!r} reads no weights; expected its name alone, not '{name}={path}'.")
    return functools.partial(kind, weights=path)


def label(name: str) -> str:
    """A plug-in's name in columns and file names: of `path/file.py:Name`, the last part; of weights, the stem; of a
    scorer that is served, its own or the host and port."""
    if remote := served(name):
        return remote[0]
    plain, equals, weights = name.partition("=")
    if equals and plain.isidentifier():
        return f"{plain}-{Path(weights).stem}"
    return Path(name).stem if name.endswith(WEIGHTS) else name.rpartition(":")[2]


def source(group: Group, name: str, kind: Any) -> str | None:
    """What tells the code of a plug-in that was loaded from other code (see `provenance`); None where it is
    alignbench's own. Of a scorer that is served, its server knows."""
    if group == "rewards" and served(name):
        return None
    name = full_name(group, name)
    if group == "rewards" and name.endswith(WEIGHTS) and "=" not in name:
        name = _reader_of(Path(name))
    plain, equals, _ = name.partition("=")
    name = plain if group == "rewards" and equals and known(group, plain) else name
    if _is_own(group, name):
        return None
    places = [_place_of(group, name)]
    module = str(getattr(getattr(kind, "func", kind), "__module__", ""))
    if module not in ("", places[0].module):  # the place only passes on what another module defines
        places.append(Place(module))
    return provenance.source_of(places)


def _place_of(group: Group, name: str) -> Place:
    """Where a plug-in that is not our own begins."""
    place, colon, _ = name.rpartition(":")
    if not colon:
        point = next(point for point in _entry_points(group) if point.name == name)
        return Place(point.module, distribution=point.dist)
    return Place(_module_name(Path(place)), Path(place)) if place.endswith(".py") else Place(place)


def rewards_of(names: Iterable[str], options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Reward]:
    """Several scorers, by the labels of their columns. Raises InputError where two would share one."""
    check_columns(names := list(names))
    return {label(name): reward_of(name, options) for name in map(_full_reward_name, names)}


def check_columns(names: Iterable[str]) -> None:
    """Raise InputError where two scorers would stand in one column, or one is named twice."""
    by_column: dict[str, str] = {}
    for name in names:
        column = label(_full_reward_name(name))
        if (other := by_column.get(column)) is None:
            by_column[column] = name
        elif _full_reward_name(other) == _full_reward_name(name):
            known_as = f"{name!r} is named twice" if other == name else f"{other!r} and {name!r} are one scorer"
            raise InputError(f"scorers: {known_as}; name it once.")
        else:
            raise InputError(
                f"two scorers would share the column {column!r}: {other!r} and {name!r}; leave one out, or rename one."
            )


def _full_reward_name(name: str) -> str:
    return full_name("rewards", name)


def reward_of(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Reward:
    """The reward a name means, with those of the options that it has (dtype, allow_unverified). What it says of itself
    holds the source of its code. Raises InputError where it does not fit the interface."""
    from alignbench.interface import Reward
    from alignbench.sourced import sourced

    kind = load("rewards", name)
    takes = inspect.signature(kind).parameters
    reward = kind(**{option: value for option, value in options.items() if option in takes})
    if absent := lacking(reward, Reward):
        raise InputError(f"reward {name!r} lacks {', '.join(absent)}; see alignbench.Reward.")
    return sourced(reward, source("rewards", name, kind))


def text_of(kind: Any) -> str:
    """The source text of the file that defines a plug-in; '' where it cannot be had."""
    try:
        return inspect.getsource(sys.modules[getattr(kind, "func", kind).__module__])
    except (OSError, KeyError, TypeError):
        return ""


def source_path(kind: Any) -> Path | None:
    """The file that defines a plug-in; None where there is none."""
    try:
        file = inspect.getsourcefile(sys.modules[getattr(kind, "func", kind).__module__])
    except (KeyError, TypeError):
        return None
    return Path(file) if file else None


def lacking(plugin: Any, role: type) -> list[str]:
    """The names that a protocol asks for and a plug-in has not."""
    return sorted(name for name in _members(role) if not _has(plugin, name))


def _members(role: type) -> set[str]:
    """The names that a protocol asks for."""
    names = getattr(role, "__protocol_attrs__", None) or {
        name for base in role.__mro__ for name in (*vars(base), *getattr(base, "__annotations__", {}))
    }
    return {name for name in names if name == "__call__" or name[0] != "_"}


def _has(plugin: Any, name: str) -> bool:
    if name == "__call__" and isinstance(plugin, type):  # every class can be called; are its objects?
        return any(name in vars(base) for base in plugin.__mro__)
    return hasattr(plugin, name)
