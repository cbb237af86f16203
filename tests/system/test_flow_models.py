"""SD3 and FLUX in miniature, against diffusers' own pipelines."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from plain_pipelines import as_asked, plain_diffusers

from alignbench import BiasFineTune, FullFineTune, Key, LoRA, Prompt, Sampling, denoising_error, scale_of
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler, rollout
from alignbench.errors import Unsupported
from alignbench.interface import Start
from alignbench.meter import Meter
from alignbench.quantities import flow_sigma

TEXTS = ["a red circle", "two small blue stars"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
KEYS = [Key("flow", i) for i in range(2)]
SIZE = (16, 16)
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd3": random_models.small_sd3,
    "sd3_without_t5": functools.partial(random_models.small_sd3, t5=False, norm=None),
    "flux_dev": random_models.small_flux,
    "flux_schnell": functools.partial(random_models.small_flux, guidance=False),
}
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flow")
    return {name: build(place / name) for name, build in BUILDERS.items()}


def fresh(folder: Path, **held: Any):
    return models.load(models.find(str(folder)), Meter(), Hold(**{"resolution": SIZE, **held}))


load = functools.cache(fresh)  # tests leave it as it was, but for adapters of policies that are no more


def leave_the_grid_to_its_scheduler(monkeypatch, pipeline, n: int) -> None:
    """FLUX's pipeline passes the levels itself."""
    usual = pipeline.scheduler.set_timesteps
    own = lambda sigmas=None, device=None, mu=None: usual(n, device=device, mu=mu)  # noqa: E731
    monkeypatch.setattr(pipeline.scheduler, "set_timesteps", own)


def move(policy, scale: float):
    """Give every trained weight noise, so that the policy is far from its reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("move", i).normal(*parameter.shape))
    return policy


@every
@pytest.mark.parametrize("grid", ["linspace", "scheduler"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_are_those_of_diffusers_on_both_grids(folders, monkeypatch, name, grid, guidance):
    if name == "flux_schnell" and guidance > 1:
        pytest.skip("it has no guidance")
    pipeline, sampling = load(folders[name], sigmas=grid), Sampling(5, guidance)
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    plain = plain_diffusers(folders[name])
    if grid == "scheduler" and name.startswith("flux"):
        leave_the_grid_to_its_scheduler(monkeypatch, plain, sampling.steps)
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    assert theirs.std() > 0.02
    assert (theirs[0] - theirs[1]).abs().max() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_pictures_that_are_no_square_are_those_of_diffusers(folders, name):
    size, sampling = (24, 16), Sampling(3, 3.0)
    pipeline = load(folders[name], resolution=size)
    assert pipeline.latent_shape == (4, 12, 8)
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    plain = plain_diffusers(folders[name])
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_grid_is_what_diffusers_does_by_itself_unless_another_is_asked_for(folders):
    """SD3's pipeline leaves it to its scheduler, FLUX's passes linspace. The shift of FLUX follows the tokens: 16 of
    them, e^μ with μ = 0.5 + (1.15 − 0.5) (16 − 256) / (4096 − 256)."""
    found = {name: load(folder).info() for name, folder in folders.items()}
    assert [found[name]["sigmas"] for name in BUILDERS] == ["scheduler"] * 2 + ["linspace"] * 2
    shifts = [3.0, 3.0, math.exp(0.5 - 0.65 * 240 / 3840), 1.0]
    assert [found[name]["shift"] for name in BUILDERS] == pytest.approx(shifts)
    assert [found[name]["text_tokens"] for name in BUILDERS] == [256, 256, 512, 256]
    assert load(folders["sd3"], sigmas="linspace").info()["sigmas"] == "linspace"


def test_sd3s_condition_is_both_clips_padded_and_t5_behind_them(folders):
    """Widths 8 and 12 of 24; 20 and 256 tokens; both projections. The empty prompt is encoded, not zeroed."""
    condition = load(folders["sd3"]).condition(PROMPTS)
    text, null, pooled, null_pooled = plain_diffusers(folders["sd3"]).encode_prompt(TEXTS, None, None, device="cpu")
    assert condition.tensors["text"].shape == (2, 276, 24)
    assert not condition.tensors["text"][:, :20, 20:].any()
    torch.testing.assert_close(condition.tensors["text"], text, atol=1e-4, rtol=0)
    torch.testing.assert_close(condition.pooled, pooled)
    torch.testing.assert_close(condition.null_tensors["text"], null, atol=1e-4, rtol=0)
    torch.testing.assert_close(condition.null_tensors["pooled"], null_pooled)
    assert null.any()


def test_without_t5_the_number_of_zeros_in_its_place_is_the_models_and_changes_pictures(folders):
    one, many = (load(folders["sd3_without_t5"], tokens=n) for n in (1, 256))
    condition = one.condition(PROMPTS)
    assert condition.tensors["text"].shape == (2, 21, 24)
    assert not condition.tensors["text"][:, 20:].any()
    assert (one.info()["text_tokens"], many.info()["text_tokens"]) == (1, 256)
    few, more = (PipelineSampler(p, Sampling(3, 1.0))(PROMPTS, KEYS).images for p in (one, many))
    assert (few - more).abs().max() > 1e-3


@every
def test_prompts_longer_than_a_text_encoder_reads_are_told(folders, name):
    """Both CLIPs of the miniatures read 20 tokens."""
    prompts = [Prompt("0", "a star"), Prompt("1", "a star " * 12)]
    model = models.find(str(folders[name]))
    assert models.family_of(model).truncated(model, prompts) == [False, True]
    assert load(folders[name]).truncated(prompts) == [False, True]


def test_embedded_guidance_costs_one_evaluation_and_changes_the_picture(folders):
    pipeline = load(folders["flux_dev"])
    drawn = []
    for guidance in (1.0, 6.0):
        before = pipeline.components.meter.total.denoiser_forward
        sampling = Sampling(3, guidance, embedded_guidance=True)
        drawn.append(PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images)
        assert pipeline.components.meter.total.denoiser_forward - before == 2 * 3 * sampling.evaluations == 6
    assert (drawn[0] - drawn[1]).abs().max() > 1e-4


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_a_denoiser_that_is_told_the_scale_is_told_one_below_1_too(folders, guidance):
    """As diffusers' pipeline tells it. Of classifier-free guidance it would be none."""
    pipeline, sampling = load(folders["flux_dev"]), Sampling(2, guidance, embedded_guidance=True)
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    plain = plain_diffusers(folders["flux_dev"])
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - PipelineSampler(pipeline, Sampling(2, 1.0))(PROMPTS, KEYS).images).abs().max() > 1e-2


