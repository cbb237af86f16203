"""LoRAs of FLUX.1 and FLUX.2 by the names of the original code, as kohya's scripts, ai-toolkit and XLabs save them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import random_models
import torch
from plain_pipelines import as_asked, plain_diffusers
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
SAMPLING = Sampling(3, 1.0)
QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE = {
    "double_blocks.0.img_attn.qkv": QKV,
    "double_blocks.0.txt_attn.qkv": ADDED,
    "double_blocks.0.img_attn.proj": ("attn.to_out.0",),
    "double_blocks.0.txt_attn.proj": ("attn.to_add_out",),
}
FIRST = DOUBLE | {
    "double_blocks.0.img_mlp.0": ("ff.net.0.proj",),
    "double_blocks.0.img_mlp.2": ("ff.net.2",),
    "double_blocks.0.txt_mlp.0": ("ff_context.net.0.proj",),
    "double_blocks.0.txt_mlp.2": ("ff_context.net.2",),
    "double_blocks.0.img_mod.lin": ("norm1.linear",),
    "double_blocks.0.txt_mod.lin": ("norm1_context.linear",),
    "single_blocks.0.linear1": (*QKV, "proj_mlp"),
    "single_blocks.0.linear2": ("proj_out",),
    "single_blocks.0.modulation.lin": ("norm.linear",),
}
SECOND = DOUBLE | {
    "double_blocks.0.img_mlp.0": ("ff.linear_in",),
    "double_blocks.0.img_mlp.2": ("ff.linear_out",),
    "double_blocks.0.txt_mlp.0": ("ff_context.linear_in",),
    "double_blocks.0.txt_mlp.2": ("ff_context.linear_out",),
    "single_blocks.0.linear1": ("attn.to_qkv_mlp_proj",),
    "single_blocks.0.linear2": ("attn.to_out",),
}
LAST = "final_layer.adaLN_modulation.1"  # a shift and a scale, which diffusers has the other way round
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    LAST: "norm_out.linear",
}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": QKV,
    "double_blocks.0.processor.qkv_lora2": ADDED,
    "double_blocks.0.processor.proj_lora1": ("attn.to_out.0",),
    "double_blocks.0.processor.proj_lora2": ("attn.to_add_out",),
    "single_blocks.0.processor.qkv_lora": QKV,
    "single_blocks.0.processor.proj_lora": ("proj_out",),
}


class Base(NamedTuple):
    """A miniature, and what the original's layers are of it."""

    folder: Path
    pipeline: object
    layers: Mapping[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Base]:
    place = tmp_path_factory.mktemp("flux")
    found = {}
    for name, build, layers in (
        ("flux", random_models.small_flux, FIRST),
        ("xlabs", random_models.small_flux, XLABS),
        ("klein", random_models.small_klein, SECOND),
    ):
        folder = build(place / name)
        pipeline = models.load(models.find(str(folder)), Meter(), Hold(resolution=(16, 16), tokens=16))
        blocks = {"double": "transformer_blocks.0.", "single": "single_transformer_blocks.0."}
        full = {n: tuple(blocks[n.partition("_")[0]] + part for part in parts) for n, parts in layers.items()}
        outside = {} if name == "xlabs" else OUTSIDE
        found[name] = Base(folder, pipeline, full | {n: (layer,) for n, layer in outside.items()})
    return found


