"""Cells that optimise nothing: they load no reward, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT

from alignbench import plugins
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.diffusion import registry
from alignbench.record import result as results

TINY = Path(registry.__file__).parents[1] / "shapes" / "weights" / "tiny"
SHORT = ["--steps", "2", "--prompts", "captions.txt"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder with captions, pairs and caches of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("a red circle\na blue star\n")
    rows = []
    for i in range(4):
        names = [f"pairs/{i}{half}.png" for half in "ab"]
        Path("pairs").mkdir(exist_ok=True)
        for shade, name in zip((40, 200), names, strict=True):
            Image.new("RGB", (32, 32), (shade, i, 0)).save(name)
        rows.append({"prompt": f"a ring {i}", "images": [Path(name).name for name in names], "label": 1})
    Path("pairs/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*typed: str, output: str = "out") -> results.Result:
    assert run_command_line(["run", *typed, "--output", output]) == 0
    (path,) = Path(output).glob("*.json")
    return results.read(path)


def of(**options: object) -> results.Configuration:
    return resolve(RunOptions.parse(options)).configuration


def test_base_draws_pictures_of_a_folder_without_loading_the_models_own_reward(here, monkeypatch):
    loaded, load = [], plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: loaded.append(name) or load(group, name))
    found = run("--algo", "base", "--model", str(TINY), "--scorers", "jpeg_compressibility", *SHORT)
    assert found.status == "complete"
    assert list(found.scorers) == ["jpeg_compressibility"]
    assert found.configuration.reward is None
    assert "jpeg_compressibility" in loaded
    assert "pickscore" not in loaded
    assert len(list(Path("out").rglob("*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sft", "diffusion_dpo"])
def test_what_learns_from_given_pairs_needs_no_reward(here, algo):
    own = ["rounds=1", "updates_per_round=1", "pairs_per_update=4", "rank=1"]
    typed = ["--algo", algo, "--model", "tiny", "--pairs", "pairs", "--reward", "none", "--scorers", "shapes_truth"]
    found = run(*typed, *SHORT, *(word for field in own for word in ("--set", field)))
    assert found.status == "complete"
    assert (found.configuration.reward, list(found.scorers)) == (None, ["shapes_truth"])


REFUSED = [
    (["run", "--algo", "ddpo"], "--reward none: 'ddpo' optimises a reward; name one"),
    (["run", "--algo", "best_of_n"], "--reward none: 'best_of_n' optimises a reward"),
    (["run", "--algo", "sft"], "--reward none: 'sft' learns from pairs, none are given (--pairs), and a reward labels"),
    (["run", "--algo", "diffusion_dpo", "--model", "mixture"], "and a reward labels those that are made"),
    (["pairs"], "--reward none: a reward says which image of a pair is preferred"),
]


@pytest.mark.parametrize(("typed", "said"), REFUSED)
def test_what_needs_a_reward_refuses_none_and_says_why(here, capsys, typed, said):
    assert run_command_line([*typed, "--reward", "none"]) == 2
    assert said in capsys.readouterr().err


def test_every_algorithm_takes_none_or_refuses_it(here):
    """Whoever says that it reads no reward does without; all others refuse it before anything is loaded."""
    free = set()
    for name in plugins.own_names("algorithms"):
        kind = plugins.load("algorithms", name)
        if getattr(kind, "reads_reward", True) is False:
            free.add(name)
    assert free == {"base", "sft", "diffusion_dpo", "diffusion_kto", "mapo"}


@pytest.mark.parametrize("content", ["{reward: none}", "{reward: 'none', scorers: [shapes_truth]}"])
def test_a_file_of_options_may_say_none(here, content):
    Path("cell.yaml").write_text(content)
    found = run("--algo", "base", "--config", "cell.yaml", *SHORT)
    assert found.configuration.reward is None


def test_without_a_word_base_is_the_cell_that_it_was():
    """The committed cells name the model's reward, which is scored with the others."""
    asked = of(algo="base", model="tiny")
    assert asked == results.read(ROOT / "results" / "tiny-shapes-base.json").configuration
    assert asked.reward == "shapes_preference"


@pytest.mark.parametrize(
    "typed",
    [
        ["--reward", "none"],
        ["--reward", "none", "--scorers", "shapes_preference", "shapes_truth", "shapes_style"],
    ],
)
def test_a_cell_of_before_is_found_complete_without_a_reward_too(here, capsys, typed):
    run("--algo", "base", "--model", "tiny", *SHORT, *typed[2:])
    path = next(Path("out").glob("*.json"))
    before = results.read(path)
    old = before.configuration.model_copy(
        update={"reward": "shapes_preference", "scorers": ["shapes_preference", "shapes_truth", "shapes_style"]}
    )
    results.write(path, before.model_copy(update={"configuration": old}))
    capsys.readouterr()
    assert run_command_line(["run", "--algo", "base", "--model", "tiny", *SHORT, *typed, "--output", "out"]) == 0
    assert "already complete" in capsys.readouterr().out


def test_an_older_cell_that_also_scored_the_models_reward_is_found_complete(here, capsys):
    """It was asked for --scorers shapes_truth, and the model's own reward came with it."""
    typed = ["--algo", "base", "--model", "tiny", "--scorers", "shapes_truth", *SHORT]
    older = run(*typed, "--reward", "shapes_preference")
    assert older.configuration.scorers == ["shapes_preference", "shapes_truth"]
    capsys.readouterr()
    assert run_command_line(["run", *typed, "--output", "out"]) == 0
    assert "already complete" in capsys.readouterr().out


def test_the_command_for_base_scores_the_reward_of_the_method_it_is_for(here, capsys):
    run("--algo", "best_of_n", "--model", "tiny", "--set", "n=2", "--scorers", "shapes_truth", *SHORT)
    said = capsys.readouterr().out
    assert "alignbench run --algo base" in said
    assert "--reward shapes_preference" in said
