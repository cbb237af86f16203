"""SDXL and its refiner in miniature, against diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import random_models
import torch
from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from alignbench import FullFineTune, Key, LoRA, Prompt, Sampling
from alignbench.asking.options import Options
from alignbench.diffusion import loading as checkpoints
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.experts import RefinedPipeline
from alignbench.diffusion.latent import LatentPipeline
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError, Unsupported
from alignbench.meter import Meter

TEXTS = ["a red circle", "two small blue stars"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
KEYS = [Key("sdxl", i) for i in range(2)]
PLAIN = Sampling(10, 4.0, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return random_models.small_sdxl(tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory) -> Path:
    return random_models.small_refiner(tmp_path_factory.mktemp("sdxl") / "refiner")


@pytest.fixture
def pipeline(folder):
    return load(folder)


def load(folder: Path, options: Options | None = None):
    return models.load(models.find(str(folder)), Meter(), options)


def plain_diffusers(folder: Path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def move(policy, scale: float):
    """Give every trained weight noise, so that the policy is far from its reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("move", i).normal(*parameter.shape))
    return policy


def test_pictures_are_those_of_diffusers(pipeline, folder):
    ours = PipelineSampler(pipeline, PLAIN)(PROMPTS, KEYS).images
    asked = {"guidance_scale": PLAIN.guidance, "num_inference_steps": PLAIN.steps, "output_type": "pt"}
    theirs = plain_diffusers(folder)(TEXTS, latents=pipeline.initial_noise(KEYS), **asked).images
    assert pipeline.info()["image_shape"] == [3, 16, 16]
    assert theirs.std() > 0.02
    assert (theirs[0] - theirs[1]).abs().max() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_condition_is_both_encoders_text_the_seconds_projection_and_the_sizes(pipeline, folder):
    condition = pipeline.condition(PROMPTS)
    text, null, pooled, null_pooled = plain_diffusers(folder).encode_prompt(TEXTS, device="cpu")
    torch.testing.assert_close(condition.tensors["text"], text)
    torch.testing.assert_close(condition.pooled, pooled)
    assert condition.tensors["size"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert torch.equal(condition.null_tensors["text"], null)
    assert torch.equal(condition.null_tensors["pooled"], null_pooled)
    assert not null.any()  # zeros, and not the text "", for guidance and for captions dropped in training alike
    assert condition.null_tensors["size"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    dropped = condition.drop(torch.tensor([True, False]))
    assert not dropped.tensors["text"][0].any()
    assert torch.equal(dropped.tensors["text"][1], text[1])


def test_where_the_index_says_so_no_prompt_is_the_empty_text(folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    index = checkpoints.read_json(other / "model_index.json")
    random_models.write(other / "model_index.json", **index | {"force_zeros_for_empty_prompt": False})
    condition = load(other).condition([Prompt("", "")])
    assert condition.null_tensors["text"].any()
    assert torch.equal(condition.null_tensors["text"], condition.tensors["text"])


@pytest.mark.parametrize(("size", "latents"), [((24, 16), (4, 12, 8)), ((32, 32), (4, 16, 16))])
def test_another_resolution_changes_the_latents_and_the_sizes_the_model_is_told(folder, size, latents):
    pipeline = load(folder, Hold(resolution=size))
    assert pipeline.latent_shape == latents == models.latent_shape(models.find(str(folder)), (), size)
    assert pipeline.info()["image_shape"] == [3, *size]
    assert pipeline.condition(PROMPTS).tensors["size"].tolist() == [[*size, 0, 0, *size]] * 2
    ours = PipelineSampler(pipeline, PLAIN)(PROMPTS, KEYS).images
    asked = {"guidance_scale": PLAIN.guidance, "num_inference_steps": PLAIN.steps, "output_type": "pt"}
    theirs = plain_diffusers(folder)(
        TEXTS, height=size[0], width=size[1], latents=pipeline.initial_noise(KEYS), **asked
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_resolution_the_autoencoder_cannot_make_is_refused(folder):
    with pytest.raises(InputError, match=r"--resolution 17x16: expected multiples of 2 pixels"):
        load(folder, Hold(resolution=(17, 16)))


@pytest.mark.slow  # the whole chain's SDXL does this by default
def test_a_saved_lora_gives_the_same_picture_in_plain_diffusers_in_a_fresh_process(pipeline, folder, tmp_path):
    policy = move(pipeline.adapt(LoRA(), Key("a")), 0.6)
    sampler = PipelineSampler(policy, PLAIN)
    ours, base = sampler(PROMPTS, KEYS).images, PipelineSampler(policy.reference, PLAIN)(PROMPTS, KEYS).images
    assert (ours - base).abs().mean() >= 0.05
    sampler.save(tmp_path)
    asked = {"prompt": TEXTS, "latents": pipeline.initial_noise(KEYS), "guidance_scale": PLAIN.guidance}
    theirs = random_models.drawn_by_plain_diffusers(
        folder, tmp_path, tmp_path, **asked, num_inference_steps=PLAIN.steps
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tuning", [LoRA(), FullFineTune()], ids=["lora", "full"])
def test_a_saved_policy_is_opened_again_to_the_bit(pipeline, folder, tmp_path, tuning):
    policy = move(pipeline.adapt(tuning, Key("a")), 0.1)
    policy.save(tmp_path)
    latents = pipeline.initial_noise(KEYS)
    again = open_policy(load(folder), tmp_path)
    with torch.no_grad():
        first, second = (p.predict(latents, 500, p.condition(PROMPTS), 3.0).eps for p in (policy, again))
    assert torch.equal(first, second)


def test_the_released_denoiser_of_another_repository_takes_the_place_of_the_models_own(folder, tmp_path):
    policy = move(load(folder).adapt(FullFineTune(), Key("a")), 0.1)
    policy.save(tmp_path)
    components = checkpoints.load_components(folder, "both", {}, Meter(), Hold(), denoiser=tmp_path / "unet")
    latents, condition = policy.initial_noise(KEYS), policy.condition(PROMPTS)
    with torch.no_grad():
        base, own, theirs = (
            p.predict(latents, 500, condition).eps for p in (policy.reference, policy, LatentPipeline(components))
        )
    torch.testing.assert_close(theirs, own, atol=1e-4, rtol=0)
    assert (theirs - base).abs().max() > 0.05


def refined(folder: Path, refiner: Path) -> RefinedPipeline:
    base = load(folder)
    experts = checkpoints.load_refiner(refiner, base.components, Hold())
    return RefinedPipeline(base, LatentPipeline(experts), {"refiner": "r"})


def test_base_and_refiner_draw_what_diffusers_two_pipelines_draw_one_after_the_other(folder, refiner):
    pipeline = refined(folder, refiner)
    ours = PipelineSampler(pipeline, PLAIN)(PROMPTS, KEYS).images
    first = plain_diffusers(folder)
    second = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner, dtype=torch.float32, vae=first.vae)
    second.scheduler = DDIMScheduler.from_config(second.scheduler.config, clip_sample=False)
    second.set_progress_bar_config(disable=True)
    asked = {"guidance_scale": PLAIN.guidance, "num_inference_steps": PLAIN.steps}
    latents = pipeline.initial_noise(KEYS)
    half = first(TEXTS, latents=latents, denoising_end=0.8, output_type="latent", **asked).images
    theirs = second(TEXTS, image=half, denoising_start=0.8, output_type="pt", **asked).images
    alone = PipelineSampler(load(folder), PLAIN)(PROMPTS, KEYS).images
    assert (ours - alone).abs().max() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_rows_of_one_batch_may_be_of_both_experts(folder, refiner):
    pipeline = refined(folder, refiner)
    latents, condition = pipeline.initial_noise(KEYS), pipeline.condition(PROMPTS)
    with torch.no_grad():
        both = pipeline.predict(latents, torch.tensor([201, 199]), condition, 3.0).native
        high = pipeline.predict(latents, 201, condition, 3.0).native
        low = pipeline.predict(latents, 199, condition, 3.0).native
    torch.testing.assert_close(both[0], high[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(both[1], low[1], atol=1e-6, rtol=0)
    assert not torch.allclose(high[1], low[1], atol=1e-2)


def test_a_refined_model_is_for_evaluation_only(folder, refiner):
    with pytest.raises(Unsupported, match="evaluation only; train --model sdxl"):
        refined(folder, refiner).adapt(LoRA(), Key("a"))


def test_the_refiner_alone_is_no_model(refiner):
    with pytest.raises(InputError, match=r"refines images and draws none; --model sdxl_refiner is SDXL with"):
        load(refiner)


def test_a_model_that_is_told_more_than_noise_is_refused(folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "inpainting"))
    config = json.loads((other / "unet" / "config.json").read_text())
    random_models.write(other / "unet" / "config.json", **config | {"in_channels": 9})
    with pytest.raises(InputError, match=r"unet/config\.json has in_channels 9, which is not supported; expected 4\.$"):
        load(other)


@pytest.mark.parametrize("name", ["text_encoder_2/model.safetensors", "tokenizer_2/merges.txt"])
def test_a_missing_file_of_the_second_encoder_is_named(folder, tmp_path, name):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / name).unlink()
    with pytest.raises(RunError, match=rf"cannot load .*: {name} missing\."):
        load(other)


def test_sliced_decoding_makes_the_same_pixels_one_image_after_another(folder):
    plain, sliced = load(folder), load(folder, Hold(slicing=True))
    latents, seen = plain.initial_noise(KEYS), []
    sliced.components.autoencoder.decoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    torch.testing.assert_close(sliced.decode(latents), plain.decode(latents), atol=1e-6, rtol=0)
    assert seen == [1, 1]


def test_tiled_decoding_works_on_tiles(folder):
    large = (64, 64)
    plain, tiled = load(folder, Hold(resolution=large)), load(folder, Hold(resolution=large, tiling=True))
    latents, seen = plain.initial_noise(KEYS[:1]), []
    tiled.components.autoencoder.decoder.register_forward_hook(
        lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:]))
    )
    images = tiled.decode(latents)
    assert len(seen) > 1
    assert all(max(size) < 32 for size in seen)
    assert images.shape == plain.decode(latents).shape
