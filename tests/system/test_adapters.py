"""Saved policies, opened again: the same predictions to the bit, and files that do not fit refused by name."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path

import pytest
import torch
from hub_cache import in_cache
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignbench import BiasFineTune, FullFineTune, Key, LoRA, Prompt
from alignbench.asking.adapter_folders import adapter_folder, check_model, name_of
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
            r"says rank 4, but down_blocks\S+lora_A.weight has shape \(9, 64\)",
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
        ({"unet.r": 10**12}, "says rank 1000000000000, but"),
        ({"unet.r": True}, "says rank True"),
        ({"unet.lora_alpha": "8"}, "says alpha '8'"),
        ({"unet.lora_alpha": float("inf")}, "says alpha inf"),
        ({"unet.target_modules": 4}, "says target modules 4; expected a list of names"),
        ({"unet.target_modules": ["nowhere"]}, "does not fit model 'tiny': it has no layer nowhere; was it"),
    ],
)
def test_a_lora_described_otherwise_is_refused(tiny, tmp_path, metadata, message):
    folder = saved(tiny.adapt(DEFAULT, Key("a")), tmp_path)
    rewrite(folder / adapters.LORA, lambda _: None, metadata)
    with pytest.raises(RunError, match=message):
        adapters.open_policy(tiny, folder)


def test_a_denoiser_of_another_model_is_refused(tiny, tmp_path):
    folder = saved(tiny.adapt(BiasFineTune(), Key("a")), tmp_path)
    config = folder / CONFIG
    was = config.read_text()
    config.write_text(json.dumps(json.loads(was) | {"attention_head_dim": 8}))
    with pytest.raises(RunError, match="attention_head_dim is 8, not 4; was it trained on another model"):
        adapters.open_policy(tiny, folder)
    config.write_text(was)
    rewrite(folder / DENOISER, lambda state: state.pop("conv_in.bias"))
    with pytest.raises(RunError, match=r"conv_in.bias is missing"):
        adapters.open_policy(tiny, folder)
    config.unlink()
    with pytest.raises(InputError, match=r"config.json is missing"):
        adapters.open_policy(tiny, folder)


def test_the_files_of_points_and_of_pictures_are_told_apart(tiny, mixture, tmp_path):
    points = saved(trained(mixture, DEFAULT), tmp_path / "points")
    pictures = saved(trained(tiny, DEFAULT), tmp_path / "pictures")
    with pytest.raises(InputError, match=r"residual.safetensors holds no layer of a LoRA, but \S+; expected one of py"):
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
    with pytest.raises(InputError, match=r"holds unet/\S+ and pytorch_lora_weights.safetensors; expected one of"):
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
    (full / CONFIG).write_text("{}")
    assert adapters.digest(full) != before


WEIGHTS = "diffusion_pytorch_model"
CONFIG, DENOISER = "unet/config.json", f"unet/{WEIGHTS}.safetensors"
SMALL = {"max_shard_size": "300KB"}


@pytest.fixture(scope="module")
def plain():
    """The embedded model without adapters, of which every copy for a full fine-tune would have to be rid."""
    return models.load(models.named()["tiny"], Meter())


@pytest.fixture(scope="module")
def tuned(plain):
    return trained(plain, FullFineTune())


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (SMALL, f"{WEIGHTS}.safetensors.index.json"),
        ({"variant": "fp16"}, f"{WEIGHTS}.fp16.safetensors"),
        ({"variant": "fp16", **SMALL}, f"{WEIGHTS}.safetensors.index.fp16.json"),
        ({"variant": "bf16"}, f"{WEIGHTS}.bf16.safetensors"),
    ],
    ids=["shards", "variant", "shards-of-a-variant", "bf16"],
)
def test_a_denoiser_in_shards_or_of_a_variant_opens_as_in_one_file(plain, tuned, tmp_path, asked, name):
    tuned.save(tmp_path / "whole")
    tuned.denoiser.save_pretrained(tmp_path / "other" / "unet", **asked)
    assert (tmp_path / "other" / "unet" / name).is_file()
    for place in (tmp_path / "other", tmp_path / "other" / "unet"):
        assert torch.equal(predicted(adapters.open_policy(plain, place)), predicted(tuned))
        assert adapters.digest(place) == adapters.digest(tmp_path / "whole")


def test_full_precision_goes_before_half(plain, tuned, tmp_path):
    tuned.save(tmp_path)
    half = tmp_path / "unet" / f"{WEIGHTS}.fp16.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(tmp_path / DENOISER).items()}, half)
    assert torch.equal(predicted(adapters.open_policy(plain, tmp_path)), predicted(tuned))
    with pytest.raises(
        InputError, match=r"fp16.safetensors is not what \S+unet is read from: diffusion_pytorch_model.saf"
    ):
        adapters.digest(half)


def index_of(folder: Path) -> Path:
    return folder / "unet" / f"{WEIGHTS}.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda unet, index: next(unet.glob("*-00002-of-*")).unlink(),
            r"-00002-of-\d+.safetensors is missing, which the index",
        ),
        (lambda unet, index: index.write_text("{"), r"index.json is not JSON \(Expecting"),
        (lambda unet, index: index.write_text("[" * 10**5), r"index.json is not JSON \(nested too deeply"),
        (lambda unet, index: index.write_text('{"weight_map": {}}'), r"index.json is no index of shards"),
        (
            lambda unet, index: index.write_text('{"weight_map": {"a": "../secret"}}'),
            "index.json is no index of shards",
        ),
        (lambda unet, index: index.write_text('{"weight_map": {"a": 3}}'), "index.json is no index of shards"),
        (
            lambda unet, index: next(unet.glob("*-00001-of-*")).write_bytes(
                next(unet.glob("*-00002-of-*")).read_bytes()
            ),
            r"-00002-of-\d+.safetensors holds \S+, which another file beside it holds too",
        ),
    ],
    ids=["missing", "damaged", "empty", "none", "outside", "number", "twice"],
)
def test_shards_that_are_not_whole_are_refused_by_name(tuned, tmp_path, damage, message):
    tuned.denoiser.save_pretrained(tmp_path / "unet", **SMALL)
    damage(tmp_path / "unet", index_of(tmp_path))
    with pytest.raises((InputError, RunError), match=message):
        adapters.digest(tmp_path)


def test_one_file_and_shards_in_a_folder_are_told_apart_by_the_user(tuned, tmp_path):
    tuned.denoiser.save_pretrained(tmp_path / "unet", **SMALL)
    tuned.save(tmp_path)
    with pytest.raises(
        InputError, match=r"holds both diffusion_pytorch_model.safetensors and \S+index.json; remove one"
    ):
        adapters.digest(tmp_path)


def run_line_of(error: InputError) -> None:
    """Do what a message says."""
    python, _, code = shlex.split(str(error).split("`")[1])
    assert python == "python"
    exec(code, {})


@pytest.mark.parametrize("asked", [{}, SMALL, {"variant": "fp16"}], ids=["one", "shards", "variant"])
def test_a_denoiser_in_pickles_is_refused_with_the_line_that_converts_it(plain, tuned, tmp_path, asked):
    folder = tmp_path / "with 'quotes' $and spaces"
    tuned.denoiser.save_pretrained(folder / "unet", safe_serialization=False, **asked)
    for place in (folder, next((folder / "unet").glob("*.bin"))):
        with pytest.raises(
            InputError, match=r"\.bin is a pickle, which may run code .* Convert it with `python"
        ) as raised:
            adapters.digest(place)
    run_line_of(raised.value)
    assert torch.equal(predicted(adapters.open_policy(plain, folder)), predicted(tuned))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "any.pt"])
def test_a_lora_in_a_pickle_is_refused_with_the_line_that_converts_it(tiny, tmp_path, name):
    policy = trained(tiny, DEFAULT)
    path = saved(policy, tmp_path) / adapters.LORA
    torch.save(load_file(path), tmp_path / name)
    torch.save({}, tmp_path / "optimizer.bin")
    path.unlink()
    with pytest.raises(InputError, match=rf"{name} is a pickle") as raised:
        adapters.digest(tmp_path if name.endswith("bin") else tmp_path / name)
    run_line_of(raised.value)
    assert torch.equal(predicted(adapters.open_policy(tiny, tmp_path)), predicted(policy))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cond_stage_model.x", "StableDiffusionPipeline"),
        ("conditioner.embedders.1.x", "StableDiffusionXLPipeline"),
    ],
)
def test_a_whole_checkpoint_in_one_file_is_refused_with_the_line_that_converts_it(tmp_path, text, kind):
    path = tmp_path / "civitai.safetensors"
    save_file({name: torch.zeros(1) for name in ("model.diffusion_model.out.0.bias", text)}, path)
    message = (
        r"civitai.safetensors is a whole checkpoint in one file \(model.diffusion_model.out.0.bias, and 1 more .*"
        rf"python -c 'from diffusers import {kind} as P; P.from_single_file\(\".*civitai.safetensors\".*\)"
        r".save_pretrained\(\".*civitai-safetensors\"\)', then --adapter .*civitai-safetensors$"
    )
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=message):
            adapters.digest(place)
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(InputError, match=r"old.ckpt is a pickle.*from_single_file\(\".*old.ckpt\"\)"):
        adapters.digest(tmp_path / "old.ckpt")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ("out.0.bias", "other.x"),
            "a denoiser without its text encoders; give the folder of the whole pipeline with model_index.json",
        ),
        (("double_blocks.0.x", "single_blocks.0.x"), "a FLUX model in one file; give the folder of its pipeline"),
        (("joint_blocks.0.x",), "a Stable Diffusion 3 model in one file; give the folder of its pipeline"),
    ],
)
def test_a_file_that_holds_a_model_of_another_kind_or_a_part_is_refused_as_what_it_is(tmp_path, names, what):
    path = tmp_path / "civitai.safetensors"
    save_file({f"model.diffusion_model.{name}": torch.zeros(1) for name in names}, path)
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=rf"civitai.safetensors is no adapter \(.*\. It is {what}\.$"):
            adapters.digest(place)


def test_fields_that_a_denoiser_leaves_out_are_those_of_its_class(plain, tuned, tmp_path):
    config = saved(tuned, tmp_path) / CONFIG
    was = json.loads(config.read_text())
    config.write_text(json.dumps({name: value for name, value in was.items() if name != "attention_head_dim"}))
    with pytest.raises(RunError, match="attention_head_dim is 8, not 4; was it trained on another model"):
        adapters.open_policy(plain, tmp_path)
    config.write_text(json.dumps(was | {"attention_head_dim": [4, 4], "upcast_attention": None, "_name_or_path": "x"}))
    assert torch.equal(predicted(adapters.open_policy(plain, tmp_path)), predicted(tuned))
    for more, message in (
        ({"of_tomorrow": 2}, "has of_tomorrow 2"),
        ({"_class_name": "Other"}, "_class_name is 'Other'"),
    ):
        config.write_text(json.dumps(was | more))
        with pytest.raises((InputError, RunError), match=message):
            adapters.open_policy(plain, tmp_path)


def test_an_adapter_may_be_named_by_its_file(tiny, plain, tuned, tmp_path, monkeypatch):
    policy = trained(tiny, DEFAULT)
    lora, own, full = (tmp_path / name for name in ("cell/adapter", "loras", "full"))
    policy.save(lora)
    policy.save(own)
    (own / adapters.LORA).rename(own / "mine.safetensors")
    tuned.save(full)
    for given, place, name in (
        (lora / adapters.LORA, lora / adapters.LORA, "cell"),
        (own / "mine.safetensors", own / "mine.safetensors", "mine"),
        (own, own, "loras"),
        (full / DENOISER, full / DENOISER, "full"),
        (full / "unet", full / "unet", "full"),
    ):
        assert (adapter_folder(given), name_of(given)) == (place, name)
        opened = adapters.open_policy(plain if name == "full" else tiny, adapter_folder(given))
        assert torch.equal(predicted(opened), predicted(tuned if name == "full" else policy))
    monkeypatch.chdir(own)
    for place in (Path("mine.safetensors"), Path(), Path("/"), Path("/adapter")):
        check_model(place, tiny)  # no cell's, so there is nothing to say
    with pytest.raises(InputError, match=r"--adapter loras/other.safetensors: there is no such file"):
        adapter_folder(Path("loras/other.safetensors"))
    (own / "second.safetensors").write_bytes((own / "mine.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"holds mine.safetensors and second.safetensors; expected one of"):
        adapters.digest(own)


@pytest.mark.parametrize("umask", [0o022, 0o027], ids=["usual", "group"])
def test_weights_have_the_permissions_of_any_new_file(tiny, tuned, mixture, tmp_path, umask):
    before = os.umask(umask)
    try:
        for policy, name in (
            (trained(tiny, DEFAULT), "lora"),
            (tuned, "full"),
            (mixture.adapt(DEFAULT, Key("a")), "points"),
        ):
            policy.save(tmp_path / name)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o666 & ~umask}


COMMIT = "1234567890" * 4


@pytest.mark.parametrize("kind", ["lora", "peft", "shards"])
def test_an_adapter_of_the_hubs_cache_is_found_without_network(tiny, plain, tuned, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = in_cache(tmp_path, "org/name", COMMIT)
    snapshot.mkdir(parents=True)
    with pytest.raises(RunError, match=r"org/name \(an adapter: pytorch_lora_weights.safetensors, \S+ or unet/"):
        adapter_folder(Path("org/name"))
    policy = tuned if kind == "shards" else trained(tiny, DEFAULT)
    if kind == "shards":
        tuned.denoiser.save_pretrained(snapshot / "unet", **SMALL)
    elif kind == "lora":
        policy.save(snapshot)
    else:
        state = {name: value.clone() for name, value in policy.state_dict().items()}
        save_file(
            {f"base_model.model.{name}": value for name, value in state.items()}, snapshot / "adapter_model.safetensors"
        )
        (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    assert adapter_folder(Path("org/name")) == snapshot
    assert name_of(snapshot) == f"org/name@{COMMIT[:12]}"
    assert torch.equal(
        predicted(adapters.open_policy(plain if kind == "shards" else tiny, snapshot)), predicted(policy)
    )
