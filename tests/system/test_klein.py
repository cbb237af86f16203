"""FLUX.2 [klein] in miniature, against diffusers' own pipeline, and what is refused of its folders."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from diffusers import Flux2KleinPipeline
from plain_pipelines import as_asked, plain_diffusers
from safetensors.torch import load_file, save_file
from said import one_line

from alignbench import BiasFineTune, FullFineTune, Key, LoRA, Prompt, Sampling
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import sampling_of
from alignbench.cli.app import run_command_line
from alignbench.diffusion import loading
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler, rollout
from alignbench.errors import InputError, RunError, Unsupported
from alignbench.interface import Start
from alignbench.meter import Meter

TEXTS = ["a red circle", "two small blue stars"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
KEYS = [Key("klein", i) for i in range(2)]
SIZE = (16, 16)
NOTHING = [None, None]
TRANSFORMER, SCHEDULER, VAE = "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"
BUILDERS = {"klein": random_models.small_klein, "base": functools.partial(random_models.small_klein, distilled=False)}
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flux2")
    return {name: build(place / name) for name, build in BUILDERS.items()}


def fresh(folder: Path, **held: Any):
    return models.load(models.find(str(folder)), Meter(), Hold(**{"resolution": SIZE, "tokens": 64, **held}))


load = functools.cache(fresh)  # tests leave it as it was, but for adapters of policies that are no more


def move(policy, scale: float):
    """Give every trained weight noise, so that the policy is far from its reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("move", i).normal(*parameter.shape))
    return policy


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "held"),
    [
        ("klein", 4, 1.0, {"tokens": 512}),
        ("klein", 7, 1.0, {"resolution": (24, 16)}),
        ("base", 5, 3.0, {}),
        ("base", 20, 1.0, {"tokens": 40}),
    ],
)
def test_pictures_are_those_of_diffusers(folders, name, steps, guidance, held):
    """With 512 tokens of text, with fewer and with so few that it is cut off; where the picture is no square; with
    the shift of each number of steps."""
    pipeline, sampling = load(folders[name], **held), Sampling(steps, guidance)
    size = held.get("resolution", SIZE)
    assert pipeline.latent_shape == (16, size[0] // 4, size[1] // 4)
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    plain = plain_diffusers(folders[name])
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_grid_that_is_left_to_the_scheduler_is_its_own(folders, monkeypatch):
    pipeline, sampling = load(folders["klein"], sigmas="scheduler"), Sampling(5, 1.0)
    plain = plain_diffusers(folders["klein"])
    usual = plain.scheduler.set_timesteps
    own = lambda sigmas=None, device=None, mu=None: usual(5, device=device, mu=mu)  # noqa: E731
    monkeypatch.setattr(plain.scheduler, "set_timesteps", own)
    theirs = plain(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_shift_that_is_static_by_its_file_is_that_of_every_number_of_steps(folders, tmp_path):
    other = changed(folders["klein"], tmp_path, SCHEDULER, use_dynamic_shifting=False)
    pipeline, sampling = load(other), Sampling(5, 1.0)
    assert pipeline.info()["shift"] == 3.0
    assert "shift_by_steps" not in pipeline.info()
    ours = PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images
    theirs = plain_diffusers(other)(**as_asked(pipeline, sampling, PROMPTS, KEYS), output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_condition_is_three_layers_of_qwen_and_differs_by_prompt(folders):
    """Widths of three times 8, and the empty prompt encoded as any other."""
    pipeline = load(folders["base"])
    condition = pipeline.condition(PROMPTS)
    text, _ = plain_diffusers(folders["base"]).encode_prompt(TEXTS, max_sequence_length=64)
    null, _ = plain_diffusers(folders["base"]).encode_prompt("", max_sequence_length=64)
    assert condition.tensors["text"].shape == (2, 64, 24)
    torch.testing.assert_close(condition.tensors["text"], text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(condition.null_tensors["text"], null.expand_as(text), atol=1e-5, rtol=1e-5)
    noise = pipeline.initial_noise(KEYS[:1]).repeat(2, 1, 1, 1)
    one, other = pipeline.predict(noise, 700.0, condition).native
    assert (one - other).abs().max() > 1e-3


@every
def test_a_folder_is_sampled_as_its_index_says(folders, name):
    """Distilled in four steps without guidance, else as diffusers' pipeline by default. Qwen3 reads 512 tokens."""
    model, pipeline = models.find(str(folders[name])), fresh(folders[name], tokens=None)
    sampled = {"klein": (4, 1.0, "none"), "base": (50, 4.0, "classifier_free")}[name]
    assert (model.steps, model.guidance, model.guiding) == sampled
    assert (model.family, model.sigmas, model.tokens) == ("flux2", "linspace", 512)
    assert pipeline.components.guiding == model.guiding
    said = {"sigmas": "linspace", "shift_by_steps": True, "text_tokens": 512, "image_shape": [3, 16, 16]}
    assert said.items() <= pipeline.info().items()
    assert models.latent_shape(model) == (16, 64, 64)
    assert models.latent_shape(model, resolution=(24, 16)) == (16, 6, 4)
    assert models.family_of(model).typical_schedule(model).tokens == 4096


def test_presets_are_sampled_as_their_cards_say():
    found = {name: models.find(name) for name in ("flux2_klein_4b", "flux2_klein_base_4b")}
    assert [(m.steps, m.guidance) for m in found.values()] == [(4, 1), (50, 4)]
    assert all(m.revision and len(m.revision) == 40 and m.licence == "Apache-2.0" for m in found.values())
    assert [sampling_of(m, RunOptions(algo="base")).evaluations for m in found.values()] == [1, 2]
    assert models.latent_shape(found["flux2_klein_4b"]) == (128, 64, 64)
    family, odd = models.family_of(found["flux2_klein_4b"]), RunOptions(algo="base", resolution="520x512")
    with pytest.raises(InputError, match="--resolution 520x512: expected multiples of 16 pixels"):
        family.refuse(found["flux2_klein_4b"], odd, "base", trains=False)


def test_encode_is_diffusers_own_preparation_of_pictures_and_undoes_decode(folders):
    """Folded, and normalised by the running statistics; diffusers packs them after that."""
    pipeline, plain = load(folders["klein"]), plain_diffusers(folders["klein"])
    x = pipeline.initial_noise(KEYS)
    with torch.no_grad():
        images = pipeline.decode(x, clamp=False)
        for image, found in zip(images, pipeline.encode(images), strict=True):
            theirs, ids = plain.prepare_image_latents([2 * image[None] - 1], 1, None, "cpu", torch.float32)
            torch.testing.assert_close(found.flatten(1).T[None], theirs, atol=1e-5, rtol=1e-5)
            assert ids.shape == (1, 16, 4)
        scale = pipeline.components.scale
        torch.testing.assert_close(scale.to_denoiser(scale.to_autoencoder(x)), x)
    assert not torch.allclose(scale.to_autoencoder(x), torch.nn.functional.pixel_shuffle(x, 2), atol=0.1)


def test_an_edit_starts_from_its_source_and_stays_near_it(folders):
    pipeline = load(folders["klein"])
    sources = pipeline.decode(pipeline.initial_noise([Key("s", i) for i in range(2)])).detach()
    sampler = PipelineSampler(pipeline, Sampling(10, 1.0))
    near, far = (sampler(PROMPTS, KEYS, Start(sources, strength)).latents for strength in (0.1, 1.0))
    own = pipeline.encode(sources).detach()
    assert (near - own).square().mean() < (far - own).square().mean()


@pytest.mark.parametrize("kernel", ["ddim", "flow_sde", "dance_sde", "cps"])
def test_a_path_is_drawn_with_each_kind_of_noise_and_its_log_density_is_computed_again(folders, kernel):
    policy = load(folders["klein"]).adapt(LoRA(2), Key("a"))
    path = rollout(policy, policy.condition(PROMPTS), KEYS, Sampling(4, 1.0, 0.5, kernel))
    assert len(path.actions) >= 3
    assert torch.equal(path.log_density(policy, 1).detach(), path.log_prob[:, 1])
    assert not torch.equal(path.log_density(move(policy, 0.3), 1).detach(), path.log_prob[:, 1])


def test_a_policy_starts_at_its_reference_and_trains_its_weights_alone(folders):
    pipeline = load(folders["klein"])
    condition, noise = pipeline.condition(PROMPTS), pipeline.initial_noise(KEYS)
    with torch.no_grad():
        before = pipeline.predict(noise, 700.0, condition).native
    for tuning in (LoRA(2), FullFineTune()):
        policy = pipeline.adapt(tuning, Key("a"))
        assert torch.equal(policy.predict(noise, 700.0, condition).native.detach(), before)
        move(policy, 0.1)
        prediction = policy.predict(noise, 700.0, condition)
        assert (prediction.native - before).abs().max() > 1e-4
        prediction.native.square().mean().backward()
        assert all(parameter.grad is not None for parameter in policy.parameters())
        with torch.no_grad():
            assert torch.equal(policy.reference.predict(noise, 700.0, condition).native, before)


def test_the_default_lora_is_of_the_attention_of_both_kinds_of_block(folders):
    state = load(folders["klein"]).adapt(LoRA(2), Key("a")).state_dict()
    joint = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    expected = {f"transformer_blocks.0.attn.{name}" for name in joint}
    expected |= {"single_transformer_blocks.0.attn.to_qkv_mlp_proj"}
    assert {name.rpartition(".lora_")[0] for name in state} == expected


def test_checkpointing_computes_activations_again_and_gives_the_same_gradient(folders):
    gradients = []
    for checkpointing in (False, True):
        policy = move(load(folders["klein"], checkpointing=checkpointing).adapt(LoRA(2), Key("a")), 0.1)
        noise, condition = policy.initial_noise(KEYS), policy.condition(PROMPTS)
        images = policy.decode(policy.predict(noise, 700.0, condition).x0)
        with torch.no_grad():
            policy.reference.predict(noise, 700.0, condition)  # switches the adapter off in between
        images.square().mean().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
        assert (policy.recomputations or 0) > 0 if checkpointing else policy.recomputations is None
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tuning", [LoRA(2, 6.0), FullFineTune()], ids=["lora", "full"])
def test_a_saved_policy_opens_again_to_the_bit(folders, tuning, tmp_path):
    policy = move(load(folders["klein"]).adapt(tuning, Key("a")), 0.1)
    policy.save(tmp_path)
    other = fresh(folders["klein"])
    opened = open_policy(other, tmp_path)
    noise, condition = other.initial_noise(KEYS), other.condition(PROMPTS)
    with torch.no_grad():
        found, expected = (p.predict(noise, 300.0, condition).native for p in (opened, policy))
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_lora_that_we_trained_gives_the_same_picture_in_plain_diffusers_in_a_fresh_process(folders, tmp_path):
    pipeline, sampling = load(folders["base"]), Sampling(3, 2.5)
    policy = move(pipeline.adapt(LoRA(2, 6.0), Key("a")), 0.3)
    policy.save(tmp_path)
    ours = PipelineSampler(policy, sampling)(PROMPTS, KEYS).images
    theirs = random_models.drawn_by_plain_diffusers(
        folders["base"], tmp_path, tmp_path, **as_asked(pipeline, sampling, PROMPTS, KEYS)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images).abs().max() > 1e-2


def test_half_precision_is_nearer_to_diffusers_in_half_precision_than_that_is_to_whole(folders):
    """Timesteps are rounded as there."""
    half, sampling = load(folders["klein"], dtype="bfloat16"), Sampling(3, 1.0)
    ours = PipelineSampler(half, sampling)(PROMPTS, KEYS).images
    theirs, whole = (
        Flux2KleinPipeline.from_pretrained(folders["klein"], dtype=dtype)(
            **as_asked(half, sampling, PROMPTS, KEYS), output_type="pt"
        ).images.float()
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.denoiser.dtype == torch.bfloat16
    assert (ours - theirs).square().mean() < (whole - theirs).square().mean() / 4
    assert (ours - theirs).square().mean().sqrt() < 0.01


def test_slices_are_the_same_and_tiles_are_drawn(folders):
    with torch.no_grad():
        latents = load(folders["klein"]).initial_noise(KEYS)
        plain, sliced = (load(folders["klein"], slicing=s).decode(latents) for s in (False, True))
        torch.testing.assert_close(plain, sliced, atol=1e-5, rtol=0)
        tiled = load(folders["klein"], resolution=(24, 24), tiling=True)
        assert tiled.decode(tiled.initial_noise(KEYS)).shape == (2, 3, 24, 24)


def test_prompts_that_are_longer_than_is_read_are_told_in_the_template(folders):
    """The template has 75 bytes besides the prompt, of which tokens of their own are three."""
    model = models.find(str(folders["klein"]))
    prompts = [Prompt("0", "a star"), Prompt("1", "a star " * 80)]
    assert models.family_of(model).truncated(model, prompts) == [False, True]
    assert load(folders["klein"], tokens=512).truncated(prompts) == [False, True]
    assert load(folders["klein"], tokens=40).truncated(prompts) == [True, True]


def test_a_distilled_model_says_that_it_has_no_guidance(folders):
    pipeline = load(folders["klein"])
    with pytest.raises(Unsupported, match="guidance 2: this model has no guidance; use 1"):
        pipeline.predict(pipeline.initial_noise(KEYS), 500.0, pipeline.condition(PROMPTS), 2.0)


def test_a_denoiser_without_biases_says_so_where_they_are_to_be_trained(folders):
    with pytest.raises(Unsupported, match="no biases to train; choose another tuning"):
        load(folders["klein"]).adapt(BiasFineTune(), Key("a"))


def changed(folder: Path, place: Path, file: str, **fields: object) -> Path:
    other = Path(shutil.copytree(folder, place / folder.name))
    content = json.loads((other / file).read_text()) | fields
    (other / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return other


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that types a command about a folder, in which nothing may be loaded."""
    (tmp_path / "test.txt").write_text("a red circle\n")
    loads: list[str] = []
    monkeypatch.setattr(loading, "_network", lambda *arguments: loads.append("a network"))

    def run(folder: Path, *arguments: str) -> int:
        usual = ["--prompts", str(tmp_path / "test.txt"), "--output", str(tmp_path / "results")]
        scored = ["--reward", "jpeg_compressibility", "--scorers", "jpeg_compressibility"]
        code = run_command_line(["run", "--algo", "base", "--model", str(folder), *usual, *scored, *arguments])
        assert not loads
        return code

    return run


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (TRANSFORMER, {"_class_name": "FluxTransformer2DModel"}, "expected Flux2Transformer2DModel"),
        (TRANSFORMER, {"guidance_embeds": True}, "guidance_embeds True, which is not supported; expected False"),
        (TRANSFORMER, {"patch_size": 2}, "patch_size 2, which is not supported; expected 1"),
        (TRANSFORMER, {"in_channels": "16"}, "has in_channels '16'; expected a positive whole number"),
        (VAE, {"_class_name": "AutoencoderKL"}, "expected AutoencoderKLFlux2"),
        (VAE, {"patch_size": [1, 1]}, "patch_size [1, 1], which is not supported; expected [2, 2]"),
        (SCHEDULER, {"time_shift_type": "linear"}, "time_shift_type 'linear' is not supported; expected exponential"),
        (
            "text_encoder/config.json",
            {"architectures": ["Mistral3ForConditionalGeneration"]},
            "expected Qwen3ForCausalLM",
        ),
        ("text_encoder/config.json", {"quantization_config": {"bits": 4}}, "a field that is not known here"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "expected Qwen2TokenizerFast"),
        ("model_index.json", {"is_distilled": "yes"}, "has is_distilled 'yes'; expected true or false"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "expected AutoencoderKLFlux2"),
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, "is a Flux2Pipeline: of FLUX.2 only [klein] is supp"),
        ("model_index.json", {"_class_name": "Flux2KleinKVPipeline"}, "such as --model flux2_klein_4b"),
    ],
)
def test_what_is_no_klein_is_refused_by_name(folders, asked, capsys, tmp_path, file, fields, message):
    assert asked(changed(folders["klein"], tmp_path, file, **fields), "--resolution", "16") == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "18"], "--resolution 18x18: expected multiples of 4 pixels."),
        (["--guidance", "3"], "--guidance 3: this model has no guidance ('klein' was distilled without it)"),
        (["--text-length", "513"], "--text-length 513: expected at most 512."),
    ],
)
def test_what_it_cannot_do_is_refused(folders, asked, capsys, arguments, message):
    assert asked(folders["klein"], *arguments) == 2
    assert message in one_line(capsys)


def test_a_folder_without_qwen_is_refused_whatever_is_left_of_it(folders, asked, capsys, tmp_path):
    other = changed(folders["klein"], tmp_path, "model_index.json", text_encoder=NOTHING, tokenizer=NOTHING)
    shutil.rmtree(other / "text_encoder")
    shutil.rmtree(other / "tokenizer")
    assert asked(other, "--resolution", "16") == 1
    said = one_line(capsys)
    assert (
        "text_encoder/config.json, tokenizer/vocab.json, tokenizer/merges.txt, text_encoder/model.safetensors" in said
    )


def test_a_tokenizer_without_a_template_is_refused(folders, tmp_path):
    other = changed(folders["klein"], tmp_path, "tokenizer/tokenizer_config.json", chat_template=...)
    with pytest.raises(InputError, match="tokenizer has no chat template; expected that of Qwen3"):
        fresh(other)


def test_a_text_encoder_of_too_few_layers_or_another_width_is_refused(folders, tmp_path):
    """The denoiser is told layers 9, 18 and 27."""
    encoder = plain_diffusers(folders["klein"]).text_encoder
    for name, fields in {"few": {"num_hidden_layers": 20, "layer_types": None}, "wide": {"hidden_size": 16}}.items():
        other = Path(shutil.copytree(folders["klein"], tmp_path / name))
        config = type(encoder.config)(**encoder.config.to_dict() | fields)
        type(encoder)(config).save_pretrained(other / "text_encoder")
    with pytest.raises(InputError, match=r"num_hidden_layers 20; expected at least 27\.$"):
        fresh(tmp_path / "few")
    with pytest.raises(InputError, match=r"joint_attention_dim 24, 3 layers of its text encoder make 48\.$"):
        fresh(tmp_path / "wide")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn.running_var", -1.0, "expected finite means and positive variances"),
        ("bn.running_mean", None, "lacks 1 weights, such as bn.running_mean"),
    ],
)
def test_an_autoencoder_without_its_statistics_is_refused(folders, tmp_path, name, value, message):
    other = Path(shutil.copytree(folders["klein"], tmp_path / "klein"))
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    given = {} if value is None else {name: torch.full_like(state[name], value)}
    save_file({n: v for n, v in state.items() if n != name} | given, path, {"format": "pt"})
    with pytest.raises(InputError if value else RunError, match=message):
        fresh(other)


def test_the_true_architecture_has_as_many_weights_as_published():
    """Built without memory: 3.9 billion of [klein] 4B."""
    from diffusers import Flux2Transformer2DModel

    with torch.device("meta"):
        network = Flux2Transformer2DModel(**random_models.TRUE_KLEIN_4B)
    assert 3.8e9 < sum(parameter.numel() for parameter in network.parameters()) < 4.0e9
