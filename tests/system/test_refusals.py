"""Files and options that cannot be used: each is told in one line, with what was expected."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from parity import recipe
from PIL import Image
from places import COLOURS
from said import one_line

import alignbench
from alignbench import Key, Prompt, RunError, plugins
from alignbench.cli.app import run_command_line
from alignbench.diffusion import hub
from alignbench.images import fitted
from alignbench.pictures import LARGEST
from alignbench.scoring import clip
from alignbench.scoring.blip import blip_scorer
from alignbench.scoring.weights import WeightFile

RED = f"{COLOURS}:Red"
EDIT = [
    "run",
    "--algo",
    "base",
    "--scorers",
    "jpeg_compressibility",
    "--task",
    "sdedit",
    "--strength",
    "0.5",
    "--images",
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of things that cannot be used, and caches of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    for name in ("empty.txt", "empty.jsonl"):
        Path(name).touch()
    Path("one.txt").write_text("a star\n")
    Path("no.png").write_text("no picture\n")
    Path("broken.jsonl").write_text('{"prompt": "a star", "image": "no.png"}\n')
    Path("nameless.yaml").write_text("cells:\n - model: tiny\n")
    Path("open.yaml").write_text("cells: [1\n")
    Path("newer.json").write_text('{"schema": 99}')
    Path("older.json").write_text('{"schema": 0}')
    Path("pairs").mkdir()
    row = {"prompt": "a red star", "images": ["a.png", "b.png"], "label": 1}
    Path("pairs/pairs.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("a.png", "b.png"):
        Path("pairs", name).write_text("no picture\n")
    Path("gap.jsonl").write_text('{"id": "x", "prompt": "a star"}\n{"id": "y", "prompt": "  "}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["run", "--algo", "base", "--prompts", "empty.txt"], "empty.txt holds no prompts; expected at least one."),
        (
            ["run", "--algo", "base", "--prompts", "gap.jsonl"],
            "gap.jsonl, line 2: the prompt is empty; write one or remove the line.",
        ),
        (["run", "--algo", "base", "--steps", "5000"], "the number of steps must lie in [1, 1000], got 5000"),
        (["run", "--algo", "base", "--steps", "5000", "--dry-run"], "the number of steps must lie in [1, 1000]"),
        (["run", "--algo", "best_of_n", "--budget", "nfe=10", "--dry-run"], "an image costs at least nfe="),
        (["suite", "absent.yaml"], "absent.yaml: there is no such file."),
        (["suite"], "name a suite: "),
        (["run", "--algo", "base", "--name", "a/b"], "--name 'a/b': expected letters, digits, '.', '_', '=' and '-'."),
        (["run", "--algo", "base", "--model", "mixture", "--dtype", "bfloat16"], "model 'mixture' computes in float64"),
        (["run", "--algo", "ddpo", "--set", "rank=many"], "ddpo: rank='many': expected a whole number."),
        ([*EDIT, "empty.jsonl"], "--images empty.jsonl holds no images; expected a line for each."),
        ([*EDIT, "broken.jsonl"], "the image no.png cannot be read"),
        (["suite", "nameless.yaml"], "nameless.yaml, cell 1: names no algorithm; expected a key such as algo: ddpo."),
        (["suite", "open.yaml"], "open.yaml is not YAML: "),
        (["compare", "newer.json"], "newer.json: schema 99, this version reads 1, 2 and 3: "),
        (["compare", "older.json"], "older.json: schema 0, this version reads 1, 2 and 3: "),
        (["score", "nothing", "--scorers", RED, "--prompts", "one.txt"], "nothing holds no pictures; expected files"),
        (["fetch", "models", "tiny"], "model 'tiny' needs no download; leave it out."),
        (["fetch", "models", "mixture"], "model 'mixture' needs no download; leave it out."),
        (["fetch", "prompts", "shapes"], "prompt set 'shapes' needs no files; leave it out."),
        (["fetch", "scorers", "jpeg_compressibility"], "reward 'jpeg_compressibility' needs no files; leave it out."),
        (["check", "algorithms/ddpo.py:Name"], "there is no file algorithms/ddpo.py"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(here, capsys, typed, message):
    assert run_command_line(typed) == 2
    assert message in one_line(capsys)


def test_pairs_whose_images_cannot_be_read_teach_no_reward(here, capsys):
    assert run_command_line(["train-reward", "--pairs", "pairs", "--output", "r.safetensors"]) == 2
    assert "alignbench: not one of 1 pairs has images that can be read; first " in capsys.readouterr().err
    assert not Path("r.safetensors").exists()


def test_without_a_network_a_missing_model_says_what_to_fetch_where(here, monkeypatch, capsys):
    monkeypatch.setattr(hub, "offline", lambda: True)
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))
    typed = ["run", "--algo", "base", "--model", "sd15", "--prompts", "one.txt", "--scorers", "jpeg_compressibility"]
    assert run_command_line(typed) == 1
    assert "`alignbench fetch models sd15`" in capsys.readouterr().err


def test_an_image_of_too_many_pixels_is_not_decoded():
    side = int(LARGEST**0.5) + 1
    stored = io.BytesIO()
    Image.new("1", (side, side)).save(stored, format="PNG")
    with pytest.raises(ValueError, match=f"{side} x {side} pixels; at most {LARGEST} are decoded"):
        fitted(stored.getvalue(), (32, 32), None)


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility"])
def test_a_count_of_bytes_has_no_gradient(name):
    reward = plugins.load("rewards", name)()
    with pytest.raises(alignbench.Unsupported, match=f"reward '{name}' has no gradient: it counts bytes"):
        reward.with_grad(torch.zeros(1, 3, 8, 8), [Prompt("a", "a")])


def test_vocabularies_that_lack_words_are_refused(checkpoints, tmp_path, monkeypatch):
    words = tmp_path / "words.txt"
    words.write_text("[PAD]\n[UNK]\n[CLS]\na\n")
    known, own = recipe.ARCHITECTURES["imagereward"], plugins.load("rewards", "imagereward")
    weights = WeightFile("", checkpoints / own.files[0].place, "", False)
    with pytest.raises(RunError, match=r"words.txt has no word \[SEP\]; expected BERT's vocabulary, one word a line"):
        blip_scorer(known, weights, WeightFile("", words, "", False), "float32")
    monkeypatch.setattr(clip, "VOCABULARY", 10**6)
    with pytest.raises(RunError, match=r"open_clip's vocabulary has \d+ words, expected \d+; reinstall it"):
        clip.vocabulary()


def test_no_sample_is_drawn_from_nothing():
    with pytest.raises(ValueError, match="cannot sample from an empty sequence"):
        Key("a").sample([], 1)


def test_a_name_that_alignbench_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'alignbench' has no attribute 'Diffuser'"):
        alignbench.Diffuser  # noqa: B018
