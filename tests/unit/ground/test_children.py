"""What surrounds a child process, and that none outlives who started it."""

from __future__ import annotations

import os
import sys

import pytest

from alignbench import children


@pytest.fixture
def surroundings(monkeypatch):
    """An environment without the variables that are set for children."""
    for name in (*children.THREADS, children.CARDS, children.PARENT):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_child_has_the_threads_and_the_cards_that_it_is_given(surroundings):
    found = children.environment(threads=3, cards=("2", "GPU-5f"))
    assert {found[name] for name in children.THREADS} == {"3"}
    assert found["CUDA_VISIBLE_DEVICES"] == "2,GPU-5f"
    assert children.environment(cards=())["CUDA_VISIBLE_DEVICES"] == ""


def test_without_either_both_stay_as_they_are(surroundings):
    surroundings.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = children.environment()
    assert found["CUDA_VISIBLE_DEVICES"] == "7"
    assert not set(children.THREADS) & set(found)


def test_threads_that_somebody_has_set_stay(surroundings):
    surroundings.setenv("OMP_NUM_THREADS", "5")
    found = children.environment(threads=1)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("5", "1")


def test_options_of_a_run_in_the_environment_are_not_for_the_cells_of_a_suite(surroundings):
    surroundings.setenv("ALIGNBENCH_RUN_SEED", "7")
    surroundings.setenv("ALIGNBENCH_DATA", "/data")
    found = children.environment()
    assert "ALIGNBENCH_RUN_SEED" not in found
    assert found["ALIGNBENCH_DATA"] == "/data"


def test_a_child_follows_the_process_that_started_it_and_its_own_children_do_not(surroundings):
    followed, left = [], []
    surroundings.setattr(
        children.ctypes, "CDLL", lambda _: type("Library", (), {"prctl": lambda *given: followed.append(given)})
    )
    surroundings.setattr(children.os, "_exit", left.append)
    children.follow_parent()
    assert (followed, left) == ([], [])  # nobody asked for it
    surroundings.setenv(children.PARENT, str(os.getppid()))
    children.follow_parent()
    assert (followed, left) == ([(1, 9)], [])
    assert children.PARENT not in os.environ


def test_a_child_whose_parent_has_ended_before_it_looked_ends_too(surroundings):
    left = []
    surroundings.setattr(children.os, "_exit", left.append)
    surroundings.setattr(children.ctypes, "CDLL", lambda _: type("Library", (), {"prctl": lambda *_: None}))
    surroundings.setenv(children.PARENT, str(os.getpid()))  # any but the real one
    children.follow_parent()
    assert left == [137]


def test_the_current_folder_comes_first_for_a_child_only_where_it_does_here(surroundings, tmp_path):
    surroundings.chdir(tmp_path)
    surroundings.setattr(sys, "path", ["/somewhere"])
    assert children.has_safe_path()
    surroundings.setattr(sys, "path", [str(tmp_path), "/somewhere"])
    assert not children.has_safe_path()
    assert children.command(["run"], safe_path=True)[1:] == ["-P", "-m", "alignbench", "run"]
    assert children.command(["run"], safe_path=False)[1:] == ["-m", "alignbench", "run"]


def test_cards_have_the_names_that_the_environment_gives_them(surroundings):
    import torch

    surroundings.setattr(torch.cuda, "device_count", lambda: 2)
    assert children.cards() == ("0", "1")
    surroundings.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert children.cards() == ("3", "GPU-5f")
    surroundings.setattr(torch.cuda, "device_count", lambda: 0)
    assert children.cards() == ()


def test_what_a_library_reads_is_set_unless_it_is(surroundings):
    surroundings.setenv("RAY_AUTH_MODE", "disabled")
    surroundings.delenv("RAY_OTHER", raising=False)
    children.set_defaults({"RAY_AUTH_MODE": "token", "RAY_OTHER": "1"})
    assert (os.environ["RAY_AUTH_MODE"], os.environ.pop("RAY_OTHER")) == ("disabled", "1")