def test_the_scale_that_the_denoiser_is_told_is_one_in_losses_and_the_evaluations_in_images(folders):
    """Losses on given images tell it 1 whatever it is sampled with; own images and what is learned from them keep the
    evaluation's, guided or not."""
    pipeline, told = load(folders["flux_dev"]), []
    hook = pipeline.denoiser.register_forward_pre_hook(
        lambda network, given, named: told.append(named["guidance"].unique().tolist()), with_kwargs=True
    )
    sampling, x0 = Sampling(2, 3.5, embedded_guidance=True), pipeline.initial_noise(KEYS)
    with torch.no_grad():
        condition = pipeline.condition(PROMPTS)
        denoising_error(pipeline, x0, x0, torch.tensor([300.0, 700.0]), condition)
        assert told == [[1.0]]
        denoising_error(pipeline, x0, x0, torch.tensor([300.0, 700.0]), condition, scale_of(sampling, guided=False))
        PipelineSampler(pipeline, sampling)(PROMPTS, KEYS)
    hook.remove()
    assert told == [[1.0], [3.5], [3.5], [3.5]]


@pytest.mark.parametrize("name", ["sd3", "sd3_without_t5", "flux_dev"])
def test_a_length_of_t5s_text_makes_the_pictures_that_diffusers_makes_of_it(folders, name):
    """Or of as many zeros. In SD3 the 20 tokens of both CLIPs stand before them."""
    drawn, sampling = [], Sampling(3, 3.0)
    for tokens in (5, 9):
        pipeline = fresh(folders[name], sigmas="linspace", tokens=tokens)
        told = pipeline.condition(PROMPTS).tensors["text"].shape[1]
        assert (pipeline.info()["text_tokens"], told) == (tokens, tokens + (0 if name == "flux_dev" else 20))
        drawn.append(PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images)
        plain = plain_diffusers(folders[name])
        theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
        torch.testing.assert_close(drawn[-1], theirs, atol=1e-4, rtol=0)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-4


