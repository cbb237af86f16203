"""Saved policies, opened again: the same predictions to the bit, and files that do not fit refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignbench import BiasFineTune, FullFineTune, Key, LoRA, Prompt
from alignbench.diffusion import adapters
from alignbench.diffusion import registry as models
from alignbench.errors import InputError, RunError
from alignbench.meter import Meter
from alignbench.testbed import residual
from alignbench.testbed.pipeline import RESIDUAL

DEFAULT, SCALED = LoRA(), LoRA(rank=3, alpha=6.0, targets=("to_q", "to_out.0"))
PROMPTS = [Prompt(f"p{i}", text) for i, text in enumerate(("a red circle", "two small cyan rings"))]
T = 500

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # several policies on one pipeline


@pytest.fixture(scope="module")
def tiny():
    return models.load(models.named()["tiny"], Meter())


def trained(pipeline, tuning):
    """A policy with noise added to its weights."""
    policy = pipeline.adapt(tuning, Key("trained"))
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * Key("move", i).normal(*parameter.shape))
    return policy


def saved(policy, folder: Path) -> Path:
    policy.save(folder)
    return folder


def predicted(pipeline):
    latents = pipeline.initial_noise([Key("latent", i) for i in range(2)])
    with torch.no_grad():
        return pipeline.predict(latents, T, pipeline.condition(PROMPTS)).native


@pytest.mark.parametrize(
    "tuning", [DEFAULT, SCALED, FullFineTune(), BiasFineTune()], ids=["lora", "scaled", "full", "bias"]
)
def test_an_opened_policy_predicts_what_the_saved_one_did(tiny, tmp_path, tuning):
    policy = trained(tiny, tuning)
    opened = adapters.open_policy(tiny, saved(policy, tmp_path))
    assert torch.equal(predicted(opened), predicted(policy))
    assert torch.equal(predicted(opened.reference), predicted(tiny))
    assert not torch.equal(predicted(opened), predicted(tiny))


def test_it_does_so_on_a_model_loaded_anew(tiny, tmp_path):
    again = models.load(models.named()["tiny"], Meter())
    for name, tuning in (("lora", SCALED), ("full", FullFineTune())):
        policy = trained(tiny, tuning)
        opened = adapters.open_policy(again, saved(policy, tmp_path / name))
        assert torch.equal(predicted(opened), predicted(policy))


def test_the_mixtures_policy_opens_with_its_width(mixture, tmp_path):
    policy = trained(mixture, LoRA(rank=2))
    opened = residual.open_policy(mixture, saved(policy, tmp_path))
    assert torch.equal(predicted(opened), predicted(policy))


def test_opening_several_says_nothing(tiny, tmp_path, recwarn):
    folders = [saved(trained(tiny, DEFAULT), tmp_path / name) for name in "ab"]
    recwarn.clear()
    for folder in folders:
        adapters.open_policy(tiny, folder)
    assert not recwarn.list


def rewrite(path: Path, change, metadata=None) -> None:
    """The tensors of a file changed in place, and entries of a LoRA's metadata replaced."""
    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
    if metadata is not None:
        config = json.loads(kept.pop("lora_adapter_metadata"))
        kept |= {"lora_adapter_metadata": json.dumps(config | metadata)} if metadata else {}
    state = load_file(path)
    change(state)
    save_file(state, path, kept)


FIRST = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(FIRST.format("up")), r"down_blocks.0.\S+.attn1.to_q.lora_B.weight is missing; was it trained"),
        (lambda s: s.update({"unet.extra.lora.up.weight": torch.zeros(1)}), "extra.lora_B.weight is not the model's"),
        (lambda s: s.update({"stray": torch.zeros(1)}), "stray is not the model's"),
        (
            lambda s: s.update({FIRST.format("up"): torch.zeros(2, 4)}),
            r"lora_B.weight has shape \(2, 4\), not \(64, 4\)",
        ),
        (
            lambda s: s.update({FIRST.format("down"): torch.zeros(9, 64)}),
            r"says rank 4, but unet\S+ has shape \(9, 64\)",
        ),
        (lambda s: s.clear() or s.update({"stray": torch.zeros(1)}), r"lora_A.weight is missing \(and \d+ more\)"),
    ],
    ids=["missing", "unexpected", "stray", "shape", "rank", "another"],
)
def test_a_lora_with_other_tensors_is_refused_by_name(tiny, tmp_path, change, message):
    folder = saved(tiny.adapt(DEFAULT, Key("a")), tmp_path)
    rewrite(folder / adapters.LORA, change)
    with pytest.raises(RunError, match=message):
        adapters.open_policy(tiny, folder)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say its rank, alpha and targets"),
        ({"unet.r": 10**12}, "says rank 1000000000000, but"),
        ({"unet.r": True}, "says rank True"),
        ({"unet.lora_alpha": "8"}, "says alpha '8'"),
        ({"unet.lora_alpha": float("inf")}, "says alpha inf"),
        ({"unet.target_modules": ".*"}, "says target modules '.*'; expected a list of names"),
        ({"unet.target_modules": ["nowhere"]}, "does not fit model 'tiny': it has no layer nowhere; was it"),
        ({"unet.use_rslora": True}, "has use_rslora True, which is not supported"),
    ],
)
def test_a_lora_described_otherwise_is_refused(tiny, tmp_path, metadata, message):
    folder = saved(tiny.adapt(DEFAULT, Key("a")), tmp_path)
    rewrite(folder / adapters.LORA, lambda _: None, metadata)
    with pytest.raises(RunError, match=message):
        adapters.open_policy(tiny, folder)


