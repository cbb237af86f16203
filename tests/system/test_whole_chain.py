"""From a checkpoint to tables and pictures, as a user does it: two real layouts, five learned scorers."""

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path

import pytest
import random_models
import torch
from parity import recipe

import alignbench
from alignbench import Prompt, Sampling, plugins
from alignbench.cli.app import run_command_line
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.experiment.evaluate import evaluation_key
from alignbench.meter import Meter
from alignbench.record import result as results
from alignbench.record.pictures import ImageStore, Slot

PARTI = """Prompt\tCategory\tChallenge\tNote
"G I G G L E" painted in thick colorful lettering\tIllustrations\tWriting & Symbols\tquoted
a red circle\tAbstract\tBasic\t
two blue stars, a café and 漢字\tOutdoor Scenes\tQuantity\t
a robot reading a book \tPeople\tImagination\t
"""
TRAINING = """
from alignbench import Prompt


class Drawn:
    splits = ("train", "dev")

    def prompts(self, split):
        return [Prompt(f"{split}-{i}", f"{split} picture number {i}") for i in range(6)]
"""
SCORERS = ["hpsv2", "clip", "aesthetic", "imagereward"]
COLUMNS = ["pickscore", "hpsv2_1", "clip_l14", "aesthetic_v2", "imagereward"]


@pytest.fixture
def small_scorers(scorer_files, monkeypatch) -> None:
    """Small random files of the official layouts where scorers look for theirs, and scorers of their sizes, which stand
    in no file."""
    load = plugins.load

    def small(group, name):
        plugin = load(group, name)
        architecture = recipe.ARCHITECTURES.get(plugins.full_name(group, name)) if group == "rewards" else None
        if architecture is None:
            return plugin
        return make_dataclass(plugin.__name__, [("architecture", object, architecture)], bases=(plugin,), frozen=True)

    monkeypatch.setattr(plugins, "load", small)


def check_the_adapter_in_plain_diffusers(path: Path, base: results.Result) -> None:
    """What was trained here, `load_lora_weights` opens in a fresh process, and it draws the same pictures."""
    pipeline = models.load(models.find("model"), Meter())
    prompts = [Prompt(row.id, row.text) for row in base.prompts]
    keys, sampling = [evaluation_key(0, prompt, 0) for prompt in prompts], Sampling(4, 7.5, 0.0)
    policy = open_policy(pipeline, path.with_suffix("") / "adapter")
    ours = PipelineSampler(policy, sampling)(prompts, keys).images
    before = PipelineSampler(pipeline, sampling)(prompts, keys).images
    assert (ours - before).abs().mean() >= 0.05
    stored = ImageStore(path.with_suffix("") / "images").read([Slot(i, 0) for i in range(len(prompts))])
    torch.testing.assert_close(stored, ours, atol=0.5 / 255 + 1e-4, rtol=0)
    asked = {"prompt": [prompt.text for prompt in prompts], "latents": pipeline.initial_noise(keys)}
    theirs = random_models.drawn_by_plain_diffusers(
        Path("model"), path.with_suffix("") / "adapter", Path(), **asked, guidance_scale=7.5, num_inference_steps=4
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(random_models.small_sd, id="sd15"),
        pytest.param(random_models.small_sdxl, id="sdxl"),
    ],
)
def test_a_checkpoint_is_aligned_scored_compared_and_drawn(build, small_scorers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build(Path("model"))
    Path("parti.tsv").write_text(PARTI, encoding="utf-8")
    Path("drawn.py").write_text(TRAINING)
    common = ["--model", "model", "--prompts", "parti.tsv", "--steps", "4", "--allow-unverified"]
    common += ["--reward", "pickscore", "--scorers", *SCORERS]
    assert run_command_line(["run", "--algo", "base", *common]) == 0
    fields = {"rounds": 4, "updates_per_round": 1, "pairs_per_update": 4, "warmup": 0, "learning_rate": 0.05}
    trained = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    trained += ["--train-prompts", "drawn.py:Drawn", "--pair-count", "6"]
    capsys.readouterr()
    assert run_command_line(["run", "--algo", "diffusion_dpo", *common, *trained]) == 0
    captured = capsys.readouterr()
    assert "6 pairs of model on drawn.py:Drawn/train, labelled by pickscore" in captured.err
    assert "against base  pickscore: wins" in captured.out

    base, aligned = (results.read(path) for path in sorted(Path("results").glob("*.json")))
    assert [r.configuration.algorithm for r in (base, aligned)] == ["base", "diffusion_dpo"]
    assert [row.text for row in base.prompts] == [line.split("\t")[0] for line in PARTI.splitlines()[1:]]
    for result in (base, aligned):
        assert list(result.scorers) == COLUMNS
        assert all("unverified" in scorer.id for scorer in result.scorers.values())
        assert all(value is not None for row in result.rows for value in row.scores.values())
    assert base.rows != aligned.rows

    check_the_adapter_in_plain_diffusers(sorted(Path("results").glob("*diffusion_dpo*.json"))[0], base)

    assert run_command_line(["compare", *map(str, sorted(Path("results").glob("*.json"))), "--by", "category"]) == 0
    tables = capsys.readouterr().out
    for name in COLUMNS:
        assert f"{name}: against base" in tables
    assert "Outdoor Scenes" in tables

    loaded = alignbench.load("results")
    assert loaded.rows.groupby("method")[COLUMNS].count().to_dict("index") == {
        method: dict.fromkeys(COLUMNS, 4) for method in ("base", "diffusion_dpo")
    }
    compared = alignbench.compare(loaded, by="category").to_frame()
    assert set(zip(compared["method"], compared["scorer"], strict=True)) >= {
        ("diffusion_dpo", name) for name in COLUMNS
    }
    assert alignbench.sheet("results", prompts=4).width > alignbench.sheet("results", prompts=2).width
    named = [
        tick.get_text()
        for axes in alignbench.win_rates(alignbench.compare(loaded)).axes
        for tick in axes.get_yticklabels()
    ]
    assert "diffusion_dpo" in named
