"""Released weights as models: what is known of each, and each format opened from the hub's cache as its base model
with them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from hub_cache import in_cache
from huggingface_hub import constants

from alignbench import Key, LoRA, Prompt
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.diffusion import hub
from alignbench.diffusion import registry as models
from alignbench.diffusion.registry import Hold, Model, family_of, named
from alignbench.diffusion.released import RELEASED, with_released
from alignbench.errors import InputError, RunError
from alignbench.meter import Meter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = Hold(resolution=(16, 16))
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(("a red circle", "two small blue stars"))]
BUILDERS = {
    "sd15": random_models.small_sd,
    "sdxl": random_models.small_sdxl,
    "sd35_medium": random_models.small_sd3,
    "flux_dev": random_models.small_flux,
}


@pytest.mark.parametrize("entry", RELEASED, ids=lambda entry: entry.name)
def test_every_released_model_says_what_it_is_made_of_and_where_that_was_read(entry):
    model, base = named()[entry.name], named()[entry.base]
    assert model.like == base.name
    assert (model.source, model.revision, model.family) == (base.source, base.revision, base.family)
    assert not model.trainable
    assert model.licence
    assert "evaluation only" in model.note
    assert "/" in entry.read  # a repository or a page
    assert (model.denoiser, model.adapter) == ((None, entry.weights) if entry.lora else (entry.weights, None))
    assert hub.HUB_ID.fullmatch(entry.weights.name)
    assert entry.weights.revision is None or len(entry.weights.revision) == 40
    names = [part.repository.name for part in family_of(model).needs(model)]
    assert names == [base.source, entry.weights.name]


def test_what_was_released_of_a_model_that_is_not_there_is_left_out():
    sd15 = named()["sd15"]
    assert [model.name for model in with_released(sd15)] == [
        "sd15",
        "sd15_dpo",
        "sd15_kto",
        "sd15_spo",
        "sd15_spo_lora",
    ]
    assert with_released(Model("mine", "org/mine")) == (Model("mine", "org/mine"),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("released")
    return {name: build(place / name) for name, build in BUILDERS.items()}


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Callable[[hub.Repository | Model, Path], None]:
    """A function that puts a folder where the hub's cache keeps a download."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(weights: hub.Repository | Model, folder: Path) -> None:
        repository = weights.source if isinstance(weights, Model) else weights.name
        shutil.copytree(folder, in_cache(cache, repository, weights.revision or COMMIT))

    return put


def predicted(pipeline: Any) -> torch.Tensor:
    latents = pipeline.initial_noise([Key("latent", i) for i in range(2)])
    with torch.no_grad():
        return pipeline.predict(latents, pipeline.train_timesteps // 2, pipeline.condition(PROMPTS), 2.0).native


def moved(module: Any) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.05 * Key("move", i).normal(*parameter.shape))


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("sd15_kto", "20KB"),
        pytest.param("sd15_spo", None, marks=pytest.mark.slow),
        pytest.param("sdxl_mapo", None, marks=pytest.mark.slow),
        pytest.param("sdxl_mapo", "20KB", marks=pytest.mark.slow),
        pytest.param("flux_srpo", "20KB", marks=pytest.mark.slow),
    ],
)
def test_a_released_denoiser_takes_the_place_of_its_bases(folders, cached, tmp_path, name, shards):
    """In a folder of a whole pipeline, of its own, or at a repository's root, in one file or in shards."""
    model = named()[name]
    base, weights = named()[model.like], model.denoiser
    cached(base, folders[base.name])
    plain = models.load(base, Meter(), SIZE)
    network = models.load(base, Meter(), SIZE).denoiser
    moved(network)
    more = {"max_shard_size": shards} if shards else {}
    network.save_pretrained(tmp_path / "weights" / weights.inside, **more)
    assert len(list((tmp_path / "weights" / weights.inside).glob("*.safetensors"))) > 1 or shards is None
    cached(weights, tmp_path / "weights")
    pipeline = models.load(model, Meter(), SIZE)
    plain.denoiser, before = network, predicted(plain)
    torch.testing.assert_close(predicted(pipeline), predicted(plain), rtol=0, atol=1e-6)
    assert (predicted(pipeline) - before).abs().max() > 1e-3
    assert pipeline.info() == plain.info()
    assert pipeline.aligned["denoiser"].startswith(f"{weights.name}@{weights.revision or COMMIT}")


