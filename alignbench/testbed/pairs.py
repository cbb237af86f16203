"""Preference pairs of a mixture: two points of p_ref each, labelled by the Bradley-Terry model of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.interface import PairBatch, Pipeline, Prompt
from alignbench.keys import Key
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Quadratic


@dataclass(frozen=True)
class MixturePairs:
    """P(first preferred) = σ(r(first) − r(second)) with r in nats (Bradley and Terry 1952). Pair i depends on the key
    and i alone. With this noise, what direct preference optimisation at β = 1 aims for is p*_1 of the same reward."""

    mixture: Mixture
    reward: Quadratic
    pipeline: Pipeline
    prompts: Sequence[Prompt]  # pair i is about prompt i, and again from the first
    key: Key
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """Pairs by number. Raises IndexError outside [0, len)."""
        first, second, preferred = (torch.stack(part) for part in zip(*map(self._pair, indices), strict=True))
        keep = preferred[:, None]
        return PairBatch(
            winner=torch.where(keep, first, second),
            loser=torch.where(keep, second, first),
            condition=self.pipeline.condition([self.prompts[i % len(self.prompts)] for i in indices]),
            label=torch.ones(len(indices)),
            indices=list(indices),
        )

    def _pair(self, i: int) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Tensor]:
        if not 0 <= i < self.count:
            raise IndexError(f"pair {i} is outside of [0, {self.count}).")
        key = self.key("pair", i)
        first, second = self.mixture.sample(key("points"), 2)
        chance = (self.reward(first) - self.reward(second)).sigmoid()
        return first.float(), second.float(), key("label").uniform(1)[0] < chance
