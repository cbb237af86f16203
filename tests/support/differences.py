"""Finite differences of a loss in the weights of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from alignbench import Key


def slopes(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], step: float = 1e-5
) -> tuple[float, float]:
    """The derivative of a loss along one random direction: by its gradient, and by a central difference. In float64
    they agree to a hundred-thousandth."""
    direction = [Key("direction", i).normal(*p.shape).to(p.dtype) for i, p in enumerate(parameters)]
    gradients = torch.autograd.grad(loss(), parameters)
    exact = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for move in (step, -2 * step, step):
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(move * along)
            values.append(float(loss()))
    return exact, (values[0] - values[1]) / (2 * step)
