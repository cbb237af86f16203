"""Runs that learn from preference pairs: a file's, or pairs that the base model makes and the reward labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import TOY

from alignbench import plugins
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.experiment.run import run_cell
from alignbench.record import result as results

SHORT = {"rounds": 1, "updates_per_round": 2, "pairs_per_update": 4, "batch": 2, "rank": 2}
SHAPES = plugins.load("benchmarks", "shapes")()
EVALUATED = SHAPES.prompts("test")[0].text
TEXTS = [prompt.text for prompt in SHAPES.prompts("train")[:4]]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alignbench"


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Five pairs: one tie, one about a prompt that is evaluated, one broken."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = []
    rows = [(TEXTS[0], 1), (TEXTS[1], 0), (TEXTS[2], 0.5), (EVALUATED, 1), (TEXTS[3], 1)]
    for i, (text, label) in enumerate(rows):
        names = [f"{i}-{j}.png" for j in (0, 1)]
        for j, name in enumerate(names):
            pixels = np.full((40, 32, 3), 40 * i + 20 * j, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"prompt": text, "images": names, "label": label}))
    (folder / "4-1.png").write_bytes(b"no picture")
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def spec(tmp_path: Path, algo: str = "diffusion_dpo", **options) -> RunOptions:
    options = {"limit": 2, "steps": 2, "output": tmp_path / "results", "set": SHORT, **options}
    return RunOptions(algo=algo, **options)


def test_a_file_of_pairs_is_chosen_from_counted_and_recorded(tmp_path, cache, pairs, capfd):
    outcome = run_cell(resolve(spec(tmp_path, pairs=pairs)))
    said = capfd.readouterr().err
    assert "3 of 5 pairs used (1 ties dropped, 1 of evaluated prompts)" in said
    assert "pair skipped: pairs.jsonl, line 5" in said
    result = results.read(outcome.path)
    assert result.status == "complete"
    recorded = result.configuration.pairs
    assert {name: recorded[name] for name in ("source", "count", "ties", "models", "crop")} == {
        "source": "pairs", "count": 3, "ties": "drop", "models": None, "crop": "centre",
    }  # fmt: skip
    assert len(recorded["sha256"]) == 64
    assert result.configuration.train_prompts is None
    assert result.cost.alignment["reward_forward"] == 0
    assert result.curve[-1]["accuracy"] is not None


@pytest.mark.slow
def test_pairs_that_change_are_another_configuration(tmp_path, cache, pairs):
    run_cell(resolve(spec(tmp_path, pairs=pairs, name="same")), quiet=True)
    text = (pairs / "pairs.jsonl").read_text().splitlines()
    (pairs / "pairs.jsonl").write_text("\n".join(text[1:]) + "\n")
    with pytest.raises(InputError, match=r"another configuration; it differs in pairs"):
        run_cell(resolve(spec(tmp_path, pairs=pairs, name="same")), quiet=True)


@pytest.mark.slow
def test_ties_that_are_kept_count_half(tmp_path, cache, pairs):
    kept = resolve(spec(tmp_path, pairs=pairs, pair_ties="keep"))
    assert len(kept.chosen) == 4
    assert run_cell(kept, quiet=True).result.status == "complete"


@pytest.mark.slow
def test_without_pairs_the_base_model_makes_some_once_and_their_cost_counts(tmp_path, cache, capfd):
    first = run_cell(resolve(spec(tmp_path, pair_count=3, pair_candidates=2))).result
    said = capfd.readouterr().err
    assert "no --pairs: 3 pairs of tiny on shapes/train, labelled by shapes_preference, are made or found in" in said
    folders = list((cache / "pairs").iterdir())
    made = (folders[0] / "pairs.jsonl").stat().st_mtime_ns
    second = run_cell(resolve(spec(tmp_path, pair_count=3, pair_candidates=2, seed=1)), quiet=True).result
    assert list((cache / "pairs").iterdir()) == folders
    assert (folders[0] / "pairs.jsonl").stat().st_mtime_ns == made
    for result in (first, second):
        assert result.configuration.pairs == {
            "source": "made", "count": 3, "candidates": 2, "ties": "drop",
            "reward": "shapes_preference", "prompts": "shapes",
        }  # fmt: skip
        cost = result.cost.alignment
        # 6 images of 2 guided steps; 2 updates of 4 pairs, both images, policy and reference
        assert cost["denoiser_forward"] == 6 * 2 * 2 + 2 * 4 * 2 * 2
        assert cost["denoiser_backward"] == 2 * 4 * 2
        assert cost["reward_forward"] == 6
        assert 0 < result.cost.pairs_seconds < result.cost.alignment_seconds


@pytest.mark.parametrize("algo", ["diffusion_dpo", "sft"])
def test_without_pairs_prompts_or_reward_the_reason_says_how_to_get_some(algo, tmp_path, cache):
    (tmp_path / "two.txt").write_text("a red circle\na blue star\n")
    options = {"model": "mixture", "prompts": str(tmp_path / "two.txt"), "scorers": ("jpeg_compressibility",)}
    toy = f"{TOY}:FirstCoordinate"
    result = run_cell(resolve(spec(tmp_path, algo, **options | {"scorers": (toy,)})), quiet=True).result
    assert result.status == "unsupported"
    assert "pass --pairs, or --train-prompts and --reward to have some made" in result.reason


@pytest.mark.parametrize(
    ("algo", "options", "message"),
    [
        ("ddpo", {"pair_count": 9}, "--pair-count: 'ddpo' learns from no pairs; leave it out"),
        ("base", {"pairs": Path("x")}, "--pairs: 'base' learns from no pairs; leave it out"),
        ("diffusion_dpo", {"model": "mixture", "pair_ties": "keep"}, "--pair-ties: model 'mixture' makes its own"),
        ("diffusion_dpo", {"pair_models": "dream"}, r"--pair-models: only pairs of a file \(--pairs\)"),
        ("diffusion_dpo", {"pairs": Path("nowhere")}, "there are no preference pairs at nowhere"),
    ],
)
def test_options_of_pairs_that_would_do_nothing_are_refused(algo, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        resolve(spec(tmp_path, algo, **options, **({"set": {}} if algo != "diffusion_dpo" else {})))


@pytest.mark.parametrize("algo", ["base", "best_of_n"])
def test_checkpointing_without_training_is_refused(algo, tmp_path):
    with pytest.raises(InputError, match=f"--checkpointing: '{algo}' trains nothing and keeps no activations"):
        resolve(RunOptions(algo=algo, output=tmp_path, checkpointing=True))


def test_a_count_beside_a_file_is_refused(tmp_path, pairs):
    with pytest.raises(InputError, match="--pair-count: --pairs has its own; leave it out"):
        resolve(spec(tmp_path, pairs=pairs, pair_count=3))


def test_the_dry_run_counts_the_pairs_that_would_be_made(capsys):
    fields = [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")]
    command = ["run", "--algo", "diffusion_dpo", "--pair-count", "10", "--dry-run", *fields]
    assert run_command_line(command) == 0
    printed = capsys.readouterr().out
    assert (
        "pairs        source=made, count=10, candidates=4, ties=drop, reward=shapes_preference, prompts=shapes"
        in printed
    )
    forward = 10 * 4 * 20 * 2 + 2 * 4 * 2 * 2
    assert f"alignment    {forward} denoiser evaluations forward, 16 backward, 40 reward evaluations" in printed
