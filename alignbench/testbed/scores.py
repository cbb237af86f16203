"""How far a method's points are from the optimum, in nats, by the identities of alignbench/testbed/tilt.py.

For points x_i ~ q, all divergences share one unknown, log q:
    KL(q ‖ p)      = E_q [log q − log p]                                                                    (1)
    regret         = β KL(q ‖ p*_β) = J*(β) − J_q(β), what q misses of the best objective                   (2)
    excess KL      = KL(q ‖ p*_λ) at the λ with R(λ) = E_q r, the divergence q spends beyond the frontier: free of β,
                     zero exactly where q is on it, and the smallest KL(q ‖ p*_λ) over λ                    (3)
log q comes, in this order, from: an exact KL that the method knows; the change of variables of a deterministic chain
(`density_of_chain`); the k-nearest-neighbour estimate of Kozachenko and Leonenko (1987)
    log q(x_i) ≈ ψ(k) − ψ(n) − log c_d − d log ε_i                                                          (4)
with ε_i the distance to the k-th neighbour and c_d the volume of the unit ball, whose bias is measured on exact draws
from p*_λ, as many as there are points, and subtracted. In many dimensions (4) sees only the problem's plane; the other
axes are compared with N(0, I) by their means and variances.
Intervals are percentile bootstraps over prompts of the terms of these means, widened by the spread that exact draws
show and resampling misses; the bias that the bootstrap itself adds to squares is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench.keys import Key, resample_counts
from alignbench.testbed.exact_problem import ExactProblem
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Frontier, Quadratic, moments, tilted

NEIGHBOURS = 5
FEWEST_POINTS = 50  # below which neighbours say nothing
REPLICATES = 32  # sets of exact draws that measure bias and floor
RESAMPLES = 1000
LEVEL = 0.95
NORMAL_QUANTILE = 1.645  # of a normal variable at LEVEL
FEWEST_IN_MODE = 30.0  # points below which a mode's covariance is not looked at

Kind = Literal["exact", "estimate", "upper bound"]


@dataclass(frozen=True)
class Measure:
    """A number with its interval. `floor` is what exact draws from the optimum stay below in 95 of 100 cases."""

    value: float | None  # None where it is infinite or cannot be told
    about: str
    kind: Kind = "estimate"
    low: float | None = None
    high: float | None = None
    floor: float | None = None


def log_density_by_neighbours(points: Float[Tensor, "n d"], k: int = NEIGHBOURS) -> Float[Tensor, " n"]:
    """(4), in nats. Infinite where k neighbours are at the same place."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    n, d = points.shape
    array = points.double().numpy()
    distance = np.asarray(cKDTree(array).query(array, k + 1)[0])[:, k]
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    with np.errstate(divide="ignore"):
        return torch.from_numpy(digamma(k) - digamma(n) - ball - d * np.log(distance))


