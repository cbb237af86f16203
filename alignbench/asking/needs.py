"""What a cell needs that may not be on this machine: weights of models and scorers, files of prompt sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignbench import plugins
from alignbench.choices import Fetched
from alignbench.declared import PublishedPrompts
from alignbench.diffusion import hub, registry
from alignbench.diffusion.registry import Model
from alignbench.downloads import File, NeedsFiles, NeedsOwnFiles, cache_folder, look_up, look_up_own, obtain
from alignbench.errors import InputError, RunError, UnknownName

GROUPS: dict[str, plugins.Group] = {"scorers": "rewards", "prompts": "benchmarks"}


@dataclass(frozen=True)
class Needs:
    """The names of what a cell needs and is not on this machine."""

    models: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.models, *self.prompts, *self.scorers)

    def check(self) -> None:
        """Raise RunError naming everything that is missing, where several things are and the network too. One alone is
        named, with its size and hash, by what needs it."""
        if len(self.names) < 2 or not hub.offline():
            return
        from huggingface_hub import constants

        groups = {"models": self.models, "prompts": self.prompts, "scorers": self.scorers}
        commands = [f"`alignbench fetch {kind} {' '.join(names)}`" for kind, names in groups.items() if names]
        others = "; or choose others with --scorers" if self.scorers else ""
        raise RunError(
            f"not on this machine: {', '.join(self.names)}; and the network cannot be reached. Where it can, run "
            f"{' and '.join(commands)}, and copy {constants.HF_HUB_CACHE} and {cache_folder()} here{others}. "
            "`--model tiny` works offline."
        )


def needs_of(model: Model, prompts: Iterable[str], scorers: Iterable[str]) -> Needs:
    """What is missing of a model and of plug-ins by name; a name that nothing answers to is left to whoever uses it."""
    return Needs(
        models=(model.name,) if registry.missing(model) else (),
        prompts=tuple(name for name in dict.fromkeys(prompts) if _lacks_files("benchmarks", name)),
        scorers=tuple(name for name in dict.fromkeys(scorers) if _lacks_files("rewards", name)),
    )


def _lacks_files(group: plugins.Group, name: str) -> bool:
    """Whether a plug-in of that name is there, and published files that it reads are not."""
    try:
        plugin = plugins.load(group, name)
    except UnknownName:
        return False
    if isinstance(plugin, NeedsOwnFiles):
        return all(look_up_own(file) is None for file in plugin.own_files)
    return isinstance(plugin, NeedsFiles) and any(look_up(file) is None for file in plugin.files)


def needed(kind: Fetched, names: Sequence[str] = ()) -> dict[str, tuple[File, ...]]:
    """The files of each plug-in named; where none is, of all that need any. Raises InputError for one without files."""
    group = GROUPS[kind]
    found: dict[str, tuple[File, ...]] = {}
    for name in [plugins.full_name(group, name) for name in names] or plugins.own_names(group):
        plugin = plugins.load(group, name)
        if isinstance(plugin, NeedsFiles):
            found[name] = tuple(plugin.files)
        elif names and isinstance(plugin, NeedsOwnFiles):
            raise InputError(
                f"{plugins.KINDS[group]} {name!r} cannot be downloaded; "
                + " ".join(
                    f"put {file.pattern} below a folder named by ALIGNBENCH_DATA: {file.what}"
                    for file in plugin.own_files
                )
            )
        elif names:
            raise InputError(f"{plugins.KINDS[group]} {name!r} needs no files; leave it out.")
    return found


def fetch(kind: Fetched, names: Sequence[str], folder: Path | None, say: Callable[[str], None]) -> list[Path]:
    """Download what is not there, verified, below the folder where one is named, else into the caches."""
    if kind == "models":
        return [_fetch_model(name, folder, say) for name in names or _downloadable()]
    wanted = needed(kind, names)
    files = list(dict.fromkeys(file for files in wanted.values() for file in files))
    paths = []
    for number, file in enumerate(files, start=1):
        say(f"{number} of {len(files)}: {file.place} ({megabytes(file)})")
        paths.append(obtain(file, folder))
        say(f"  in {paths[-1]}, {'verified' if file.sha256 else 'no sha256 known: checked when it is read'}")
    return paths


def present() -> list[tuple[str, File, str]]:
    """Each scorer's files and whether they are on this machine, by their sizes: contents are checked when used."""
    rows = []
    for name, files in needed("scorers").items():
        for file in files:
            path = look_up(file)
            if path is None:
                state = f"missing ({megabytes(file)})"
            elif file.size is not None and path.stat().st_size != file.size:
                state = f"of another size ({path.stat().st_size} bytes, published {file.size}): {path}"
            else:
                state = f"here: {path}"
            rows.append((name, file, state))
    return rows


def prompt_sets() -> list[tuple[str, str]]:
    """Each published prompt set, and its source, licence, counts and where its files are, a line each."""
    rows = []
    for name in plugins.own_names("benchmarks"):
        kind = plugins.load("benchmarks", name)
        if not isinstance(kind, PublishedPrompts):
            continue
        counts = ", ".join(f"{split} {count:,}" for split, count in kind.counts.items())
        lines = [f"source   {kind.source}", f"licence  {kind.licence}", f"prompts  {counts}"]
        if isinstance(kind, NeedsFiles):
            lines += [_state(file.place, look_up(file)) for file in kind.files]
        elif isinstance(kind, NeedsOwnFiles):
            lines += [_state(file.pattern, look_up_own(file)) for file in kind.own_files]
        else:
            lines.append("here     part of alignbench")
        rows.append((name, "\n".join(lines)))
    return rows


def _state(place: str, path: Path | None) -> str:
    return f"missing  {place}" if path is None else f"here     {path}"


def megabytes(file: File) -> str:
    """A size for people."""
    return f"{file.size / 1e6:,.1f} MB" if file.size is not None else "size not published"


def _downloadable() -> list[str]:
    return [model.name for model in registry.named().values() if registry.family_of(model).needs(model)]


def _fetch_model(name: str, folder: Path | None, say: Callable[[str], None]) -> Path:
    model = registry.find(name)
    family = registry.family_of(model)
    if family.needs(model):
        say(f"model {name}: {model.source}")
    path = family.fetch(model, folder / model.name if folder else None)
    say(f"  in {path}")
    return path
