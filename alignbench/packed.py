"""Tensors as bytes that processes of one run send each other, and as a number by which they compare them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def packed(value: Any) -> Tensor:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpacked(content: Tensor) -> Any:
    """What another process of this run packed. Its tensors come to this process's own GPU, if they lay on one. The
    processes of a run trust each other, as in torch's own exchange of objects."""
    import torch

    def place(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    return torch.load(io.BytesIO(content.numpy().data), map_location=place, weights_only=False)


def digest_of(tensors: Sequence[Tensor]) -> int:
    """A number that changes with any bit of these tensors: sums of their words, weighted by tensor."""
    import torch

    total = 0
    for place, tensor in enumerate(tensors, start=1):
        flat = tensor.detach().reshape(-1).contiguous()
        words = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        total += place * int(words.sum(dtype=torch.int64))
    return total % (1 << 62)
