"""Preference pairs of a mixture: two points of p_ref each, labelled by the Bradley-Terry model of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignbench.interface import PairBatch, Pipeline, Prompt
from alignbench.keys import Key, normal
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
    _drawn: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """Pairs by number. Raises IndexError outside [0, len)."""
        self._draw(sorted({*indices} - {*self._drawn}))
        winner, loser = (torch.stack(part) for part in zip(*(self._drawn[i] for i in indices), strict=True))
        return PairBatch(
            winner=winner,
            loser=loser,
            condition=self.pipeline.condition([self.prompts[i % len(self.prompts)] for i in indices]),
            label=torch.ones(len(indices)),
            rows=range(len(indices)),
        )

    def _draw(self, missing: Sequence[int]) -> None:
        """Draw the pairs of these numbers and keep them."""
        for i in missing:
            if not 0 <= i < self.count:
                raise IndexError(f"pair {i} is outside of [0, {self.count}).")
        if not missing:
            return
        keys = [self.key("pair", i) for i in missing]
        uniform = torch.stack([key("modes and label").uniform(3) for key in keys])
        noise = normal([key("points") for key in keys], (2, self.mixture.dimension))
        first, second = (self.mixture.draw(uniform[:, j], noise[:, j]) for j in (0, 1))
        won = uniform[:, 2] < (self.reward(first) - self.reward(second)).sigmoid()
        pairs = zip(missing, first.float(), second.float(), won.tolist(), strict=True)
        self._drawn.update((i, (a, b) if a_won else (b, a)) for i, a, b, a_won in pairs)
