"""Names that stand for nothing, told before anything is imported that takes seconds. Imports no torch."""

from __future__ import annotations

from alignbench import plugins
from alignbench.asking import prompts
from alignbench.asking.adapter_folders import adapter_folder
from alignbench.asking.options import RunOptions
from alignbench.diffusion import registry
from alignbench.diffusion.hub import HUB_ID


def check(options: RunOptions) -> None:
    """Raise UnknownName or InputError for a name or a path that cannot be meant, as far as that can be known so far."""
    plugins.check("algorithms", options.algorithm)
    registry.find(options.model)
    for name in (options.named_reward, *(options.scorers or ())):
        if name is not None:
            plugins.check("rewards", name)
    for name in (options.prompts, options.train_prompts):
        if name is not None:
            prompts.check(name)
    adapter = options.adapter
    if adapter is not None and (adapter.exists() or not HUB_ID.fullmatch(str(adapter))):
        adapter_folder(adapter)
