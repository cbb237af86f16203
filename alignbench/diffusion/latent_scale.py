"""What lies between the latents of an autoencoder and those of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.errors import InputError


@dataclass(frozen=True)
class LatentScale:
    """The affine map between an autoencoder's latents z and the denoiser's x = factor (z − mean), by channel."""

    mean: Sequence[float]
    factor: Sequence[float]

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

    def to_denoiser(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return (z - _channels(self.mean, z)) * _channels(self.factor, z)

    def to_autoencoder(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x / _channels(self.factor, x) + _channels(self.mean, x)


def _channels(values: Sequence[float], like: Tensor) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
