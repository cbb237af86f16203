"""Noise levels of flow models, and the grids on which they are sampled.

Papers    Liu et al. 2022, "Flow Straight and Fast", https://arxiv.org/abs/2209.03003; Esser et al. 2024, "Scaling
          Rectified Flow Transformers", https://arxiv.org/abs/2403.03206, §3.1 (logit-normal) and §5.3.2 (shift).
Levels    A flow model sees x_σ = (1 − σ) x_0 + σ ε, told t = 1000 σ, and predicts ε − x_0. Outside of the pipeline its
          latents are the variance-preserving y = x / ρ with ρ = √((1 − σ)² + σ²), so that ᾱ = (1 − σ)² / ρ²
          and every formula in ᾱ holds: DDIM with η = 0 is the Euler step x_σ' = x_σ + (σ' − σ) v.
Grids     From u to σ = s u / (1 + (s − 1) u) with the shift s. "linspace": u = 1, 1 − 1/n … 1/n, the grid of FLUX's
          pipeline. "scheduler": what diffusers' FlowMatchEulerDiscreteScheduler makes by itself, u from the shifted
          first to the shifted last of its training levels, which are shifted once more: the last σ is then nearly 0 for
          every n, so that the last step does nothing and the last but one is long. The same model makes other pictures
          on the other grid, so the grid is a part of what is evaluated.
FLUX.2    Its pipeline shifts by e^μ with a μ that depends on the number of steps as well as on that of tokens
          (https://github.com/black-forest-labs/flux2, sampling.py): fitted lines at 10 and 200 steps, and one between
          them. That at 200 is the line of FLUX.1, by which training draws.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Real
from torch import Tensor

from alignbench.choices import Sigmas
from alignbench.diffusion.schedule import MOST_TIMESTEPS, number
from alignbench.errors import InputError
from alignbench.quantities import Prediction, Steps, expand, flow_level, flow_scale

Density = Literal["logit_normal", "uniform"]
KARRAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling")


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a flow model, how a sampling grid is laid over them, and how training draws them."""

    shift: float = 1.0
    sigmas: Sigmas = "linspace"
    terminal: float | None = None  # the grid is stretched so that its last level but zero is this one
    density: Density = "logit_normal"  # of the levels that training draws, before the shift
    timesteps: int = 1000
    preshifted: bool = True  # the scheduler's own grid starts from training levels that are shifted already
    tokens: int | None = None  # of the image, where a grid's shift is FLUX.2's and depends on the number of steps

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], tokens: int, sigmas: Sigmas | None = None, by_steps: bool = False
    ) -> FlowSchedule:
        """The schedule that a `scheduler_config.json` of FlowMatchEulerDiscreteScheduler describes, for latents of so
        many tokens; the grid is "linspace" unless another is named.

        With use_dynamic_shifting the shift is e^μ, μ linear in the number of tokens from base_shift at
        base_image_seq_len to max_shift at max_image_seq_len, as the pipelines of FLUX and SD3 compute it; `by_steps`, a
        grid's is that of FLUX.2's pipeline.
        Raises InputError naming a field and its value.
        """
        for name in KARRAS:
            if config.get(name):
                raise InputError(f"{name} {config[name]!r} is not supported; expected false, as flow models have it.")
        total = number(config, "num_train_timesteps", 1000)
        if total != int(total) or not 2 <= total <= MOST_TIMESTEPS:
            raise InputError(f"num_train_timesteps {total!r}: expected a whole number from 2 to {MOST_TIMESTEPS}.")
        kind = config.get("time_shift_type", "exponential")
        if kind not in ("exponential", "linear"):
            raise InputError(f"time_shift_type {kind!r} is not supported; expected exponential or linear.")
        dynamic = bool(config.get("use_dynamic_shifting", False))
        if dynamic and by_steps and kind == "linear":
            raise InputError("time_shift_type 'linear' is not supported; expected exponential, as FLUX.2 has it.")
        shift = _dynamic(config, tokens, kind == "linear") if dynamic else number(config, "shift", 1.0)
        if not 0 < shift < math.inf:
            of = f" of {tokens} tokens: choose another --resolution;" if dynamic else ":"
            raise InputError(f"shift {shift:g}{of} expected a positive number.")
        terminal = config.get("shift_terminal")
        if terminal is not None and not 0 < number(config, "shift_terminal", 0) < 1:
            raise InputError(f"shift_terminal {terminal!r}: expected a level in (0, 1).")
        if sigmas is not None and sigmas not in get_args(Sigmas):
            raise InputError(f"sigmas {sigmas!r}: expected {' or '.join(get_args(Sigmas))}.")
        return cls(
            shift=shift,
            sigmas=sigmas or "linspace",
            terminal=None if terminal is None else float(terminal),
            timesteps=int(total),
            preshifted=not dynamic,
            tokens=tokens if dynamic and by_steps else None,
        )

    def __len__(self) -> int:
        return self.timesteps

    @property
    def sha256(self) -> str:
        """Over all of its fields."""
        fields = [round(self.shift, 9), self.sigmas, self.terminal, self.density, self.timesteps, self.preshifted]
        fields += [] if self.tokens is None else [self.tokens]
        return hashlib.sha256(json.dumps(["flow", *fields]).encode()).hexdigest()

    def shifted(self, u: Float[Tensor, "*n"], shift: float | None = None) -> Float[Tensor, "*n"]:
        """σ = s u / (1 + (s − 1) u), by another shift than the model's where one is named."""
        s = self.shift if shift is None else shift
        return s * u / (1 + (s - 1) * u)

    def shift_of(self, n: int) -> float:
        """The shift of a grid of n steps."""
        return self.shift if self.tokens is None else math.exp(empirical(self.tokens, n))

    def grid(self, n: int) -> Float[Tensor, " levels"]:
        """σ before each of n steps and 0 after the last, float64. Raises InputError unless 1 ≤ n ≤ T."""
        if not 1 <= n <= self.timesteps:
            raise InputError(f"the number of steps must lie in [1, {self.timesteps}], got {n}.")
        if self.sigmas == "linspace":
            u = torch.linspace(1, 1 / n, n, dtype=torch.float64)
        else:
            least = torch.tensor(1 / self.timesteps, dtype=torch.float64)
            last = self.shifted(least) if self.preshifted else least
            u = torch.linspace(1, float(last), n, dtype=torch.float64)
        sigma = self.shifted(u, self.shift_of(n))
        if self.terminal is not None and sigma[-1] < 1:
            sigma = 1 - (1 - sigma) * (1 - self.terminal) / (1 - sigma[-1])
        return torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])

    def steps(self, n: int) -> Steps:
        """n sampling steps; timesteps are 1000 σ, not whole."""
        sigma = self.grid(n)
        level = flow_level(sigma)
        return Steps(sigma[:-1] * self.timesteps, level[:-1], level[1:])

    def draw(self, uniform: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Timesteps to train at, float64, from uniform numbers in [0, 1): of a logit-normal or uniform u, shifted.

        A uniform number closer to 0 or 1 than half a training level is moved there: the levels at both ends, where the
        error says nothing, are never drawn. This moves one draw in T and leaves all others what they are.
        """
        u = uniform.double().clamp(0.5 / self.timesteps, 1 - 0.5 / self.timesteps)
        if self.density == "logit_normal":
            u = torch.special.ndtri(u).sigmoid()
        return self.shifted(u) * self.timesteps

    def level(self, t: float | Tensor) -> Float[Tensor, "*b"]:
        """ᾱ at timesteps t, float64 and on the CPU."""
        return flow_level(torch.as_tensor(t, dtype=torch.float64).cpu() / self.timesteps)

    def scaled(self, latents: Tensor, t: float | Tensor) -> Tensor:
        """What the network sees: x = ρ y."""
        return expand(flow_scale(self.level(t)).reshape(-1), latents) * latents

    def predict(self, native: Tensor, latents: Tensor, t: float | Tensor) -> Prediction:
        """A network's ε − x_0 at timestep t (one for all rows, or one per row) as a Prediction."""
        return Prediction(native, latents, self.level(t).reshape(-1).expand(len(latents)), "flow")

    def add_noise(self, x0: Tensor, noise: Tensor, t: Real[Tensor, " b"]) -> Tensor:
        """y_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε."""
        level = self.level(t)
        return expand(level.sqrt(), x0) * x0 + expand((1 - level).sqrt(), x0) * noise


def _dynamic(config: Mapping[str, Any], tokens: int, linear: bool) -> float:
    """The shift of use_dynamic_shifting: e^μ, or μ itself under time_shift_type linear."""
    low, high = number(config, "base_shift", 0.5), number(config, "max_shift", 1.15)
    first, last = number(config, "base_image_seq_len", 256), number(config, "max_image_seq_len", 4096)
    if first == last:
        raise InputError(f"base_image_seq_len {first!r}: expected another number than max_image_seq_len.")
    mu = low + (high - low) * (tokens - first) / (last - first)
    try:
        return mu if linear else math.exp(mu)
    except OverflowError:
        return math.inf


def empirical(tokens: int, steps: int) -> float:
    """FLUX.2's μ: of more than 4300 tokens 0.00016927 tokens + 0.45666666 for any number of steps; of fewer, that at
    200 steps, 0.0000873809524 tokens + 1.89833333 at 10, and the line through both."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    slope = (at_200 - (8.73809524e-05 * tokens + 1.89833333)) / 190
    return slope * steps + at_200 - 200 * slope
