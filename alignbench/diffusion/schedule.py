"""Noise schedules: the levels of the training timesteps, and the rule that picks sampling steps among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench.errors import InputError
from alignbench.quantities import Prediction, PredictionType, Steps, expand


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the training timesteps and the rule that picks sampling steps among them."""

    alpha_bar: Float[Tensor, " T"]  # float64, decreasing
    final_alpha_bar: float  # the level after the last step
    kind: PredictionType = "epsilon"
    steps_offset: int = 0
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    clip: float | None = None
    chained: bool = False  # every step ends where the next starts; DDIMScheduler's do only where n divides T

    @staticmethod
    def scaled_linear(start: float = 0.00085, end: float = 0.012, timesteps: int = 1000) -> Float[Tensor, " T"]:
        """ᾱ of Stable Diffusion: √β linear from √start to √end."""
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
        return (1 - betas).cumprod(0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """The schedule that a diffusers `scheduler_config.json` describes, whatever scheduler class it names.

        Missing keys take DDIMScheduler's defaults except `clip_sample`: the latents of a latent diffusion model are
        not confined to [-1, 1], and only a file that says so itself has them clamped.
        """
        timesteps = int(config.get("num_train_timesteps", 1000))
        start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
        rule = config.get("beta_schedule", "linear")
        if config.get("trained_betas") is not None:
            alpha_bar = (1 - torch.tensor(config["trained_betas"], dtype=torch.float64)).cumprod(0)
        elif rule == "scaled_linear":
            alpha_bar = cls.scaled_linear(start, end, timesteps)
        elif rule == "linear":
            alpha_bar = (1 - torch.linspace(start, end, timesteps, dtype=torch.float64)).cumprod(0)
        else:
            raise InputError(f"beta_schedule {rule!r} is not supported; expected scaled_linear or linear.")
        if config.get("rescale_betas_zero_snr"):
            root = alpha_bar.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            alpha_bar = root**2
        if config.get("thresholding"):
            raise InputError("dynamic thresholding is not supported: it has no Gaussian step.")
        kind = config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise InputError(f"prediction_type {kind!r} is not supported; expected epsilon, v_prediction or sample.")
        spacing = config.get("timestep_spacing", "leading")
        if spacing not in ("leading", "trailing", "linspace"):
            raise InputError(f"timestep_spacing {spacing!r} is not supported; expected leading, trailing or linspace.")
        return cls(
            alpha_bar=alpha_bar,
            final_alpha_bar=1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0]),
            kind=kind,
            steps_offset=int(config.get("steps_offset", 0)),
            spacing=spacing,
            clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None,
        )

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def sha256(self) -> str:
        """Over all of its fields, levels to nine decimals."""
        levels = [round(level, 9) for level in (*self.alpha_bar.tolist(), self.final_alpha_bar)]
        rest = [self.kind, self.steps_offset, self.spacing, self.clip, self.chained]
        return hashlib.sha256(json.dumps([levels, rest]).encode()).hexdigest()

    def steps(self, n: int) -> Steps:
        """n sampling steps as diffusers' DDIMScheduler chooses them, but where trailing or linspace round a tie. Raises
        InputError unless 1 ≤ n ≤ T."""
        total = len(self)
        if not 1 <= n <= total:
            raise InputError(f"the number of steps must lie in [1, {total}], got {n}.")
        stride = total // n
        if self.spacing == "leading":
            t = torch.arange(n - 1, -1, -1) * stride + self.steps_offset
        elif self.spacing == "trailing":
            t = (total - torch.arange(n) * (total / n)).round().long() - 1
        else:
            t = torch.linspace(0, total - 1, n, dtype=torch.float64).round().long().flip(0)
        if t.max() >= total:
            raise InputError(f"{n} steps with steps_offset {self.steps_offset} leave the {total} training timesteps.")
        before = t - stride
        next_level = torch.where(before >= 0, self.alpha_bar[before.clamp(min=0)], self.final_alpha_bar)
        if self.chained:
            next_level = torch.cat([self.alpha_bar[t[1:]], torch.tensor([self.final_alpha_bar], dtype=torch.float64)])
        return Steps(t, self.alpha_bar[t], next_level)

    def predict(self, native: Tensor, latents: Tensor, t: int | Tensor) -> Prediction:
        """A denoiser output at timestep t (one for all rows, or one per row) as a Prediction."""
        rows = torch.as_tensor(t).cpu().reshape(-1).expand(len(latents)) if torch.as_tensor(t).dim() == 0 else t
        assert isinstance(rows, Tensor)
        return Prediction(native, latents, self.alpha_bar[rows.cpu()], self.kind, self.clip)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε."""
        level = self.alpha_bar[t.cpu()]
        return expand(level.sqrt(), x0) * x0 + expand((1 - level).sqrt(), x0) * noise
