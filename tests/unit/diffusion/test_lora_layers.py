"""LoRA layers that multiply once, beside peft's own."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import nn

from alignbench import Key
from alignbench.diffusion.lora_layers import MergedLinear, merge_linears

KEY = Key("test", "LoRA layers")
X = KEY("x").normal(2, 5, 6)


def network(bias: bool = True, **fields) -> nn.Module:
    """Two layers in a row with a LoRA whose B is not zero; peft's."""
    made = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.GELU(), nn.Linear(8, 3, bias=bias)).requires_grad_(False)
    for name, weight in made.named_parameters():
        weight.copy_(0.3 * KEY(name).normal(*weight.shape))
    config = LoraConfig(**{"r": 2, "lora_alpha": 5, "target_modules": ["0", "2"], **fields})
    inject_adapter_in_model(config, made, "own")
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * KEY(name).normal(*weight.shape))
    return made


def both(**fields) -> tuple[nn.Module, nn.Module]:
    """peft's layers, and ours with the same weights."""
    plain, merged = network(**fields), network(**fields)
    merge_linears(merged)
    assert isinstance(merged[0], MergedLinear)
    return plain, merged


def gradients(made: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    trained = [weight for weight in made.parameters() if weight.requires_grad]
    loss = made(x).square().sum()
    return list(torch.autograd.grad(loss, [*trained, *([x] if x.requires_grad else [])]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [True, False])
def test_values_and_gradients_are_pefts(bias, needs):
    plain, merged = both(bias=bias)
    x = X.clone().requires_grad_(needs)
    torch.testing.assert_close(merged(x), plain(x))
    with torch.no_grad():
        torch.testing.assert_close(merged(x), plain(x))
    pairs = list(zip(gradients(merged, x), gradients(plain, x), strict=True))
    assert len(pairs) == 4 + needs
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_one_weight_by_hand():
    layer = Linear(nn.Linear(1, 1, bias=False).requires_grad_(False), "own", LoraConfig(r=1), r=1, lora_alpha=3)
    merge_linears(layer)
    with torch.no_grad():
        layer.base_layer.weight.fill_(2.0)
        layer.lora_A["own"].weight.fill_(5.0)
        layer.lora_B["own"].weight.fill_(7.0)
    value = layer(torch.tensor([[10.0]]))
    assert value.item() == 10 * (2 + 3 * 5 * 7)
    value.backward()
    assert float(layer.lora_A["own"].weight.grad) == 3 * 7 * 10
    assert float(layer.lora_B["own"].weight.grad) == 3 * 5 * 10


@pytest.mark.parametrize("foreach", [True, False])
def test_a_step_of_an_optimiser_is_seen(foreach):
    plain, merged = both()
    for made in (plain, merged):
        trained = [weight for weight in made.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=0.1, foreach=foreach)
        before = made(X)
        for weight, gradient in zip(trained, gradients(made, X), strict=True):
            weight.grad = gradient
        optimiser.step()
        assert not torch.allclose(made(X), before)
    torch.testing.assert_close(merged(X), plain(X), atol=1e-4, rtol=1e-4)


def loaded(made: nn.Module) -> None:
    made.load_state_dict({name: value * 1.5 for name, value in made.state_dict().items()})


def written_past_the_count_of_versions(made: nn.Module) -> None:
    for weight in made.parameters():
        weight.data.mul_(1.5)


@pytest.mark.parametrize("change", [loaded, written_past_the_count_of_versions])
def test_weights_that_are_changed_are_seen(change):
    plain, merged = both()
    before = merged(X)
    for made in (plain, merged):
        change(made)
    assert not torch.allclose(merged(X), before)
    torch.testing.assert_close(merged(X), plain(X))


@pytest.mark.filterwarnings("ignore:Already found", "ignore:Adapter second was active")
def test_switching_off_and_another_adapter_are_seen_and_a_copy_is_its_own():
    plain, merged = both()
    other = copy.deepcopy(merged)
    for made in (plain, merged):
        first = made(X)
        for layer in (made[0], made[2]):
            layer.enable_adapters(False)
        without = made(X)
        config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
        inject_adapter_in_model(config, made, "second")
        for layer in (made[0], made[2]):
            layer.enable_adapters(True)
            layer.set_adapter("second")
            with torch.no_grad():
                for matrix in (layer.lora_A, layer.lora_B):
                    matrix["second"].weight.copy_(KEY("second").normal(*matrix["second"].weight.shape))
        second = made(X)
        assert not torch.allclose(first, without)
        assert not torch.allclose(first, second)
    torch.testing.assert_close(second, plain(X))
    for layer in (merged[0], merged[2]):
        layer.delete_adapter("second")
        layer.set_adapter("own")
    torch.testing.assert_close(merged(X), other(X))


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_what_is_no_plain_lora_is_left_to_peft(fields):
    plain, merged = both(**fields)
    plain.eval()
    merged.eval()
    torch.testing.assert_close(merged(X), plain(X))
    assert merged[0]._plain() is None


def test_half_precision_is_left_to_peft():
    plain, merged = both()
    for made in (plain, merged):
        for layer in (made[0], made[2]):
            layer.base_layer.bfloat16()
    half = X.bfloat16()
    assert merged(half).dtype == torch.bfloat16
    torch.testing.assert_close(merged(half), plain(half))
    assert merged[0]._plain() is None
