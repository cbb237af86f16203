"""The embedded flow model: its recipe end to end, and the model as it ships, opened by plain diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from transformers import CLIPTokenizer

from alignbench import Key
from alignbench.shapes import train_flow
from alignbench.shapes.autoencoder import to_signed
from alignbench.shapes.denoiser import tokenise
from alignbench.shapes.fit import Fit
from alignbench.shapes.flow_denoiser import FlowDenoiser, Stage
from alignbench.shapes.render import render_batch, sample_scene
from alignbench.shapes.scene import parse, sample_caption

KEY = Key("test", "flow model")
FOLDER = train_flow.TINY.parent / "tiny_flow"
TEXTS = ["two small red circles on a green background", "a blue star left of a large yellow cross"]


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(train_flow.TINY / "tokenizer")


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(train_flow.TINY / "vae", dtype=torch.float32).requires_grad_(False)


def denoiser() -> FlowDenoiser:
    """One none of whose layers is the identity, with weights that half precision holds exactly."""
    made = FlowDenoiser(tokenizer()).requires_grad_(False)
    for name, parameter in made.named_parameters():
        drawn = parameter if parameter.any() else 0.1 * KEY("moved", name).normal(*parameter.shape)
        parameter.copy_(drawn.half().float())
    made.transformer.pos_embed.pos_embed.copy_(made.transformer.pos_embed.pos_embed.half().float())
    return made


def test_a_refolded_autoencoder_has_unit_latents_and_the_same_pictures():
    before, after = autoencoder(), autoencoder()
    caption = parse("a red circle left of a blue star on a white background")
    images = to_signed(render_batch([sample_scene(KEY("scene", i), caption) for i in range(6)]))
    old = before.encode(images).latent_dist
    mean, std = train_flow.statistics(old.mean)
    train_flow.refold(after, mean, std)
    assert (after.config.scaling_factor, after.config.shift_factor) == (1.5305, 0.0609)
    new = after.encode(images).latent_dist
    seen = (new.mean - after.config.shift_factor) * after.config.scaling_factor
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert float(seen.square().mean()) == pytest.approx(1.0, abs=1e-5)
    widths = old.mean.std((0, 2, 3))
    torch.testing.assert_close(seen.std((0, 2, 3)) / widths, (1 / std).expand(4), atol=1e-5, rtol=0)  # one scale
    torch.testing.assert_close(new.std * 1.5305 * std, old.std, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after.decode(new.mean).sample, before.decode(old.mean).sample, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the whole recipe leaves after three steps on eight pictures."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_flow, "PICTURES", 8)
        patch.setattr(train_flow, "HELD_OUT", 12)
        patch.setattr(train_flow, "COARSE_FIT", Fit(steps=2, learning_rate=1e-3, warmup=1))
        patch.setattr(train_flow, "FINE_FIT", Fit(steps=1, learning_rate=1e-3, warmup=1))
        patch.setattr(train_flow, "COARSE", Stage(batch=4))
        patch.setattr(train_flow, "FINE", Stage(first=2, batch=4))
        train_flow.main(["--output", str(folder)])
    return folder


def check_layout(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    for part in ("tokenizer", "tokenizer_2"):
        names = {path.name for path in (folder / part).iterdir()}
        assert {"vocab.json", "merges.txt"} <= names
        for name in names:
            assert (folder / part / name).read_bytes() == (train_flow.TINY / "tokenizer" / name).read_bytes()
    paths = sorted(folder.rglob("*.safetensors"))
    assert [path.parent.name for path in paths] == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    for path in paths:
        with safe_open(path, "pt") as tensors:
            names = list(tensors.keys())
            assert {tensors.get_slice(name).get_dtype() for name in names} == {"F16"}
        if path.parent.name.startswith("text_encoder"):
            assert all(re.match(r"text_model\.(?!text_model)|text_projection\.", name) for name in names)
    for config in folder.rglob("config.json"):
        assert "_name_or_path" not in config.read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12e6


def test_the_recipe_makes_a_published_layout_in_half_precision(made):
    check_layout(made / "tiny_flow")


def test_a_finished_recipe_is_not_trained_again(made, monkeypatch):
    monkeypatch.setattr(train_flow, "HELD_OUT", 12)
    monkeypatch.setattr(train_flow, "fit", lambda *_: pytest.fail("trained again"))
    train_flow.main(["--output", str(made)])


def euler(denoiser, vae, texts: list[str], x: torch.Tensor, sigmas: list[float], guidance: float) -> torch.Tensor:
    """Our own loop: x ← x + (σ' - σ) v with v = u + w (c - u)."""
    words = tokenizer()
    said, unsaid = tokenise(words, texts), tokenise(words, [""] * len(texts))
    denoiser.nulls.count = 1
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        level = torch.full((len(texts),), sigma)
        with_text, without = denoiser(x, level, said), denoiser(x, level, unsaid)
        x = x + (following - sigma) * (without + guidance * (with_text - without))
    return (vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample / 2 + 0.5).clamp(0, 1)


def their_images(plain, texts: list[str], noise: torch.Tensor, sigmas: list[float], guidance: float) -> torch.Tensor:
    return plain(
        texts,
        latents=noise,
        sigmas=sigmas,
        guidance_scale=guidance,
        max_sequence_length=1,  # null tokens
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_was_saved_draws_what_was_trained(tmp_path, guidance):
    """Plain diffusers on the saved folder against our own loop on the networks that were never written."""
    folder, sigmas = tmp_path / "folder", [1.0, 0.75, 0.5, 0.25]
    vae = autoencoder()
    train_flow.refold(vae, torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor(1.3))
    train_flow.save(denoiser(), vae, train_flow.TINY / "tokenizer", folder)
    noise = KEY("noise").normal(2, 4, 8, 8)
    ours = euler(denoiser(), vae.float(), TEXTS, noise, sigmas, guidance)
    assert ours.std() > 0.05
    theirs = their_images(train_flow.opened(folder), TEXTS, noise, sigmas, guidance)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_the_shipped_model_has_the_published_layout_and_is_small():
    check_layout(FOLDER)


@pytest.fixture(scope="module")
def plain():
    return train_flow.opened(FOLDER)


@pytest.fixture(scope="module")
def shipped(plain) -> FlowDenoiser:
    """The shipped networks, in the module that trained them."""
    module = FlowDenoiser(tokenizer())
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        getattr(module, name).load_state_dict(getattr(plain, name).state_dict())
    return module.requires_grad_(False).eval()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [10, 20])
def test_plain_diffusers_and_our_own_loop_draw_the_same_pictures(plain, shipped, steps, guidance):
    noise, sigmas = KEY("same").normal(2, 4, 8, 8), np.linspace(1, 1 / steps, steps).tolist()
    ours = euler(shipped, plain.vae, TEXTS, noise, sigmas, guidance)
    assert ours.std() > 0.1
    theirs = their_images(plain, TEXTS, noise, sigmas, guidance)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_the_shipped_autoencoder_is_that_of_tiny_with_unit_latents(plain):
    captions = [sample_caption(KEY("unit", i), "dev") for i in range(200)]
    images = to_signed(render_batch([sample_scene(KEY("unit scene", i), c) for i, c in enumerate(captions)]))
    with torch.no_grad():
        old, new = autoencoder().encode(images).latent_dist.mean, plain.vae.encode(images).latent_dist.mean
        seen = (new - plain.vae.config.shift_factor) * plain.vae.config.scaling_factor
        assert seen.mean((0, 2, 3)).abs().max() < 0.1
        assert abs(float(seen.square().mean().sqrt()) - 1) < 0.1
        before, after = autoencoder().decode(old).sample, plain.vae.decode(new).sample
    torch.testing.assert_close(after, before, atol=2e-2, rtol=0)  # half precision on disk
