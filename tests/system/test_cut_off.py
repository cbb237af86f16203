"""Prompts that the embedded model's text encoder, of 20 tokens, cuts off: counted, said, kept, known in a dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.experiment import cut_off
from alignbench.record import result as results

LONG = "a red circle and a blue star and a green square and a yellow ring and a red star and more of them"
BASE = [
    "run",
    "--algo",
    "base",
    "--steps",
    "2",
    "--reward",
    "jpeg_compressibility",
    "--scorers",
    "jpeg_compressibility",
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("evaluated.txt").write_text(f"a red circle\n{LONG}\n")
    Path("training.txt").write_text(f"{LONG}, always\n{LONG}, often\na blue star\n")
    return tmp_path


def test_a_run_says_it_before_it_draws_and_keeps_it(here, capsys):
    assert run_command_line([*BASE, "--prompts", "evaluated.txt"]) == 0
    out, err = capsys.readouterr()
    assert "tiny reads 1 of 2 evaluated prompts cut off at its longest\n" in err
    assert err.index("cut off at") < err.index("generate")
    assert "cut off     the model reads to its longest and no further: 1 evaluated prompts\n" in out
    path = next(here.glob("results/*.json"))
    assert results.read(path).model_truncated == {"evaluated": 1}
    assert run_command_line(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated_by_the_model"] == {"evaluated": 1}


def test_a_result_without_such_prompts_says_nothing_of_it(here, capsys):
    Path("short.txt").write_text("a red circle\n")
    assert run_command_line([*BASE, "--prompts", "short.txt"]) == 0
    assert "cut off" not in "".join(capsys.readouterr())
    path = next(here.glob("results/*.json"))
    assert "model_truncated" not in path.read_text()
    assert results.read(path).model_truncated == {}


def test_a_dry_run_counts_training_prompts_too(here, capsys):
    given = ["--prompts", "evaluated.txt", "--train-prompts", "training.txt", "--dry-run"]
    assert run_command_line(["run", "--algo", "ddpo", "--reward", "jpeg_compressibility", *given]) == 0
    out = capsys.readouterr().out
    assert "cut off      tiny reads 1 of 2 evaluated prompts and 2 of 3 training prompts cut off at its longest" in out


def test_a_model_that_is_not_here_does_not_know_yet(here, capsys):
    assert run_command_line([*BASE, "--model", "sd15", "--prompts", "evaluated.txt", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "cut off      not known before the model is on this machine" in out
    assert re.search("not here +sd15; alignbench fetch gets them", out)


def test_prompts_of_pairs_are_counted_once_each(here):
    Path("pairs").mkdir()
    row = {"images": ["a.png", "b.png"], "label": 1.0}
    lines = [row | {"prompt": text} for text in (LONG, LONG, "a red circle")]
    (here / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (here / "pairs" / "a.png").write_bytes(b"")
    (here / "pairs" / "b.png").write_bytes(b"")
    Path("short.txt").write_text("a blue star\n")
    options = RunOptions(algo="diffusion_dpo", prompts="short.txt", pairs=Path("pairs"), reward="jpeg_compressibility")
    cell = resolve(options)
    used = cut_off.prompts_of(cell)
    assert cut_off.counted(cut_off.reader_before_loading(cell), used) == {"pair": 1}
    assert cut_off.sentence("tiny", {"pair": 1}, used) == "tiny reads 1 of 2 pair prompts cut off at its longest"


@pytest.mark.parametrize("guidance", ["0", "0.4", "1"])
def test_guidances_that_are_none_are_one_configuration_under_one_name(here, guidance):
    asked = {"algo": "base", "prompts": "evaluated.txt", "reward": "jpeg_compressibility", "scorers": ()}
    cell, plain = (resolve(RunOptions.parse(asked | {"guidance": value})) for value in (guidance, 1.0))
    assert cell.path == plain.path
    assert cell.configuration == plain.configuration
    assert cell.sampling.evaluations == 1


def test_a_negative_guidance_is_refused(here, capsys):
    assert run_command_line([*BASE, "--guidance", "-0.5"]) == 2
    assert "guidance must not be negative, got -0.5" in capsys.readouterr().err


def test_without_guidance_two_prompts_still_give_two_pictures(here):
    Path("two.txt").write_text("a red circle\na blue star\n")
    assert run_command_line([*BASE, "--prompts", "two.txt", "--guidance", "0"]) == 0
    first, second = (path.read_bytes() for path in sorted(here.glob("results/*/images/*.png")))
    assert first != second


def test_more_steps_than_there_is_room_for_are_refused_before_alignment(here, capsys):
    asked = ["1000" if word == "2" else word for word in BASE]
    assert run_command_line([*asked, "--prompts", "evaluated.txt"]) == 2
    err = capsys.readouterr().err
    assert "1000 steps with steps_offset 1 leave the 1000 training timesteps; expected at most 999 steps." in err
    assert "generate" not in err