def test_a_denoiser_of_another_model_is_refused(tiny, tmp_path):
    folder = saved(tiny.adapt(BiasFineTune(), Key("a")), tmp_path)
    config = folder / adapters.CONFIG
    was = config.read_text()
    config.write_text(json.dumps(json.loads(was) | {"attention_head_dim": 8}))
    with pytest.raises(RunError, match="attention_head_dim is 8, not 4; was it trained on another model"):
        adapters.open_policy(tiny, folder)
    config.write_text(was)
    rewrite(folder / adapters.DENOISER, lambda state: state.pop("conv_in.bias"))
    with pytest.raises(RunError, match=r"conv_in.bias is missing"):
        adapters.open_policy(tiny, folder)
    config.unlink()
    with pytest.raises(RunError, match=r"config.json cannot be read"):
        adapters.open_policy(tiny, folder)


def test_the_files_of_points_and_of_pictures_are_told_apart(tiny, mixture, tmp_path):
    points = saved(trained(mixture, DEFAULT), tmp_path / "points")
    pictures = saved(trained(tiny, DEFAULT), tmp_path / "pictures")
    with pytest.raises(InputError, match=r"holds residual.safetensors; expected one of pytorch_lora_weights"):
        adapters.open_policy(tiny, points)
    with pytest.raises(InputError, match=r"holds pytorch_lora_weights.safetensors; expected residual.safetensors"):
        residual.open_policy(mixture, pictures)
    rewrite_residual = load_file(points / RESIDUAL) | {"2.weight": torch.zeros(24, 24)}
    save_file(rewrite_residual, points / RESIDUAL)
    with pytest.raises(RunError, match=r"2.weight must be square, a multiple of 16 wide"):
        residual.open_policy(mixture, points)


def test_a_residual_network_of_a_problem_with_other_axes_is_refused(mixture, tmp_path):
    folder = saved(trained(mixture, DEFAULT), tmp_path)
    save_file(load_file(folder / RESIDUAL) | {"0.weight": torch.zeros(64, 9)}, folder / RESIDUAL)
    with pytest.raises(RunError, match=r"0.weight has shape \(64, 9\), not \(64, 5\)"):
        residual.open_policy(mixture, folder)


def test_a_folder_without_one_file_of_weights_is_wrong_input(tiny, tmp_path):
    with pytest.raises(InputError, match="there is no adapter folder"):
        adapters.open_policy(tiny, tmp_path / "missing")
    with pytest.raises(InputError, match=r"holds no weights; expected one of pytorch_lora_weights.safetensors"):
        adapters.open_policy(tiny, tmp_path)
    tiny.adapt(DEFAULT, Key("a")).save(tmp_path)
    tiny.adapt(BiasFineTune(), Key("a")).save(tmp_path)
    with pytest.raises(InputError, match=r"holds pytorch_lora_weights.safetensors and unet/\S+; expected one of"):
        adapters.open_policy(tiny, tmp_path)


def test_a_damaged_file_is_refused_by_name(tiny, tmp_path):
    folder = saved(tiny.adapt(DEFAULT, Key("a")), tmp_path)
    path = folder / adapters.LORA
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"pytorch_lora_weights.safetensors cannot be read as safetensors"):
        adapters.open_policy(tiny, folder)


def test_the_digest_is_of_content_and_not_of_place(tiny, tmp_path):
    policy = trained(tiny, DEFAULT)
    one, same = (adapters.digest(saved(policy, tmp_path / name)) for name in ("one", "same"))
    assert one == same
    assert adapters.digest(saved(trained(tiny, SCALED), tmp_path / "other")) != one
    full = saved(tiny.adapt(FullFineTune(), Key("a")), tmp_path / "full")
    before = adapters.digest(full)
    (full / adapters.CONFIG).write_text("{}")
    assert adapters.digest(full) != before
