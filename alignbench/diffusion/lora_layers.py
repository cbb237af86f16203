"""LoRA layers that multiply once: by W + s B A, in the place of W, A and B apart.

peft computes x Wᵀ + s (x Aᵀ) Bᵀ, which costs small layers a third more than x Wᵀ alone, in both directions. Rounding
aside, values and gradients are the same: ∂A = s (∂y B)ᵀ x and ∂B = s ∂yᵀ (x Aᵀ), without a gradient of W's size. The
product is made anew in each pass: one that is kept would take the memory of all weights once more, and would miss what
somebody writes through `parameter.data`, of which PyTorch keeps no count.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["MergedLinear", "merge_linears"]


class MergedLinear(Linear):  # type: ignore[misc]
    """peft's layer, where a single plain adapter in float32 stands on a float32 layer; else it does what peft does."""

    _for: Any = None  # the adapters that were on when `_plain` was asked
    _on: str | None = None  # what it said

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._for is not self._active_adapter:  # peft replaces the list; looking at all of it each time is slow
            self._for, self._on = self._active_adapter, self._plain()
        adapter = None if self._disable_adapters or self.merged_adapters or args or kwargs else self._on
        base = self.get_base_layer()
        if (
            adapter is None
            or not x.dtype == base.weight.dtype == torch.float32
            or torch.is_autocast_enabled(x.device.type)
        ):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        a, b, scale = self.lora_A[adapter].weight, self.lora_B[adapter].weight, float(self.scaling[adapter])
        if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
            found: Tensor = _Merged.apply(x, a, b, base.weight, base.bias, scale)
            return found
        return functional.linear(x, torch.addmm(base.weight, b, a, alpha=scale), base.bias)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        super().update_layer(*args, **kwargs)
        self._for = None

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._for = None

    def _plain(self) -> str | None:
        """The one adapter that is on, if it is y = x Wᵀ + b + s x Aᵀ Bᵀ with all of it in float32."""
        if len(self.active_adapters) != 1:
            return None
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A or adapter in self.lora_variant or self.lora_bias[adapter]:
            return None
        base = self.get_base_layer()
        weights = (base.weight, self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        plain = type(base) is nn.Linear and not base.weight.requires_grad and not self.fan_in_fan_out
        plain = plain and isinstance(self.lora_dropout[adapter], nn.Identity)
        return adapter if plain and all(weight.dtype == torch.float32 for weight in weights) else None


class _Merged(torch.autograd.Function):
    """x (W + s B A)ᵀ + bias, as a function of x, A and B. The backward pass makes the product again, so that a network
    does not hold all of them in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, a, b, weight)
        ctx.scale = scale
        return functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        flat, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        own_a = own_b = own_x = None
        if ctx.needs_input_grad[0]:
            own_x = (flat @ torch.addmm(weight, b, a, alpha=ctx.scale)).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            own_a = ((flat @ b).T @ rows).mul_(ctx.scale)
        if ctx.needs_input_grad[2]:
            own_b = (flat.T @ (rows @ a.T)).mul_(ctx.scale)
        return own_x, own_a, own_b, None, None, None


def merge_linears(network: nn.Module) -> None:
    """Let the LoRA layers of a network multiply once."""
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = MergedLinear
