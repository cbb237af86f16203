"""What points tell of the distribution that they are from: its log density, the shares of its modes, their widths.

The log density at each of n points in d dimensions is the k-nearest-neighbour estimate of Kozachenko and Leonenko
(1987),
    log q(x_i) ≈ ψ(k) − ψ(n) − log c_d − d log ε_i                                                          (1)
with ε_i the distance to the k-th neighbour and c_d the volume of the unit ball. It is biased; scores.py subtracts the
bias, floors.py says what is left. Modes are those of an optimum p* = Σ_k w*_k N(m*_k, S*_k), and a point belongs to
them by its responsibilities γ*_k(x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench.testbed.mixture import Mixture

NEIGHBOURS = 5
FEWEST_POINTS = 50  # below which neighbours say nothing
FEWEST_IN_MODE = 30.0  # points below which a mode's covariance is not looked at


def log_density_by_neighbours(points: Float[Tensor, "n d"], k: int = NEIGHBOURS) -> Float[Tensor, " n"]:
    """(1), in nats. Infinite where k neighbours are at the same place."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    n, d = points.shape
    array = points.double().numpy()
    distance = np.asarray(cKDTree(array).query(array, k + 1)[0])[:, k]
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    with np.errstate(divide="ignore"):
        return torch.from_numpy(digamma(k) - digamma(n) - ball - d * np.log(distance))


def by_neighbours(points: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """(1), in nats, or no numbers where there are fewer than FEWEST_POINTS."""
    few = len(points) < FEWEST_POINTS
    return torch.full((len(points),), math.nan).double() if few else log_density_by_neighbours(points)


def shares(optimum: Mixture, points: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """γ*_k(x_i), whose mean under p* is w*_k."""
    return optimum.log_responsibilities(points).exp()


def moment_divergence(mean: Float[Tensor, "*shape d"], square: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape"]:
    """Σ over axes of KL(N(mean, square − mean²) ‖ N(0, 1)), in nats."""
    return ((square - 1 - (square - mean**2).log()) / 2).sum(-1)


@dataclass(frozen=True)
class Terms:
    """Sums per prompt of what all scores are made of; a resample of prompts is a matrix product."""

    count: Float[Tensor, " p"]
    linear: Float[Tensor, "p m"]  # terms of plain means
    share: Float[Tensor, "p k"]
    first: Float[Tensor, "p k d"]  # Σ γ x
    second: Float[Tensor, "p k d d"]  # Σ γ x xᵀ

    @classmethod
    def of(cls, points: Tensor, optimum: Mixture, linear: Float[Tensor, "n m"], prompts: Int[Tensor, " n"]) -> Terms:
        gamma = shares(optimum, points)
        centred = points[:, None] - optimum.means  # [n, k, d]

        def gathered(x: Tensor) -> Tensor:
            return torch.zeros(int(prompts.max()) + 1, *x.shape[1:], dtype=torch.float64).index_add(0, prompts, x)

        return cls(
            count=gathered(torch.ones(len(points), dtype=torch.float64)),
            linear=gathered(linear),
            share=gathered(gamma),
            first=gathered(gamma[..., None] * centred),
            second=gathered(gamma[..., None, None] * centred[..., None] * centred[..., None, :]),
        )

    @classmethod
    def of_sets(cls, sets: Float[Tensor, "r n d"], gamma: Float[Tensor, "r n k"]) -> Terms:
        """The sums of each set, as if it were one prompt's, from the shares of its points; of no plain means."""
        r, n, d = sets.shape
        squares = (sets[..., :, None] * sets[..., None, :]).flatten(2)  # [r, n, d·d]
        first, second = (gamma.mT @ torch.cat([sets, squares], 2)).split([d, d * d], 2)
        counts, no_means = torch.full((r,), n, dtype=torch.float64), torch.zeros(r, 0, dtype=torch.float64)
        return cls(counts, no_means, gamma.sum(1), first, second.unflatten(2, (d, d)))

    @classmethod
    def joined(cls, parts: Sequence[Terms]) -> Terms:
        """Those of several lots of prompts."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def means(self, weights: Float[Tensor, "s p"]) -> Float[Tensor, "s m"]:
        return weights @ self.linear / (weights @ self.count)[:, None]

    def mode_distance(self, weights: Float[Tensor, "s p"], optimum: Mixture) -> Float[Tensor, " s"]:
        """½ Σ_k |share of mode k − w*_k|: total variation between modes, in [0, 1]."""
        share = weights @ self.share / (weights @ self.count)[:, None]
        return (share - optimum.weights).abs().sum(-1) / 2

    def covariance_ratio(
        self, weights: Float[Tensor, "s p"], optimum: Mixture, points: Float[Tensor, "*#s k"]
    ) -> Float[Tensor, " s"]:
        """tr(S*_k⁻¹ Ĉ_k) / d, averaged by w*_k over the modes that have enough of `points`: 1 where the spread is
        right."""
        flat = (weights @ self.second.flatten(1)).unflatten(1, self.second.shape[1:])
        mass = weights @ self.share
        mean = (weights @ self.first.flatten(1)).unflatten(1, self.first.shape[1:]) / mass[..., None]
        covariance = flat / mass[..., None, None] - mean[..., None] * mean[..., None, :]
        precision = torch.linalg.inv(optimum.covariances)
        ratio = (precision * covariance).sum((-1, -2)) / optimum.dimension
        weight = optimum.weights * (points >= FEWEST_IN_MODE)
        return (ratio.nan_to_num() * weight).sum(-1) / weight.sum(-1)