def test_a_model_without_guidance_says_so_where_it_is_asked_for_some(folders):
    pipeline = load(folders["flux_schnell"])
    with pytest.raises(Unsupported, match="guidance 2: this model has no guidance; use 1"):
        pipeline.predict(pipeline.initial_noise(KEYS), 500.0, pipeline.condition(PROMPTS), 2.0)


@every
def test_encode_undoes_decode_scale_and_shift(folders, name):
    """As diffusers' own VAE with z = x / scale + shift."""
    pipeline, plain = load(folders[name]), plain_diffusers(folders[name])
    x = pipeline.initial_noise(KEYS)
    config = plain.vae.config
    with torch.no_grad():
        theirs = plain.vae.decode(x / config.scaling_factor + config.shift_factor).sample / 2 + 0.5
        images = pipeline.decode(x, clamp=False)
        torch.testing.assert_close(images, theirs)
        mean = plain.vae.encode(2 * images - 1).latent_dist.mean
        torch.testing.assert_close(pipeline.encode(images), (mean - config.shift_factor) * config.scaling_factor)


@every
def test_an_edit_starts_from_its_source_and_stays_near_it(folders, name):
    pipeline = load(folders[name])
    sources = pipeline.decode(pipeline.initial_noise([Key("s", i) for i in range(2)])).detach()
    sampler = PipelineSampler(pipeline, Sampling(10, 1.0))
    near, far = (sampler(PROMPTS, KEYS, Start(sources, strength)).latents for strength in (0.1, 1.0))
    own = pipeline.encode(sources).detach()
    assert (near - own).square().mean() < (far - own).square().mean()


@every
@pytest.mark.parametrize("kernel", ["ddim", "flow_sde", "dance_sde", "cps"])
def test_a_path_is_drawn_with_each_kind_of_noise_and_its_log_density_is_computed_again(folders, name, kernel):
    """In batches of the same size the numbers are the same; under changed weights they are not."""
    pipeline = load(folders[name])
    policy = pipeline.adapt(LoRA(2), Key("a"))
    path = rollout(policy, policy.condition(PROMPTS), KEYS, Sampling(4, 1.0, 0.5, kernel))
    assert len(path.actions) >= 3
    assert torch.equal(path.log_density(policy, 1).detach(), path.log_prob[:, 1])
    assert not torch.equal(path.log_density(move(policy, 0.3), 1).detach(), path.log_prob[:, 1])


@every
def test_a_policy_starts_at_its_reference_trains_its_weights_alone_and_leaves_the_model_as_it_was(folders, name):
    pipeline = load(folders[name])
    condition, noise = pipeline.condition(PROMPTS), pipeline.initial_noise(KEYS)
    with torch.no_grad():
        before = pipeline.predict(noise, 700.0, condition).native
    for tuning in (LoRA(2), FullFineTune(), BiasFineTune()):
        policy = pipeline.adapt(tuning, Key("a"))
        assert torch.equal(policy.predict(noise, 700.0, condition).native.detach(), before)
        move(policy, 0.1)
        prediction = policy.predict(noise, 700.0, condition)
        assert (prediction.native - before).abs().max() > 1e-4
        prediction.native.square().mean().backward()
        assert all(parameter.grad is not None for parameter in policy.parameters())
        with torch.no_grad():
            assert torch.equal(policy.reference.predict(noise, 700.0, condition).native, before)


@every
def test_the_default_lora_is_of_the_joint_attention_of_image_and_text(folders, name):
    """The second attention of 3.5 medium's first layers is left alone, as in the authors' training code."""
    pipeline = load(folders[name])
    names = {name.rpartition(".lora_")[0] for name in pipeline.adapt(LoRA(2), Key("a")).state_dict()}
    linear = {n for n, m in pipeline.denoiser.named_modules() if isinstance(m, torch.nn.Linear) and "lora" not in n}
    joint = {n.removesuffix(".base_layer") for n in linear if ".attn." in n and not n.endswith("linear")}
    idle = {"transformer_blocks.1.attn.add_q_proj"} if name.startswith("sd3") else set()  # the last block's, unused
    assert names == joint - idle
    assert any("add_k_proj" in n for n in names)
    assert not any("attn2" in n for n in names)


