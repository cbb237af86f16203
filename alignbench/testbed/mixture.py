"""Gaussian mixtures and their diffusion in closed form, in float64.

With p_0 = Σ_k w_k N(m_k, S_k) and x_t = √ᾱ x_0 + √(1 − ᾱ) ε, write C_k(ᾱ) = ᾱ S_k + (1 − ᾱ) I. Then
    p_t(x)       = Σ_k w_k N(x; √ᾱ m_k, C_k)                                                                (1)
    γ_k(x)       = w_k N(x; √ᾱ m_k, C_k) / p_t(x)                                                           (2)
    p(x_s | x_t) = Σ_k γ_k(x_t) N(√ᾱ_s m_k + a C_k(s) C_k(t)⁻¹ (x_t − √ᾱ_t m_k),  C_k(s) − a² C_k(s) C_k(t)⁻¹ C_k(s))
                   with a = √(ᾱ_t / ᾱ_s); ᾱ_s = 1 gives the posterior p(x_0 | x_t)                          (3)
    ∇ log p_t(x) = Σ_k γ_k C_k⁻¹ (√ᾱ m_k − x)                                                               (4)
and E[x_0 | x_t], the mean of (3) at ᾱ_s = 1, is what an ideal denoiser returns (Tweedie).

All levels share the eigenvectors of S_k: in them every covariance is a list of variances c = ᾱ s + 1 − ᾱ, and that of
(3) is c_s (1 − ᾱ_t / ᾱ_s) / c_t, which rounding cannot make negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.keys import Key
from alignbench.keys import normal as normals


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k N(m_k, S_k)."""

    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    covariances: Float[Tensor, "k d d"]
    axes: Float[Tensor, "k d d"] = field(init=False, repr=False)  # eigenvectors of S_k, one a column
    variances: Float[Tensor, "k d"] = field(init=False, repr=False)  # and its eigenvalues

    def __post_init__(self) -> None:
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, getattr(self, name).double())
        variances, axes = torch.linalg.eigh(self.covariances)
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "variances", variances)

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def sample(self, key: Key, n: int) -> Float[Tensor, "n d"]:
        """n exact draws."""
        return self.sets([key], n)[0]

    def sets(self, keys: Sequence[Key], n: int) -> Float[Tensor, "r n d"]:
        """A set of n exact draws per key: `sample` of each, moved into place together."""
        uniform = torch.cat([key("mode").uniform(n) for key in keys])
        normal = normals([key("noise") for key in keys], (n, self.dimension))
        return self.draw(uniform, normal.flatten(0, 1)).unflatten(0, (len(keys), n))

    def draw(self, uniform: Float[Tensor, " n"], normal: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """One draw per row: `uniform` in [0, 1) picks the component, `normal` the point in it."""
        weights, means = self.weights.log().expand(len(normal), -1), self.means.expand(len(normal), -1, -1)
        return Conditional(weights, means, self.axes, self.variances[None]).draw(uniform, normal)

    def log_prob(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return self.log_joint(x).logsumexp(-1)

    def log_responsibilities(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """log γ_k(x): which component a point is from."""
        return self.log_joint(x).log_softmax(-1)

    def log_joint(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """log w_k N(x; m_k, S_k), from which both of the above are."""
        offset = into(self.axes, x.double()[:, None] - self.means)
        return self.weights.log() + log_normal(offset, self.variances)

    def score(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """∇ log p(x): (4) without noise."""
        pull = out_of(self.axes, into(self.axes, self.means - x.double()[:, None]) / self.variances)
        return (self.log_responsibilities(x).exp()[..., None] * pull).sum(1)

    def noised(self, alpha_bar: float) -> Mixture:
        """p_t of (1) at one level."""
        eye = torch.eye(self.dimension, dtype=torch.float64)
        return Mixture(
            self.weights, math.sqrt(alpha_bar) * self.means, alpha_bar * self.covariances + (1 - alpha_bar) * eye
        )

    def reverse(
        self, x: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"], next_alpha_bar: Float[Tensor, " b"]
    ) -> Conditional:
        """p(x_s | x_t = x) of (3), from level ᾱ_t to ᾱ_s ≥ ᾱ_t, one pair of levels per row."""
        level, target = alpha_bar.double()[:, None, None], next_alpha_bar.double()[:, None, None]
        before = level * self.variances + (1 - level)
        after = target * self.variances + (1 - target)
        offset = into(self.axes, x.double()[:, None] - level.sqrt() * self.means)
        shift = out_of(self.axes, (level / target).sqrt() * after / before * offset)
        return Conditional(
            log_weights=(self.weights.log() + log_normal(offset, before)).log_softmax(-1),
            means=target.sqrt() * self.means + shift,
            axes=self.axes,
            variances=after * (1 - level / target) / before,
        )

    def posterior_mean(self, x: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """E[x_0 | x_t = x]."""
        return self.reverse(x, alpha_bar, torch.ones_like(alpha_bar)).mean()


@dataclass(frozen=True)
class Conditional:
    """A mixture of Gaussians for every row, such as (3)."""

    log_weights: Float[Tensor, "b k"]
    means: Float[Tensor, "b k d"]
    axes: Float[Tensor, "k d d"]
    variances: Float[Tensor, "#b k d"]

    @property
    def covariances(self) -> Float[Tensor, "#b k d d"]:
        return self.axes @ (self.variances[..., None] * self.axes.transpose(-1, -2))

    def mean(self) -> Float[Tensor, "b d"]:
        return (self.log_weights.exp()[..., None] * self.means).sum(1)

    def log_prob(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        offset = into(self.axes, x.double()[:, None] - self.means)
        return (self.log_weights + log_normal(offset, self.variances)).logsumexp(-1)

    def draw(self, uniform: Float[Tensor, " b"], normal: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """One draw per row: `uniform` in [0, 1) picks the component, `normal` the point in it."""
        below = self.log_weights.exp().cumsum(-1) <= uniform.double()[:, None]
        mode = below.sum(-1).clamp(max=self.log_weights.shape[1] - 1)  # the sum may end a rounding error below 1
        rows = torch.arange(len(mode))
        deviation = self.variances.expand(len(mode), -1, -1)[rows, mode].sqrt() * normal.double()
        return self.means[rows, mode] + (self.axes[mode] @ deviation[..., None])[..., 0]


def log_normal(offset: Float[Tensor, "b k d"], variances: Float[Tensor, "*#b k d"]) -> Float[Tensor, "b k"]:
    """log N of offsets from the mean, both in the eigenvectors of the covariance."""
    return -((offset**2 / variances + variances.log() + math.log(2 * math.pi)).sum(-1) / 2)


def into(axes: Float[Tensor, "k d d"], x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    """Coordinates along the axes."""
    return torch.einsum("kde,bkd->bke", axes, x)


def out_of(axes: Float[Tensor, "k d d"], x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    """The inverse of `into`."""
    return torch.einsum("kde,bke->bkd", axes, x)
