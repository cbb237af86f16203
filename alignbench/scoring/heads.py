"""Small networks on top of features: LAION's aesthetic predictors, and the end of ImageReward."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.scoring.weights import WeightFile, fill, frozen, tensors_of

WIDTHS = (768, 1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the published files; dropout stood between them


class LinearChain(nn.Module):
    """Five linear layers without activations between them, so one affine map. Dropout, which only training had, is
    left out. Weights are to be filled in."""

    def __init__(self) -> None:
        super().__init__()
        maps = zip(PLACES, WIDTHS[:-1], WIDTHS[1:], strict=True)
        with torch.device("meta"):
            self.layers = nn.ModuleDict({str(place): nn.Linear(wide, narrow) for place, wide, narrow in maps})

    def forward(self, features: Float[Tensor, "b 768"]) -> Float[Tensor, " b"]:
        for layer in self.layers.values():
            features = layer(features)
        return features[:, 0]


class LinearMap(nn.Linear):
    """One affine map to a number."""

    def __init__(self) -> None:
        super().__init__(WIDTHS[0], 1, device="meta")

    def forward(self, features: Float[Tensor, "b 768"]) -> Float[Tensor, " b"]:
        return super().forward(features)[:, 0]


@functools.cache
def read_head(kind: Callable[[], nn.Module], weights: WeightFile) -> nn.Module:
    """A head with its weights, frozen, float32."""
    head = kind()
    fill(head, tensors_of(weights.path), weights.path)
    return frozen(head, "float32")


def applied(head: nn.Module, features: Float[Tensor, "b 768"]) -> Float[Tensor, " b"]:
    """The head's value, where the features are and as wide as they are."""
    values: Tensor = head.to(features.device, features.dtype)(features)
    return values
