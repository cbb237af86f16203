"""The denoiser of Stable Diffusion 3 and 3.5, and what it is told.

Paper  Esser et al. 2024, https://arxiv.org/abs/2403.03206, §4 and appendix B: two CLIP encoders and T5-XXL, of which T5
       may be left out.
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

CLIPS = 2


@dataclass(frozen=True)
class TripleText:
    """The last hidden states but one of both CLIPs side by side, zeros up to T5's width, and behind them T5's tokens;
    pooled, both projections. The empty prompt is encoded as any other.

    Without T5 there are as many zeros in the place of its tokens: they take part in attention, so that their number
    changes pictures.
    """

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]
    joint: int  # the width of the denoiser's tokens
    tokens: int  # of T5's text

    @property
    def networks(self) -> Sequence[nn.Module]:
        return list(self.encoders)

    @property
    def width(self) -> int:
        t5 = [int(encoder.config.d_model) for encoder in self.encoders[CLIPS:]] or [self.joint]
        return max(*t5, sum(int(encoder.config.hidden_size) for encoder in self.encoders[:CLIPS]))

    @property
    def pooled_width(self) -> int:
        return sum(int(encoder.config.projection_dim) for encoder in self.encoders[:CLIPS])

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        outputs = [
            encoder(tokenised(tokenizer, texts, encoder.device), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers[:CLIPS], self.encoders[:CLIPS], strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        pooled: Float[Tensor, "b pooled"] = torch.cat([output.text_embeds for output in outputs], -1)
        far = hidden.new_zeros(len(texts), self.tokens, self.joint)
        for tokenizer, encoder in zip(self.tokenizers[CLIPS:], self.encoders[CLIPS:], strict=True):
            far = encoder(tokenised(tokenizer, texts, encoder.device))[0].to(hidden.dtype)
        near = nn.functional.pad(hidden, (0, self.joint - hidden.shape[-1]))
        return {"text": torch.cat([near, far], 1), "pooled": pooled}

    def null(self) -> dict[str, Tensor]:
        return self.encode([""])


def call(
    network: Any, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
) -> Float[Tensor, "n c h w"]:
    """ε − x_0; the timestep is 1000 σ."""
    dtype = precision(network)
    output: Tensor = network(
        latents.to(dtype),
        timestep=t.float(),
        encoder_hidden_states=tensors["text"].to(dtype),
        pooled_projections=tensors["pooled"].to(dtype),
    ).sample
    return output


def text(parts: TextParts) -> TextEncoder:
    assert parts.tokens is not None
    return TripleText(parts.tokenizers, parts.encoders, int(parts.config.joint_attention_dim), parts.tokens)


def least(config: Any) -> int:
    """One token."""
    return int(config.patch_size)


def idle(config: Any) -> tuple[str, ...]:
    """The last block leaves the text's tokens as they are, and so their queries unused."""
    attention = f"transformer_blocks.{config.num_layers - 1}.attn"
    return (f"{attention}.add_q_proj", f"{attention}.norm_added_q")


SD3 = Architecture(call, text, check_transformer, least, JOINT, idle=idle)
