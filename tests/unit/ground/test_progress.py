"""Progress lines where there is no terminal."""

from __future__ import annotations

from alignbench import progress
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
    assert capsys.readouterr().err == "generate 91/100  reward 1.5  about 18 s left\n"
