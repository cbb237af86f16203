"""How many items are worked on at once, by memory that is planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignbench import memory
from alignbench.errors import RunError
from alignbench.memory import Fitting, Memory, to_measure
from alignbench.meter import Meter

IMAGE = (3, 512, 512)


class Planted:
    """Memory in which the model, a pass and each of its items take so much; work gives how many items it had."""

    def __init__(self, room: int | None, item: int = 10, once: int = 0, model: int = 100) -> None:
        self.room, self.item, self.once, self.model = room, item, once, model
        self.most = 0

    def during(self, work: Callable[[], Any]) -> tuple[Any, int]:
        found = work()
        peak = self.model + self.once + self.item * found
        self.most = max(self.most, peak)
        return found, peak

    def held(self) -> int:
        return self.model

    def limit(self) -> int | None:
        return None if self.room is None else self.room


def parts(planted: Planted | None, *sizes: int) -> tuple[list[int], list[str]]:
    """How many items were worked on each time, chunk after chunk, and what was said."""
    said: list[str] = []
    fitting = Fitting(Meter(), said.append, planted)
    return [count for size in sizes for count in fitting(len, range(size))], said


def test_as_many_again_are_worked_on_while_they_fit():
    found, said = parts(Planted(100 + 10 * 9), 32, 32)
    assert found == [1, 2, 4, *[8] * 3, 1, *[8] * 4]
    assert said == ["making 8 at once, not 32: 16 might need 0.0 GiB of memory, and there are 0.0"]


def test_where_all_fit_later_chunks_are_whole_and_nothing_is_said():
    assert parts(Planted(10_000), 32, 32, 32) == ([1, 2, 4, 8, 16, 1, 32, 32], [])
    assert parts(Planted(10_000), 12, 12, 12, 5) == ([1, 2, 4, 5, 8, 4, 12, 5], [])


def test_where_nothing_is_measured_chunks_are_whole():
    assert parts(None, 32, 32) == ([32, 32], [])


def test_where_the_system_does_not_say_what_is_free_the_rest_is_worked_on_at_once():
    assert parts(Planted(None), 32, 32) == ([1, 31, 32], [])


@given(st.integers(0, 4000), st.integers(0, 60), st.integers(0, 500), st.integers(1, 40))
def test_no_more_is_held_than_there_is_where_memory_grows_by_the_item(room, item, once, size):
    planted = Planted(100 + room, item, once)
    found, _ = parts(planted, size, size, size)
    assert sum(found) == 3 * size
    assert planted.most <= planted.room or set(found) == {1}  # less than one at a time is not to be had


def test_memory_that_runs_out_all_the_same_halves_what_was_tried_last():
    """An attempt that failed leaves nothing on the meter."""
    meter, said = Meter(), list[str]()
    fitting = Fitting(meter, said.append, Planted(10_000))

    def work(items: Sequence[int]) -> int:
        meter.forward("decode", len(items))
        if len(items) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return len(items)

    assert fitting(work, range(20)) == [1, 2, 4, 4, 4, 4, 1]
    assert meter.total.decode_forward == 20
    assert said == ["out of memory: going on with 4 images at once"]


def test_one_image_that_does_not_fit_is_an_error_with_advice():
    def work(items: Sequence[int]) -> int:
        raise MemoryError

    with pytest.raises(RunError, match="out of memory with one image; try --dtype bfloat16"):
        Fitting(Meter(), print, Planted(10_000))(work, range(2))


@pytest.mark.parametrize(
    ("room", "shape", "asked", "measured"),
    [
        (2**34, IMAGE, False, True),
        (2**34, IMAGE, True, False),  # somebody asked for so many
        (2**34, (3, 32, 32), False, False),  # the embedded model's
        (2**30, (3, 32, 32), False, True),
        (2**30, (2,), False, False),  # points
        (None, IMAGE, False, False),
    ],
)
def test_it_is_measured_where_nobody_asked_for_a_batch_and_it_might_not_fit(room, shape, asked, measured):
    planted = Planted(room)
    assert (to_measure(planted, shape, 32, asked) is planted) is measured


def test_what_a_control_group_leaves_is_all_there_is(tmp_path, monkeypatch):
    """Of both versions of the interface, and of groups above. Files that are cached and not mapped are free."""
    folder = tmp_path / "cgroup"
    for below, names in (
        ("job/step", ("memory.max", "max", "memory.current", "70", "inactive_file 0")),
        ("job", ("memory.max", "9000", "memory.current", "5000", "inactive_file 1500\nactive_file 9\nfile_mapped 9")),
        ("memory/old", ("memory.limit_in_bytes", "800", "memory.usage_in_bytes", "900", "total_inactive_file 30")),
    ):
        place = folder / below
        place.mkdir(parents=True, exist_ok=True)
        limit, most, use, used, statistics = names
        for name, content in ((limit, most), (use, used), ("memory.stat", statistics)):
            (place / name).write_text(f"{content}\n")
    (tmp_path / "info").write_text("MemTotal: 90 kB\nMemAvailable:   9 kB\nMapped: 1 kB\n")
    monkeypatch.setattr(memory, "INFO", tmp_path / "info")
    monkeypatch.setattr(memory, "CONTROLLERS", folder)
    for groups, expected in (
        ("0::/job/step\n", 5500),
        ("4:cpu,memory:/old\n0::/elsewhere\n", 0),
        ("3:cpuset:/job\n", 8192),
        ("0::/\n", 8192),
    ):
        monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
        (tmp_path / "groups").write_text(groups)
        assert memory.available() == expected, groups
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "missing")
    assert memory.available() == 8192
    monkeypatch.setattr(memory, "INFO", tmp_path / "missing")
    assert memory.available() is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="elsewhere the peak is that of the process")
def test_what_was_held_during_some_work_is_seen_and_the_peak_before_it_stays():
    own = Memory("cpu")
    torch.ones(2**27)  # 512 MiB, given back
    held, highest = own.held(), own.peak()
    _, peak = own.during(lambda: torch.ones(2**26).sum())
    assert 2**27 < peak - held < 2**29
    assert own.peak() >= highest


def test_processes_of_one_machine_share_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    alone, shared = (Memory("cpu", sharing).limit() for sharing in (1, 2))
    assert alone is not None
    assert shared is not None
    assert alone - shared == pytest.approx(0.45 * 2**40, rel=0.01)
