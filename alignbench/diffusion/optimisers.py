"""Which weights are tuned, and by which optimiser at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from alignbench.interface import BiasFineTune, FullFineTune, LoRA, Tuning

Tuned = Literal["lora", "full", "bias"]
OptimiserName = Literal["adamw", "adafactor"]


def tuning_of(name: Tuned, rank: int) -> Tuning:
    """The tuning an algorithm's fields name; `rank` is the LoRA's."""
    if name == "lora":
        return LoRA(rank)
    return FullFineTune() if name == "full" else BiasFineTune()


def optimiser_of(
    parameters: Sequence[nn.Parameter], name: OptimiserName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with a fixed learning rate (Shazeer and Stern 2018), which keeps no second moment per weight.

    Adafactor is transformers' and not torch's own: the latter always scales its steps by the size of the weights.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    from transformers.optimization import Adafactor

    adafactor: torch.optim.Optimizer = Adafactor(
        parameters, lr=learning_rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )
    return adafactor


def set_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next update."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def warmed_up(learning_rate: float, update: int, warmup: int) -> float:
    """Rises linearly over the first `warmup` updates (numbered from 0), then stays."""
    return learning_rate * min(1.0, (update + 1) / max(1, warmup))