@every
def test_checkpointing_computes_activations_again_and_gives_the_same_gradient(folders, name):
    gradients = []
    for checkpointing in (False, True):
        policy = move(load(folders[name], checkpointing=checkpointing).adapt(LoRA(2), Key("a")), 0.1)
        noise, condition = policy.initial_noise(KEYS), policy.condition(PROMPTS)
        loss = policy.predict(noise, 700.0, condition).x0.square().mean()
        with torch.no_grad():
            policy.reference.predict(noise, 700.0, condition)  # switches the adapter off in between
        loss.backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
        assert (policy.recomputations or 0) > 0 if checkpointing else policy.recomputations is None
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)


@every
@pytest.mark.parametrize("tuning", [LoRA(2, 6.0), FullFineTune()], ids=["lora", "full"])
def test_a_saved_policy_opens_again_to_the_bit(folders, name, tuning, tmp_path):
    policy = move(load(folders[name]).adapt(tuning, Key("a")), 0.1)
    policy.save(tmp_path)
    part = "pytorch_lora_weights.safetensors" if isinstance(tuning, LoRA) else "transformer/config.json"
    assert (tmp_path / part).is_file()
    other = fresh(folders[name])
    opened = open_policy(other, tmp_path)
    noise, condition = other.initial_noise(KEYS), other.condition(PROMPTS)
    with torch.no_grad():
        assert torch.equal(
            opened.predict(noise, 300.0, condition).native, policy.predict(noise, 300.0, condition).native
        )


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_a_folder_of_peft_opens_as_peft_computes_it(folders, name, tmp_path):
    """As Flow-GRPO and DiffusionNFT release theirs: adapter_model.safetensors with names below base_model.model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    plain, other = (plain_diffusers.__wrapped__(folders[name]) for _ in range(2))  # peft changes them in place
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["attn.to_q", "attn.add_k_proj", "attn.to_out.0"])
    trained = get_peft_model(other.transformer, config)
    with torch.no_grad():
        for i, (layer, parameter) in enumerate(trained.named_parameters()):
            if "lora_" in layer:
                parameter.copy_(0.3 * Key("peft", i).normal(*parameter.shape))
    trained.save_pretrained(tmp_path / "adapter")
    plain.transformer = PeftModel.from_pretrained(plain.transformer, tmp_path / "adapter").merge_and_unload()
    pipeline, sampling = load(folders[name]), Sampling(3, 2.0)
    base = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    ours = PipelineSampler(open_policy(pipeline, tmp_path / "adapter"), sampling)(PROMPTS, KEYS).images
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - base).abs().max() > 1e-2


@pytest.mark.slow
@every
def test_a_lora_that_we_trained_gives_the_same_picture_in_plain_diffusers_in_a_fresh_process(folders, name, tmp_path):
    if name == "sd3_without_t5":
        pytest.skip("plain diffusers has to be told that T5 is absent")
    pipeline, sampling = load(folders[name]), Sampling(3, 1.0 if name == "flux_schnell" else 2.5)
    policy = move(pipeline.adapt(LoRA(2, 6.0), Key("a")), 0.3)
    policy.save(tmp_path)
    ours = PipelineSampler(policy, sampling)(PROMPTS, KEYS).images
    asked = as_asked(pipeline, sampling, PROMPTS, KEYS)
    theirs = random_models.drawn_by_plain_diffusers(folders[name], tmp_path, tmp_path, **asked)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_a_denoiser_in_shards_and_in_half_precision_is_read(folders, name, tmp_path):
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    shutil.rmtree(folder / "transformer")
    plain_diffusers(folders[name]).transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 1
    whole, shards = (
        PipelineSampler(load(place), Sampling(2, 1.0))(PROMPTS, KEYS).images for place in (folders[name], folder)
    )
    assert torch.equal(whole, shards)


@pytest.mark.parametrize(("name", "dtype"), [("sd3", "float16"), ("sd3", "bfloat16"), ("flux_dev", "bfloat16")])
def test_half_precision_draws_about_the_same(folders, name, dtype):
    half, whole = load(folders[name], dtype=dtype), load(folders[name])
    assert str(half.denoiser.dtype) == f"torch.{dtype}"
    latents = [PipelineSampler(p, Sampling(3, 1.0))(PROMPTS, KEYS).latents for p in (half, whole)]
    assert latents[0].dtype == torch.float32
    torch.testing.assert_close(*latents, atol=0.4, rtol=0)


@pytest.mark.parametrize("name", ["flux_dev", "flux_schnell"])
def test_in_half_precision_flux_is_told_what_diffusers_tells_it(folders, name):
    """The timestep is rounded before it is divided, and by the network once more when it has multiplied. The scale of
    guidance is in float32."""
    half, sampling = load(folders[name], dtype="bfloat16"), Sampling(7, 1.0)
    plain = plain_diffusers.__wrapped__(folders[name]).to(torch.bfloat16)
    told: dict[Any, list[tuple[Any, Any]]] = {half.denoiser: [], plain.transformer: []}

    def keep(network, given, named) -> None:
        told[network].append((named["timestep"][:2], None if named.get("guidance") is None else named["guidance"][:2]))

    hooks = [network.register_forward_pre_hook(keep, with_kwargs=True) for network in told]
    PipelineSampler(half, sampling)(PROMPTS, KEYS)
    asked = as_asked(half, sampling, PROMPTS, KEYS)
    plain(**asked | {"latents": asked["latents"].to(torch.bfloat16)}, output_type="pt")
    hooks[0].remove()
    ours, theirs = told.values()
    assert len(ours) == len(theirs) == 7
    for (t, guidance), (their_t, their_guidance) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(t, their_t, atol=0, rtol=0)
        assert (guidance is None) == (their_guidance is None) == (name == "flux_schnell")
        if guidance is not None:
            torch.testing.assert_close(guidance, their_guidance, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_slices_are_the_same_and_tiles_are_drawn(folders, name):
    latents = load(folders[name]).initial_noise(KEYS)
    plain, sliced = (load(folders[name], slicing=slicing).decode(latents).detach() for slicing in (False, True))
    torch.testing.assert_close(plain, sliced, atol=1e-5, rtol=0)
    tiled = load(folders[name], resolution=(24, 24), tiling=True)
    assert tiled.info()["tiling"]
    assert tiled.decode(tiled.initial_noise(KEYS)).shape == (2, 3, 24, 24)


def test_sampling_steps_are_the_levels_of_the_named_grid(folders):
    """SD3's own grid shifts twice, and its last level is 0.0089 for any number of steps; linspace ends at
    s / (n + s − 1)."""
    for grid, last in (("scheduler", 0.008928), ("linspace", 3 / 12)):
        steps = load(folders["sd3"], sigmas=grid).timesteps(10)
        assert flow_sigma(steps.alpha_bar)[-1].item() == pytest.approx(last, abs=1e-5)
        assert torch.allclose(steps.t / 1000, flow_sigma(steps.alpha_bar))


def test_a_folder_is_sampled_as_its_pipeline_is_by_default(folders):
    found = {name: models.find(str(folder)) for name, folder in folders.items()}
    assert [found[n].family for n in BUILDERS] == ["sd3", "sd3", "flux", "flux"]
    assert [(found[n].steps, found[n].guidance) for n in BUILDERS] == [(28, 7.0)] * 2 + [(28, 3.5), (4, 1.0)]
    assert [found[n].guiding for n in BUILDERS] == ["classifier_free"] * 2 + ["embedded", "none"]


def test_the_true_architectures_have_as_many_weights_as_published():
    """Built without memory: 2.2 to 2.5 billion of SD3.5 medium, 11.9 of FLUX.1."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    with torch.device("meta"):
        medium = SD3Transformer2DModel(**random_models.TRUE_SD35_MEDIUM)
        flux = FluxTransformer2DModel(**random_models.TRUE_FLUX)
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in (("m", medium), ("f", flux))}
    assert 2.2e9 < count["m"] < 2.5e9
    assert 11.8e9 < count["f"] < 12.0e9
    assert json.loads(json.dumps(medium.config["dual_attention_layers"])) == list(range(13))
