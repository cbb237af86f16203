"""Large results, whose rows lie in a file of their own, in every command that reads or writes results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import alignbench
from alignbench.cli.app import run_command_line
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.record import apart
from alignbench.record import result as results

TINY = ("--model", "tiny", "--limit", 3, "--steps", 2, "--images-per-prompt", 2, "--scorers", "shapes_truth")


def command(*words) -> int:
    return run_command_line([str(word) for word in words])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two finished cells, each of which is large."""
    monkeypatch.setattr(apart, "LARGEST_INLINE", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "results"
    for more in (("--algo", "base"), ("--algo", "best_of_n", "--set", "n=2", "--reward", "shapes_style")):
        assert command("run", *more, *TINY, "--output", place) == 0
    return place


def test_every_command_works_with_rows_apart(folder, tmp_path, capsys, monkeypatch):
    base, best = sorted(folder.glob("*.json"))
    assert len(list(folder.glob("*.rows-*.jsonl.gz"))) == 2
    assert json.loads(base.read_text())["schema"] == 3
    before = results.read(base)

    assert command("run", "--algo", "base", *TINY, "--output", folder) == 0
    assert results.read(base) == before  # it was there already

    assert command("score", base, best, "--scorers", "jpeg_compressibility", "--save") == 0
    assert list(results.read(best).rows[0].scores) == ["shapes_style", "shapes_truth", "jpeg_compressibility"]
    assert len(list(folder.glob("*.rows-*.jsonl.gz"))) == 2

    assert command("evaluate", best, "--limit", 4, "--output", folder / "more") == 0
    assert len(results.read(next((folder / "more").glob("*.json"))).rows) == 8
    capsys.readouterr()

    for words in (("compare", folder), ("plan", folder), ("show", best), ("ls", folder)):
        assert command(*words) == 0, words
        assert "best_of_n" in capsys.readouterr().out
    assert command("sheet", folder, "--prompts", 2, "--output", tmp_path / "sheet.png") == 0
    assert command("report", folder, "--output", tmp_path / "report.html") == 0
    assert "best_of_n" in (tmp_path / "report.html").read_text()
    assert len(alignbench.load(folder).rows) == 12
    session = begin((base, best), Asked(tmp_path / "votes.jsonl"))
    key = session.enter("anna", "")["key"]
    assert session.next("anna", key, ())
    session.close()
    capsys.readouterr()

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(best, alone)
    assert command("compare", alone) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "which is not beside it; bring that file there too" in said