def made(
    base: Base, alpha: float, only: str | tuple[str, ...] = ""
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """A LoRA of rank 2 of all layers of the original; strong, so that pictures tell."""
    weights = {n.replace(".base_layer", ""): p for n, p in base.pipeline.denoiser.named_parameters()}
    lora = {}
    for name, layers in base.layers.items():
        rows = sum(len(weights[f"{layer}.weight"]) for layer in layers)
        inputs = weights[f"{layers[0]}.weight"].shape[1]
        if name.startswith(only):
            lora[name] = (0.3 * Key(name, "A").normal(2, inputs), 0.3 * Key(name, "B").normal(rows, 2), alpha)
    return lora


def kohyas(path: Path, lora: Mapping) -> Path:
    state = {}
    for name, (down, up, alpha) in lora.items():
        plain = f"lora_unet_{name.replace('.', '_')}"
        state |= {
            f"{plain}.lora_down.weight": down,
            f"{plain}.lora_up.weight": up,
            f"{plain}.alpha": torch.tensor(alpha),
        }
    save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    return path


def ai_toolkits(path: Path, lora: Mapping) -> Path:
    """Which has no alpha: it is the rank."""
    state = {}
    for name, (down, up, _) in lora.items():
        state |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    save_file(state, path)
    return path


def xlabs(path: Path, lora: Mapping) -> Path:
    """Whose names end in `lora` themselves. It has no alpha either."""
    halves = [{f"{name}.down.weight": down, f"{name}.up.weight": up} for name, (down, up, _) in lora.items()]
    save_file({key: tensor for state in halves for key, tensor in state.items()}, path)
    return path


def drawn(pipeline) -> torch.Tensor:
    return PipelineSampler(pipeline, SAMPLING)(PROMPTS, KEYS).images


@pytest.mark.parametrize(
    ("name", "spelled", "alpha"),
    [
        ("flux", kohyas, 3.0),
        ("klein", kohyas, 3.0),
        ("flux", ai_toolkits, 2.0),
        ("klein", ai_toolkits, 2.0),
        ("xlabs", xlabs, 2.0),
    ],
)
def test_every_layer_of_the_original_is_added_where_its_outputs_are(bases, tmp_path, name, spelled, alpha):
    """(alpha / rank) B A of each, cut by rows in the order in which the original makes queries, keys and values."""
    base = bases[name]
    lora = made(base, alpha)
    merged = copy.copy(base.pipeline)
    merged.denoiser = copy.deepcopy(base.pipeline.denoiser)
    if hasattr(merged.denoiser, "peft_config"):
        merged.denoiser.unload_lora()
    with torch.no_grad():
        for original, (down, up, _) in lora.items():
            up = torch.cat(up.chunk(2)[::-1]) if original == LAST else up
            first = 0
            for layer in base.layers[original]:
                weight = merged.denoiser.get_submodule(layer).weight
                weight += alpha / 2 * up[first : first + len(weight)] @ down
                first += len(weight)
            assert first == len(up)
    policy = open_policy(base.pipeline, spelled(tmp_path / "lora.safetensors", lora))
    torch.testing.assert_close(drawn(policy), drawn(merged), atol=1e-4, rtol=0)
    assert (drawn(policy) - drawn(base.pipeline)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "spelled", "only"),
    [
        ("klein", kohyas, ""),
        ("klein", ai_toolkits, ""),
        ("flux", kohyas, "double_blocks.0."),
        ("xlabs", xlabs, ""),
    ],
)
def test_pictures_are_those_of_plain_diffusers_with_the_same_file(bases, tmp_path, name, spelled, only):
    """Which knows FLUX.1's single blocks by kohya's names in their true widths alone, leaves FLUX.1's layers outside of
    blocks out, and takes FLUX.2's last modulation for one in its own order."""
    base = bases[name]
    lora = {n: value for n, value in made(base, 1.0, only).items() if "mod" not in n}
    path = spelled(tmp_path / "lora.safetensors", lora)
    plain = plain_diffusers.__wrapped__(base.folder)  # what it loads changes it
    plain.load_lora_weights(path)
    theirs = plain(**as_asked(base.pipeline, SAMPLING, PROMPTS, KEYS), output_type="pt").images
    torch.testing.assert_close(drawn(open_policy(base.pipeline, path)), theirs, atol=1e-4, rtol=0)
    assert (theirs - drawn(base.pipeline)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"double_blocks.0.img_attn.qkv": 1}, r"attn\.to_q\.lora_B\.weight has shape \(97, 2\), not \(32, 2\)"),
        ({"double_blocks.7.img_attn.qkv": 0}, r"double_blocks_7_img_attn_qkv\.lora_A\.weight is not the model's"),
        ({"final_layer.adaLN_modulation.7": 0}, r"final_layer_adaLN_modulation_7\.lora_A\.weight is not the model's"),
    ],
)
def test_a_layer_that_is_none_of_the_models_is_named(bases, tmp_path, change, message):
    lora = made(bases["flux"], 2.0)
    down, up, alpha = lora["double_blocks.0.img_attn.qkv"]
    for name, more in change.items():
        lora[name] = (down, torch.cat([up, up[:more]]), alpha)
    with pytest.raises(RunError, match=message):
        open_policy(bases["flux"].pipeline, kohyas(tmp_path / "lora.safetensors", lora))


def test_a_layer_whose_name_is_the_end_of_anothers_is_adapted_alone(bases, tmp_path):
    """peft takes `proj_out` for each layer whose name ends so; of single blocks too."""
    lora = made(bases["flux"], 2.0, only="final_layer.linear")
    policy = open_policy(bases["flux"].pipeline, kohyas(tmp_path / "lora.safetensors", lora))
    assert {name.split(".lora_")[0] for name in policy.state_dict()} == {"proj_out"}
    policy.save(tmp_path / "again")
    again = open_policy(bases["flux"].pipeline, tmp_path / "again")
    torch.testing.assert_close(drawn(again), drawn(policy), atol=0, rtol=0)


def test_the_same_layer_by_both_of_its_names_is_two_loras(bases, tmp_path):
    lora = made(bases["flux"], 2.0, only="double_blocks.0.img_attn.qkv")
    down, up, alpha = lora["double_blocks.0.img_attn.qkv"]
    lora["transformer_blocks.0.attn.to_k"] = (down, up[:32], alpha)
    with pytest.raises(RunError, match=r"holds transformer_blocks\.0\.attn\.to_k\.lora_A\.weight twice"):
        open_policy(bases["flux"].pipeline, kohyas(tmp_path / "lora.safetensors", lora))
