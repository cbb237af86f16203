"""Large results, whose rows lie in a file of their own, in every command that reads or writes results."""

from __future__ import annotations

import json
import shutil

import pytest
from voted import cells

import alignbench
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.experiment.run import run_cell
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.record import apart
from alignbench.record import result as results

NEW = "jpeg_compressibility"


@pytest.fixture(autouse=True)
def _large(tmp_path, monkeypatch):
    """Every result is."""
    monkeypatch.setattr(apart, "LARGEST_INLINE", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(*words) -> int:
    return run_command_line([str(word) for word in words])


def test_a_cell_is_run_known_again_and_evaluated_with_its_rows_apart(toy_cell, tmp_path, capsys):
    options = toy_cell("base")
    done = run_cell(resolve(RunOptions.parse(options)), quiet=True)
    assert json.loads(done.path.read_text())["schema"] == 3
    assert results.read(done.path) == done.result
    assert run_cell(resolve(RunOptions.parse(options)), quiet=True).was_complete
    assert run_cell(resolve(RunOptions.parse(options)), force=True, quiet=True).result.rows == done.result.rows
    assert len(apart.files_of(done.path)) == 1
    assert command("evaluate", done.path, "--limit", 4, "--output", tmp_path / "more") == 0
    (more,) = (tmp_path / "more").glob("*.json")
    assert [row.scores for row in results.read(more).rows] == [row.scores for row in done.result.rows[:4]]


def test_what_reads_results_reads_those_with_rows_apart(tmp_path, capsys):
    folder = tmp_path / "results"
    base, refl = cells(folder, size=32)
    assert command("score", base, refl, "--scorers", NEW, "--save") == 0
    assert set(results.read(refl).rows[0].scores) == {"r", NEW}
    assert len(list(folder.glob("*.rows-*.jsonl.gz"))) == 2
    for words in (("compare", folder), ("plan", folder), ("show", refl), ("ls", folder)):
        assert command(*words) == 0, words
        assert "refl" in capsys.readouterr().out
    assert command("sheet", folder, "--prompts", 2, "--output", tmp_path / "sheet.png") == 0
    assert command("report", folder, "--output", tmp_path / "report.html") == 0
    assert "refl" in (tmp_path / "report.html").read_text()
    assert len(alignbench.load(folder).rows) == 24
    session = begin((base, refl), Asked(tmp_path / "votes.jsonl"))
    assert session.next("anna", "", ())["pair"]
    session.close()


def test_a_result_without_its_rows_is_one_line(tmp_path, capsys):
    (base,) = cells(tmp_path / "results", ["base"])
    (tmp_path / "alone").mkdir()
    shutil.copy(base, tmp_path / "alone")
    for words in (("compare", tmp_path / "alone"), ("show", tmp_path / "alone" / "base.json")):
        assert command(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "which is not beside it; bring that file there too" in said
