"""How far a method's points are from the optimum, in nats, by the identities of alignbench/testbed/tilt.py.

For points x_i ~ q, all divergences share one unknown, log q:
    KL(q ‖ p)      = E_q [log q − log p]                                                                    (1)
    regret         = β KL(q ‖ p*_β) = J*(β) − J_q(β), what q misses of the best objective                   (2)
    excess KL      = KL(q ‖ p*_λ) at the λ with R(λ) = E_q r, the divergence q spends beyond the frontier: free of β,
                     zero exactly where q is on it, and the smallest KL(q ‖ p*_λ) over λ                    (3)
log q comes, in this order, from: an exact KL that the method knows; the change of variables of a deterministic chain
(`density_of_chain`); the estimate by nearest neighbours, (1) of estimators.py, whose bias is measured on exact draws
from p*_λ, as many as there are points, and subtracted. In many dimensions neighbours see only the problem's plane; the
other axes are compared with N(0, I) by their means and variances.
Intervals are percentile bootstraps over prompts of the terms of these means, widened by the spread that exact draws
show and resampling misses; the bias that the bootstrap itself adds to squares is taken off. Floors are those of
floors.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench.keys import Key, resample_counts
from alignbench.testbed import floors
from alignbench.testbed.estimators import (
    FEWEST_IN_MODE,
    FEWEST_POINTS,
    NEIGHBOURS,
    Terms,
    by_neighbours,
    moment_divergence,
)
from alignbench.testbed.exact_problem import ExactProblem
from alignbench.testbed.floors import LEVEL, REPLICATES, Source, nearest
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import tilted

RESAMPLES = 1000

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


@dataclass(frozen=True)
class Deviations:
    """What the mean of log q − log p comes to on sets of exact draws from p, where it should be 0: bias and spread."""

    of_sets: Float[Tensor, " r"]
    naive_variance: float  # of such a mean, were its terms independent

    @property
    def bias(self) -> float:
        return float(self.of_sets.mean())

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
    source: Source

    @classmethod
    def of(cls, x: Tensor, reference: Mixture, known_kl: float | None, log_q: Tensor | None) -> LogDensity:
        if known_kl is not None:  # E_q log q = KL(q ‖ p_ref) + E_q log p_ref
            return cls(known_kl + reference.log_prob(x), "exact divergence")
        if log_q is not None:
            return cls(log_q.double(), "change of variables")
        return cls(by_neighbours(x), "nearest neighbours")

    def on_exact_draws(self, p: Mixture, key: Key) -> Deviations | None:
        """The neighbours' deviations on as many draws; None for a source that has none."""
        if self.source != "nearest neighbours":
            return None
        sets = [p.sample(key(i), len(self.terms)) for i in range(REPLICATES)]
        terms = torch.stack([by_neighbours(y) - p.log_prob(y) for y in sets])
        return Deviations(terms.mean(1), float(terms.var(1, correction=0).mean()) / terms.shape[1])

    def about(self, deviations: Deviations | None) -> str:
        text = f"log q by {self.source}"
        if deviations is not None:
            text += f" (k = {NEIGHBOURS}, {len(self.terms)} points, bias {deviations.bias:.4f} subtracted)"
        return text


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
    first = nearest(flat, rewards[0], _mean_reward(flat, rewards[0], x))[1] if rewards else flat.mixture
    found = {"kl": _divergence(flat.mixture, first, x, log_density, prompts, weights, key("kl"), where)}
    if log_density.source != "nearest neighbours":
        neighbours = LogDensity(by_neighbours(x), "nearest neighbours")
        measured = _divergence(flat.mixture, first, x, neighbours, prompts, weights, key("neighbours"), where)
        found["kl_by_neighbours"] = measured
    for name in rewards:
        found |= _against_optimum(flat, name, x, log_density, prompts, weights, key(name))
    if problem.plane is not None:
        found["nuisance"] = _nuisance(problem.plane, points.double(), prompts, weights, key("nuisance"))
    return found


def _mean_reward(flat: ExactProblem, name: str, x: Tensor) -> float:
    return float(flat.rewards[name](x).mean())


def _divergence(
    reference: Mixture,
    near: Mixture,
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
    off = log_density.on_exact_draws(near, key("draws"))
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
    rate, near = nearest(flat, name, _mean_reward(flat, name, x))
    optimum = tilted(flat.mixture, reward, 1 / beta)
    columns = [reward(x), *(log_q - p.log_prob(x) for p in (near, optimum))]
    terms = Terms.of(x, optimum, torch.stack(columns, 1), prompts)
    mean, excess, regret = terms.means(weights).unbind(1)

    off = log_density.on_exact_draws(near, key("nearest"))
    if off is not None:  # both are of the same q, which is nearer to p*_λ: the bias is that one's
        excess, regret = (off.correct(score, key("missed")) for score in (excess, regret))
    about, source = log_density.about(off), log_density.source
    floor = floors.of_optimum(flat, name, len(x), source, key)
    excess_floor = floors.of_excess(flat, name, float(mean[0]), len(x), source, key)
    return {
        f"{name}.reward": _interval(mean, "mean reward"),
        f"{name}.regret": _interval(beta * regret, f"β KL(q ‖ p*) at β = {beta:g}, {about}", floor.regret),
        f"{name}.excess_kl": _interval(excess, f"KL(q ‖ p*_λ) at λ = {rate:.4g}, {about}", excess_floor)
        if math.isfinite(rate)
        else Measure(None, "infinite: no λ within ± 1e9 earns this reward"),
        f"{name}.mode_tv": _interval(
            terms.mode_distance(weights, optimum),
            "½ Σ |share of mode k − w*_k|, not corrected for the floor",
            floor.mode_tv,
        ),
        f"{name}.covariance": _interval(
            terms.covariance_ratio(weights, optimum, terms.share.sum(0)), about_covariance(*floor.covariance)
        )
        if bool((terms.share.sum(0) >= FEWEST_IN_MODE).any())
        else Measure(None, f"no mode has {FEWEST_IN_MODE:g} points"),
    }


def about_covariance(low: float, high: float) -> str:
    """What a covariance is, and what 90 of 100 exact draws lie between."""
    what = f"within-mode tr(S*⁻¹ Ĉ)/d over modes with {FEWEST_IN_MODE:g} points"
    return f"{what}; exact draws: {low:.3f} to {high:.3f}"


def _nuisance(plane: Tensor, points: Tensor, prompts: Tensor, weights: Tensor, key: Key) -> Measure:
    """Σ over the axes outside the plane of KL(N(mean, variance) ‖ N(0, 1)), in nats, its bias subtracted."""
    rest = torch.linalg.qr(plane, mode="complete")[0][:, plane.shape[1] :]
    z = points @ rest
    per_prompt = torch.zeros(weights.shape[1], 2 * z.shape[1] + 1, dtype=torch.float64)
    per_prompt.index_add_(0, prompts, torch.cat([z, z**2, torch.ones(len(z), 1, dtype=torch.float64)], 1))
    sums = weights @ per_prompt
    mean, square = (sums[:, :-1] / sums[:, -1:]).chunk(2, 1)
    drawn = floors.nuisance_of_draws(len(z), z.shape[1], key, floors.FLOOR_REPLICATES)
    bias = drawn[:REPLICATES].mean()
    about = f"moments of {z.shape[1]} axes against N(0, 1), in nats, bias {float(bias):.4f} subtracted"
    return _interval(moment_divergence(mean, square) - bias, about, floors.of_nuisance(drawn))


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
