"""The lines that make a folder which is read of one file or of pickles, run on miniatures."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import random_models
import torch
from diffusers import SD3Transformer2DModel
from hub_cache import in_cache
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from alignbench import Key, Prompt, Sampling
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.diffusion import original_names
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError
from alignbench.meter import Meter

WEIGHTS = "diffusion_pytorch_model.safetensors"


def of_unet(folder: Path) -> dict[str, torch.Tensor]:
    """The denoiser by the original's names; of layers as kohya's LoRAs have them, and norms beside them."""
    state = load_file(folder / "unet" / WEIGHTS)
    norms = {r"\.norm1$": ".conv1", r"\.norm2$": ".conv2"}  # stand before these of a block
    layers = {name.rpartition(".")[0] for name in state}
    depth = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    found = {}
    for layer in layers:
        stand_in = layer
        for norm, conv in norms.items() if ".resnets." in layer else ():
            stand_in = re.sub(norm, conv, stand_in)
        stand_in = "conv_out" if layer == "conv_norm_out" else stand_in
        name = original_names.original_names([*layers, stand_in], depth)[stand_in]
        if stand_in != layer:
            name = name.replace("layers.2", "layers.0").replace("layers.3", "layers.0").replace("out.2", "out.0")
        found[layer] = name
    return {f"model.diffusion_model.{found[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in state.items()}


def of_autoencoder(folder: Path) -> dict[str, torch.Tensor]:
    state, levels = {}, len(random_models.SMALL_VAE["block_out_channels"])
    for old, value in load_file(folder / "vae" / WEIGHTS).items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", old)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        for theirs, ours in ((r"\.resnets\.(\d+)", r".block.\g<2>"), (r"\.upsamplers\.0", ".upsample")):
            up = re.search(rf"up_blocks\.(\d+){theirs}", name)
            if up:
                place = f"up.{levels - 1 - int(up[1])}"
                name = name.replace(up[0], place + (f".block.{up[2]}" if "block" in ours else ours))
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in (
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("to_out.0", "proj_out"),
            *((f"to_{letter}", letter) for letter in "qkv"),
        ):
            name = name.replace(ours, theirs)
        state[name] = value[:, :, None, None] if ".attn_1." in name and value.dim() == 2 else value
    return state


def one_file(folder: Path, path: Path) -> Path:
    """A miniature of Stable Diffusion as its checkpoints lie on the net."""
    text = load_file(folder / "text_encoder" / "model.safetensors")
    texts = {n if n.startswith("text_model.") else f"text_model.{n}": value for n, value in text.items()}
    state = of_unet(folder) | {f"first_stage_model.{n}": value for n, value in of_autoencoder(folder).items()}
    save_file(state | {f"cond_stage_model.transformer.{n}": value for n, value in texts.items()}, path)
    return path


def drawn(folder: Path, **held) -> torch.Tensor:
    pipeline = models.load(models.find(str(folder)), Meter(), Hold(**held))
    return PipelineSampler(pipeline, Sampling(2, 3.0))([Prompt("0", "a red circle")], [Key("k")]).images


def test_the_line_for_a_checkpoint_in_one_file_makes_a_folder_that_draws_the_same(tmp_path, monkeypatch):
    """With the configuration of its repository, from the hub's cache."""
    folder = random_models.small_sd(tmp_path / "sd")
    with pytest.raises(InputError, match=r"a checkpoint of Stable Diffusion 1 in one file") as raised:
        models.find(str(one_file(folder, tmp_path / "one.safetensors")))
    home = in_cache(tmp_path / "hub", "stable-diffusion-v1-5/stable-diffusion-v1-5", "0" * 40)
    shutil.copytree(folder, home, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, made = re.search(r"python -c '(.*)', then --model (\S+)$", str(raised.value)).groups()
    exec(code)
    assert torch.equal(drawn(Path(made)), drawn(folder))


@pytest.mark.parametrize("build", [random_models.small_sd, random_models.small_sdxl, random_models.small_sd3])
@pytest.mark.parametrize("original", [True, False], ids=["original names", "diffusers' names"])
def test_the_line_for_an_autoencoder_in_one_file_scales_latents_as_the_model_that_it_is_for(tmp_path, build, original):
    """A file does not say how. diffusers takes the number of Stable Diffusion 1, which is neither SDXL's nor SD3's."""
    folder = build(tmp_path / "model")
    path = tmp_path / "vae.safetensors"
    save_file(of_autoencoder(folder) if original else load_file(folder / "vae" / WEIGHTS), path)
    (tmp_path / "test.txt").write_text("a red circle\n")
    asked = {"algo": "base", "model": str(folder), "vae": str(path), "prompts": str(tmp_path / "test.txt")}
    with pytest.raises(InputError, match="is a file; expected a folder or hub id") as raised:
        resolve(RunOptions.parse(asked | {"reward": "jpeg_compressibility", "scorers": ()}))
    code, made = re.search(r"python -c '(.*)', then --vae (\S+)$", str(raised.value)).groups()
    exec(code)
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (Path(made), folder / "vae"))
    for field in ("scaling_factor", "shift_factor", "latent_channels"):
        assert ours.get(field) == theirs.get(field)
    torch.testing.assert_close(drawn(folder, autoencoder=made), drawn(folder), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "build",
    [random_models.small_sd3, functools.partial(random_models.small_sd3, t5=False), random_models.small_flux],
    ids=["SD3", "SD3 without T5", "FLUX"],
)
def test_the_line_for_a_flow_model_in_pickles_makes_a_folder_that_draws_the_same(tmp_path, build):
    folder = build(tmp_path / "model")
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    for path in sorted(folder.rglob("*.safetensors")):
        name = "pytorch_model.bin" if "text" in path.parent.name else path.with_suffix(".bin").name
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    with pytest.raises(RunError, match="pickled weights, which can run code") as raised:
        drawn(folder, resolution=(16, 16))
    code, made = re.search(r"python -c '(.*)', then --model (\S+)$", str(raised.value)).groups()
    exec(code)
    assert torch.equal(drawn(Path(made), resolution=(16, 16)), drawn(whole, resolution=(16, 16)))


def test_the_line_for_a_transformer_in_pickles_makes_an_adapter_that_is_read(tmp_path):
    """In its place: the folder is named again."""
    folder = random_models.small_sd3(tmp_path / "model")
    pipeline = models.load(models.find(str(folder)), Meter())
    place = tmp_path / "adapter" / "transformer"
    network = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        network.proj_out.weight.mul_(2)
    network.save_pretrained(place, safe_serialization=False)
    with pytest.raises(InputError, match="is a pickle") as raised:
        open_policy(pipeline, tmp_path / "adapter")
    exec(re.search(r"`python -c '(.*)'`", str(raised.value))[1])
    policy = open_policy(pipeline, tmp_path / "adapter")
    assert torch.equal(policy.denoiser.proj_out.weight, network.proj_out.weight)


def test_a_transformer_of_another_class_is_told_by_its_class(tmp_path):
    """And not by a field that its file does not have."""
    sd3, flux = random_models.small_sd3(tmp_path / "sd3"), random_models.small_flux(tmp_path / "flux")
    pipeline = models.load(models.find(str(flux)), Meter(), Hold(resolution=(16, 16)))
    with pytest.raises(RunError, match="_class_name is 'SD3Transformer2DModel', not 'FluxTransformer2DModel'"):
        open_policy(pipeline, sd3 / "transformer")
