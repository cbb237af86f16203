"""Runs in several processes that are killed, hang or are asked to end: one line, nobody left, and the same end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from several import impatient
from warm import Begun, Done, begin, begin_command, execute

from alignbench import processes as of_a_run
from alignbench.record import result as results

ASKED = ["run", "--algo", "ddpo", "--model", "mixture", "--steps", "8", "--limit", "6", "--set", "samples_per_round=14"]
ASKED += ["--set", "updates_per_round=2", "--set", "batch=4", "--output"]


def asked(folder: Path, rounds: int) -> list[str]:
    return [*ASKED, str(folder), "--set", f"rounds={rounds}"]


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


def begun(folder: Path, processes: int, rounds: int, after: int) -> tuple[Begun, list[int]]:
    """A run that has done some rounds, and its processes."""
    run = begin_command([*asked(folder, rounds), "--processes", str(processes)])
    until(lambda: curve(folder) >= after or not run.process.is_alive())
    assert run.process.is_alive()
    return run, workers(run.process.pid)


def lines(done: Done) -> list[str]:
    """What it says of its end."""
    assert "torch" not in done.stderr
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("alignbench:")]


@pytest.mark.slow
def test_a_killed_process_ends_all_in_one_line_and_another_number_of_them_goes_on(tmp_path):
    rounds = 40
    assert execute(asked(tmp_path / "whole", rounds)).returncode == 0
    killed = tmp_path / "killed"
    for processes, rank, after in ((2, 1, 6), (3, 0, 14)):
        run, pids = begun(killed, processes, rounds, after)
        os.kill(pids[rank], signal.SIGKILL)
        done = run.ended(60)
        (line,) = lines(done)
        assert line == (
            f"alignbench: process {rank} of {processes} was ended by SIGKILL; the same command continues from the last "
            "checkpoint."
        )
        assert done.returncode == 137
        assert not alive(pids)
    assert execute([*asked(killed, rounds), "--processes", "2"]).returncode == 0
    one, other = (results.read(next((tmp_path / name).glob("*.json"))) for name in ("whole", "killed"))
    assert other.environment["processes"] == 2
    assert other.attempts == 3
    assert other.cost.alignment == one.cost.alignment
    for row, same in zip(other.rows, one.rows, strict=True):
        assert row.scores == pytest.approx(same.scores, abs=1e-4)


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_at_a_time_limit(tmp_path):
    run, pids = begun(tmp_path, 2, 100_000, 3)
    run.process.kill()
    run.ended(60)
    until(lambda: not alive(pids), 10)
    run, pids = begun(tmp_path, 2, 100_000, curve(tmp_path) + 3)
    run.process.terminate()
    done = run.ended(60)
    assert lines(done) == ["alignbench: ended by SIGTERM; the same command continues from the last checkpoint."]
    assert done.returncode == 143
    until(lambda: not alive(pids), 10)


@pytest.mark.slow
def test_an_interrupt_ends_all_in_one_line_and_a_second_one_at_once(tmp_path):
    run, pids = begun(tmp_path, 2, 100_000, 3)
    os.kill(run.process.pid, signal.SIGINT)
    done = run.ended(60)
    assert lines(done) == ["alignbench: ended by SIGINT; the same command continues from the last checkpoint."]
    assert done.returncode == 130
    until(lambda: not alive(pids), 10)
    run, pids = begun(tmp_path, 2, 100_000, curve(tmp_path) + 3)
    os.kill(pids[1], signal.SIGSTOP)  # which no signal but SIGKILL ends
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(2)
    assert run.process.is_alive()
    os.kill(run.process.pid, signal.SIGINT)
    run.process.join(5)
    assert not run.process.is_alive()
    done = run.ended(60)
    assert lines(done) == ["alignbench: ended at once; the same command continues from the last checkpoint."]
    assert done.returncode == 130
    until(lambda: not alive(pids), 10)


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_ended(tmp_path):
    run = begin(impatient, [*asked(tmp_path, 100_000), "--processes", "2"])
    until(lambda: curve(tmp_path) >= 3 or not run.process.is_alive())
    assert run.process.is_alive(), run.err.read_text(encoding="utf-8")
    pids = workers(run.process.pid)
    os.kill(pids[1], signal.SIGSTOP)
    done = run.ended(60)
    assert "alignbench: process 1 of 2 does not answer any more; the same command continues." in lines(done)
    assert done.returncode == of_a_run.HANGS
    until(lambda: not alive(pids), 10)


def test_a_process_that_hangs_would_be_named_within_a_minute():
    """Each watches every few seconds, and hears a sign of life no sooner than the other gives it."""
    assert of_a_run.SILENCE + 2 * of_a_run.BEAT < 60
