"""What exact draws from an optimum score: the floors of scores.py.

A floor is what a method's score is below in 95 of 100 cases where its points are exact draws. It is found by scoring
FLOOR_REPLICATES sets of as many draws as the method has points, as the method's points are scored. With û the mean
reward of a set less its expectation R(λ), a set of draws from p*_λ scores
    regret      β m, with m the mean of log q − log p*_λ by neighbours less its bias;                       (1)
                m = −λ û where the divergence is known exactly, and 0 where log q is
    excess KL   m − û² / (2 Var r), to second order: it is measured at the λ that earns the set's own       (2)
                mean reward, and that p*_λ is nearer to the set by so much

The floor is the set at rank 381 of 400, which one more set exceeds 20 times in 401. For given sets that share is
uncertain by √(0.05 · 0.95 / 400) = 1.1 points. The bias that a set of draws has subtracted is that of its own λ, and
here that of p*_λ: so the floors of a hundred points can be a little high (on grid64 they were exceeded in 4 %), those
of 400 are not seen to be. Floors depend on the problem, the number of points, the way log q is known and the mean
reward: on nothing but what a result keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.keys import Key
from alignbench.testbed.estimators import Terms, by_neighbours, moment_divergence
from alignbench.testbed.exact_problem import ExactProblem
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Frontier, Quadratic, moments, tilted

REPLICATES = 32  # sets of exact draws that measure bias and spread
FLOOR_REPLICATES = 400  # and floors: a tail needs more sets than a mean. The first REPLICATES are the same sets
LEVEL = 0.95
TOGETHER = 4000  # points that are scored at once: below that it is calls that take the time, not points

Source = Literal["exact divergence", "change of variables", "nearest neighbours"]  # what log q is known by


class OfOptimum(NamedTuple):
    """What exact draws from p*_β score, whatever a method does."""

    regret: float  # nats times β
    mode_tv: float
    covariance: tuple[float, float]  # what 90 of 100 lie between


def nearest(flat: ExactProblem, name: str, mean_reward: float) -> tuple[float, Mixture]:
    """The λ that earns this mean reward, and its p*_λ; p_ref stands in where no λ does."""
    reward = flat.rewards[name]
    rate = Frontier(flat.mixture, reward).matched(mean_reward)
    return rate, tilted(flat.mixture, reward, rate) if math.isfinite(rate) else flat.mixture


def of_optimum(flat: ExactProblem, name: str, n: int, source: Source, key: Key) -> OfOptimum:
    """Floors of the scores that are measured against p* at the problem's β, for n points."""
    reward, rate = flat.rewards[name], 1 / flat.beta
    optimum = _Optimum(tilted(flat.mixture, reward, rate), reward, rate, source)
    missed, parts = [], []
    for sets, joint in optimum.lots(key("optimum"), n, FLOOR_REPLICATES):
        log_p = joint.logsumexp(-1)
        missed.append(optimum.missed(sets, log_p))
        parts.append(Terms.of_sets(sets, (joint - log_p[..., None]).exp()))
    terms, each = Terms.joined(parts), torch.eye(FLOOR_REPLICATES, dtype=torch.float64)
    ratios = terms.covariance_ratio(each, optimum.p, terms.share)
    # What exact draws have subtracted is measured on sets of their own λ, as in scores.py: on others than these.
    others = [optimum.missed(sets, joint.logsumexp(-1)) for sets, joint in optimum.lots(key("nearest"), n, REPLICATES)]
    return OfOptimum(
        regret=flat.beta * (_highest(torch.cat(missed)) - optimum.bias(torch.cat(others))),
        mode_tv=_highest(terms.mode_distance(each, optimum.p)),
        covariance=(-_highest(-ratios), _highest(ratios)),
    )


def of_excess(flat: ExactProblem, name: str, mean_reward: float, n: int, source: Source, key: Key) -> float:
    """The floor of the excess KL of n points that earn this mean reward, in nats; not a number where no λ earns it.

    At least 0: what spends no more than the frontier asks for is on it, also where draws happen to spend still less.
    """
    rate, p = nearest(flat, name, mean_reward)
    if not math.isfinite(rate):
        return math.nan
    optimum = _Optimum(p, flat.rewards[name], rate, source)
    missed, nearer = [], []
    for sets, joint in optimum.lots(key("nearest"), n, FLOOR_REPLICATES):
        missed.append(optimum.missed(sets, joint.logsumexp(-1)))
        nearer.append(optimum.error(sets) ** 2 / (2 * moments(p, optimum.reward)[1]))
    return max(0.0, _highest(torch.cat(missed) - torch.cat(nearer)) - optimum.bias(torch.cat(missed)))


@dataclass(frozen=True)
class _Optimum:
    """p*_λ of a reward, and how log q of points is known."""

    p: Mixture
    reward: Quadratic
    rate: float  # λ
    source: Source

    def lots(self, key: Key, n: int, count: int) -> Iterator[tuple[Float[Tensor, "r n d"], Float[Tensor, "r n k"]]]:
        """`count` sets of n exact draws and their log w_k N(x; m_k, S_k), several sets at once."""
        together = max(1, TOGETHER // n)
        for start in range(0, count, together):
            sets = self.p.sets([key(i) for i in range(start, min(start + together, count))], n)
            yield sets, self.p.log_joint(sets.flatten(0, 1)).unflatten(0, sets.shape[:2])

    def error(self, sets: Float[Tensor, "r n d"]) -> Float[Tensor, " r"]:
        """û of each set."""
        return self.reward(sets).mean(1) - moments(self.p, self.reward)[0]

    def missed(self, sets: Float[Tensor, "r n d"], log_p: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """(1) of each set over β, before the bias is subtracted."""
        if self.source == "nearest neighbours":
            return (torch.stack([by_neighbours(y) for y in sets]) - log_p).mean(1)
        exact = self.source == "exact divergence"
        return -self.rate * self.error(sets) if exact else torch.zeros(len(sets), dtype=torch.float64)

    def bias(self, missed: Float[Tensor, " r"]) -> float:
        """What is subtracted: of neighbours alone, as the first sets show it."""
        return float(missed[:REPLICATES].mean()) if self.source == "nearest neighbours" else 0.0


def nuisance_of_draws(n: int, axes: int, key: Key, count: int) -> Float[Tensor, " count"]:
    """What the moments of n draws from N(0, I) come to, in nats, on `count` sets."""
    found = []
    for i in range(count):
        y = key(i).normal(n, axes).double()
        mean, square = (torch.cat([y, y**2], 1).sum(0) / n).chunk(2)
        found.append(moment_divergence(mean, square))
    return torch.stack(found)


def of_nuisance(drawn: Float[Tensor, " r"]) -> float:
    """The floor of what `nuisance_of_draws` gives, once the bias of the first sets is subtracted."""
    return _highest(drawn - drawn[:REPLICATES].mean())


def _highest(scored: Float[Tensor, " r"]) -> float:
    """What one more set would stay below at LEVEL: by rank, not between ranks, which would be too low."""
    return float(scored.nanquantile(LEVEL, interpolation="higher"))
