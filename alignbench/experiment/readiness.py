"""Whether what a run needs is on this machine, asked before anything is loaded, so that all that is missing is said at
once."""

from __future__ import annotations

from collections.abc import Iterable

from alignbench import plugins
from alignbench.diffusion import models
from alignbench.downloads import NeedsFiles, NeedsOwnFiles, cache_folder, look_up, look_up_own
from alignbench.errors import RunError, UnknownName


def check(model: models.Model, prompts: Iterable[str], scorers: Iterable[str]) -> None:
    """Raise RunError naming everything that is missing, where several things are and the network too. One alone is
    named, with its size and hash, by what needs it."""
    absent = {
        "models": [model.name] if models.missing(model) else [],
        "prompts": [name for name in dict.fromkeys(prompts) if _lacks_files("benchmarks", name)],
        "scorers": [name for name in dict.fromkeys(scorers) if _lacks_files("rewards", name)],
    }
    names = [name for group in absent.values() for name in group]
    if len(names) < 2 or not models.offline():
        return
    commands = [f"`alignbench fetch {kind} {' '.join(found)}`" for kind, found in absent.items() if found]
    from huggingface_hub import constants

    others = "; or choose others with --scorers" if absent["scorers"] else ""
    raise RunError(
        f"not on this machine: {', '.join(names)}; and the network cannot be reached. Where it can, run "
        f"{' and '.join(commands)}, and copy {constants.HF_HUB_CACHE} and {cache_folder()} here{others}. "
        "`--model tiny` works offline."
    )


def _lacks_files(group: plugins.Group, name: str) -> bool:
    """Whether a plug-in of that name is there, and published files that it reads are not."""
    try:
        plugin = plugins.load(group, name)
    except UnknownName:  # a file, or a wrong name: whoever uses it says so
        return False
    if isinstance(plugin, NeedsOwnFiles):
        return all(look_up_own(file) is None for file in plugin.own_files)
    return isinstance(plugin, NeedsFiles) and any(look_up(file) is None for file in plugin.files)
