"""Gradients through a whole sampling chain, in the memory of one step.

The states between steps are kept, the activations inside a step are not: going back, each step is computed once more
from the state that it started from. The gradient is autograd's own, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

State = Float[Tensor, "..."]


class Swept(NamedTuple):
    """What going through a chain and back found."""

    end: Tensor
    values: Float[Tensor, "*values"]
    gradient: Tensor  # of the sum of the values, with respect to the start


def chain_gradient(
    steps: Sequence[Callable[[Tensor], Tensor]], start: Tensor, function: Callable[[Tensor], Float[Tensor, "*values"]]
) -> Swept:
    """function(steps[-1](… steps[0](start))) and its gradient."""
    states = [start.detach()]
    with torch.no_grad():
        for step in steps:
            states.append(step(states[-1]))
    with torch.enable_grad():
        end = states.pop().requires_grad_()
        values = function(end)
        (gradient,) = torch.autograd.grad(values.sum(), end)
        for step in reversed(steps):
            state = states.pop().requires_grad_()
            (gradient,) = torch.autograd.grad(step(state), state, gradient)
    return Swept(end.detach(), values.detach(), gradient)
