"""What a folder of cells holds."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from alignbench import locks
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.locks import exclusive
from alignbench.record.listing import cells_of, folders_below


@pytest.fixture
def folder(tmp_path, make_result):
    """A complete cell with a picture, a failed one, one begun, one that runs, a damaged file."""
    make_result("done", [1.0, 2.0])
    (tmp_path / "done" / "images").mkdir(parents=True)
    (tmp_path / "done" / "images" / "00000-0.png").write_bytes(b"x" * 1000)
    make_result("failed", [], status="failed", reason="out of memory", rows=[], prompts=[])
    for name in ("begun", "runs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(json.dumps({"configuration": {}, "attempts": 2, "running": True}))
    (tmp_path / "torn.json").write_text('{"schema": 1, "st')
    (tmp_path / "somebodys").mkdir()
    return tmp_path


def test_results_in_folders_below_are_pointed_at(tmp_path, make_result, capsys):
    """Folders of cells and other JSON are not such folders."""
    (tmp_path / "quick").mkdir()
    (make_result("done", [1.0])).rename(tmp_path / "quick" / "done.json")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "cell.json").write_text(json.dumps({"configuration": {}, "attempts": 1, "running": False}))
    assert folders_below([tmp_path]) == [tmp_path / "quick"]
    assert run_command_line(["ls", str(tmp_path)]) == 0
    assert f"more in {tmp_path / 'quick'}: alignbench ls" in capsys.readouterr().out
    assert run_command_line(["compare", str(tmp_path)]) == 2
    assert f"There are some in {tmp_path / 'quick'}." in capsys.readouterr().err


def test_a_cell_that_ended_and_lost_its_result_and_one_with_a_damaged_state_do_not_go_on(tmp_path):
    for name, text in (("ended", json.dumps({"attempts": 1, "running": False})), ("torn", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(text)
    found = {cell.name: (cell.state, cell.can_continue) for cell in cells_of(tmp_path)}
    assert found == {"ended": ("gone", False), "torn": ("unreadable", False)}


def test_a_run_that_starts_while_somebody_looks_waits_for_an_instant_and_has_its_folder(folder, monkeypatch):
    looking = (folder / "begun" / ".lock").open("w")
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert {cell.name: cell.state for cell in cells_of(folder)}["begun"] == "started"  # two may look at once
    waits = []
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: waits.append(seconds) or looking.close())
    with exclusive(folder / "begun"):
        assert len(waits) == 1


def test_a_file_or_a_folder_in_an_odd_place_is_no_cell(folder):
    (folder / "odd").mkdir()
    (folder / "odd" / "folder.json").mkdir()
    assert folders_below([folder]) == []
    (folder / "plain").write_text("a file where a cell's folder would be")
    (folder / "done.json").rename(folder / "plain.json")
    assert {cell.name: cell.state for cell in cells_of(folder)}["plain"] == "complete"


def test_every_cell_has_its_state_and_says_whether_it_can_go_on(folder):
    with exclusive(folder / "runs"):
        found = {cell.name: cell for cell in cells_of(folder)}
    states = {name: (cell.state, cell.can_continue) for name, cell in found.items()}
    assert states == {
        "begun": ("started", True),
        "done": ("complete", False),
        "failed": ("failed", True),
        "runs": ("running", False),
        "torn": ("unreadable", False),
    }
    assert found["done"].bytes == 1000 + (folder / "done.json").stat().st_size
    assert found["done"].detail.startswith("2 images")
    assert found["failed"].detail == "out of memory"
    assert found["begun"].detail == "attempt 2, no result yet"
    assert found["runs"].detail.startswith(f"in use by process {os.getpid()} on ")
    assert "not valid JSON" in found["torn"].detail


def test_the_command_lists_them_and_says_how_many(folder, capsys):
    assert run_command_line(["ls", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"5 cells, 0.0 MB in {folder}"
    assert "type its command again to continue" in out
    assert run_command_line(["ls", str(folder), "--json"]) == 0
    assert [cell["name"] for cell in json.loads(capsys.readouterr().out)["cells"]] == [
        "begun", "done", "failed", "runs", "torn",
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_wrong_input(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        cells_of(tmp_path / "nothing")
