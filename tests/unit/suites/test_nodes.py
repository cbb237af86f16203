"""What a node must share with the machine that a suite was typed on, and what is read of a cell's log."""

from __future__ import annotations

from pathlib import Path

import pytest

import alignbench
from alignbench.locks import claim
from alignbench.suites import node
from alignbench.suites.child import Ended, Order, last_line, run_child, why
from alignbench.suites.node import differs, lacks, made_of


def test_a_machine_does_not_differ_from_itself():
    assert differs(made_of(), made_of()) is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("torch", "2.13.0", "has torch 2.13.0, and this machine"),
        ("Python", "3.12.1", "has Python 3.12.1, and this machine"),
        ("alignbench", "0.1.0 of code 123456789abc", "has alignbench 0.1.0 of code 123456789abc, and this machine"),
    ],
)
def test_another_version_or_checkout_is_named_with_both_values(name, value, expected):
    assert differs(made_of() | {name: value}, made_of()).startswith(expected)
    assert differs({}, made_of()).startswith("has Python none, and this machine")


def test_one_changed_line_of_code_is_another_checkout(tmp_path, monkeypatch):
    before = made_of()["alignbench"]
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(alignbench, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(node.plugins, "folder_of", lambda group: tmp_path / group)
    (tmp_path / "rewards").mkdir()
    one = made_of()["alignbench"]
    (tmp_path / "rewards" / "new.py").write_text("x = 1\n")
    two = made_of()["alignbench"]
    (tmp_path / "rewards" / "new.py").write_text("x = 2\n")
    assert len({before, one, two, made_of()["alignbench"]}) == 4


def test_a_node_without_the_shared_folder_says_so(tmp_path):
    token = tmp_path / "results" / ".suite-1"
    assert lacks(tmp_path, {}) is None
    assert lacks(tmp_path / "gone", {}) == (
        f"has no folder {tmp_path}/gone, in which the suite was typed; share it between the nodes"
    )
    expected = f"does not share {tmp_path}/results; choose an --output that all nodes see"
    assert lacks(tmp_path, {token: "secret"}) == expected
    token.parent.mkdir()
    token.write_text("another")  # a folder of the same name, which is not the same folder
    assert lacks(tmp_path, {token: "secret"}) == expected
    token.write_text("secret")
    assert lacks(tmp_path, {token: "secret"}) is None


def test_a_cell_whose_log_another_suite_holds_is_not_started(tmp_path: Path):
    order = Order("base", {"algo": "base"}, tmp_path, tmp_path / "cell.log", tmp_path / "cell", True, 1)
    with open(order.log, "ab") as other:
        assert claim(other)
        assert run_child(order) == Ended(None, held_by="another suite")
        with open(order.log, "ab") as third:
            assert not claim(third)
    assert order.log.read_bytes() == b""
    with open(order.log, "ab") as freed:
        assert claim(freed)


def test_what_a_log_says_last_and_why_it_ended(tmp_path: Path):
    log = tmp_path / "cell.log"
    assert (last_line(log), why(log)) == ("", None)
    log.write_text("align 1/2\n== 2026-01-01T00:00:00+00:00 on host, try 2\n")
    assert last_line(log) == ""  # of the try before
    log.write_text("align 1/2\nalignbench: first.\nalignbench: the disk is full.\n\n  \n")
    assert last_line(log) == "alignbench: the disk is full."
    assert why(log) == "the disk is full."
    log.write_bytes(b"x" * 100_000 + b"\nalign 2/2 \xff\x1b[0m\n")
    assert last_line(log) == "align 2/2 \ufffd\\x1b[0m"


@pytest.mark.parametrize(
    ("ended", "is_death"),
    [
        (Ended(0), False),
        (Ended(1), False),
        (Ended(2), False),
        (Ended(-9), True),
        (Ended(143), True),
        (Ended(None, "lost"), True),
        (Ended(None, held_by="another"), False),
    ],
)
def test_what_ends_by_itself_is_no_death(ended, is_death):
    assert ended.is_death is is_death
