"""How the denoiser of a class of networks is called, what it is told, and where its LoRAs sit: what differs between
UNets and transformers, as one object. `architectures.py` has them by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor

from alignbench.diffusion.text import TextEncoder, TextParts
from alignbench.errors import InputError

JOINT = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip


class Call(Protocol):
    """One evaluation: latents as the network sees them, timesteps, and a condition's tensors to the network's own
    output. A denoiser that is told a scale of guidance finds it under "guidance" [n]."""

    def __call__(
        self, network: Any, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, "n c h w"]: ...


@dataclass(frozen=True)
class Architecture:
    """A kind of denoiser."""

    call: Call
    text: Callable[[TextParts], TextEncoder]
    check_fit: Callable[[str, Any, TextEncoder], None]  # raises InputError where the texts are not what it takes
    least: Callable[[Any], int]  # side of the smallest latents that a network of this configuration takes
    targets: tuple[str, ...]  # the layers of a LoRA that names none: the projections of attention to image and text
    matrices: Mapping[str, str] = field(default_factory=lambda: {"lora_A": "lora_A", "lora_B": "lora_B"})
    # Names of a LoRA's matrices in files, as diffusers' own training scripts for this kind write them.
    idle: Callable[[Any], tuple[str, ...]] = lambda config: ()  # layers whose output nothing uses: never trained


@runtime_checkable
class Pooled(TextEncoder, Protocol):
    """A text encoder that also makes one vector of a text."""

    @property
    def pooled_width(self) -> int: ...


def precision(network: Any) -> torch.dtype:
    """That of a denoiser's first weight, and so of all but its LoRAs. diffusers' own property walks through all layers,
    which takes a thirtieth of a small network's forward pass."""
    found: torch.dtype = next(network.parameters()).dtype
    return found


def check_transformer(source: str, config: Any, text: TextEncoder) -> None:
    """Raise InputError where a transformer does not take what the text encoders make."""
    assert isinstance(text, Pooled)
    for name, made in (("joint_attention_dim", text.width), ("pooled_projection_dim", text.pooled_width)):
        if config[name] != made:
            raise InputError(
                f"{source}: transformer/config.json has {name} {config[name]!r}, its text encoders make {made}."
            )
