"""Diffusion of a Gaussian mixture in closed form: an exact test double for every model, fast enough for unit tests.

With p_0 = Σ_k w_k N(m_k, S_k) and x_t = √ᾱ x_0 + √(1 − ᾱ) ε, write C_k = ᾱ S_k + (1 − ᾱ) I. Then
    p_t(x)         = Σ_k w_k N(x; √ᾱ m_k, C_k)                                                              (1)
    γ_k(x)         = w_k N(x; √ᾱ m_k, C_k) / p_t(x)                                                         (2)
    E[x_0 | x_t=x] = Σ_k γ_k (m_k + √ᾱ S_k C_k⁻¹ (x − √ᾱ m_k))                                              (3)
and the noise estimate follows from (3). A policy adds a small network, zero at the start, to the exact noise.

"Images" are the points themselves: decoding and encoding change nothing, and no prompt matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignbench.diffusion.meter import Meter
from alignbench.diffusion.rollout import initial_noise
from alignbench.diffusion.schedule import Schedule
from alignbench.errors import Unsupported
from alignbench.interface import Prompt, Tuning
from alignbench.keys import Key
from alignbench.quantities import Condition, Prediction, Steps


class Mixture:
    """Σ_k w_k N(m_k, S_k) in float64."""

    def __init__(
        self,
        weights: Float[Tensor, " k"],
        means: Float[Tensor, "k d"],
        covariances: Float[Tensor, "k d d"],
    ) -> None:
        self.weights, self.means, self.covariances = weights.double(), means.double(), covariances.double()

    @classmethod
    def grid(cls) -> Mixture:
        """Nine modes on a 3 x 3 grid, four apart, with covariance 0.3 I and equal weights, in two dimensions."""
        axis = torch.tensor([-4.0, 0.0, 4.0])
        means = torch.cartesian_prod(axis, axis)
        return cls(torch.full((9,), 1 / 9), means, 0.3 * torch.eye(2).expand(9, 2, 2))

    def sample(self, key: Key, n: int) -> Float[Tensor, "n d"]:
        """n exact draws, float64."""
        mode = torch.searchsorted(self.weights.cumsum(0), key("mode").uniform(n).double()).clamp(
            max=len(self.weights) - 1
        )
        noise = key("noise").normal(n, self.means.shape[1]).double()
        root = torch.linalg.cholesky(self.covariances)
        return self.means[mode] + (root[mode] @ noise[..., None])[..., 0]

    def posterior_mean(self, latents: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """E[x_0 | x_t] of (3), float64."""
        x, level = latents.double(), alpha_bar.double()[:, None]
        if (level == level[0]).all():
            level = level[:1]  # one set of covariances serves the whole batch
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        noised = level[..., None, None] * self.covariances + (1 - level)[..., None, None] * eye  # [b or 1, k, d, d]
        offset = x[:, None] - level.sqrt()[..., None] * self.means  # [b, k, d]
        root = torch.linalg.cholesky(noised)
        white = torch.linalg.solve_triangular(root, offset[..., None], upper=False)[..., 0]
        log_norm = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gamma = (self.weights.log() - (white**2).sum(-1) / 2 - log_norm).softmax(-1)
        solved = torch.cholesky_solve(offset[..., None], root)
        means = self.means + level.sqrt()[..., None] * (self.covariances @ solved)[..., 0]
        return (gamma[..., None] * means).sum(1)


class MixturePipeline:
    """The exact denoiser of a mixture behind the pipeline interface."""

    def __init__(self, mixture: Mixture, schedule: Schedule, meter: Meter, name: str = "mixture") -> None:
        self.mixture, self.schedule, self.meter, self.name = mixture, schedule, meter, name

    @property
    def train_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.mixture.means.shape[1],)

    def info(self) -> Mapping[str, Any]:
        return {"name": self.name, "image_shape": list(self.latent_shape)}

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        rows = {"text": torch.zeros(len(prompts), 1)}
        return Condition(rows, rows)

    def initial_noise(self, keys: Sequence[Key]) -> Float[Tensor, "b d"]:
        return initial_noise(keys, self.latent_shape)

    def timesteps(self, n: int) -> Steps:
        return self.schedule.steps(n)

    def add_noise(
        self, x0: Float[Tensor, "b d"], noise: Float[Tensor, "b d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        return self.schedule.add_noise(x0, noise, t)

    def predict(
        self, latents: Float[Tensor, "b d"], t: int | Tensor, condition: Condition, guidance: float = 1.0
    ) -> Prediction:
        evaluations = len(latents) if guidance == 1 else 2 * len(latents)
        self.meter.forward("denoiser", evaluations)
        prediction = self.schedule.predict(torch.zeros_like(latents), latents, t)
        level = prediction.alpha_bar[:, None]
        x0 = self.mixture.posterior_mean(latents, prediction.alpha_bar)
        eps = ((latents.double() - level.sqrt() * x0) / (1 - level).sqrt()).to(latents.dtype)
        eps = eps + self._residual(latents, prediction.alpha_bar)
        self.meter.watch("denoiser", eps, evaluations)
        return self.schedule.predict(eps, latents, t)

    def _residual(self, latents: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Tensor:
        return torch.zeros_like(latents)

    def decode(self, latents: Float[Tensor, "b d"], clamp: bool = True) -> Float[Tensor, "b d"]:
        self.meter.forward("decode", len(latents))
        return latents

    def encode(self, images: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return images

    def adapt(self, tuning: Tuning, key: Key) -> MixturePolicy:
        """The exact denoiser plus a residual network, whatever the tuning: there are no weights to adapt."""
        return MixturePolicy(self, key)


class MixturePolicy(MixturePipeline):
    """The exact denoiser plus a network of two hidden layers whose last layer starts at zero."""

    def __init__(self, reference: MixturePipeline, key: Key, width: int = 64) -> None:
        super().__init__(reference.mixture, reference.schedule, reference.meter, reference.name)
        self._reference = reference
        (d,) = self.latent_shape
        self.network = nn.Sequential(
            nn.Linear(d + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d)
        )
        for name, parameter in self.network.named_parameters():
            last = name.startswith("4")
            draw = key(name).normal(*parameter.shape) / math.sqrt(parameter.shape[-1])
            parameter.data.copy_(torch.zeros_like(draw) if last or parameter.dim() == 1 else draw)

    @property
    def reference(self) -> MixturePipeline:
        return self._reference

    def adapt(self, tuning: Tuning, key: Key) -> MixturePolicy:
        raise Unsupported("a trained policy cannot be adapted again; adapt the pipeline it came from.")

    def _residual(self, latents: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Tensor:
        level = alpha_bar[:, None].to(latents.dtype)
        residual: Tensor = self.network(torch.cat([latents / 4, level, level.sqrt(), (1 - level).sqrt()], 1))
        return residual

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        return dict(self.network.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        return self.network.load_state_dict(state)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "residual.safetensors")
