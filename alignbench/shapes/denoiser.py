"""Stage 2 of the recipe: the tokenizer, text encoder and denoiser, and saving all parts in the published layout.

The result is an ordinary Stable Diffusion 1.x folder: CLIPTokenizer with vocab.json and merges.txt, CLIPTextModel with
keys under `text_model.`, UNet2DConditionModel, AutoencoderKL and the scheduler settings of Stable Diffusion 1.5.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from alignbench.diffusion.schedule import Schedule
from alignbench.files import write_text
from alignbench.keys import Key
from alignbench.shapes.autoencoder import LATENT_CHANNELS, encode, initialise
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.scene import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, SHAPES, SIDE, SIZES

TOKENS = 20  # the longest caption of the world has 14 words, and two tokens mark its ends
WIDTH = 96  # of the text encoder
EMPTY_CAPTIONS = 0.1  # share of captions replaced by "" for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting, Hang et al. 2023, https://arxiv.org/abs/2303.09556
START, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.42.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair encoding in which every word of the world is one token and others fall back to letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    grammar = "a an and on left right of above below background"
    words = [*grammar.split(), *SHAPES, *PLURALS.values(), *COLOURS, *BACKGROUNDS, *SIZES, *NUMBERS]
    characters = sorted(string.ascii_lowercase + string.digits + ",.!'-")
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Without numbers given to the letters in advance, ties between merges fall differently from run to run.
    letters = [*characters, *dict.fromkeys(word[-1] + "</w>" for word in words)]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, end_of_word_suffix="</w>", special_tokens=letters, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([word for word in words for _ in range(3)], trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*characters, *(c + "</w>" for c in characters), *("".join(merge) for merge in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(vocabulary))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **special}
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    """A small text encoder's configuration."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def spread_words(text_encoder: nn.Module) -> None:
    """Raise the standard deviation of the freshly drawn word embeddings to 0.3: words differ from the start."""
    for name, parameter in text_encoder.named_parameters():
        if "token_embedding" in name:
            parameter.mul_(15)


class Denoiser(nn.Module):
    """The trained part of the pipeline: text encoder and UNet."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(text_config(tokenizer, WIDTH, layers=2))
        self.unet = UNet2DConditionModel(
            sample_size=SIDE // 4,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(64, 96),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        key = Key("shapes", "denoiser", "init")
        initialise(self.unet, key("unet"))
        initialise(self.text_encoder, key("text"))
        with torch.no_grad():
            spread_words(self.text_encoder)
            self.unet.conv_out.weight.zero_()

    def forward(
        self, latents: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b c h w"]:
        text = self.text_encoder(tokens)[0]
        noise: Tensor = self.unet(latents, t, encoder_hidden_states=text).sample
        return noise


def tokenise(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Int[Tensor, "b n"]:
    """Token ids padded to the model's length."""
    batch = tokenizer(list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def loss(
    denoiser: nn.Module,
    schedule: Schedule,
    latents: Float[Tensor, "b c h w"],
    tokens: Int[Tensor, "b n"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
) -> Float[Tensor, ""]:
    """min(SNR, 5) / SNR times the squared error of the predicted noise."""
    level = schedule.alpha_bar[t]
    snr = level / (1 - level)
    error = (denoiser(schedule.add_noise(latents, noise, t), t, tokens) - noise).square().mean((1, 2, 3))
    return ((snr.clamp(max=SNR_CAP) / snr).float() * error).mean()


def train(
    autoencoder: AutoencoderKL,
    pictures: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str],
    plan: Fit,
    batch: int,
    folder: Path,
    output: Path,
) -> None:
    """Train text encoder and UNet on the pictures' latents and write the whole pipeline to `output`."""
    tokenizer = write_tokenizer(output / "tokenizer")
    latents = encode(autoencoder, pictures) * autoencoder.config.scaling_factor
    tokens, empty = tokenise(tokenizer, captions), tokenise(tokenizer, [""])
    schedule = Schedule.from_config(SCHEDULER)
    denoiser = Denoiser(tokenizer)
    key = Key("shapes", "denoiser", "train")

    def step_loss(step: int) -> Tensor:
        rng = key("batch", step).generator()
        chosen = torch.from_numpy(rng.integers(len(latents), size=batch))
        t = torch.from_numpy(rng.integers(len(schedule), size=batch))
        unconditional = torch.from_numpy(rng.random(batch) < EMPTY_CAPTIONS)
        said = torch.where(unconditional[:, None], empty, tokens[chosen])
        noise = key("noise", step).normal(batch, *latents.shape[1:])
        return loss(denoiser, schedule, latents[chosen], said, noise, t)

    fit("denoiser", plan, denoiser, step_loss, folder)
    save(denoiser, autoencoder, output)


def save(denoiser: Denoiser, autoencoder: AutoencoderKL, output: Path) -> None:
    """Write unet, text_encoder, vae, scheduler and model_index.json in float16 in the published layout."""
    import diffusers

    denoiser.unet.half().save_pretrained(output / "unet")
    autoencoder.half().save_pretrained(output / "vae")
    denoiser.text_encoder.half().save_pretrained(output / "text_encoder")
    # transformers 5 drops the key prefix that published checkpoints have and that older readers need.
    weights = output / "text_encoder" / "model.safetensors"
    tensors = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    for part in ("unet", "vae", "text_encoder"):
        forget_machine(output / part / "config.json")
    write_text(output / "scheduler" / "scheduler_config.json", json.dumps(SCHEDULER, indent=2) + "\n")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_text(output / "model_index.json", json.dumps(index, indent=2) + "\n")


def forget_machine(config: Path) -> None:
    """Remove the path of the folder a network was made in."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    write_text(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
