"""LoRAs of Stable Diffusion 3 by the names of the original code, as kohya's scripts save them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import random_models
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from alignbench import Key, Prompt, Sampling
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import RunError
from alignbench.meter import Meter

PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["a red circle", "two small blue stars"])]
KEYS = [Key("lora", i) for i in range(2)]
RANK, ALPHA = 2, 3.0
WIDTH, CONTEXT, POOLED, PATCH, HIDDEN, OUTPUTS = 32, 24, 20, (4, 2, 2), 128, 16  # of `small_sd3`


def originals() -> dict[str, tuple[int, ...]]:
    """The weights of the original of `small_sd3`: a second attention in its first block, and of the context of its last
    no more than enters the others' attention."""
    found: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (WIDTH, *PATCH),
        "context_embedder": (WIDTH, CONTEXT),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "y_embedder.mlp.0": (WIDTH, POOLED),
        "y_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (OUTPUTS, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for block, part, modulations in ((0, "x", 9), (0, "context", 6), (1, "x", 6), (1, "context", 2)):
        of = f"joint_blocks.{block}.{part}_block"
        found[f"{of}.attn.qkv"] = (3 * WIDTH, WIDTH)
        found[f"{of}.adaLN_modulation.1"] = (modulations * WIDTH, WIDTH)
        if modulations > 2:
            found[f"{of}.attn.proj"] = (WIDTH, WIDTH)
            found[f"{of}.mlp.fc1"], found[f"{of}.mlp.fc2"] = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    of = "joint_blocks.0.x_block.attn2"
    return found | {f"{of}.qkv": (3 * WIDTH, WIDTH), f"{of}.proj": (WIDTH, WIDTH)}


class Lora(NamedTuple):
    state: dict[str, torch.Tensor]  # as kohya's scripts save it
    added: dict[str, torch.Tensor]  # to each of the original's weights


def made() -> Lora:
    """A LoRA of every layer; strong, so that pictures tell."""
    state, added = {}, {}
    for name, (outputs, *inputs) in originals().items():
        down = 0.3 * Key(name, "A").normal(RANK, *inputs)
        up = 0.3 * Key(name, "B").normal(outputs, RANK)
        plain = f"lora_unet_{name.replace('.', '_')}"
        state[f"{plain}.lora_down.weight"], state[f"{plain}.alpha"] = down, torch.tensor(ALPHA)
        state[f"{plain}.lora_up.weight"] = up.reshape(outputs, RANK, *(1 for _ in inputs[1:])).clone()
        added[name] = ALPHA / RANK * (up @ down.flatten(1)).reshape(outputs, *inputs)
    return Lora(state, added)


def in_diffusers_names(added: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the conversion of whole checkpoints, which moves weights and so what is added to them; all else is zero."""
    checkpoint = {"pos_embed": torch.zeros(1)}
    for name, weight in added.items():
        checkpoint |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(len(weight))}
    for layer in [name.removesuffix(".qkv") for name in added if name.endswith(".qkv")]:
        checkpoint |= {f"{layer}.ln_{part}.weight": torch.zeros(1) for part in "qk"}
    converted: dict[str, Any] = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    assert not checkpoint
    return {name: weight for name, weight in converted.items() if weight.any()}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Any:
    folder = random_models.small_sd3(tmp_path_factory.mktemp("sd3"))
    return models.load(models.find(str(folder)), Meter(), Hold(tokens=16))


def drawn(pipeline: Any) -> torch.Tensor:
    return PipelineSampler(pipeline, Sampling(3, 1.0))(PROMPTS, KEYS).images


def saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, path)
    return path


def test_every_layer_of_the_original_is_added_where_diffusers_has_its_weight(base, tmp_path):
    lora = made()
    merged = copy.copy(base)
    merged.denoiser = copy.deepcopy(base.denoiser)
    with torch.no_grad():
        for name, added in in_diffusers_names(lora.added).items():
            merged.denoiser.get_parameter(name).add_(added)
    policy = open_policy(base, saved(tmp_path / "lora.safetensors", lora.state))
    torch.testing.assert_close(drawn(policy), drawn(merged), atol=1e-4, rtol=0)
    assert (drawn(policy) - drawn(base)).abs().max() > 1e-2


def test_each_layer_alone_changes_the_prediction_as_its_weight_does(base, tmp_path):
    """Among all of them, what one changes might be too little to see."""
    lora = made()
    converted = in_diffusers_names(lora.added)
    policy = open_policy(base, saved(tmp_path / "lora.safetensors", lora.state))
    found = {
        name.removesuffix(".base_layer"): layer.get_delta_weight(layer.active_adapters[0]).detach()
        for name, layer in policy.denoiser.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert set(found) == {name.removesuffix(".weight") for name in converted}
    for name, delta in found.items():
        torch.testing.assert_close(delta, converted[f"{name}.weight"], atol=1e-5, rtol=0)


def test_a_layer_that_the_last_block_lacks_is_named(base, tmp_path):
    state = made().state
    for end in ("lora_down.weight", "lora_up.weight", "alpha"):
        name = "lora_unet_joint_blocks_{}_context_block_attn_proj." + end
        state[name.format(1)] = state[name.format(0)].clone()
    with pytest.raises(RunError, match=r"joint_blocks_1_context_block_attn_proj\.lora_A\.weight is not the model's"):
        open_policy(base, saved(tmp_path / "lora.safetensors", state))
