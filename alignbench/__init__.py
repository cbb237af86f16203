"""alignbench: compare algorithms that align text-to-image diffusion models with preferences and rewards.

The names below are the public interface; each is imported when first used, so that importing alignbench loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "api": ("Ran", "compare", "load", "run", "sheet"),
    "analysis.frames": ("Results",),
    "analysis.comparison": ("Comparison",),
    "analysis.plots": ("reward_curves", "win_rates"),
    "keys": ("Key",),
    "errors": ("AlignbenchError", "InputError", "RunError", "Unsupported"),
    "interface": (
        "Algorithm",
        "BiasFineTune",
        "FullFineTune",
        "LoRA",
        "PairBatch",
        "Pairs",
        "Pipeline",
        "Policy",
        "Probe",
        "Problem",
        "Prompt",
        "PromptSet",
        "Prompts",
        "Reward",
        "RewardInfo",
        "Round",
        "Sampler",
        "Samples",
        "Sampling",
        "Start",
    ),
    "quantities": ("Condition", "Prediction", "Steps"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'alignbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alignbench.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
