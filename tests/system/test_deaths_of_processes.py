"""Runs in several processes that are killed, hang or are asked to end: one line, nobody left, and the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignbench.record import result as results

ASKED = ["run", "--algo", "ddpo", "--model", "mixture", "--limit", "6", "--set", "samples_per_round=14"]
ASKED += ["--set", "updates_per_round=2", "--set", "batch=4", "--output"]


def asked(folder: Path, rounds: int) -> list[str]:
    return [sys.executable, "-m", "alignbench", *ASKED, str(folder), "--set", f"rounds={rounds}"]


def curve(folder: Path) -> int:
    """How many rounds are done."""
    found = list(folder.glob("*/metrics.jsonl"))
    return found[0].read_text().count('"round"') if found else 0


def workers(parent: int) -> list[int]:
    """The processes of a run that a launcher has started, in the order of their ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if int(fields[1]) == parent:
            rank = next((int(v.partition(b"=")[2]) for v in variables if v.startswith(b"RANK=")), None)
            if rank is not None:
                found.append((rank, int(entry.name)))
    return [pid for _, pid in sorted(found)]


def alive(pids: list[int]) -> list[int]:
    def runs(pid: int) -> bool:
        try:
            return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False

    return [pid for pid in pids if runs(pid)]


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def begun(folder: Path, processes: int, rounds: int, after: int) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that has done some rounds, and its processes."""
    run = subprocess.Popen(
        [*asked(folder, rounds), "--processes", str(processes)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    until(lambda: curve(folder) >= after or run.poll() is not None)
    assert run.poll() is None
    return run, workers(run.pid)


def lines(run: subprocess.Popen[str], seconds: float = 60) -> list[str]:
    """What it says of its end."""
    said = run.communicate(timeout=seconds)[1]
    assert "torch" not in said
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("alignbench:")]


@pytest.mark.slow
def test_a_killed_process_ends_all_in_one_line_and_another_number_of_them_goes_on(tmp_path):
    rounds = 40
    subprocess.run(asked(tmp_path / "whole", rounds), check=True, capture_output=True)
    killed = tmp_path / "killed"
    for processes, rank, after in ((2, 1, 6), (3, 0, 14), (3, 2, 22)):
        run, pids = begun(killed, processes, rounds, after)
        os.kill(pids[rank], signal.SIGKILL)
        (line,) = lines(run)
        assert line == (
            f"alignbench: process {rank} of {processes} was ended by SIGKILL; the same command continues from the last "
            "round."
        )
        assert run.returncode == 137
        assert not alive(pids)
    subprocess.run([*asked(killed, rounds), "--processes", "2"], check=True, capture_output=True)
    one, other = (results.read(next((tmp_path / name).glob("*.json"))) for name in ("whole", "killed"))
    assert other.environment["processes"] == 2
    assert other.attempts == 4
    assert other.cost.alignment == one.cost.alignment
    for row, same in zip(other.rows, one.rows, strict=True):
        assert row.scores == pytest.approx(same.scores, abs=1e-4)


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_at_a_time_limit(tmp_path):
    run, pids = begun(tmp_path, 2, 100_000, 3)
    run.kill()
    run.wait()
    until(lambda: not alive(pids), 10)
    run, pids = begun(tmp_path, 2, 100_000, curve(tmp_path) + 3)
    run.terminate()
    assert lines(run) == ["alignbench: ended by SIGTERM; the same command continues from the last round."]
    assert run.returncode == 143
    until(lambda: not alive(pids), 10)


@pytest.mark.slow
def test_a_process_that_hangs_is_named_within_a_minute(tmp_path):
    run, pids = begun(tmp_path, 2, 100_000, 3)
    os.kill(pids[1], signal.SIGSTOP)
    assert "alignbench: process 1 of 2 does not answer any more; the same command continues." in lines(run, 100)
    assert run.returncode == 137
    until(lambda: not alive(pids), 40)
