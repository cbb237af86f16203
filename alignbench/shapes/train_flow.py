"""The recipe of `tiny_flow`: `python -m alignbench.shapes.train_flow --output FOLDER`.

It stands on the pictures, the autoencoder and the tokenizer of `tiny`. Stages, each seeded and resumable (type the same
command again): pictures, latents, denoiser with text encoders. The denoiser learns first with patches of 2 x 2
latents, which is four times as fast and settles what is where; then with a token for every latent, which outlines need.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from alignbench.files import replace_file, write_text
from alignbench.keys import Key
from alignbench.shapes import autoencoder as autoencoding
from alignbench.shapes.denoiser import forget_machine
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.flow_denoiser import FlowDenoiser, Stage, refined, step_loss
from alignbench.shapes.scene import SIDE
from alignbench.shapes.train import PICTURES, accuracy, captioned_pictures

TINY = Path(__file__).parent / "weights" / "tiny"
# At twice the rate the text encoders soon forget the order of the words.
COARSE, COARSE_FIT = Stage(), Fit(steps=10_000, learning_rate=1e-3)
# Outlines show at low noise, so that more of it is drawn.
FINE = Stage(first=20_000, mean=-0.5, deviation=1.2)
FINE_FIT = Fit(steps=6_000, learning_rate=1e-3, warmup=200)
HELD_OUT = 200  # captions that the finished model is looked at with
SCALE, SHIFT = 1.5305, 0.0609  # of the published model's latents: the transformer sees (latent - SHIFT) · SCALE
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.42.0",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}


def latents_of(autoencoder: AutoencoderKL, pictures: np.ndarray, folder: Path) -> Float[Tensor, "n c h w"]:
    """The posterior means of pictures, computed once and kept in `folder`."""
    path = folder / "latents.npy"
    if not path.exists():
        encoded = autoencoding.encode(autoencoder, pictures).numpy()
        with replace_file(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, encoded)
    return torch.from_numpy(np.load(path))


def statistics(latents: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " c"], Float[Tensor, ""]]:
    """The mean of each channel, and one standard deviation for all.

    The decoder is about as sensitive to an error in one channel as to the same error in another, though their
    deviations differ by 3.4. Were each divided by its own, noise would hide most where the picture's detail lies.
    """
    mean = latents.mean((0, 2, 3))
    return mean, (latents - mean[:, None, None]).square().mean().sqrt()


@torch.no_grad()
def refold(autoencoder: AutoencoderKL, mean: Float[Tensor, " c"], std: Float[Tensor, ""]) -> None:
    """Write an affine map of the latents into the 1 x 1 convolutions between encoder, latents and decoder.

    A latent z becomes SHIFT + (z - mean) / (std · SCALE) with the variance that belongs to it, and decodes to the same
    picture. With the published model's scaling and shift factor its channels then have mean 0, and all together
    deviation 1.
    """
    factor = (1 / (SCALE * std)).expand(len(mean))
    offset = SHIFT - mean * factor
    to, back, c = autoencoder.quant_conv, autoencoder.post_quant_conv, len(mean)
    to.weight[:c] *= factor[:, None, None, None]
    to.bias[:c] = to.bias[:c] * factor + offset
    to.bias[c:] += 2 * factor.log()  # log-variances
    back.weight /= factor[:, None, None]
    back.bias -= back.weight[:, :, 0, 0] @ offset
    autoencoder.register_to_config(scaling_factor=SCALE, shift_factor=SHIFT)


def save(denoiser: FlowDenoiser, autoencoder: AutoencoderKL, tokenizer: Path, output: Path) -> None:
    """Write the pipeline in float16 in the published layout of a Stable Diffusion 3 without T5."""
    import diffusers

    parts = {
        "transformer": denoiser.transformer,
        "text_encoder": denoiser.text_encoder,
        "text_encoder_2": denoiser.text_encoder_2,
        "vae": autoencoder,
    }
    for name, part in parts.items():
        part.half().save_pretrained(output / name)
        forget_machine(output / name / "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizer, output / name, dirs_exist_ok=True)
    write_text(output / "scheduler" / "scheduler_config.json", json.dumps(SCHEDULER, indent=2) + "\n")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_text(output / "model_index.json", json.dumps(index, indent=2) + "\n")


def opened(folder: Path) -> Any:
    """The saved pipeline in plain diffusers, float32. Without the two arguments diffusers refuses a missing T5."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, captions: Sequence[str], key: Key, steps: int, guidance: float) -> list[np.ndarray]:
    """One picture (3, 32, 32) of 0 to 1 for each caption, in Euler steps at σ = 1, 1 - 1/steps, … , 1/steps."""
    sigmas = np.linspace(1, 1 / steps, steps).tolist()
    pictures: list[np.ndarray] = []
    for start in range(0, len(captions), 100):
        texts = list(captions[start : start + 100])
        noise = torch.stack([key("noise", start + i).normal(4, SIDE // 4, SIDE // 4) for i in range(len(texts))])
        images = pipeline(
            texts,
            height=SIDE,
            width=SIDE,
            latents=noise,
            sigmas=sigmas,
            guidance_scale=guidance,
            max_sequence_length=1,
            output_type="np",
        ).images
        pictures += list((images * 255).round().transpose(0, 3, 1, 2) / 255)
    return pictures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alignbench.shapes.train_flow", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the finished weights")
    folder: Path = parser.parse_args(arguments).output
    output = folder / "tiny_flow"
    if not (output / "model_index.json").exists():
        pictures, captions = captioned_pictures("train", "train", PICTURES, folder)
        tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer")
        autoencoder = AutoencoderKL.from_pretrained(TINY / "vae", dtype=torch.float32)
        latents = latents_of(autoencoder, pictures, folder)
        mean, std = statistics(latents)
        latents = (latents - mean[:, None, None]) / std
        coarse = FlowDenoiser(tokenizer, patch=2)
        fit("coarse", COARSE_FIT, coarse, step_loss(coarse, tokenizer, latents, captions, COARSE), folder)
        denoiser = refined(coarse, tokenizer)
        fit("fine", FINE_FIT, denoiser, step_loss(denoiser, tokenizer, latents, captions, FINE), folder)
        refold(autoencoder, mean, std)
        save(denoiser, autoencoder, TINY / "tokenizer", output)

    _, held_out = captioned_pictures("dev", "dev", HELD_OUT, folder)
    sample = drawn(opened(output), held_out, Key("shapes", "flow_denoiser", "dev"), steps=20, guidance=3.0)
    print("tiny_flow:", accuracy(sample, held_out))


if __name__ == "__main__":
    main()
