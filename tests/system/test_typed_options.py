"""Options as people type them: each changes what its command does, on the embedded models and small checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parity import recipe
from PIL import Image
from places import COLOURS
from result_files import writer

from alignbench.analysis import plots
from alignbench.cli.app import run_command_line
from alignbench.experiment.pairs import MADE
from alignbench.judging import serving
from alignbench.record import result as results
from alignbench.remote.server import ScorerServer

RED = f"{COLOURS}:Red"
PICTURE = ["--model", "tiny", "--steps", "2", "--prompts", "captions.txt"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder with captions and caches of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("a red circle\na blue star\n")
    return tmp_path


def run(*typed: str) -> results.Result:
    """`alignbench run` in a folder of its own, and the result it writes."""
    number = len(list(Path().glob("out-*")))
    assert run_command_line(["run", *typed, "--output", f"out-{number}"]) == 0
    (path,) = Path(f"out-{number}").glob("*.json")
    return results.read(path)


def test_run_makes_as_many_candidates_a_pair_as_typed(here):
    typed = "--algo diffusion_dpo --model tiny --prompts captions.txt --train-prompts others.txt --pair-count 4".split()
    typed += "--steps 2 --set rounds=1 --set updates_per_round=1".split()
    Path("others.txt").write_text("a green ring\n")
    typed += ["--set", "pairs_per_update=4"]
    two, three = (run(*typed, "--pair-candidates", n) for n in ("2", "3"))
    assert three.configuration.pairs["candidates"] == 3
    assert three.cost.alignment["reward_forward"] - two.cost.alignment["reward_forward"] == 4


def test_run_refuses_one_candidate_a_pair(here, capsys):
    typed = ["run", "--algo", "diffusion_dpo", *PICTURE, "--pair-candidates", "1"]
    assert run_command_line(typed) == 2
    assert "--pair-candidates 1: expected at least 2" in capsys.readouterr().err


def test_run_learns_from_the_pairs_of_the_models_typed(here, capsys):
    rows = [("a star", 1, 200, 100, "dreamlike", "dreamlike"), ("a ring", 1, 90, 20, "sdxl", "dreamlike")]
    pairs(here / "pairs", rows)
    typed = [
        "--algo",
        "diffusion_dpo",
        *PICTURE,
        "--pairs",
        "pairs",
        "--set",
        "rounds=1",
        "--set",
        "updates_per_round=1",
        "--set",
        "pairs_per_update=2",
    ]
    outcome = run(
        *typed,
        "--pair-models",
        "dream",
    )
    assert outcome.configuration.pairs["models"] == "dream"
    assert outcome.configuration.pairs["count"] == 1
    assert (
        run_command_line(
            [
                "run",
                *typed,
                "--pair-models",
                "imagen",
            ]
        )
        == 2
    )
    assert "no preference pair is left of 2" in capsys.readouterr().err


def test_run_samples_with_the_noise_guidance_and_precision_typed(here):
    shapes = ["--scorers", RED, "shapes_preference"]
    usual = run("--algo", "base", *PICTURE, *shapes)
    for option, value, told in (
        ("--eval-seed", "7", lambda r: str(r.evaluation.eval_seed)),
        ("--guidance", "1.5", lambda r: str(r.configuration.sampling["guidance"])),
        ("--dtype", "bfloat16", lambda r: r.configuration.dtype),
    ):
        other = run("--algo", "base", *PICTURE, *shapes, option, value)
        assert told(usual) != told(other) == value
        assert [row.scores for row in other.rows] != [row.scores for row in usual.rows]


def test_run_scores_with_the_precision_typed(here, scorer_files, monkeypatch):
    small_architectures(monkeypatch)
    typed = ["--algo", "base", *PICTURE, "--scorers", "clip", "--allow-unverified"]
    full, half = (run(*typed, "--scorer-dtype", dtype) for dtype in ("float32", "bfloat16"))
    assert full.scorers["clip_l14"] != half.scorers["clip_l14"]
    assert [row.scores for row in full.rows] != [row.scores for row in half.rows]


def test_pairs_draws_as_typed(here):
    typed = ["pairs", "--model", "tiny", "--prompts", "captions.txt", "--count", "2", "--steps", "2"]
    assert run_command_line([*typed, "--output", "usual"]) == 0
    changes = {"candidates": ("3", 3), "guidance": ("1.5", 1.5), "dtype": ("bfloat16", "bfloat16")}
    for option, (value, kept) in changes.items():
        assert run_command_line([*typed, "--output", option, f"--{option}", value]) == 0
        usual, made = (json.loads((here / folder / MADE).read_text())["configuration"] for folder in ("usual", option))
        assert found(made, option) == kept != found(usual, option)
        pictures = [{p.name: p.read_bytes() for p in (here / f).rglob("*.png")} for f in ("usual", option)]
        assert len(pictures[1]) == (6 if option == "candidates" else 4)
        assert pictures[0] != pictures[1]


def found(values: dict, name: str):
    """The value of a name, whatever group it stands in."""
    return next((v[name] for v in (values, *values.values()) if isinstance(v, dict) and name in v), None)


def pairs(folder: Path, rows) -> Path:
    """A folder of pairs from (prompt, label, red, red, model, model)."""
    folder.mkdir()
    lines = []
    for i, (text, label, first, second, *models) in enumerate(rows):
        for name, red in zip("ab", (first, second), strict=True):
            Image.new("RGB", (32, 32), (red, 0, 0)).save(folder / f"{i}{name}.png")
        row = {"prompt": text, "label": label, "images": [f"{i}a.png", f"{i}b.png"], "models": models}
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def labelled(here) -> Path:
    """Red says right of the pair of one model, and wrong of the two of another."""
    rows = [
        ("a star", 1, 200, 100, "one", "one"),
        ("a ring", 0, 90, 20, "two", "two"),
        ("a star", 1, 5, 60, "two", "two"),
    ]
    return pairs(here / "pairs", rows)


@pytest.mark.parametrize(("models", "right"), [("one", 1.0), ("two", 0.0)])
def test_accuracy_and_audit_judge_the_pairs_of_the_models_typed(labelled, capsys, models, right):
    assert run_command_line(["accuracy", "--pairs", "pairs", "--scorers", RED, "--pair-models", models, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][0]["accuracy"]["strict"]["rate"] == right
    typed = ["audit", "--pairs", "pairs", "--scorers", RED, f"{COLOURS}:Darkness", "--pair-models", models, "--json"]
    assert run_command_line(typed) == 0
    assert json.loads(capsys.readouterr().out)["pairs"]["used"] == (1 if models == "one" else 2)


def test_accuracy_measures_a_model_in_the_precision_typed(labelled, capsys):
    for dtype in ("float32", "bfloat16"):
        assert run_command_line(["accuracy", "--pairs", "pairs", "--model", "tiny", "--dtype", dtype, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["model"]["dtype"] == dtype


def test_train_reward_learns_from_the_pairs_of_the_models_typed(here, capsys):
    rows = [
        (f"a {c} {s}", 1, 200, 100, m, m) for c in ("red", "blue") for s in ("star", "ring", "circle") for m in "xy"
    ]
    pairs(here / "pairs", rows)
    typed = ["train-reward", "--pairs", "pairs", "--steps", "1", "--batch-size", "2", "--held-out", "0.5", "--json"]
    used = {}
    for models in ((), ("--pair-models", "x")):
        capsys.readouterr()
        assert run_command_line([*typed, "--output", f"r{len(models)}.safetensors", *models]) == 0
        used[models] = json.loads(capsys.readouterr().out)["pairs"]["used"]
    assert used == {(): 12, ("--pair-models", "x"): 6}


def small_architectures(monkeypatch) -> None:
    """Learned scorers of the sizes of the small checkpoints."""
    import functools

    from alignbench import plugins

    load = plugins.load

    def load_small(group, name):
        known = recipe.ARCHITECTURES.get(name) if group == "rewards" else None
        return functools.partial(load(group, name), architecture=known) if known else load(group, name)

    monkeypatch.setattr(plugins, "load", load_small)


def test_score_and_audit_use_the_precision_typed(labelled, scorer_files, monkeypatch, capsys):
    small_architectures(monkeypatch)
    score = ["score", "pictures", "--prompts", "captions.txt", "--scorers", "clip", "--allow-unverified", "--json"]
    Path("pictures").mkdir()
    Image.new("RGB", (32, 32), (200, 0, 0)).save("pictures/00000.png")
    audit = ["audit", "--pairs", "pairs", "--scorers", "clip", "--allow-unverified", "--json"]
    for typed in (score, audit):
        said = []
        for dtype in ("float32", "bfloat16"):
            assert run_command_line([*typed, "--scorer-dtype", dtype]) == 0
            said.append(json.loads(capsys.readouterr().out))
        assert said[0]["scorers"] != said[1]["scorers"]


def test_serve_uses_the_precision_typed(scorer_files, monkeypatch, capsys):
    small_architectures(monkeypatch)
    monkeypatch.setattr(ScorerServer, "serve", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    infos = []
    make = serving.make_server
    monkeypatch.setattr(serving, "make_server", lambda info, *rest: infos.append(info) or make(info, *rest))
    for dtype in ("float32", "bfloat16"):
        assert run_command_line(["serve", "clip", "--allow-unverified", "--port", "0", "--scorer-dtype", dtype]) == 0
    assert infos[0] != infos[1]


def test_plot_draws_each_axis_typed(here, monkeypatch, capsys):
    write = writer(here / "cells")
    (here / "cells").mkdir()
    lines = [
        {
            "round": i,
            "reward": 0.0,
            "held_out": {"r": v},
            "denoiser_forward": 10 * i * i,
            "denoiser_backward": 0,
            "seconds": 2.0**i,
        }
        for i, v in ((1, 0.0), (3, 1.0), (5, 4.0))
    ]
    write("ddpo", [1.0, 2.0], "ddpo", seed=0, curve=lines)
    figures = []
    draw = plots.reward_curves
    monkeypatch.setattr(plots, "reward_curves", lambda *given: figures.append(draw(*given)) or figures[-1])
    for against, expected in (("rounds", [1, 3, 5]), ("denoiser", [10, 90, 250]), ("seconds", [2, 8, 32])):
        assert run_command_line(["plot", "cells", "--against", against, "--output", f"{against}.png"]) == 0
        assert capsys.readouterr().out == f"written to {against}.png\n"
        (line,) = figures[-1].axes[0].lines
        assert line.get_xdata().tolist() == expected
        assert Path(f"{against}.png").read_bytes().startswith(b"\x89PNG")
    assert run_command_line(["plot", "cells", "--against", "time"]) == 2
