"""What lies between the latents of an autoencoder and those of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.errors import InputError


@dataclass(frozen=True)
class LatentScale:
    """The affine map between an autoencoder's latents z and the denoiser's x = factor (z − mean), by channel; where
    `folded` is more than 1, each square of that side of z is a pixel of x, channel by channel and row by row."""

    mean: Sequence[float]  # of each of the denoiser's channels
    factor: Sequence[float]
    folded: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentScale:
        """As an autoencoder's configuration has it: factor = scaling_factor / latents_std, and mean = latents_mean or,
        of other models, shift_factor. Raises InputError naming a field and its value."""
        channels = int(config["latent_channels"])

        def row(name: str) -> list[float] | None:
            value = config.get(name)
            if value is None:
                return None
            found = list(value) if isinstance(value, list | tuple) else [value]
            fits = len(found) == (channels if name.startswith("latents") else 1)
            if not fits or not all(type(part) in (int, float) and math.isfinite(part) for part in found):
                many = (
                    f" {channels} numbers, one for each latent channel" if name.startswith("latents") else " a number"
                )
                raise InputError(f"the autoencoder's config.json has {name} {value!r}; expected{many}.")
            return found

        scaling, mean, std, shift = map(row, ("scaling_factor", "latents_mean", "latents_std", "shift_factor"))
        if (mean is None) != (std is None):
            raise InputError("the autoencoder's config.json: expected both of latents_mean and latents_std, or none.")
        if mean is not None and shift is not None:
            raise InputError(
                f"the autoencoder's config.json has shift_factor {shift[0]!r} beside latents_mean; expected one."
            )
        if scaling is None or scaling[0] <= 0 or not all(part > 0 for part in std or ()):
            raise InputError(
                "the autoencoder's config.json: expected positive numbers as scaling_factor and latents_std."
            )
        own = mean or [0.0 if shift is None else shift[0]] * channels
        return cls(own, [scaling[0] / part for part in std or [1.0] * channels])

    @classmethod
    def running(cls, autoencoder: Any) -> LatentScale:
        """That of FLUX.2's autoencoder, whose weights hold the running mean and variance of its folded latents:
        factor = 1 / √(variance + batch_norm_eps). Raises InputError where these are no numbers to divide by."""
        side, _ = autoencoder.config.patch_size
        mean, variance = (value.double() for value in (autoencoder.bn.running_mean, autoencoder.bn.running_var))
        std = (variance + autoencoder.config.batch_norm_eps).sqrt()
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise InputError(
                "the autoencoder's bn.running_mean and bn.running_var: expected finite means and positive variances."
            )
        return cls(mean.tolist(), (1 / std).tolist(), side)

    def to_denoiser(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        z = nn.functional.pixel_unshuffle(z, self.folded)
        return (z - _channels(self.mean, z)) * _channels(self.factor, z)

    def to_autoencoder(self, x: Float[Tensor, "b d h2 w2"]) -> Float[Tensor, "b c h w"]:
        return nn.functional.pixel_shuffle(x / _channels(self.factor, x) + _channels(self.mean, x), self.folded)


def scale_of(autoencoder: Any) -> LatentScale:
    """What lies between a loaded autoencoder and its denoiser. Raises InputError."""
    folds = hasattr(autoencoder, "bn")
    return LatentScale.running(autoencoder) if folds else LatentScale.of(autoencoder.config)


def _channels(values: Sequence[float], like: Tensor) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
