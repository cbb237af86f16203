"""Noise schedules: the levels of the training timesteps, and the rule that picks sampling steps among them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from alignbench.errors import InputError
from alignbench.quantities import Prediction, PredictionType, Steps, expand

MOST_TIMESTEPS = 100_000
DIFFUSION = ("epsilon", "v_prediction", "sample")  # what these models predict; flow models have FlowSchedule
OTHER_BETAS = (0.00085, 0.012)  # the defaults of some classes for beta_start and beta_end; of the others DDPM's
OF_OTHER_BETAS = (
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"
)  # fmt: skip

Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the training timesteps and the rule that picks sampling steps among them."""

    alpha_bar: Float[Tensor, " T"]  # float64, decreasing
    final_alpha_bar: float  # the level after the last step
    kind: PredictionType = "epsilon"
    steps_offset: int = 0
    spacing: Spacing = "leading"
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

        Missing keys of the noise levels take the defaults of the class that is named, those of how steps are chosen
        DDIMScheduler's, as where diffusers changes a pipeline's scheduler; except `clip_sample`: the latents of a
        latent diffusion model are not confined to [-1, 1], and only a file that says so itself has them clamped.
        Raises InputError naming a field and its value.
        """
        alpha_bar = _levels(config)
        kind = cast(PredictionType, _choice(config, "prediction_type", DIFFUSION))
        spacing = cast(Spacing, _choice(config, "timestep_spacing", get_args(Spacing)))
        if config.get("thresholding"):
            raise InputError("dynamic thresholding is not supported: it has no Gaussian step.")
        if kind == "epsilon" and alpha_bar[-1] == 0:
            cause = "rescale_betas_zero_snr" if config.get("rescale_betas_zero_snr") else "its betas"
            raise InputError(
                f"prediction_type 'epsilon' with {cause}: the last noise level holds no signal (ᾱ = 0), and there the "
                "noise says nothing of the image; expected v_prediction or sample."
            )
        clip = number(config, "clip_sample_range", 1.0) if config.get("clip_sample", False) else None
        offset = number(config, "steps_offset", 0)
        if offset != int(offset) or not 0 <= offset < len(alpha_bar):
            raise InputError(f"steps_offset {offset!r}: expected a whole number of timesteps, at least 0.")
        return cls(
            alpha_bar=alpha_bar,
            final_alpha_bar=1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0]),
            kind=kind,
            steps_offset=int(offset),
            spacing=spacing,
            clip=clip,
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
            raise InputError(
                f"{n} steps with steps_offset {self.steps_offset} leave the {total} training timesteps; expected at "
                f"most {total - self.steps_offset} steps."
            )
        before = t - stride
        next_level = torch.where(before >= 0, self.alpha_bar[before.clamp(min=0)], self.final_alpha_bar)
        if self.chained:
            next_level = torch.cat([self.alpha_bar[t[1:]], torch.tensor([self.final_alpha_bar], dtype=torch.float64)])
        return Steps(t, self.alpha_bar[t], next_level)

    def predict(self, native: Tensor, latents: Tensor, t: float | Tensor) -> Prediction:
        """A denoiser output at timestep t (one for all rows, or one per row) as a Prediction."""
        return Prediction(native, latents, self.level(t).reshape(-1).expand(len(latents)), self.kind, self.clip)

    def level(self, t: float | Tensor) -> Float[Tensor, "*b"]:
        """ᾱ at timesteps t, float64 and on the CPU."""
        return self.alpha_bar[torch.as_tensor(t).cpu()]

    def scaled(self, latents: Tensor, t: float | Tensor) -> Tensor:
        """What the network sees: the latents themselves."""
        return latents

    def draw(self, uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Timesteps to train at, from uniform numbers in [0, 1): each as often as any other."""
        return (uniform.double() * len(self)).long()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Real[Tensor, " b"]) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε."""
        level = self.level(t)
        return expand(level.sqrt(), x0) * x0 + expand((1 - level).sqrt(), x0) * noise


def _levels(config: Mapping[str, Any]) -> Float[Tensor, " T"]:
    """ᾱ of every training timestep, in float64. Raises InputError where they are not those of a noise schedule."""
    total = number(config, "num_train_timesteps", 1000)
    if total != int(total) or not 2 <= total <= MOST_TIMESTEPS:
        raise InputError(f"num_train_timesteps {total!r}: expected a whole number from 2 to {MOST_TIMESTEPS}.")
    total = int(total)
    usual = OTHER_BETAS if config.get("_class_name") in OF_OTHER_BETAS else (0.0001, 0.02)
    start, end = number(config, "beta_start", usual[0]), number(config, "beta_end", usual[1])
    rule, trained = config.get("beta_schedule", "linear"), config.get("trained_betas")
    if trained is not None:
        betas = _trained(trained, total)
    elif rule == "scaled_linear":
        betas = torch.linspace(max(start, 0) ** 0.5, max(end, 0) ** 0.5, total, dtype=torch.float64) ** 2
    elif rule == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float64)
    elif rule == "squaredcos_cap_v2":
        cosine = torch.cos((torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)  # Nichol and Dhariwal 2021
    else:
        raise InputError(
            f"beta_schedule {rule!r} is not supported; expected scaled_linear, linear or squaredcos_cap_v2."
        )
    if not (betas > 0).all() or not (betas <= 1).all():
        where = "trained_betas" if trained is not None else f"beta_start {start!r} and beta_end {end!r}"
        raise InputError(f"{where}: the variances of the noise that is added must lie in (0, 1].")
    alpha_bar = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr"):
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if (alpha_bar[:-1] <= alpha_bar[1:]).any():
        raise InputError("the betas do not take signal away at every timestep; expected a DDPM noise schedule.")
    return alpha_bar


def _trained(values: object, total: int) -> Float[Tensor, " T"]:
    fits = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == total
    if not fits or not all(type(value) in (int, float) for value in values):  # type: ignore[attr-defined]
        raise InputError(f"trained_betas: expected a list of {total} numbers, as many as num_train_timesteps says.")
    return torch.tensor(values, dtype=torch.float64)


def number(config: Mapping[str, Any], name: str, usual: float) -> float:
    """A finite number of a file; a field that is null is absent."""
    value = config.get(name)
    if value is None:
        return usual
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"{name} {value!r}: expected a number.")
    found: float = value
    return found


def _choice(config: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """One of the words that a field may hold; the first where it is absent."""
    value = config.get(name, choices[0])
    if isinstance(value, str) and value in choices:
        return value
    raise InputError(f"{name} {value!r} is not supported; expected {', '.join(choices[:-1])} or {choices[-1]}.")
