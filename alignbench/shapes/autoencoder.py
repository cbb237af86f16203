"""Stage 1 of the recipe: the autoencoder that turns 32 x 32 pictures into 8 x 8 x 4 latents and back.

The network starts as a linear code: the first three latent channels are the 4 x 4 block averages of red, green and
blue, and the decoder repeats them. Group normalisation otherwise hides a flat picture's absolute colour, and a network
of this size does not find it again within minutes (measured: 24 dB after 240 s from the usual start, 32 dB from this).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from alignbench.keys import Key
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.scene import SIDE

LATENT_CHANNELS = 4
CONSTANT = 6.0  # value of the constant channels that keep the last normalisation's scale fixed


def build() -> AutoencoderKL:
    """A small AutoencoderKL of 0.65 M parameters, started as the linear code."""
    levels = 3
    autoencoder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=1,  # more groups hide the ratio between colours
        mid_block_add_attention=False,
        sample_size=SIDE,
    )
    initialise(autoencoder, Key("shapes", "autoencoder", "init"))
    _start_linear(autoencoder)
    return autoencoder


def initialise(module: nn.Module, key: Key) -> None:
    """Draw every weight from the key: normal with variance 1 / fan-in for matrices and kernels, with standard deviation
    0.02 for embeddings. Biases are zero, scales of normalisations stay one."""
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            if name.endswith("bias"):
                parameter.data.zero_()
            continue
        scale = 0.02 if "embedding" in name and parameter.dim() == 2 else float(parameter[0].numel()) ** -0.5
        parameter.data.copy_(key(name).normal(*parameter.shape) * scale)


@torch.no_grad()
def _start_linear(autoencoder: AutoencoderKL) -> None:
    """Colour c travels in channels c and c + 3 with opposite signs, since silu(x) - silu(-x) = x."""
    encoder, decoder = autoencoder.encoder, autoencoder.decoder

    def clear(conv: nn.Conv2d, channels: int) -> None:
        conv.weight[:channels] = 0
        conv.bias[:channels] = 0  # type: ignore[index]

    def split(conv: nn.Conv2d) -> None:
        clear(conv, 6)
        for c in range(3):
            conv.weight[c, c, 1, 1], conv.weight[c + 3, c, 1, 1] = 1, -1

    def keep(conv: nn.Conv2d, *, average: bool = False) -> None:
        clear(conv, 6)
        middle = conv.kernel_size[0] // 2
        for c in range(6):
            if average:  # stride 2, padded below and to the right
                conv.weight[c, c, :2, :2] = 0.25
            else:
                conv.weight[c, c, middle, middle] = 1

    def join(conv: nn.Conv2d, scale: float) -> None:
        clear(conv, 3)
        for c in range(3):
            conv.weight[c, c, 1, 1], conv.weight[c, c + 3, 1, 1] = scale, -scale

    def add_constants(conv: nn.Conv2d, value: float) -> None:
        conv.bias[-4:] = torch.tensor([value, -value, value, -value])  # type: ignore[index]

    for name, parameter in autoencoder.named_parameters():
        if ".conv2." in name:  # residual branches start at zero
            parameter.zero_()
    split(encoder.conv_in)
    split(decoder.conv_in)
    for block in (*encoder.down_blocks, *decoder.up_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                keep(resnet.conv_shortcut)
    for block in encoder.down_blocks:
        if block.downsamplers:
            keep(block.downsamplers[0].conv, average=True)
    for block in decoder.up_blocks:
        if block.upsamplers:
            keep(block.upsamplers[0].conv)

    # One group: the standard deviation is set by the four constant channels and, roughly, six colours of variance 0.5.
    def scale(channels: int, constant: float) -> float:
        return float(((4 * constant**2 + 6 * 0.5) / channels) ** 0.5)

    add_constants(encoder.mid_block.resnets[-1].conv2, CONSTANT)
    join(encoder.conv_out, scale(encoder.conv_norm_out.num_channels, CONSTANT))
    encoder.conv_out.weight[LATENT_CHANNELS:] = 0
    encoder.conv_out.bias[LATENT_CHANNELS:] = -6  # small posterior variance
    add_constants(decoder.up_blocks[-1].resnets[-1].conv2, CONSTANT / 2)
    join(decoder.conv_out, scale(decoder.conv_norm_out.num_channels, CONSTANT / 2))
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        for c in range(conv.weight.shape[0]):
            conv.weight[c, c] = 1


def to_signed(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures of 0 to 255 as the tensor of -1 to 1 that the autoencoder reads."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss(autoencoder: AutoencoderKL, images: Float[Tensor, "b 3 h w"], key: Key) -> Float[Tensor, ""]:
    """Absolute plus twice the squared error of the reconstruction, plus 2e-4 of the divergence per latent element."""
    posterior = autoencoder.encode(images).latent_dist
    latents = posterior.mean + posterior.std * key.normal(*posterior.mean.shape)
    error = autoencoder.decode(latents).sample - images
    divergence = posterior.kl().mean() / latents[0].numel()
    return error.abs().mean() + 2 * error.square().mean() + 2e-4 * divergence


def train(pictures: UInt8[np.ndarray, "n h w 3"], plan: Fit, batch: int, folder: Path) -> AutoencoderKL:
    """Train the autoencoder on pictures and set its scaling factor to one over the latents' standard deviation."""
    autoencoder = build().to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    key = Key("shapes", "autoencoder", "train")

    def step_loss(step: int) -> Tensor:
        chosen = key("batch", step).generator().integers(len(pictures), size=batch)
        return loss(autoencoder, to_signed(pictures[chosen]), key("noise", step))

    fit("autoencoder", plan, autoencoder, step_loss, folder)
    autoencoder.to(memory_format=torch.contiguous_format)
    latents = encode(autoencoder, pictures[:4000])
    autoencoder.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    return autoencoder


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c h//4 w//4"]:
    """The posterior means of pictures, unscaled."""
    return torch.cat(
        [autoencoder.encode(to_signed(pictures[i : i + 250])).latent_dist.mean for i in range(0, len(pictures), 250)]
    )


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, pictures: UInt8[np.ndarray, "n h w 3"]) -> Sequence[np.ndarray]:
    """Pictures sent through the autoencoder, as arrays (3, h, w) of 0 to 1."""
    latents = encode(autoencoder, pictures)
    images = torch.cat([autoencoder.decode(chunk).sample for chunk in latents.split(250)])
    return list(((images.clamp(-1, 1) + 1) * 127.5).round().numpy() / 255)
