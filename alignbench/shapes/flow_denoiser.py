"""The denoiser of `tiny_flow`: a miniature of Stable Diffusion 3 (Esser et al. 2024, https://arxiv.org/abs/2403.03206).

A rectified flow: x_σ = (1 - σ) x + σ ε, and the network predicts the velocity v = ε - x. Its words come from two CLIP
text encoders that are trained with it. There is no T5: the published pipeline then appends up to 256 zero tokens, and
the denoiser is trained for every number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from scipy.special import ndtri
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from alignbench.keys import Key
from alignbench.shapes.autoencoder import LATENT_CHANNELS, initialise
from alignbench.shapes.denoiser import EMPTY_CAPTIONS, spread_words, text_config, tokenise
from alignbench.shapes.scene import SIDE

WIDTHS = (96, 64)  # of the two text encoders; their states stand side by side, as in the published model
TEXT = sum(WIDTHS)
LAYERS = (3, 2)  # of which the last gives the pooled vector alone: the sequence is read one layer earlier
HEADS, HEAD = 4, 40
SPACING = 4.0  # between the coordinates of neighbouring latents, see `set_positions`
NULLS = 256  # the largest number of null tokens; the published pipeline's default


@dataclass(frozen=True)
class Stage:
    """Which pictures, captions, noise and σ the steps of a training stage draw."""

    first: int = 0  # the number of its first step: stages that share none draw independently
    mean: float = 0.0  # of the logit of σ
    deviation: float = 1.0
    batch: int = 64


class NullAttention:
    """The joint attention of Stable Diffusion 3, in which the last text token stands for `count` equal ones.

    Null tokens are equal and have no position, so that they stay equal through all layers: n of them are one whose
    logit, as a key, is raised by log n.
    """

    def __init__(self) -> None:
        self.count = 1

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b patches d"],
        encoder_hidden_states: Float[Tensor, "b words d"],
        attention_mask: None = None,
    ) -> tuple[Float[Tensor, "b patches d"], Float[Tensor, "b words d"]]:
        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        picture, text = hidden_states, encoder_hidden_states
        q, k, v = heads(attn.to_q(picture)), heads(attn.to_k(picture)), heads(attn.to_v(picture))
        q, k = attn.norm_q(q), attn.norm_k(k)
        text_q, text_k, text_v = (heads(to(text)) for to in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        q, k, v = torch.cat([q, text_q], 2), torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)
        raised = q.new_zeros(1, 1, 1, k.shape[2])
        raised[..., -1] = math.log(self.count)
        out = scaled_dot_product_attention(q, k, v, attn_mask=raised).transpose(1, 2).flatten(2)
        picture, text = out[:, : picture.shape[1]], out[:, picture.shape[1] :]
        if not attn.context_pre_only:  # the last layer needs no text
            text = attn.to_add_out(text)
        return attn.to_out[0](picture), text


class FlowDenoiser(nn.Module):
    """The trained part of the pipeline: two text encoders (0.37 M parameters) and the transformer (3.57 M), which sees
    the latents as tokens of `patch` x `patch`."""

    def __init__(self, tokenizer: CLIPTokenizer, patch: int = 1) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = (
            CLIPTextModelWithProjection(text_config(tokenizer, width, layers))
            for width, layers in zip(WIDTHS, LAYERS, strict=True)
        )
        self.transformer = SD3Transformer2DModel(
            sample_size=SIDE // 4,
            patch_size=patch,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=4,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            caption_projection_dim=HEADS * HEAD,
            pos_embed_max_size=SIDE // 4,
            qk_norm="rms_norm",
        )
        self.nulls = NullAttention()
        self.transformer.set_attn_processor(self.nulls)
        key = Key("shapes", "flow_denoiser", "init")
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            initialise(getattr(self, name), key(name))
        with torch.no_grad():
            spread_words(self.text_encoder)
            spread_words(self.text_encoder_2)
            for name, module in self.transformer.named_modules():
                # adaLN-Zero: every layer starts as the identity and the output as zero (Peebles & Xie 2023, DiT).
                if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
                    module.weight.zero_()
        set_positions(self.transformer)

    def encode(self, tokens: Int[Tensor, "b n"], nulls: int = 1) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b d"]]:
        """States of a caption's tokens, followed by null tokens, and its pooled vector."""
        read = [encoder(tokens, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        words = torch.cat([out.hidden_states[-2] for out in read], -1)
        words = torch.cat([words, words.new_zeros(len(words), nulls, TEXT)], 1)
        return words, torch.cat([out.text_embeds for out in read], -1)

    def forward(
        self, latents: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], tokens: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b c h w"]:
        words, pooled = self.encode(tokens)
        velocity: Tensor = self.transformer(latents, words, pooled, 1000 * sigma, return_dict=False)[0]
        return velocity


@torch.no_grad()
def set_positions(transformer: SD3Transformer2DModel) -> None:
    """Write the table of positions anew, with the coordinates of latents SPACING apart.

    diffusers scales coordinates by the published model's size. Eight latents a side would stand at 1, 1.25, 1.5 … and
    hardly differ; four apart they span about what the published model's do. The table is saved with the weights.
    """
    table: Any = transformer.pos_embed.pos_embed
    side, quarter = math.isqrt(table.shape[1]), table.shape[2] // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angles = SPACING * transformer.config.patch_size * torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    across, down = waves[None].expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    table.copy_(torch.cat([across, down], -1).reshape(table.shape))


@torch.no_grad()
def refined(coarse: FlowDenoiser, tokenizer: CLIPTokenizer) -> FlowDenoiser:
    """The denoiser with a token for every latent, begun from one whose tokens are patches: a latent is read as a patch
    of four equal ones would be, and predicted as the mean of a patch. All between is taken over."""
    fine = FlowDenoiser(tokenizer, patch=1)
    kept = {name: value for name, value in coarse.state_dict().items() if "pos_embed.pos_embed" not in name}
    patch = coarse.transformer.config.patch_size
    kept["transformer.pos_embed.proj.weight"] = kept["transformer.pos_embed.proj.weight"].sum((2, 3), keepdim=True)
    for name in ("transformer.proj_out.weight", "transformer.proj_out.bias"):
        kept[name] = kept[name].unflatten(0, (patch * patch, LATENT_CHANNELS)).mean(0)
    fine.load_state_dict({**fine.state_dict(), **kept})
    return fine


def noise_levels(
    rng: np.random.Generator, batch: int, mean: float = 0.0, deviation: float = 1.0
) -> Float[Tensor, " b"]:
    """σ for each picture of a batch: logit-normal in (0, 1), by default as Stable Diffusion 3's.

    Stratified: one draw in each of `batch` equally likely intervals, which lowers the noise of the gradient (Kingma et
    al. 2021, https://arxiv.org/abs/2107.00630).
    """
    normal = ndtri((np.arange(batch) + rng.random(batch)) / batch)
    return torch.from_numpy(1 / (1 + np.exp(-(deviation * normal + mean)))).float()


def loss(
    denoiser: nn.Module,
    latents: Float[Tensor, "b c h w"],
    tokens: Int[Tensor, "b n"],
    noise: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted velocity."""
    level = sigma[:, None, None, None]
    error: Tensor = denoiser((1 - level) * latents + level * noise, sigma, tokens) - (noise - latents)
    return error.square().mean()


def step_loss(
    denoiser: FlowDenoiser,
    tokenizer: CLIPTokenizer,
    latents: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    stage: Stage,
) -> Callable[[int], Tensor]:
    """The loss of step i as a function of i, for `fit`: all its draws depend on i alone."""
    batch = stage.batch
    tokens, empty = tokenise(tokenizer, captions), tokenise(tokenizer, [""])
    key = Key("shapes", "flow_denoiser", "train")

    def at(step: int) -> Tensor:
        step += stage.first
        rng = key("batch", step).generator()
        chosen = torch.from_numpy(rng.integers(len(latents), size=batch))
        sigma = noise_levels(rng, batch, stage.mean, stage.deviation)
        unconditional = torch.from_numpy(rng.random(batch) < EMPTY_CAPTIONS)
        denoiser.nulls.count = round(NULLS ** rng.random())
        said = torch.where(unconditional[:, None], empty, tokens[chosen])
        return loss(denoiser, latents[chosen], said, key("noise", step).normal(batch, *latents.shape[1:]), sigma)

    return at
