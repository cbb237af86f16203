"""What is broken stays small: a cell goes on behind what a kill or a bad disk left, and ends as if nothing was."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import Cell, resolve
from alignbench.caches import Caches
from alignbench.errors import CannotContinue, ResultFileError
from alignbench.experiment import problem as problems
from alignbench.experiment import run as running
from alignbench.experiment.run import Outcome, run_cell
from alignbench.locks import exclusive
from alignbench.record.result import Result, read


@pytest.fixture
def cell(toy_cell, tmp_path):
    """A function that resolves one short cell that trains, in a folder of its own."""
    asked = toy_cell("ddpo", steps=3, limit=4) | {"set": {"rounds": 3, "samples_per_round": 4, "batch": 4}}
    return lambda name="results": resolve(RunOptions.parse(asked | {"output": tmp_path / name}))


def interrupted(cell: Cell, monkeypatch, after: int = 2) -> None:
    """Leave a cell as an interrupt in a later round does."""
    real = problems.CellProblem._save

    def save(self: problems.CellProblem, done: int, state: object) -> None:
        real(self, done, state)
        if done == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(problems.CellProblem, "_save", save)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, quiet=True)


def known(result: Result) -> tuple[object, ...]:
    """What does not depend on when and how often a cell was begun."""
    curve = [{name: value for name, value in line.items() if name != "seconds"} for line in result.curve]
    return result.status, result.rows, curve, result.cost and result.cost.alignment


@pytest.fixture
def expected(cell) -> tuple[object, ...]:
    return known(run_cell(cell("untouched"), quiet=True).result)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    import torch

    torch.save({"done": 1, "state": {"other": {}}}, path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_a_pickle(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"done": print}))


@pytest.mark.parametrize("damage", [truncated, foreign, emptied, of_a_pickle])
def test_a_checkpoint_that_cannot_be_continued_is_cleared_by_force_and_only_then(damage, cell, monkeypatch, expected):
    broken = cell()
    interrupted(broken, monkeypatch)
    damage(broken.folder / "checkpoint.pt")
    for _ in range(2):  # the message is the same each time, and nothing is lost by asking
        with pytest.raises(
            CannotContinue, match=r"checkpoint\.pt cannot be continued \(.*\); use --force to begin anew"
        ):
            run_cell(broken, quiet=True)
    outcome = run_cell(broken, force=True, quiet=True)
    assert outcome.resumed_at == 0
    assert known(outcome.result) == expected


def test_force_goes_on_where_that_can_be(cell, monkeypatch, expected):
    begun = cell()
    interrupted(begun, monkeypatch)
    outcome = run_cell(begun, force=True, quiet=True)
    assert outcome.resumed_at == 2
    assert known(outcome.result) == expected


@pytest.mark.parametrize("content", ["{", '{"round": 1}'])
def test_a_record_of_going_back_that_cannot_be_read_is_cleared_by_force(content, cell, monkeypatch, expected):
    broken = cell()
    interrupted(broken, monkeypatch)
    (broken.folder / "rollback.json").write_text(content)
    with pytest.raises(CannotContinue, match=r"rollback\.json cannot be read"):
        run_cell(broken, quiet=True)
    assert known(run_cell(broken, force=True, quiet=True).result) == expected


def run_again(cell: Cell, capfd) -> tuple[Outcome, str]:
    """A finished cell as it would be had its process ended before it wrote the result."""
    state = cell.folder / "cell.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"running": True}))
    cell.path.unlink()
    capfd.readouterr()
    return run_cell(cell), capfd.readouterr().err


@pytest.mark.parametrize("log", ["generated.jsonl", "scored.jsonl", "metrics.jsonl"])
def test_lines_of_a_log_that_cannot_be_read_are_made_again(log, cell, capfd, expected):
    done = cell()
    run_cell(done, quiet=True)
    path = done.folder / log
    first, *others = path.read_bytes().split(b"\n")
    bad = [b"{", b"\x00\x00\x00", b"\xff", b"[1]", b'{"slots": 3}', b"null", b"[" * 9999]
    path.write_bytes(b"\n".join([first, *bad, *others] if log == "metrics.jsonl" else [*bad, b""]))
    outcome, said = run_again(done, capfd)
    assert known(outcome.result) == expected
    assert f"{path}: dropped 7 of " in said


@pytest.mark.parametrize("damage", [truncated, Path.unlink])
def test_an_image_that_cannot_be_read_is_made_again(damage, cell, capfd, expected):
    done = cell()
    run_cell(done, quiet=True)
    damage(done.folder / "images" / "00003-0.npy")
    (done.folder / "scored.jsonl").unlink()
    outcome, _ = run_again(done, capfd)
    assert known(outcome.result) == expected


@pytest.mark.parametrize("damage", [truncated])
def test_a_result_that_cannot_be_read_is_replaced_by_force_as_the_message_says(damage, cell, expected):
    done = cell()
    run_cell(done, quiet=True)
    damage(done.path)
    with pytest.raises(ResultFileError, match="--force replaces it"):
        run_cell(done, quiet=True)
    assert known(run_cell(done, force=True, quiet=True).result) == expected
    assert known(read(done.path)) == expected


def test_of_two_that_run_one_cell_the_second_waits_and_finds_it_done(cell, capfd, monkeypatch):
    done = cell("first")
    first = run_cell(done, quiet=True).result
    same = cell("second")
    with contextlib.ExitStack() as other:
        other.enter_context(exclusive(same.folder))

        def finish() -> None:
            shutil.copytree(done.folder, same.folder, dirs_exist_ok=True, ignore=lambda *_: [".lock"])
            shutil.copy(done.path, same.path)
            other.close()

        threading.Timer(0.5, finish).start()
        monkeypatch.setattr(running, "_prepare", None)  # it begins nothing
        outcome = run_cell(same)
    assert outcome.was_complete
    assert outcome.result.rows == first.rows
    assert capfd.readouterr().err.count("waiting for it") == 1


def test_latents_that_a_death_left_in_a_finished_cell_go_when_its_command_is_typed_again(tmp_path, monkeypatch):
    asked = {"algo": "base", "model": "tiny", "limit": 2, "images_per_prompt": 2, "steps": 2, "output": tmp_path}
    cell = resolve(RunOptions.parse(asked | {"scorers": ("jpeg_compressibility",), "reward": "none"}))

    def died(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "remove_latents", died)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, quiet=True)
    assert read(cell.path).status == "complete"
    assert len(list((cell.folder / "latents").iterdir())) == 4
    assert run_cell(cell, quiet=True).was_complete
    assert not (cell.folder / "latents").exists()
    assert len(list((cell.folder / "images").glob("*.png"))) == 4


@pytest.mark.parametrize("place", ["/proc/none", "file", "file/below"])
def test_without_a_cache_there_is_one_line_and_another_place(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    said: list[str] = []
    found = Caches.usable(said.append, instead=tmp_path / "own")
    assert found.folder == tmp_path / "own"
    assert len(said) == 1
    assert said[0].startswith(f"no cache in {tmp_path / place}/alignbench (")
    assert Caches.usable(said.append).folder.is_dir()  # of this process, for commands without a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    assert Caches.usable(said.append).folder == tmp_path / "kept" / "alignbench"
    assert len(said) == 2


def test_a_home_that_nobody_knows_is_no_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/none")
    said: list[str] = []
    assert Caches.usable(said.append, instead=tmp_path).folder == tmp_path
    assert "/proc/none/.cache/alignbench" in said[0]
