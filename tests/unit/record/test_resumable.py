"""The one protocol of folders that work is resumed in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench.errors import InputError
from alignbench.record.resumable import Resumable, differences

CONFIGURATION = {"algorithm": "ddpo", "fields": {"clip": 1e-4, "rounds": 3}, "seed": 0}


def work(folder: Path, own=None, **changes) -> Resumable:
    return Resumable(
        folder, CONFIGURATION | changes, "cell.json", "choose another --output", "use --force to replace it", own
    )


def state(folder: Path) -> dict:
    return json.loads((folder / "cell.json").read_text())


def test_attempts_are_counted_until_the_work_is_finished(tmp_path):
    folder = tmp_path / "a" / "b"
    for expected in (1, 2, 3):
        with work(folder).held() as attempt:
            (folder / "done.txt").write_text("one")
        assert attempt == expected
        assert state(folder) == {"configuration": CONFIGURATION, "attempts": expected, "running": True}
    work(folder).finish(attempt)
    assert state(folder)["running"] is False
    with work(folder).held() as attempt:  # its result is gone: begun anew
        assert attempt == 1
        assert not (folder / "done.txt").exists()


def test_another_configuration_is_refused_by_name_and_replaced_by_force(tmp_path):
    with work(tmp_path).held():
        (tmp_path / "done.txt").write_text("one")
    other = work(tmp_path, fields={"clip": 1e-3, "rounds": 3}, seed=1)
    with (
        pytest.raises(InputError, match=r"differs in fields.clip, seed\. Choose another --output, or use --force to"),
        other.held(),
    ):
        pass
    assert (tmp_path / "done.txt").exists()
    assert state(tmp_path)["configuration"] == CONFIGURATION
    with other.held(force=True) as attempt:
        assert attempt == 1
        assert not (tmp_path / "done.txt").exists()


def test_force_goes_on_with_what_it_began(tmp_path):
    """A job that is put back into a queue types the same command again."""
    for expected in (1, 2):
        with work(tmp_path).held(force=True) as attempt:
            assert attempt == expected


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_was(tmp_path, force):
    (tmp_path / "thesis.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"holds other files \(thesis\.txt\); choose another --output, or delete it"),
        work(tmp_path).held(force),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_work_with_names_of_its_own_clears_those_alone(tmp_path):
    with work(tmp_path, own=("weights.pt", "images")).held():
        (tmp_path / "weights.pt").write_text("")
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "0.png").write_text("")
        (tmp_path / "thesis.txt").write_text("mine")
    with work(tmp_path, own=("weights.pt", "images"), seed=9).held(force=True):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "cell.json", "thesis.txt"]


def test_a_folder_goes_once_it_is_empty(tmp_path):
    folder = tmp_path / "r.training"
    own = work(folder, own=())
    with own.held():
        pass
    own.clear()
    own.remove()
    assert not folder.exists()
    with own.held():
        (folder / "thesis.txt").write_text("mine")
    own.clear()
    own.remove()
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"configuration": 3, "attempts": 1, "running": true}', '{"seed": 0}']
)
def test_a_damaged_state_is_refused_in_a_sentence_and_replaced_by_force(tmp_path, content):
    (tmp_path / "cell.json").write_text(content)
    with pytest.raises(InputError, match=r"cell.json is damaged, or of an older alignbench \("), work(tmp_path).held():
        pass
    assert (tmp_path / "cell.json").read_text() == content
    with work(tmp_path).held(force=True) as attempt:
        assert attempt == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    with work(tmp_path).held():
        (tmp_path / ".checkpoint.pt.123.tmp").write_text("half")
    with work(tmp_path).held():
        assert not list(tmp_path.glob(".*.tmp"))


def test_differences_are_named_down_to_the_entry():
    one = {"a": 1, "b": {"x": 1, "y": {"z": 2}}, "c": None}
    other = {"a": 1, "b": {"x": 2, "y": {"z": 3}}, "d": 1}
    assert list(differences(one, other)) == ["b.x", "b.y.z", "d"]
    assert list(differences(one, one)) == []
    assert list(differences({"pairs": None}, {"pairs": {"count": 2}})) == ["pairs"]


def test_work_whose_process_died_before_it_said_so_is_settled(tmp_path):
    with work(tmp_path).held():
        (tmp_path / ".cell.json.999999.tmp").write_text("half")
        work(tmp_path).settle()  # somebody works in it
        assert state(tmp_path)["running"] is True
    work(tmp_path, seed=1).settle()  # it is of other work
    assert state(tmp_path)["running"] is True
    work(tmp_path).settle()
    assert state(tmp_path) == {"configuration": CONFIGURATION, "attempts": 1, "running": False}
    assert not list(tmp_path.glob(".*.tmp"))
    work(tmp_path / "nothing").settle()
    assert not (tmp_path / "nothing").exists()
