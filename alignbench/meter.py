"""Counting what a method uses, so that training-time and test-time methods are compared in the same units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from torch import Tensor

Resource = Literal["denoiser", "decode", "reward"]


@dataclass(frozen=True)
class Cost:
    """Evaluations on one image each, forward and backward. Guidance counts twice, and recomputation counts."""

    denoiser_forward: int = 0
    denoiser_backward: int = 0
    decode_forward: int = 0
    decode_backward: int = 0
    reward_forward: int = 0
    reward_backward: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    @property
    def evaluations(self) -> int:
        """All of them together: what grows while something is done."""
        return sum(getattr(self, f.name) for f in fields(self))

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Meter:
    """The running total of one run; pipelines and rewards count themselves here."""

    total: Cost = field(default_factory=Cost)
    moved: Callable[[], None] | None = None  # is called whenever something was counted

    def forward(self, resource: Resource, n: int) -> None:
        """Count n forward evaluations."""
        self._count(Cost(**{f"{resource}_forward": n}))

    def watch(self, resource: Resource, output: Tensor, n: int, recomputed: bool = False) -> None:
        """Count n backward evaluations each time a gradient flows back through `output`; with `recomputed`, as many
        forward ones again (activation checkpointing)."""
        if output.requires_grad:
            output.register_hook(lambda _: self._backward(resource, n, recomputed))

    def _backward(self, resource: Resource, n: int, recomputed: bool) -> None:
        again = {f"{resource}_forward": n} if recomputed else {}
        self._count(Cost(**{f"{resource}_backward": n}, **again))

    def _count(self, cost: Cost) -> None:
        self.total = self.total + cost
        if self.moved is not None:
            self.moved()
