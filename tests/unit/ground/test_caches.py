"""What is kept on this machine."""

from __future__ import annotations

import pytest

from alignbench import caches
from alignbench.cli.app import run_command_line


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with all kinds of things in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "alignbench"
    files = {
        "scores/a.jsonl": 10, "scores/b.jsonl": 20, "pairs/0123/images/0.png": 300, "tensors.sqlite": 4000,
        "tensors.sqlite-wal": 1000, "compiled/fxgraph/ab/c": 7, "xswu/HPSv2/HPS_v2.1.pt": 60_000,
    }  # fmt: skip
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return folder


def test_sizes_are_by_kind(cache):
    assert {item.kind: (item.files, item.bytes) for item in caches.kept()} == {
        "scores": (2, 30), "pairs": (1, 300), "tensors": (2, 5000), "compiled": (1, 7), "files": (1, 60_000),
    }  # fmt: skip


def test_one_kind_is_cleared_and_the_others_stay(cache):
    assert caches.clear("tensors") == 5000
    assert caches.clear("pairs") == 300
    assert sorted(path.name for path in cache.iterdir()) == ["compiled", "scores", "xswu"]
    assert caches.clear("pairs") == 0


def test_the_command_shows_and_clears(cache, capsys):
    assert run_command_line(["cache"]) == 0
    out = capsys.readouterr().out
    assert "tensors        0.0 MB in     2 files" in out
    assert str(cache) in out
    assert run_command_line(["cache", "--clear", "files"]) == 0
    assert capsys.readouterr().out == "files: 0.1 MB deleted\n"
    assert not (cache / "xswu").exists()
    assert (cache / "scores" / "a.jsonl").exists()


def test_nothing_kept_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    assert sum(item.files for item in caches.kept()) == 0