def saved_by_peft(pipeline: Any, folder: Path) -> None:
    """As the authors of flow methods save: a folder of PEFT, whose tensors have its own prefix."""
    from peft import LoraConfig, get_peft_model

    targets = ["attn.to_q", "attn.to_k", "attn.add_v_proj", "attn.to_out.0"]
    wrapped = get_peft_model(pipeline.denoiser, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    moved(wrapped)
    wrapped.save_pretrained(folder)


def saved_by_diffusers(pipeline: Any, folder: Path) -> None:
    policy = pipeline.adapt(LoRA(rank=4), Key("lora"))
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * Key("move", i).normal(*parameter.shape))
    policy.save(folder)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("sd15_spo_lora", saved_by_diffusers),
        ("sd35_flow_grpo_geneval", saved_by_peft),
        pytest.param("sdxl_spo_lora", saved_by_diffusers, marks=pytest.mark.slow),
        pytest.param("sd35_diffusion_nft", saved_by_peft, marks=pytest.mark.slow),
    ],
)
def test_a_released_lora_is_switched_on_from_the_start(folders, cached, tmp_path, name, save):
    model = named()[name]
    base, weights = named()[model.like], model.adapter
    cached(base, folders[base.name])
    save(models.load(base, Meter(), SIZE), tmp_path / "weights")
    if weights.inside:  # one file under a name of its own
        (tmp_path / "weights" / "pytorch_lora_weights.safetensors").rename(tmp_path / "weights" / weights.inside)
    cached(weights, tmp_path / "weights")
    plain = models.load(base, Meter(), dataclasses.replace(SIZE, tokens=model.tokens))
    before = predicted(plain)
    opened = family_of(base).open_policy(plain, tmp_path / "weights" / weights.inside)
    pipeline = models.load(model, Meter(), SIZE)
    assert torch.equal(predicted(pipeline), predicted(opened))
    assert (predicted(pipeline) - before).abs().max() > 1e-4
    assert pipeline.info() == plain.info()
    assert pipeline.aligned["lora"].startswith(f"{weights.name}@{weights.revision or COMMIT}")
    assert not any(parameter.requires_grad for parameter in pipeline.parameters())
    with pytest.raises(InputError, match=r"^model '\w+' has an adapter already; name its base model, to read "):
        family_of(model).open_policy(pipeline, tmp_path / "weights")


def asked(name: str, **more: Any) -> RunOptions:
    return RunOptions(algo="base", model=name, prompts="mine.txt", reward="jpeg_compressibility", scorers=(), **more)


@pytest.fixture
def prompts(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)


def test_a_denoiser_of_another_family_is_refused_before_anything_is_loaded(folders, cached, prompts):
    weights = named()["sd15_spo"].denoiser
    cached(named()["sd15"], folders["sd15"])
    cached(weights, folders["sdxl"])
    with pytest.raises(InputError, match=r"^[^\n]*config\.json has addition_embed_type 'text_time'[^\n]*$"):
        resolve(asked("sd15_spo"))


@pytest.mark.slow
def test_a_lora_of_another_family_is_refused_in_one_line(folders, cached, tmp_path):
    model = named()["sd15_spo_lora"]
    cached(named()["sd15"], folders["sd15"])
    saved_by_peft(
        models.load(Model("sd3", str(folders["sd35_medium"]), family="sd3"), Meter(), SIZE), tmp_path / "peft"
    )
    (tmp_path / "weights").mkdir()
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "weights" / model.adapter.inside)
    cached(model.adapter, tmp_path / "weights")
    with pytest.raises(RunError, match=r"^[^\n]* does not fit model 'sd15'[^\n]*was it trained on another model\?$"):
        models.load(model, Meter(), SIZE)


def test_weights_that_are_not_here_are_named_and_a_second_adapter_is_refused(folders, cached, prompts):
    cached(named()["sd15"], folders["sd15"])
    assert models.missing(named()["sd15_spo_lora"]) == ["SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA"]
    with pytest.raises(RunError, match=r"SPO-SD-v1-5_4k-p_10ep_LoRA \(spo-sd-v1-5_4k-p_10ep_lora_diffusers\.safe"):
        models.load(named()["sd15_spo_lora"], Meter(), SIZE)
    with pytest.raises(InputError, match="'sd15_spo_lora' has an adapter already; use --model sd15"):
        resolve(asked("sd15_spo_lora", adapter=Path("org/other")))
