"""Where things lie in the repository, for tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PLUGINS = TESTS / "support" / "plugins"
TOY = PLUGINS / "toy.py"
COLOURS = PLUGINS / "colours.py"
