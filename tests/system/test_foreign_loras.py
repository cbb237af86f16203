"""LoRAs made elsewhere, in each spelling there is: the pictures are those of plain diffusers, or a refusal by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import random_models
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from alignbench import Key, LoRA, Prompt, Sampling
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import digest, open_policy
from alignbench.diffusion.lora_files import layers_of
from alignbench.diffusion.original_names import original_names
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError
from alignbench.meter import Meter

TEXTS = ["a red circle", "two small blue stars"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
KEYS = [Key("lora", i) for i in range(2)]
SAMPLING = Sampling(3, 4.0, 0.0)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in")
CONVOLUTIONS = (*MORE, "conv1", "conv2", "time_emb_proj", "conv_shortcut", "downsamplers.0.conv")
EVERYWHERE = (*CONVOLUTIONS, "conv_in", "conv_out", "time_embedding.linear_1", "upsamplers.0.conv")

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


class Matrices(NamedTuple):
    down: torch.Tensor
    up: torch.Tensor
    alpha: float


class Base(NamedTuple):
    """A miniature as alignbench and as diffusers have it."""

    ours: object
    theirs: object
    unet: torch.nn.Module  # without adapters


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Base:
    return based(random_models.small_sd(tmp_path_factory.mktemp("sd")), StableDiffusionPipeline)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Base:
    return based(random_models.small_sdxl(tmp_path_factory.mktemp("sdxl")), StableDiffusionXLPipeline)


def based(folder: Path, kind: type) -> Base:
    theirs = kind.from_pretrained(folder, dtype=torch.float32)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    theirs.set_progress_bar_config(disable=True)
    return Base(models.load(models.find(str(folder)), Meter()), theirs, copy.deepcopy(theirs.unet))


def random_lora(base: Base, ends: tuple[str, ...], rank=lambda i: 2, alpha=lambda i, rank: rank) -> dict[str, Matrices]:
    """A LoRA of all layers whose name ends so; strong, so that pictures tell."""
    found = {}
    for i, (name, weight) in enumerate(layers_of(base.unet).items()):
        if f".{name}".endswith(tuple(f".{end}" for end in ends)):
            outputs, *inputs = weight.shape
            r = rank(i)
            up = Key(name, "up").normal(outputs, r, *(1 for _ in inputs[1:]))
            found[name] = Matrices(0.4 * Key(name, "down").normal(r, *inputs), 0.4 * up, alpha(i, r))
    return found


def written(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path, metadata)
    return path


def spelled(lora: Mapping[str, Matrices], down: str, up: str, alpha: str = "", name: Callable = str) -> dict:
    """The tensors of a LoRA by names such as `unet.{}.lora.down.weight`."""
    state = {}
    for layer, matrices in lora.items():
        state |= {down.format(name(layer)): matrices.down, up.format(name(layer)): matrices.up}
        state |= {alpha.format(name(layer)): torch.tensor(float(matrices.alpha))} if alpha else {}
    return state


def processors(layer: str) -> str:
    """The layer of an attention as diffusers spelled it before 0.22."""
    head, _, end = layer.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{end}_lora"


def drawn(sampler: PipelineSampler) -> torch.Tensor:
    return sampler(PROMPTS, KEYS).images


def ours(base: Base, path: Path) -> torch.Tensor:
    return drawn(PipelineSampler(open_policy(base.ours, path), SAMPLING))


def theirs(base: Base, load: Callable) -> torch.Tensor:
    """What plain diffusers draws after `load` has put the LoRA on its pipeline."""
    pipeline = base.theirs
    pipeline.unet = copy.deepcopy(base.unet)
    load(pipeline)
    latents = base.ours.initial_noise(KEYS)
    asked = {"guidance_scale": SAMPLING.guidance, "num_inference_steps": SAMPLING.steps, "output_type": "pt"}
    return pipeline(TEXTS, latents=latents, **asked).images


def check(base: Base, path: Path, lora: Mapping[str, Matrices], load: Callable | None) -> None:
    """Ours, against diffusers where `load` tells it what to load, and against the weights with the LoRA added."""
    pictures = ours(base, path)
    for reference in (load, added(lora)):
        if reference is not None:
            torch.testing.assert_close(pictures, theirs(base, reference), atol=1e-5, rtol=0)
    assert (pictures - drawn(PipelineSampler(base.ours, SAMPLING))).abs().max() > 0.01


def fused(path: Path) -> Callable:
    def load(pipeline) -> None:
        pipeline.load_lora_weights(path)
        pipeline.fuse_lora()

    return load


def added(lora: Mapping[str, Matrices]) -> Callable:
    """W + (alpha / rank) B A, layer by layer."""

    def load(pipeline) -> None:
        weights = layers_of(pipeline.unet)
        for layer, (down, up, alpha) in lora.items():
            update = up.flatten(1) @ down.flatten(1)
            weights[layer].data += alpha / len(down) * update.reshape(weights[layer].shape)

    return load


def odd_ranks(i: int) -> int:
    return 1 + i % 3


KOHYA = ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha")
DIFFUSERS = ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight")
PEFT = ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight")


def kohya_name(layer: str) -> str:
    return layer.replace(".", "_")


@pytest.mark.parametrize(
    ("ends", "spelling", "name", "rank", "alpha", "diffusers_can"),
    [
        (ATTENTION, DIFFUSERS, str, lambda i: 2, lambda i, r: r, True),
        (MORE, DIFFUSERS, str, odd_ranks, lambda i, r: r, True),
        (EVERYWHERE, PEFT, str, odd_ranks, lambda i, r: r, True),
        (
            ATTENTION,
            ("unet.{}.down.weight", "unet.{}.up.weight"),
            processors,
            lambda i: 3,
            lambda i, r: r,
            True,
        ),
        (MORE, KOHYA, kohya_name, lambda i: 4, lambda i, r: 1, True),
        (CONVOLUTIONS, KOHYA, kohya_name, odd_ranks, lambda i, r: 1.5, True),
        # diffusers loses the alphas of attention layers where alphas differ: its names of them match no layer.
        (CONVOLUTIONS, KOHYA, kohya_name, odd_ranks, lambda i, r: 0.5 + i % 2, False),
    ],
    ids=["diffusers", "ranks", "peft", "processors", "kohya", "convolutions", "alphas"],
)
def test_pictures_are_those_of_diffusers_in_every_spelling(
    sd, tmp_path, ends, spelling, name, rank, alpha, diffusers_can
):
    lora = random_lora(sd, ends, rank, alpha)
    path = written(tmp_path / "any.safetensors", spelled(lora, *spelling, name=name))
    check(sd, path, lora, fused(path) if diffusers_can else None)


def original_name(base: Base) -> Callable:
    names = original_names(layers_of(base.unet), base.unet.config.layers_per_block)
    return lambda layer: names[layer].replace(".", "_")


def test_kohyas_files_of_sdxl_have_the_original_block_numbers(sdxl, tmp_path):
    ends = (*MORE, "conv1", "conv2", "time_emb_proj", "downsamplers.0.conv")
    lora = random_lora(sdxl, ends, odd_ranks, lambda i, r: 1.5)
    state = spelled(lora, *KOHYA, name=original_name(sdxl))
    assert any("input_blocks_1_1_transformer_blocks_0_attn1_to_q" in key for key in state)
    assert any("middle_block_1" in key for key in state)
    assert any("output_blocks_" in key for key in state)
    path = written(tmp_path / "any.safetensors", state)
    check(sdxl, path, lora, fused(path))


def test_layers_without_an_alpha_of_their_own_have_the_rank(sd, tmp_path):
    lora = random_lora(sd, ATTENTION, odd_ranks, lambda i, r: 7 if i % 2 else r)
    state = spelled(lora, *KOHYA, name=kohya_name)
    state = {key: value for key, value in state.items() if not (key.endswith(".alpha") and value != 7)}
    check(sd, written(tmp_path / "any.safetensors", state), lora, None)


def test_names_without_anything_before_the_layer_are_read(sd, tmp_path):
    lora = random_lora(sd, ATTENTION)
    bare = written(tmp_path / "bare.safetensors", spelled(lora, "{}.down.weight", "{}.up.weight", name=processors))
    check(sd, bare, lora, None)


def test_half_precision_is_read(sd, tmp_path):
    state = {key: value.half() for key, value in spelled(random_lora(sd, MORE), *PEFT).items()}
    path = written(tmp_path / "any.safetensors", state)
    pictures = ours(sd, path)
    torch.testing.assert_close(pictures, theirs(sd, fused(path)), atol=1e-5, rtol=0)


def peft_folder(base: Base, folder: Path, **fields) -> Path:
    """What `PeftModel.save_pretrained` writes of a LoRA with noise in it."""
    model = PeftModel(copy.deepcopy(base.unet), LoraConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.4 * Key("peft", name).normal(*parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 3, "lora_alpha": 6, "target_modules": ["to_q", "to_out.0"], "lora_dropout": 0.1},
        {"r": 4, "lora_alpha": 1.5, "target_modules": ["to_q", "ff.net.2", "conv1"], "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["to_q", "to_k"],
            "rank_pattern": {"attn2.to_q": 5, "^mid_block.attentions.0.transformer_blocks.0.attn1.to_k": 1},
            "alpha_pattern": {"attn2.to_k": 9},
        },
        {"r": 2, "target_modules": r"(mid_block|up_blocks).*\.(to_q|to_v)"},
        {"r": 2, "target_modules": ["to_q"], "exclude_modules": ["attn2.to_q"], "init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "expression", "excluded"],
)
def test_pictures_of_a_peft_folder_are_those_of_peft(sd, tmp_path, fields):
    folder = peft_folder(sd, tmp_path / "peft", **fields)

    def load(pipeline) -> None:
        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, folder).merge_and_unload()

    expected = theirs(sd, load)
    for path in (folder, folder / "adapter_model.safetensors"):
        torch.testing.assert_close(ours(sd, path), expected, atol=1e-5, rtol=0)


OURS = LoRA(3, 6.0, ("to_q", "ff.net.2")), LoRA(2, None, ("conv1", "conv_in", "to_v")), LoRA()


@pytest.mark.parametrize("tuning", OURS, ids=lambda tuning: "-".join(tuning.targets) or "own")
def test_what_we_save_opens_again_here_and_in_diffusers(sd, tmp_path, tuning):
    policy = sd.ours.adapt(tuning, Key("a"))
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.4 * Key("move", i).normal(*parameter.shape))
    policy.save(tmp_path)
    pictures = drawn(PipelineSampler(policy, SAMPLING))
    opened = open_policy(sd.ours, tmp_path)
    assert torch.equal(drawn(PipelineSampler(opened, SAMPLING)), pictures)
    torch.testing.assert_close(pictures, theirs(sd, fused(tmp_path)), atol=1e-5, rtol=0)
    opened.save(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(tmp_path)


def test_a_lora_from_elsewhere_that_is_saved_again_is_the_same(sd, tmp_path):
    lora = random_lora(sd, CONVOLUTIONS, odd_ranks, lambda i, r: 0.5 + i % 2)
    path = written(tmp_path / "any.safetensors", spelled(lora, *KOHYA, name=kohya_name))
    policy = open_policy(sd.ours, path)
    policy.save(tmp_path / "again")
    check(sd, tmp_path / "again", lora, fused(tmp_path / "again"))


ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TWO = {f"unet.{ATTN}.lora_A.weight": torch.zeros(2, 8), f"unet.{ATTN}.lora_B.weight": torch.zeros(8, 2)}
K = f"lora_unet_{ATTN.replace('.', '_')}"
ONE = torch.zeros(1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({f"unet.{ATTN}.lora_magnitude_vector": torch.zeros(8)}, r"is a DoRA \(unet\S+lora_magnitude_vector\)"),
        ({f"{K}.dora_scale": torch.zeros(8, 1)}, r"is a DoRA \(lora_unet\S+dora_scale\), which is not supported"),
        (
            {"lora_te_text_model_x.lora_down.weight": ONE},
            r"changes a text encoder too \(1 of 3 tensors, the first is lo",
        ),
        ({"lora_te2_text_model_x.alpha": ONE}, r"changes a text encoder too \(1 of 3 tensors, the first is lora_te2"),
        ({"text_encoder.text_model.x.lora_A.weight": ONE}, "changes a text encoder too"),
        ({"base_model.model.text_model.x.lora_A.weight": ONE}, "changes a text encoder too"),
        ({f"{K}.hada_w1_a": ONE}, r"is a LoHa \(lora_unet\S+hada_w1_a\)"),
        ({f"{K}.lokr_w1": ONE}, r"is a LoKr \("),
        ({f"{K}.lora_mid.weight": ONE}, r"is a LoRA in Tucker form \("),
        ({f"{K}.diff_b": ONE}, r"is a full difference of weights \("),
        ({f"unet.{ATTN}.lora_B.bias": ONE}, r"is a LoRA with a bias \("),
    ],
)
def test_other_kinds_are_refused_by_the_name_of_a_tensor_before_a_model_is_loaded(tmp_path, more, message):
    path = written(tmp_path / "any.safetensors", TWO | more)
    with pytest.raises(InputError, match=message):
        digest(path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"unet.nowhere.lora_A.weight": ONE}, "nowhere.lora_A.weight is not the model's"),
        ({"stray": ONE}, "stray is not the model's"),
        ({"unet.mid_block.alpha": torch.tensor(1.0)}, "has an alpha of mid_block, and no LoRA of it"),
        ({f"{K}.lora_down.weight": torch.zeros(2, 8)}, rf"holds {ATTN}.lora_A.weight twice"),
        ({f"unet.{ATTN}.lora_A.other.weight": torch.zeros(2, 8)}, rf"holds {ATTN}.lora_A twice"),
        ({f"unet.{ATTN}.lora_B.weight": torch.zeros(8, 3)}, r"lora_B.weight has shape \(8, 3\), not \(8, 2\)"),
        ({f"unet.{ATTN}.lora_A.weight": torch.zeros(10**6, 1)}, r"lora_A.weight has shape \(1000000, 1\), not"),
        ({f"unet.{ATTN}.lora_A.weight": torch.full((2, 8), torch.nan)}, "holds values that are not finite"),
        ({f"unet.{ATTN}.lora_A.weight": torch.ones(2, 8, dtype=torch.int8)}, "holds int8, not floating-point numbers"),
        ({f"unet.{ATTN}.alpha": torch.tensor(torch.inf)}, "says alpha inf"),
        ({f"unet.{ATTN}.lora_{x}.weight": torch.zeros(s) for x, s in (("A", (0, 8)), ("B", (8, 0)))}, "has rank 0: "),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(sd, tmp_path, more, message):
    path = written(tmp_path / "any.safetensors", TWO | more)
    with pytest.raises(RunError, match=message):
        open_policy(sd.ours, path)


def test_a_lora_of_another_model_is_refused(sd, sdxl, tmp_path):
    lora = {f"unet.down_blocks.9.{end}": value for end, value in (("lora_A.weight", ONE), ("lora_B.weight", ONE))}
    with pytest.raises(RunError, match=r"it has no layer down_blocks.9; was it trained on another model"):
        open_policy(sd.ours, written(tmp_path / "nine.safetensors", lora))
    path = written(tmp_path / "any.safetensors", spelled(random_lora(sdxl, ATTENTION), *PEFT))
    with pytest.raises(
        RunError, match=r"lora_A.weight has shape \(2, 20\), not \(2, 8\) \(and \d+ more\); was it trained"
    ):
        open_policy(sd.ours, path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "adapter_config.json has use_dora True, which is not supported"),
        ({"bias": "lora_only"}, "has bias 'lora_only', which is not supported"),
        ({"modules_to_save": ["conv_in"]}, r"has modules_to_save \['conv_in'\], which is not supported"),
        ({"layer_replication": [[0, 1]]}, r"has layer_replication \[\[0, 1\]\], which is not supported"),
        ({"peft_type": "LOHA"}, "has peft_type 'LOHA'; expected LORA"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which changes the base model's weights"),
        ({"of_tomorrow": 3}, "has of_tomorrow 3, which is not supported"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"has alpha_pattern \{'\(a\+\)\+\$': 3\}; expected names of layers"),
    ],
)
def test_fields_of_peft_that_are_not_honoured_are_refused_by_name_and_value(sd, tmp_path, fields, message):
    folder = peft_folder(sd, tmp_path / "peft", r=2, target_modules=["to_q"])
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    with pytest.raises(InputError, match=message):
        digest(folder)


def test_a_peft_folder_without_its_configuration_or_with_a_text_encoder_is_refused(sd, tmp_path):
    folder = peft_folder(sd, tmp_path / "peft", r=2, target_modules=["to_q"])
    (folder / "adapter_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(
        RunError, match=r"adapter_config.json is missing, and adapter_model.safetensors does not say its"
    ):
        digest(folder)
    (tmp_path / "kept.json").rename(folder / "adapter_config.json")
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "unet")
    digest(whole)
    peft_folder(sd, whole / "text_encoder", r=2, target_modules=["to_q"])
    with pytest.raises(InputError, match=r"whole changes a text encoder too \(\S+text_encoder/adapter_model"):
        digest(whole)
