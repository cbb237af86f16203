"""All stages of the embedded model's recipe, end to end with a few pictures and steps, whole and killed."""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from alignbench import Key
from alignbench.diffusion import registry as models
from alignbench.meter import Meter
from alignbench.shapes import autoencoder as autoencoding
from alignbench.shapes import denoiser as denoising
from alignbench.shapes import preference, train
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.preference import words_of

pytestmark = pytest.mark.slow  # most of its time is diffusers saving and loading
KEY = Key("test", "shapes recipe")


class Stopped(Exception):
    """Stands for a kill."""


class Recipe:
    """A run of the whole recipe with a few pictures and steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, stop_in: str | None = None) -> str:
        """What `train.main` prints; with `stop_in`, the second step of that stage never ends."""
        torch.set_num_threads(1)  # the networks are too small for more
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), torch.random.fork_rng([]):
            torch.manual_seed(0)  # as every process starts
            few = {"steps": 2, "learning_rate": 1e-3, "warmup": 1, "checkpoint_every": 1}
            for name in ("AUTOENCODER", "DENOISER", "MATCHING", "CHOOSING"):
                patch.setattr(train, name, Fit(**few))
            captioned, generated = train.captioned_pictures, preference.generated
            patch.setattr(preference, "CAPTIONS_PER_FILE", 2)
            patch.setattr(preference, "SETTINGS", tuple(replace(s, steps=2) for s in preference.SETTINGS))
            patch.setattr(train, "captioned_pictures", lambda n, s, count, f: captioned(n, s, min(count, 16), f))
            patch.setattr(preference, "generated", lambda w, n, s, count, f: generated(w, n, s, min(count, 4), f))
            if stop_in:
                for module in (autoencoding, denoising, preference):
                    patch.setattr(module, "fit", stopping(stop_in))
            train.main(["--output", str(self.folder)])
        return out.getvalue()

    def hashes(self) -> dict[str, str]:
        """Of everything that ships."""
        paths = [*(self.folder / "tiny").rglob("*"), self.folder / "preference.safetensors"]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths)
            if path.is_file()
        }


def stopping(stage: str):
    """`fit`, but the second step of one stage is killed."""

    def stopping_fit(name, plan, module, loss, folder):
        def stopped(step):
            if name == stage and step == 1:
                raise Stopped
            return loss(step)

        fit(name, plan, module, stopped, folder)

    return stopping_fit


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    made = Recipe(tmp_path_factory.mktemp("recipe"))
    made.printed = made.run()
    return made


def test_the_recipe_ends_with_a_pipeline_and_a_reward(recipe):
    pipeline = models.load(models.Model("made", source=str(recipe.folder / "tiny")), Meter())
    assert pipeline.latent_shape == (4, 8, 8)
    plain = StableDiffusionPipeline.from_pretrained(recipe.folder / "tiny", dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    assert plain("a red circle", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
    network = preference.load(recipe.folder / "preference.safetensors")
    score = network(KEY("image").uniform(1, 3, 32, 32), words_of(["a red circle"]))
    assert torch.isfinite(score).all()
    assert "autoencoder: {'full'" in recipe.printed
    assert "preference: {'agrees_with_choices'" in recipe.printed
    assert "'pairs': 24" in recipe.printed  # six pairs of four pictures for each of four captions


def test_the_recipe_remembers_no_path_of_the_machine(recipe):
    for path in (recipe.folder / "tiny").rglob("*.json"):
        assert str(recipe.folder) not in path.read_text(encoding="utf-8"), path


def test_the_recipe_continued_does_nothing_twice(recipe):
    before, files = recipe.hashes(), {p: p.stat().st_mtime_ns for p in recipe.folder.glob("*.npz")}
    assert len(files) == 6  # two of rendered pictures, four of generated ones
    printed = recipe.run()
    for stage in ("autoencoder", "preference-matching", "preference-choosing"):
        assert f"{stage}: continued at step 2 of 2" in printed
    assert "step 1/2" not in printed
    assert "captions" not in printed
    assert {p: p.stat().st_mtime_ns for p in recipe.folder.glob("*.npz")} == files
    assert recipe.hashes() == before


def test_a_recipe_killed_in_its_stages_ends_with_the_same_weights(recipe, tmp_path):
    killed = Recipe(tmp_path)
    for stage in ("denoiser", "preference-choosing"):
        with pytest.raises(Stopped):
            killed.run(stop_in=stage)
    printed = killed.run()
    assert "preference-choosing: continued at step 1 of 2" in printed
    assert killed.hashes() == recipe.hashes()


def test_the_text_encoder_is_saved_under_the_published_prefix(recipe):
    names = load_file(recipe.folder / "tiny" / "text_encoder" / "model.safetensors")
    assert names
    assert all(name.startswith("text_model.") for name in names)
