"""The denoiser of FLUX.2 [klein], and what it is told.

Source  Black Forest Labs 2026, https://github.com/black-forest-labs/flux2: each square of 2 by 2 latents of the
        autoencoder is one latent of the denoiser and one token (latent_scale.py folds them). A position has four
        columns: 0, row and column of a token of the image, 0; and 0, 0, 0 and the place in the text of a token of that.
        It is told a language model's hidden states, and no scale of guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from alignbench.diffusion.architecture import JOINT, Architecture, precision
from alignbench.diffusion.text import TextEncoder, TextParts, as_read
from alignbench.errors import InputError

TIMES = 1000  # t = 1000 σ; the network multiplies itself
TOLD = (9, 18, 27)  # the layers of Qwen3 whose hidden states the denoiser is told


@dataclass(frozen=True)
class TokensOfLayers:
    """The hidden states of Qwen3 after three of its layers, side by side. The empty prompt is encoded as any other.

    What was padded is hidden from Qwen3 and not from the denoiser, so that the length of the text changes pictures.
    """

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]

    @property
    def networks(self) -> Sequence[nn.Module]:
        return list(self.encoders)

    @property
    def width(self) -> int:
        return len(TOLD) * int(self.encoders[0].config.hidden_size)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokenizer, encoder = self.tokenizers[0], self.encoders[0]
        read = tokenizer(
            as_read(tokenizer, texts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).to(encoder.device)
        # Its head, which would make a number for each word of the vocabulary, is left out.
        states = encoder.model(
            input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return {"text": torch.cat([states[layer] for layer in TOLD], -1)}

    def null(self) -> dict[str, Tensor]:
        return self.encode([""])


def positions(h: int, w: int, device: torch.device) -> Float[Tensor, "tokens 4"]:
    """Of the tokens of an image, row by row."""
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(h).float(), torch.arange(w).float(), torch.zeros(1))
    return ids.to(device)


def places(n: int, device: torch.device) -> Float[Tensor, "tokens 4"]:
    """Of the tokens of a text."""
    return nn.functional.pad(torch.arange(n, device=device, dtype=torch.float32)[:, None], (3, 0))


def call(
    network: Any, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
) -> Float[Tensor, "n c h w"]:
    """ε − x_0. In half precision a timestep is rounded before it is divided, as in diffusers' pipeline: two steps of
    rounding differ from one by as much as the network notices."""
    dtype, (h, w) = precision(network), latents.shape[-2:]
    words = tensors["text"].to(dtype)
    output: Tensor = network(
        latents.to(dtype).flatten(2).transpose(1, 2),
        timestep=t.to(dtype) / TIMES,
        encoder_hidden_states=words,
        guidance=None,
        txt_ids=places(words.shape[1], words.device),
        img_ids=positions(h, w, words.device),
    ).sample
    return output.transpose(1, 2).unflatten(2, (h, w))


def text(parts: TextParts) -> TextEncoder:
    return TokensOfLayers(parts.tokenizers, parts.encoders)


def check_fit(source: str, config: Any, text: TextEncoder) -> None:
    """Raise InputError where the text encoder has too few layers, or makes what the transformer does not take."""
    assert isinstance(text, TokensOfLayers)
    if (layers := int(text.encoders[0].config.num_hidden_layers)) < TOLD[-1]:
        raise InputError(
            f"{source}: text_encoder/config.json has num_hidden_layers {layers}; expected at least {TOLD[-1]}."
        )
    if config["joint_attention_dim"] != text.width:
        raise InputError(
            f"{source}: transformer/config.json has joint_attention_dim {config['joint_attention_dim']!r}, "
            f"{len(TOLD)} layers of its text encoder make {text.width}."
        )


def least(config: Any) -> int:
    """One token."""
    return 1


# Its single blocks make queries, keys and values, and what goes into their perceptron, by one matrix.
FLUX2 = Architecture(call, text, check_fit, least, (*JOINT, "attn.to_qkv_mlp_proj"))
