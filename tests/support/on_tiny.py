"""The embedded model as a problem for every algorithm, with pairs of noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from alignbench.contracts.toys import Toy, pictures
from alignbench.interface import PairBatch
from alignbench.keys import Key, normal


class Drawn:
    """Pairs whose pictures are noise: what is learned from them does not matter here."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def __len__(self) -> int:
        return 16

    def batch(self, indices: Sequence[int]) -> PairBatch:
        shape = self.toy.pipeline.latent_shape
        winner, loser = (normal([Key(side, i) for i in indices], shape) for side in ("winner", "loser"))
        condition = self.toy.pipeline.condition([self.toy.training[i] for i in indices])
        return PairBatch(winner, loser, condition, torch.ones(len(indices)), range(len(indices)))


def pictures_with_pairs(steps: int) -> Toy:
    """The toy of pictures on four captions, sampled in a few steps."""
    toy = pictures(count=4)
    return dataclasses.replace(toy, sampling=dataclasses.replace(toy.sampling, steps=steps), pairs=Drawn(toy))
