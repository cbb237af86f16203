"""Quadratic rewards on Gaussian mixtures: the tilted optimum, its frontier, and the value of noisy states.

For r(x) = −½ xᵀA x + hᵀx + c, the distribution that solves max_q E_q r − β KL(q ‖ p_ref) is p*_λ ∝ p_ref exp(λ r) with
λ = 1/β (Levine 2018, https://arxiv.org/abs/1805.00909), and of p_ref = Σ_k w_k N(m_k, S_k) it is again a mixture. With
g_k = h − A m_k, the reward's gradient at m_k,
    S*_k     = (S_k⁻¹ + λA)⁻¹ = (I + λ S_k A)⁻¹ S_k                                                         (1)
    m*_k     = m_k + λ S*_k g_k                                                                             (2)
    log Z_k  = λ r(m_k) + ½ λ² g_kᵀ S*_k g_k − ½ log det(I + λ S_k A),   w*_k ∝ w_k Z_k,   Z = Σ_k w_k Z_k   (3)
    R(λ)     = E_{p*} r = d log Z / dλ,   KL(λ) = KL(p*_λ ‖ p_ref) = λ R(λ) − log Z(λ)                      (4)
    R'(λ)    = Var_{p*} r,   KL'(λ) = λ R'(λ): a concave frontier of slope dR/dKL = β                        (5)
    J*(β)    = max_q E_q r − β KL(q ‖ p_ref) = β log Z(1/β);   J* − J_q = β KL(q ‖ p*)                      (6)
    V_t(x)   = log E[exp(λ r(x_0)) | x_t = x] = logsumexp_k (log γ_k(x) + log Z of the posterior's k-th part) (7)
and p*_t, the noised p*, is p_t exp(V_t) / Z: its score ∇ log p_t + ∇V_t is that of the optimal denoiser.

It exists where S_k⁻¹ + λA is positive definite for every k: for A ⪰ 0, whenever λ ≥ 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.testbed.mixture import Mixture

MATCH_TOLERANCE = 1e-12  # of the λ that earns a given reward, relative
LARGEST = 1e9  # λ beyond which a reward counts as out of reach


@dataclass(frozen=True)
class Quadratic:
    """r(x) = −½ xᵀA x + hᵀx + c with symmetric A; A = 0 makes it linear."""

    curvature: Float[Tensor, "d d"]  # A
    slope: Float[Tensor, " d"]  # h
    constant: float = 0.0  # c

    def __post_init__(self) -> None:
        object.__setattr__(self, "curvature", self.curvature.double())
        object.__setattr__(self, "slope", self.slope.double())

    @classmethod
    def around(cls, curvature: Float[Tensor, "d d"], centre: Float[Tensor, " d"]) -> Quadratic:
        """−½ (x − a)ᵀA (x − a): zero at its centre a."""
        a, slope = centre.double(), curvature.double() @ centre.double()
        return cls(curvature, slope, -0.5 * float(a @ slope))

    @classmethod
    def linear(cls, slope: Float[Tensor, " d"], constant: float = 0.0) -> Quadratic:
        return cls(torch.zeros(len(slope), len(slope)), slope, constant)

    def __call__(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape"]:
        x = x.double()
        return (x * (self.slope - x @ self.curvature / 2)).sum(-1) + self.constant

    def gradient(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """g of (2) at any point."""
        return self.slope - x.double() @ self.curvature


def log_z_of_parts(
    reward: Quadratic, rate: float, means: Float[Tensor, "*shape d"], covariances: Float[Tensor, "*#shape d d"]
) -> Float[Tensor, "*shape"]:
    """log Z_k of (3) at λ = `rate`, of Gaussians in any number."""
    stretch = torch.eye(means.shape[-1], dtype=torch.float64) + rate * covariances @ reward.curvature
    g = reward.gradient(means)
    gain = torch.linalg.solve(stretch, (covariances @ g[..., None]))[..., 0]  # S* g
    return rate * reward(means) + rate**2 / 2 * (g * gain).sum(-1) - torch.linalg.slogdet(stretch)[1] / 2


def tilted(mixture: Mixture, reward: Quadratic, rate: float) -> Mixture:
    """p*_λ at λ = `rate`. Raises ValueError where it does not exist."""
    low, high = rates(mixture, reward)
    if not low < rate < high:
        raise ValueError(f"no tilted distribution at λ = {rate}: it must lie in ({low:.4g}, {high:.4g}).")
    stretch = torch.eye(mixture.dimension, dtype=torch.float64) + rate * mixture.covariances @ reward.curvature
    covariances = torch.linalg.solve(stretch, mixture.covariances)
    covariances = (covariances + covariances.transpose(-1, -2)) / 2
    means = mixture.means + rate * (covariances @ reward.gradient(mixture.means)[..., None])[..., 0]
    parts = mixture.weights.log() + log_z_of_parts(reward, rate, mixture.means, mixture.covariances)
    return Mixture(parts.softmax(-1), means, covariances)


def log_z(mixture: Mixture, reward: Quadratic, rate: float) -> float:
    """log Z(λ) of (3)."""
    parts = log_z_of_parts(reward, rate, mixture.means, mixture.covariances)
    return float((mixture.weights.log() + parts).logsumexp(-1))


def rates(mixture: Mixture, reward: Quadratic) -> tuple[float, float]:
    """The open interval of λ in which S_k⁻¹ + λA is positive definite for every k."""
    root = torch.linalg.cholesky(mixture.covariances)
    spectrum = torch.linalg.eigvalsh(root.transpose(-1, -2) @ reward.curvature @ root)
    top, bottom = float(spectrum.max()), float(spectrum.min())
    tiny = 1e-12
    return -1 / top if top > tiny else -math.inf, -1 / bottom if bottom < -tiny else math.inf


def moments(mixture: Mixture, reward: Quadratic) -> tuple[float, float]:
    """Mean and variance of the reward under a mixture."""
    g, spread = reward.gradient(mixture.means), mixture.covariances @ reward.curvature
    within = reward(mixture.means) - spread.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    mean = float((mixture.weights * within).sum())
    slope = (g[..., None, :] @ mixture.covariances @ g[..., None])[..., 0, 0]
    bend = (spread @ spread).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    variance = float((mixture.weights * (slope + bend + (within - mean) ** 2)).sum())
    return mean, variance


def soft_value(
    mixture: Mixture, reward: Quadratic, rate: float, x: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """V_t(x) of (7) at λ = `rate`, in nats."""
    posterior = mixture.reverse(x, alpha_bar, torch.ones_like(alpha_bar))
    parts = log_z_of_parts(reward, rate, posterior.means, posterior.covariances)
    return (posterior.log_weights + parts).logsumexp(-1)


def optimal_score(
    mixture: Mixture, reward: Quadratic, rate: float, x: Float[Tensor, "b d"], alpha_bar: float
) -> Float[Tensor, "b d"]:
    """∇ log p*_t(x) at one level."""
    return tilted(mixture, reward, rate).noised(alpha_bar).score(x)


@dataclass(frozen=True)
class Frontier:
    """The best reward at every divergence from p_ref, (4) and (5)."""

    mixture: Mixture
    reward: Quadratic

    def at(self, rate: float) -> tuple[float, float]:
        """R(λ) and KL(λ)."""
        mean, _ = moments(tilted(self.mixture, self.reward, rate), self.reward)
        return mean, rate * mean - log_z(self.mixture, self.reward, rate)

    def optimum(self, beta: float) -> float:
        """J*(β) of (6)."""
        return beta * log_z(self.mixture, self.reward, 1 / beta)

    def matched(self, mean_reward: float) -> float:
        """The λ whose p*_λ earns this mean reward: at it KL(q ‖ p*_λ) is smallest for any q that earns as much, and
        equals the divergence that q spends in excess of the frontier. Infinite where no λ reaches the reward."""
        from scipy.optimize import brentq

        def missing(rate: float) -> float:
            return self.at(rate)[0] - mean_reward

        lower, upper = rates(self.mixture, self.reward)
        low = high = 0.0
        step = 1e-3
        while missing(high) < 0:
            low, step = high, step * 2
            high = min(high + step, high + (upper - high) / 2)
            if high > LARGEST:
                return math.inf
        step = 1e-3
        while missing(low) > 0:
            high, step = low, step * 2
            low = max(low - step, low - (low - lower) / 2)
            if low < -LARGEST or low - lower < 1e-9:
                return -math.inf
        return low if low == high else float(brentq(missing, low, high, rtol=MATCH_TOLERANCE, xtol=1e-15))

    def points(self, rates: Sequence[float]) -> list[tuple[float, float, float]]:
        """(λ, R, KL) along the frontier."""
        return [(rate, *self.at(rate)) for rate in rates]
