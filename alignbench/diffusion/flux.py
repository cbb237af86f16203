"""The denoiser of FLUX.1, and what it is told.

Source  Black Forest Labs 2024, https://github.com/black-forest-labs/flux: squares of 2 by 2 latents are one token,
        whose position is its row and column; text tokens stand at position 0. FLUX.1 [dev] was distilled from a guided
        model and is told the scale; FLUX.1 [schnell] was distilled further, without guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from alignbench.diffusion.architecture import JOINT, Architecture, check_transformer, precision
from alignbench.diffusion.text import TextEncoder, TextParts, tokenised

TIMES = 1000  # t = 1000 σ; the network multiplies itself


@dataclass(frozen=True)
class TokensAndPooled:
    """T5's tokens, and the pooled output of CLIP."""

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]

    @property
    def networks(self) -> Sequence[nn.Module]:
        return list(self.encoders)

    @property
    def width(self) -> int:
        return int(self.encoders[1].config.d_model)

    @property
    def pooled_width(self) -> int:
        return int(self.encoders[0].config.hidden_size)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        clip, t5 = (
            encoder(tokenised(tokenizer, texts, encoder.device))
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        )
        return {"text": t5[0], "pooled": clip.pooler_output}

    def null(self) -> dict[str, Tensor]:
        return self.encode([""])


def pack(latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n tokens packed"]:
    """Each square of 2 by 2 latents as one token of 4 c channels: channel by channel, its rows one after another."""
    n, c, h, w = latents.shape
    squares = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, h * w // 4, 4 * c)


def unpack(tokens: Float[Tensor, "n tokens packed"], h: int, w: int) -> Float[Tensor, "n c h w"]:
    """What `pack` made tokens of."""
    n, _, packed = tokens.shape
    squares = tokens.view(n, h // 2, w // 2, packed // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, packed // 4, h, w)


def positions(h: int, w: int, device: torch.device) -> Float[Tensor, "tokens 3"]:
    """0, row and column of each token of latents of a size."""
    rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    return ids.to(device, torch.float32)


def call(
    network: Any, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
) -> Float[Tensor, "n c h w"]:
    """ε − x_0. A network that is told the scale of guidance is told it in float32. In half precision a timestep is
    rounded before it is divided, as in diffusers' pipeline: two steps of rounding differ from one by as much as the
    network notices."""
    dtype, (h, w) = precision(network), latents.shape[-2:]
    words = tensors["text"].to(dtype)
    guidance = {"guidance": tensors["guidance"].float()} if "guidance" in tensors else {}
    output: Tensor = network(
        pack(latents.to(dtype)),
        timestep=t.to(dtype) / TIMES,
        encoder_hidden_states=words,
        pooled_projections=tensors["pooled"].to(dtype),
        txt_ids=torch.zeros(words.shape[1], 3, device=words.device),
        img_ids=positions(h, w, words.device),
        **guidance,
    ).sample
    return unpack(output, h, w)


def text(parts: TextParts) -> TextEncoder:
    return TokensAndPooled(parts.tokenizers, parts.encoders)


def least(config: Any) -> int:
    """One token."""
    return 2


FLUX = Architecture(call, text, check_transformer, least, JOINT)
