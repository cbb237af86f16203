"""What a node of a cluster does: it says what it has, and runs a cell. Imports no torch."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import alignbench
from alignbench import plugins
from alignbench.suites.child import Ended, Order, run_child

PACKAGES = ("torch", "numpy", "diffusers", "transformers", "peft", "open_clip_torch")  # what a cell's numbers hang on


def made_of() -> dict[str, str]:
    """What a result is made with here, by name: the code of alignbench, and versions."""
    from importlib import metadata

    found = {"Python": platform.python_version(), "alignbench": f"{alignbench.__version__} of code {_code()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _code() -> str:
    """A digest of the code of alignbench and of its own plug-ins."""
    own = (plugins.folder_of("algorithms"), plugins.folder_of("rewards"), plugins.folder_of("benchmarks"))
    digest = hashlib.sha256()
    for folder in (Path(alignbench.__file__).parent, *own):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def differs(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """In what a node differs from the machine that the suite was typed on, in a clause; None where it does not."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"has {name} {theirs.get(name, 'none')}, and this machine {value}"
    return None


def lacks(folder: Path, tokens: Mapping[Path, str]) -> str | None:
    """What of a suite's folders is not on this machine, in a clause; None where all are: the one it was typed in, and
    those of results, in each of which a file holds a token."""
    if not folder.is_dir():
        return f"has no folder {folder}, in which the suite was typed; share it between the nodes"
    for path, token in tokens.items():
        try:
            found = path.read_text(encoding="utf-8")
        except OSError:
            found = ""
        if found != token:
            return f"does not share {path.parent}; choose an --output that all nodes see"
    return None


def seen_from(folder: Path, tokens: Mapping[Path, str]) -> tuple[dict[str, str], str | None]:
    """What this node is made of, and what it lacks."""
    return made_of(), lacks(folder, tokens)


def run_here(order: Order, tokens: Mapping[Path, str], ours: Mapping[str, str]) -> Ended:
    """Run a cell on this node, which may have come since the others were asked what they have."""
    if (reason := differs(made_of(), ours) or lacks(order.folder, tokens)) is not None:
        return Ended(1, f"node {socket.gethostname()} {reason}.")
    return run_child(order)
