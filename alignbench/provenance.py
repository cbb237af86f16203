"""What code a plug-in is made of, so that a number is never taken for that of other code. Imports no torch.

The source of a plug-in is its own file and every module that those files import, in a function or at the top, through
each other too, unless it is installed (the standard library, site-packages) or part of alignbench. Of a plug-in that
lies in an installed package it is the package's name and version, and its module with what that imports of the same
package. Files are read and never run. What code reads while it runs, such as weights, is not seen: it belongs into
`RewardInfo.files`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.files import canonical_json

if TYPE_CHECKING:
    from importlib.metadata import Distribution

OWN = "alignbench"
INSTALLED = {"site-packages", "dist-packages"}  # folders of what an installer put there


@dataclass(frozen=True)
class Place:
    """Where a plug-in's code begins: a file, or a module, perhaps of a package that was installed."""

    module: str
    file: Path | None = None
    distribution: Distribution | None = None

    @property
    def is_own(self) -> bool:
        return self.file is None and _top(self.module) == OWN


def source_of(places: Sequence[Place]) -> str | None:
    """What tells code from other code: name and version of installed packages, and SHA-256 over the files. None where
    all of it is alignbench's own."""
    foreign = [place for place in places if not place.is_own]
    if not foreign:
        return None
    files: dict[str, str] = {}
    versions = set()
    for place in foreign:
        spec = None if place.file else _spec(place.module)
        file = place.file or _file(spec)
        found = place.distribution
        if found is None and place.file is None and file is not None and _is_installed(file):
            found = _distribution(_top(place.module))
        if found is not None:
            versions.add(f"{found.name} {found.version}")
        if file is not None:
            name = "" if place.file else place.module  # a file is what it holds, wherever it lies
            files |= _hashes(name, file, spec is not None and spec.submodule_search_locations is not None)
    digest = hashlib.sha256(canonical_json(sorted(files.items())).encode()).hexdigest()
    return " ".join([*sorted(versions), digest])


def _hashes(name: str, file: Path, is_package: bool) -> dict[str, str]:
    """SHA-256 of a file and of all that it imports and that belongs to it, by module."""
    waiting, found = [(name, file, is_package)], dict[str, str]()
    while waiting:
        module, path, package = waiting.pop()
        if module in found:
            continue
        content = _content(path, again=path == file)
        found[module] = hashlib.sha256(content).hexdigest()
        for other in _imports(content, module, package):
            spec = _spec(other)
            origin = _file(spec)
            if spec is not None and origin is not None and _belongs(other, origin, name):
                waiting.append((other, origin, spec.submodule_search_locations is not None))
    return found


def _content(path: Path, again: bool) -> bytes:
    """A file's content with the line ends of Unix. A module that Python keeps is what it was when it was first read."""
    return _read(path) if again else _first_read(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return b""


_first_read = functools.cache(_read)


def _imports(content: bytes, module: str, is_package: bool) -> Iterator[str]:
    """The modules that a file may import: each that it names, those above it, and names that may be modules."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # no Python, or not of this version: whoever loads it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, module, is_package)
            if start:
                yield from _with_parents(start)
                yield from (f"{start}.{alias.name}" for alias in node.names if alias.name != "*")


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that `from ... import` names; '' where there is none."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])]) if kept else ""


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies: one that is loaded, else as Python would look for it, without running anything."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    for whole in _with_parents(name):
        spec = _found(whole, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and whole != name:
            return None  # a name in a module, and no module
    return spec


def _found(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # somebody's finder may raise anything, and then Python would not find it either
            continue
        if spec is not None:
            return spec
    return None


def _file(spec: ModuleSpec | None) -> Path | None:
    """The file of a module; None for one that is built in, or a folder without one."""
    if spec is None or not spec.origin or not spec.has_location:
        return None
    path = Path(spec.origin)
    return path if path.is_file() else None


def _belongs(module: str, file: Path, root: str) -> bool:
    """Whether a module that is imported is part of the plug-in whose root this is."""
    if _top(module) == OWN:
        return False
    return (bool(root) and _top(module) == _top(root)) or not _is_installed(file)


def _is_installed(file: Path) -> bool:
    where = file.resolve()
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    return bool(INSTALLED.intersection(where.parts)) or any(where.is_relative_to(folder) for folder in library)


@functools.cache  # it takes a second or two
def _distribution(top: str) -> Distribution | None:
    """The installed package that a top-level module belongs to."""
    from importlib import metadata

    for name in metadata.packages_distributions().get(top, ()):
        return metadata.distribution(name)
    return None


def _top(module: str) -> str:
    return module.partition(".")[0]
