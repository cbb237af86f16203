"""Commands about what is here: `list`, `fetch`, `cache` and `env`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignbench.choices import Fetched, KeptKind
from alignbench.cli.flags import Flag
from alignbench.cli.output import listing, megabytes, say
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.plugins import Group as PluginGroup


def list_(
    group: Literal["algorithms", "rewards", "prompts", "models"] | None = None,
    *,
    scorers: Flag = False,
    prompts: Flag = False,
) -> int:
    """List algorithms, rewards, prompt sets and models.

    Parameters
    ----------
    group: str
        Only one of them.
    scorers: bool
        Only the scorers whose weights are published files, and which of these are on this machine.
    prompts: bool
        Only the published prompt sets: source, licence, counts, and which are on this machine.
    """
    if scorers or prompts:
        if group is not None or (scorers and prompts):
            raise InputError("list takes one of GROUP, --scorers and --prompts at a time; leave the others out.")
        return _list_scorers() if scorers else _list_prompts()
    from alignbench import plugins

    rooms: tuple[tuple[str, PluginGroup], ...] = (
        ("algorithms", "algorithms"),
        ("rewards", "rewards"),
        ("prompts", "benchmarks"),
    )
    for title, room in rooms:
        if group in (None, title):
            say(title)
            for name in plugins.names(room):
                listing(f"  {name:27} {plugins.summary(room, name)}")
            for short, name in plugins.aliases(room).items():
                listing(f"  {short:27} means {name}.")
    if group in (None, "models"):
        _list_models()
    return 0


def _list_models() -> None:
    from alignbench.diffusion.registry import named

    say("models")
    for model in named().values():
        listing(f"  {model.name:27} {model.note}")
        if model.licence:
            sampling = f"{model.prediction}-prediction, {model.steps} steps, guidance {model.guidance:g}"
            others = [part.name for part in (model.denoiser, model.adapter, model.refiner) if part is not None]
            listing(f"  {'':27} {' and '.join([model.source, *others])}; {sampling}; {model.licence}")


def _list_scorers() -> int:
    from alignbench.asking.needs import present

    for name, file, state in present():
        listing(f"{name:16} {file.place}", f"{'':16} {state}")
    return 0


def _list_prompts() -> int:
    from alignbench.asking.needs import prompt_sets

    for name, lines in prompt_sets():
        say(name)
        for line in lines.splitlines():
            listing(f"  {line}")
    return 0


def fetch(kind: Fetched, *names: str, to: Path | None = None) -> int:
    """Download what runs without network need later: verified, and continued where it was interrupted.

    Parameters
    ----------
    kind: str
        scorers, prompts or models.
    names: str
        Which of them; by default all that are published files.
    to: Path
        Folder to put them in, for another machine: ALIGNBENCH_DATA names it there. By default the local caches.
    """
    from alignbench.asking.needs import fetch as fetch_files

    paths = fetch_files(kind, names, to, say=say)
    if to is not None and kind != "models":
        say(f"{len(paths)} files; use them with ALIGNBENCH_DATA={to}")
    return 0


def cache(*, clear: KeptKind | None = None) -> int:
    """What is kept on this machine for later runs, and how large it is.

    Parameters
    ----------
    clear: str
        Delete one kind: scores, pairs, tensors, compiled, or files that were downloaded.
    """
    from alignbench import caches
    from alignbench.downloads import cache_folder

    if clear is not None:
        say(f"{clear}: {megabytes(caches.clear(clear))} deleted")
        return 0
    for item in caches.kept():
        listing(f"{item.kind:8} {megabytes(item.bytes):>12} in {item.files:5} files  {item.what}")
    listing(f"in {cache_folder()}; models of the hub lie in its own cache (`hf cache list`)")
    return 0


def env() -> int:
    """Print versions and hardware, for bug reports."""
    from alignbench.record.environment import environment

    for name, value in environment().items():
        if isinstance(value, dict):
            for package, version in value.items():
                listing(f"{package:12} {version}")
        else:
            listing(f"{name:12} {value}")
    return 0
