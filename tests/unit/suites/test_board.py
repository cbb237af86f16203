"""What is said of cells while they run: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from alignbench.asking.options import RunOptions
from alignbench.asking.suite import Resources
from alignbench.record.resumable import Resumable
from alignbench.suites import board
from alignbench.suites.board import Board, counts, table, what
from alignbench.suites.plan import Job, Row, State


@pytest.fixture
def row(tmp_path: Path):
    """A function that makes the row of a cell in some state."""

    def make(number: int, state: State, reason: str | None = None, text: str | None = None) -> Row:
        options, name = RunOptions(algo="base"), text or f"cell-{number}"
        job = Job(
            options=options,
            resources=Resources(),
            text=name,
            path=tmp_path / f"cell{number}.json",
            work=Resumable(tmp_path / f"cell{number}", {}, "cell.json", elsewhere="go", replace="force"),
            final=lambda: None,
            can_use_gpu=False,
            is_timed=False,
        )
        return Row(number, name, options, job, state, reason)

    return make


def drawn(rows: list[Row], height: int, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(rows, height))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_states_are_counted_in_the_order_of_a_cells_life(row):
    rows = [row(1, "done"), row(2, "failed", "no"), row(3, "waiting"), row(4, "done"), row(5, "running")]
    assert counts(rows) == "5 cells: 1 waiting, 1 running, 2 done, 1 failed"


def test_a_row_says_where_its_result_is_or_why_there_is_none(row, tmp_path):
    done, there = row(1, "done"), row(2, "done")
    done.seconds, there.was_there = 12.4, True
    assert what(done) == f"done in 12 s  {tmp_path}/cell1.json"
    assert what(there) == f"already complete  {tmp_path}/cell2.json"
    assert what(row(3, "failed", "the disk is full")) == "failed: the disk is full"
    assert what(row(4, "unsupported", "no gradient")) == f"unsupported (no gradient)  {tmp_path}/cell4.json"
    again = row(5, "running")
    again.tries = 2
    assert what(again) == "running, try 2"


def test_a_short_terminal_shows_what_runs_and_what_failed_first(row):
    states: list[State] = ["done"] * 30 + ["waiting"] * 30
    states[7], states[40] = "failed", "running"
    text = drawn([row(i, state) for i, state in enumerate(states, start=1)], height=10)
    assert "cell-8 " in text
    assert "cell-41 " in text
    assert len(re.findall(r"cell-\d+ ", text)) == 4
    assert "60 cells: 29 waiting, 1 running, 29 done, 1 failed" in text


def test_a_running_cell_shows_the_last_line_of_its_log(row):
    running = row(1, "running")
    running.began = time.monotonic() - 5
    running.job.log.write_text("== a try\nalign 3/40  about 20 s left\n\n")
    assert "5 s  align 3/40  about 20 s left" in drawn([running], 40, width=120)


def test_what_cells_and_logs_say_draws_nothing(row):
    running = row(1, "running", text="cell \x1b[2J of [red]nobody[/red]")
    running.job.log.write_text("\x1b[31mevil\u202e\n")
    text = drawn([running], 40)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"cell \x1b[2J of [red]nobody[/red]" in text
    assert r"\x1b[31mevil\u202e" in text


def test_without_a_terminal_each_new_state_is_a_line_and_what_runs_is_one_now_and_then(row, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    rows = [row(1, "running"), row(2, "failed", "no")]
    rows[0].job.log.write_text("align 3/40\n")
    with Board(rows) as shown:
        shown.told(rows[1])
        shown.looked()
        monkeypatch.setattr(board, "PLAIN_SECONDS", 0.0)
        shown.looked()
    assert capsys.readouterr().err.splitlines() == [
        "[2/2] cell-2: failed: no",
        "2 cells: 1 running, 1 failed; cell-1 (align 3/40)",
    ]


def test_a_program_that_reads_json_is_told_nothing_besides(row, capsys):
    with Board([row(1, "done")], quiet=True) as shown:
        shown.told(row(1, "done"))
        shown.say("a line")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_table_that_stays_when_all_is_done(row, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    one = row(1, "running")
    with Board([one]) as shown:
        one.state, one.seconds = "done", 3.0
        shown.told(one)
        shown.looked()
    text = stream.getvalue()
    assert text.index("1 cell: 1 running") < text.index("1 cell: 1 done")
    assert text.index("3 s") < text.index("1 cell: 1 done")
