"""What commands say on stderr."""

from __future__ import annotations

import pytest


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command said, after the line that says what is being loaded: one line."""
    said = capsys.readouterr().err
    error = "".join(line for line in said.splitlines(keepends=True) if not line.startswith("loading "))
    assert error.count("\n") == 1, said
    assert error.startswith("alignbench: ")
    assert "Traceback" not in said
    return error