def shares(optimum: Mixture, points: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """γ*_k(x_i), whose mean under p* is w*_k."""
    return optimum.log_responsibilities(points).exp()


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

    def means(self, weights: Float[Tensor, "s p"]) -> Float[Tensor, "s m"]:
        return weights @ self.linear / (weights @ self.count)[:, None]

    def mode_distance(self, weights: Float[Tensor, "s p"], optimum: Mixture) -> Float[Tensor, " s"]:
        """½ Σ_k |share of mode k − w*_k|: total variation between modes, in [0, 1]."""
        share = weights @ self.share / (weights @ self.count)[:, None]
        return (share - optimum.weights).abs().sum(-1) / 2

    def covariance_ratio(self, weights: Float[Tensor, "s p"], optimum: Mixture) -> Float[Tensor, " s"]:
        """tr(S*_k⁻¹ Ĉ_k) / d, averaged over the modes that have points, by w*_k: 1 where the spread is right."""
        flat = (weights @ self.second.flatten(1)).unflatten(1, self.second.shape[1:])
        mass = weights @ self.share
        mean = (weights @ self.first.flatten(1)).unflatten(1, self.first.shape[1:]) / mass[..., None]
        covariance = flat / mass[..., None, None] - mean[..., None] * mean[..., None, :]
        precision = torch.linalg.inv(optimum.covariances)
        ratio = (precision * covariance).sum((-1, -2)) / optimum.dimension
        weight = optimum.weights * (self.share.sum(0) >= FEWEST_IN_MODE)
        return (ratio.nan_to_num() * weight).sum(-1) / weight.sum()


@dataclass(frozen=True)
class Deviations:
    """What the mean of log q − log p comes to on sets of exact draws from p, where it should be 0: bias and spread."""

    of_sets: Float[Tensor, " r"]
    naive_variance: float  # of such a mean, were its terms independent

    @property
    def bias(self) -> float:
        return float(self.of_sets.mean())

    @property
    def floor(self) -> float:
        return float((self.of_sets - self.of_sets.mean()).quantile(LEVEL))

    def correct(self, resampled: Float[Tensor, " s"], key: Key) -> Float[Tensor, " s"]:
        """Resamples of such a mean (the first is the value itself) without the bias, and with the spread that
        resampling misses: the uncertainty of the bias, and that neighbours share their distances."""
        missed = max(0.0, float(self.of_sets.var()) - self.naive_variance) + float(self.of_sets.var()) / REPLICATES
        noise = key.normal(len(resampled)).double() * math.sqrt(missed)
        noise[0] = 0
        return resampled - self.bias + noise


@dataclass(frozen=True)
class LogDensity:
    """Terms whose mean over the points is E_q log q, and where they are from."""

    terms: Float[Tensor, " n"]
    source: Literal["exact divergence", "change of variables", "nearest neighbours"]

    @classmethod
    def of(cls, x: Tensor, reference: Mixture, known_kl: float | None, log_q: Tensor | None) -> LogDensity:
        if known_kl is not None:  # E_q log q = KL(q ‖ p_ref) + E_q log p_ref
            return cls(known_kl + reference.log_prob(x), "exact divergence")
        if log_q is not None:
            return cls(log_q.double(), "change of variables")
        return cls(_neighbours(x), "nearest neighbours")

    def on_exact_draws(self, p: Mixture, key: Key) -> Deviations | None:
        """The neighbours' deviations on as many draws; None for a source that has none."""
        if self.source != "nearest neighbours":
            return None
        sets = [p.sample(key(i), len(self.terms)) for i in range(REPLICATES)]
        terms = torch.stack([_neighbours(y) - p.log_prob(y) for y in sets])
        return Deviations(terms.mean(1), float(terms.var(1, correction=0).mean()) / terms.shape[1])

    def about(self, deviations: Deviations | None) -> str:
        text = f"log q by {self.source}"
        if deviations is not None:
            text += f" (k = {NEIGHBOURS}, {len(self.terms)} points, bias {deviations.bias:.4f} subtracted)"
        return text


def _neighbours(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return log_density_by_neighbours(x) if len(x) >= FEWEST_POINTS else torch.full((len(x),), math.nan).double()


def measure(
    problem: ExactProblem,
    rewards: Sequence[str],
    points: Float[Tensor, "n d"],
    prompts: Int[Tensor, " n"],
    key: Key,
    known_kl: float | None = None,
    log_q: Float[Tensor, " n"] | None = None,
) -> dict[str, Measure]:
    """All scores of a method's points: `kl`, `nuisance` where there are other axes than the plane's, and for every
    reward `<reward>.reward`, `.regret`, `.excess_kl`, `.mode_tv` and `.covariance`.

    `prompts` numbers each point's prompt from 0. `known_kl`, or else `log_q` (with the rows of `points`), is given
    where it is exact; beside either, `kl_by_neighbours` shows what the neighbours would have said.
    """
    flat, x = problem.flat, points.double()
    where = ""
    if problem.plane is not None:
        x, where = x @ problem.plane, " in the problem's plane: a lower bound of all axes'"
    log_density = LogDensity.of(x, flat.mixture, known_kl, log_q)
    counts = resample_counts(key("bootstrap").generator(), int(prompts.max()) + 1, RESAMPLES)
    weights = torch.cat([torch.ones(1, counts.shape[1], dtype=torch.float64), torch.from_numpy(counts)])
    first = _nearest(flat, rewards[0], x)[1] if rewards else flat.mixture
    found = {"kl": _divergence(flat.mixture, first, x, log_density, prompts, weights, key("kl"), where)}
    if log_density.source != "nearest neighbours":
        neighbours = LogDensity(_neighbours(x), "nearest neighbours")
        measured = _divergence(flat.mixture, first, x, neighbours, prompts, weights, key("neighbours"), where)
        found["kl_by_neighbours"] = measured
    for name in rewards:
        found |= _against_optimum(flat, name, x, log_density, prompts, weights, key(name))
    if problem.plane is not None:
        found["nuisance"] = _nuisance(problem.plane, points.double(), prompts, weights, key("nuisance"))
    return found


def _nearest(flat: ExactProblem, name: str, x: Tensor) -> tuple[float, Mixture]:
    """The λ that earns what the points earn, and its p*_λ; p_ref stands in where no λ does."""
    reward = flat.rewards[name]
    rate = Frontier(flat.mixture, reward).matched(float(reward(x).mean()))
    return rate, tilted(flat.mixture, reward, rate) if math.isfinite(rate) else flat.mixture


def _divergence(
    reference: Mixture,
    nearest: Mixture,
    x: Tensor,
    log_density: LogDensity,
    prompts: Tensor,
    weights: Tensor,
    key: Key,
    where: str,
) -> Measure:
    """KL(q ‖ p_ref), its bias measured on draws from a distribution near q."""
    terms = Terms.of(x, reference, (log_density.terms - reference.log_prob(x))[:, None], prompts)
    (kl,) = terms.means(weights).unbind(1)
    off = log_density.on_exact_draws(nearest, key("draws"))
    if off is not None:
        kl = off.correct(kl, key("missed"))
    kind: Kind = "exact" if log_density.source == "exact divergence" else "estimate"
    return _interval(kl, f"KL(q ‖ p_ref){where}, {log_density.about(off)}", kind=kind)


def _against_optimum(
    flat: ExactProblem,
    name: str,
    x: Tensor,
    log_density: LogDensity,
    prompts: Tensor,
    weights: Tensor,
    key: Key,
) -> dict[str, Measure]:
    reward, beta, log_q = flat.rewards[name], flat.beta, log_density.terms
    (rate, nearest), optimum = _nearest(flat, name, x), tilted(flat.mixture, reward, 1 / beta)
    columns = [reward(x), *(log_q - p.log_prob(x) for p in (nearest, optimum))]
    terms = Terms.of(x, optimum, torch.stack(columns, 1), prompts)
    mean, excess, regret = terms.means(weights).unbind(1)

    off_nearest = log_density.on_exact_draws(nearest, key("nearest"))
    off_optimum = log_density.on_exact_draws(optimum, key("optimum"))
    draws = [optimum.sample(key("optimum", i), len(x)) for i in range(REPLICATES)]
    if off_nearest is not None and off_optimum is not None:
        # Both are of the same q, which is nearer to p*_λ: the bias is that one's.
        excess = off_nearest.correct(excess, key("missed"))
        regret = off_nearest.correct(regret, key("missed"))
        excess_floor, regret_floor = off_nearest.floor, off_optimum.floor
    elif log_density.source == "exact divergence":  # KL* − λ R: the noise of the mean reward alone
        excess_floor, regret_floor = (
            _reward_floor(p, reward, r, len(x)) for p, r in ((nearest, rate), (optimum, 1 / beta))
        )
    else:
        excess_floor = regret_floor = 0.0

    all_of_one = torch.zeros(len(x), dtype=torch.long)
    modes = [Terms.of(y, optimum, torch.zeros(len(y), 0, dtype=torch.float64), all_of_one) for y in draws]
    one = torch.ones(1, 1, dtype=torch.float64)
    distance = torch.cat([m.mode_distance(one, optimum) for m in modes])
    ratio = torch.cat([m.covariance_ratio(one, optimum) for m in modes])
    about = log_density.about(off_nearest)
    return {
        f"{name}.reward": _interval(mean, "mean reward"),
        f"{name}.regret": _interval(beta * regret, f"β KL(q ‖ p*) at β = {beta:g}, {about}", beta * regret_floor),
        f"{name}.excess_kl": _interval(excess, f"KL(q ‖ p*_λ) at λ = {rate:.4g}, {about}", excess_floor)
        if math.isfinite(rate)
        else Measure(None, "infinite: no λ within ± 1e9 earns this reward"),
        f"{name}.mode_tv": _interval(
            terms.mode_distance(weights, optimum),
            "½ Σ |share of mode k − w*_k|, not corrected for the floor",
            float(distance.quantile(LEVEL)),
        ),
        f"{name}.covariance": _interval(
            terms.covariance_ratio(weights, optimum),
            f"within-mode tr(S*⁻¹ Ĉ)/d over modes with {FEWEST_IN_MODE:g} points; exact draws: "
            f"{float(ratio.quantile(1 - LEVEL)):.3f} to {float(ratio.quantile(LEVEL)):.3f}",
        )
        if bool((terms.share.sum(0) >= FEWEST_IN_MODE).any())
        else Measure(None, f"no mode has {FEWEST_IN_MODE:g} points"),
    }


def _reward_floor(p: Mixture, reward: Quadratic, rate: float, n: int) -> float:
    """The 95 % quantile of λ times the error of the mean reward of n draws from p."""
    return NORMAL_QUANTILE * abs(rate) * math.sqrt(moments(p, reward)[1] / n) if math.isfinite(rate) else math.inf


def _nuisance(plane: Tensor, points: Tensor, prompts: Tensor, weights: Tensor, key: Key) -> Measure:
    """Σ over the axes outside the plane of KL(N(mean, variance) ‖ N(0, 1)), in nats, its bias subtracted."""
    rest = torch.linalg.qr(plane, mode="complete")[0][:, plane.shape[1] :]
    z = points @ rest
    per_prompt = torch.zeros(weights.shape[1], 2 * z.shape[1] + 1, dtype=torch.float64)
    per_prompt.index_add_(0, prompts, torch.cat([z, z**2, torch.ones(len(z), 1, dtype=torch.float64)], 1))

    def divergence(sums: Tensor) -> Tensor:
        mean, square = (sums[:, :-1] / sums[:, -1:]).chunk(2, 1)
        return ((square - 1 - (square - mean**2).log()) / 2).sum(-1)

    exact = []
    for i in range(REPLICATES):
        y = key(i).normal(*z.shape).double()
        exact.append(divergence(torch.cat([y, y**2, torch.ones(len(y), 1)], 1).sum(0)[None])[0])
    off = torch.stack(exact)
    value = divergence(weights @ per_prompt) - off.mean()
    about = f"moments of {z.shape[1]} axes against N(0, 1), in nats, bias {float(off.mean()):.4f} subtracted"
    return _interval(value, about, float((off - off.mean()).quantile(LEVEL)))


def _interval(values: Float[Tensor, " s"], about: str, floor: float | None = None, kind: Kind = "estimate") -> Measure:
    """The first value with the percentile interval of the others, moved so that their mean is the first."""
    value, resampled = values[0], values[1:]
    ends = (resampled.quantile(q) - resampled.mean() + value for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    numbers = [float(value), *map(float, ends)]
    if not all(map(math.isfinite, numbers)):
        return Measure(
            None, f"not to be told: points coincide, or there are fewer than {FEWEST_POINTS} ({about})", kind
        )
    return Measure(numbers[0], about, kind, numbers[1], numbers[2], floor)
