"""The fused attention of open_clip's blocks: PyTorch's own, on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignbench import Key
from alignbench.scoring.attention import FusedAttention, fuse


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)


@pytest.fixture
def both():
    """PyTorch's attention, and the fused one on its weights."""
    own, block = Block(), Block()
    for name, weight in own.named_parameters():
        weight.data.copy_(Key("attention")(name).normal(*weight.shape))
    fuse(block)
    block.load_state_dict(own.state_dict())
    return own.attn.eval(), block.attn.eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_grad", [False, True])
def test_it_says_what_pytorchs_says(both, masked, with_grad):
    tokens = Key("tokens").normal(3, 5, 8)
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    said = []
    for attention in both:
        x = tokens.clone().requires_grad_(with_grad)
        with torch.set_grad_enabled(with_grad):
            mixed, weights = attention(x, x, x, need_weights=False, attn_mask=mask)
        assert weights is None
        said.append(torch.autograd.grad(mixed.square().sum(), x)[0] if with_grad else mixed)
    torch.testing.assert_close(said[1], said[0], rtol=1e-5, atol=1e-5)


def test_the_first_token_sees_itself_alone_under_a_causal_mask(both):
    _, fused = both
    x = Key("tokens").normal(1, 5, 8)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    first = x[:, :1]
    alone, _ = fused(first, first, first)
    torch.testing.assert_close(fused(x, x, x, attn_mask=mask)[0][:, :1], alone, rtol=1e-5, atol=1e-5)


def test_weights_have_the_names_of_pytorchs(both):
    own, fused = both
    assert isinstance(fused, FusedAttention)
    assert {n: t.shape for n, t in fused.state_dict().items()} == {n: t.shape for n, t in own.state_dict().items()}


def test_what_it_does_not_do_is_refused(both):
    _, fused = both
    x = Key("tokens").normal(1, 5, 8)
    with pytest.raises(ValueError, match="attention of tokens on themselves, without its weights"):
        fused(x, x.clone(), x)
