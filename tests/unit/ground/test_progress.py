"""Progress lines where there is no terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.cells import cell_len

from alignbench import progress
from alignbench.meter import Meter
from alignbench.progress import Progress


def test_what_was_done_before_says_nothing_about_how_long_the_rest_takes(monkeypatch, capsys):
    """90 of 100 were there; of the rest one took 2 s, so the other nine take 18."""
    now = iter([0.0, 2.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    shown = Progress()
    shown.stage("generate", 100)
    shown.skip(90)
    shown.advance(1, reward=1.5)
    assert capsys.readouterr().err == "generate 91/100  about 18 s left  reward 1.5\n"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_something_moves_within_a_step_and_what_the_last_one_used_says_how_far_it_is(clock, capsys):
    meter, shown = Meter(), Progress()
    shown.follow(meter)
    shown.stage("align", 4)
    for _ in range(3):
        clock.now += 8
        meter.forward("denoiser", 1000)
    assert capsys.readouterr().err == "align 0/4  2,000 evaluations\n", "every ten seconds"
    meter.forward("denoiser", 1000)
    clock.now += 8
    shown.advance(reward=0.5)
    clock.now += 16
    meter.forward("denoiser", 2000)
    assert capsys.readouterr().err.splitlines() == [
        "align 1/4  about 96 s left  reward 0.5",
        "align 1/4  about 80 s left  2,000 evaluations  reward 0.5",
    ]
    shown.advance(3)
    meter.forward("denoiser", 1)
    assert capsys.readouterr().err == "align 4/4\n"


def test_steps_that_are_done_several_at_a_time_are_under_way_together(clock, capsys):
    meter, shown = Meter(), Progress()
    shown.follow(meter)
    shown.stage("generate", 40)
    meter.forward("denoiser", 640)
    clock.now += 16
    shown.advance(16)
    meter.forward("denoiser", 320)
    clock.now += 20
    meter.forward("denoiser", 160)
    assert capsys.readouterr().err.splitlines()[-1] == "generate 16/40  about 15 s left  480 evaluations", "28 in 36 s"
    meter.forward("denoiser", 6400)
    assert shown._within() < 16


def test_a_measurement_outside_of_the_cost_moves_nothing_backwards(clock, capsys):
    meter, shown = Meter(), Progress()
    shown.follow(meter)
    shown.stage("align", 4)
    before = meter.total
    meter.forward("reward", 5)
    shown.advance()
    meter.total = before
    clock.now += 20
    meter.forward("denoiser", 2)
    assert "-" not in capsys.readouterr().err


def test_a_quiet_run_says_nothing_however_much_moves(clock, capsys):
    meter, shown = Meter(), Progress(quiet=True)
    with shown:
        shown.follow(meter)
        shown.stage("align", 4)
        clock.now += 100
        meter.forward("denoiser", 2)
        shown.advance()
        shown.say("something")
    assert capsys.readouterr() == ("", "")


def test_what_comes_from_outside_is_shown_in_one_line(capsys):
    shown = Progress()
    shown.say("skipped a\nb\x1b[2J\u202e.png")
    shown.stage("judge\x9b", 1)
    shown.advance(**{"held\x1b": 1.0})
    assert capsys.readouterr().err == "skipped a b\\x1b[2J\\u202e.png\njudge\\x9b 1/1  held\\x1b 1\n"


class Terminal(io.TextIOWrapper):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_line_keeps_count_and_time_left_beside_many_numbers(monkeypatch, width, encoding):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(written, encoding=encoding, write_through=True))
    meter = Meter()
    with Progress() as shown:
        shown.follow(meter)
        shown.stage("align", 1200)
        for _ in range(2):
            meter.forward("denoiser", 64)
            shown.advance(reward=1.5, kl=0.25, **{f"held_out_scorer_{i}": float(i) for i in range(12)})
        meter.forward("denoiser", 64)
        assert shown._live is not None
        shown._live.refresh()
        (line,) = str_of(shown._live.get_renderable(), width)
        shown.say("≥ \x1b[2J")
    assert cell_len(line) <= width
    assert "2/1200" in line
    assert ":" in line, "the time left"
    assert "64" in line, "what was used in this step"
    assert ("reward 1.5" in line) is (width > 40)
    assert b"\\x1b[2J" in written.getvalue()


def str_of(renderable, width: int) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue().rstrip("\n").split("\n")
