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
from alignbench.devices import keep_freed
from alignbench.errors import RunError
from alignbench.memory import Fitting, Memory, to_measure
from alignbench.meter import Meter

IMAGE = (3, 512, 512)


class Planted:
    """Memory in which the model, a pass and each of its items take so much, and the first pass loads something that
    stays. Like a heap that keeps what was freed, it holds the most that it ever held until it is asked to give it back.
    Work gives how many items it had."""

    def __init__(self, room: int | None, item: int = 10, once: int = 0, loaded: int = 0) -> None:
        self.room, self.item, self.once, self.loaded = room, item, once, loaded
        self.model, self.kept = 100, 0  # beside the room
        self.most = 0

    def pass_of(self, items: Sequence[int]) -> int:
        self.model, self.loaded = self.model + self.loaded, 0
        self.kept = max(self.kept, self.model + self.once + self.item * len(items))
        self.most = max(self.most, self.kept)
        return len(items)

    def during(self, work: Callable[[], Any]) -> tuple[Any, int]:
        self.kept = before = self.model
        found = work()
        return found, self.kept - before

    def free(self) -> int | None:
        self.kept = self.model
        return None if self.room is None else 100 + self.room - self.model


def parts(planted: Planted, *sizes: int, images: int = 1) -> tuple[list[int], list[str]]:
    """How many items were worked on each time, chunk after chunk, and what was said."""
    said: list[str] = []
    fitting = Fitting(Meter(), said.append, planted, images)
    return [count for size in sizes for count in fitting(planted.pass_of, range(size))], said


def test_as_many_again_are_worked_on_while_they_fit():
    found, said = parts(Planted(10 * 9), 32, 32)
    assert found == [1, 1, 2, 4, 8, 8, 8, 8, 8, 8, 8]
    assert said == [
        "making 8 images at once, not 32: 16 may need 0.0 GiB of memory, 0.0 GiB are free; --batch-size sets the "
        "number."
    ]


def test_images_are_counted_where_an_item_is_several():
    said = parts(Planted(2**33, 2**31), 8, images=4)[1]
    assert said == [
        "making 16 images at once, not 32: 32 may need 16.0 GiB of memory, 8.0 GiB are free; --batch-size sets the "
        "number."
    ]


def test_an_item_that_may_need_more_than_there_is_goes_on_alone_and_it_is_said():
    found, said = parts(Planted(2**30, 2**31), 3, images=4)
    assert found == [1, 1, 1]
    assert said == [f"4 images may need 2.0 GiB of memory, and 1.0 GiB are free; {memory.ADVICE}"]


def test_what_the_first_pass_loads_counts_once_and_no_more_is_free():
    """A learned reward's network of 80, in a room for it and nine items."""
    assert parts(Planted(80 + 10 * 9, loaded=80), 32)[0] == [1, 1, 2, 4, 8, 8, 8]


def test_where_all_fit_later_chunks_are_whole_and_nothing_is_said():
    assert parts(Planted(10_000), 32, 32, 32) == ([1, 1, 2, 4, 8, 16, 32, 32], [])
    assert parts(Planted(10_000), 12, 12, 12, 5) == ([1, 1, 2, 4, 4, 8, 4, 12, 5], [])


def test_where_nothing_is_measured_chunks_are_whole():
    assert Fitting(Meter(), print)(len, range(32)) == [32]


def test_where_the_system_does_not_say_what_is_free_the_rest_is_worked_on_at_once():
    assert parts(Planted(None), 32, 32) == ([1, 1, 30, 32], [])


@given(st.integers(0, 4000), st.integers(0, 60), st.integers(0, 500), st.integers(0, 500), st.lists(st.integers(1, 40)))
def test_no_more_is_held_than_there_is_where_memory_grows_by_the_item(room, item, once, loaded, sizes):
    """Whatever the heap keeps, and the first pass loads."""
    planted = Planted(room, item, once, loaded)
    found, _ = parts(planted, *sizes)
    assert sum(found) == sum(sizes)
    assert planted.most <= 100 + room or set(found) <= {1}  # less than one at a time is not to be had


def test_fewer_are_worked_on_where_less_is_free_than_was():
    """As when training holds its optimiser's state from the second probe on."""
    planted = Planted(100)
    fitting = Fitting(Meter(), print, planted)
    assert fitting(planted.pass_of, range(15)) == [1, 1, 2, 4, 7]
    planted.room = 30
    assert fitting(planted.pass_of, range(12)) == [8, 3, 1]


def test_memory_that_runs_out_all_the_same_halves_what_was_tried_last():
    """An attempt that failed leaves nothing on the meter."""
    meter, said = Meter(), list[str]()
    planted = Planted(10_000)
    fitting = Fitting(meter, said.append, planted)

    def work(items: Sequence[int]) -> int:
        meter.forward("decode", len(items))
        if len(items) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return planted.pass_of(items)

    assert fitting(work, range(20)) == [1, 1, 2, 4, 4, 4, 4]
    assert meter.total.decode_forward == 20
    assert said == ["out of memory: going on with 4 images at once"]


def test_one_image_that_does_not_fit_is_an_error_with_advice():
    def work(items: Sequence[int]) -> int:
        raise MemoryError

    for images, said in ((1, "one image"), (4, "4 images")):
        with pytest.raises(RunError, match=f"out of memory with {said}; try --dtype bfloat16"):
            Fitting(Meter(), print, Planted(10_000), images)(work, range(2))


@pytest.mark.parametrize(
    ("room", "shape", "is_fixed", "measured"),
    [
        (2**34, IMAGE, False, True),
        (2**34, IMAGE, True, False),  # somebody asked for so many, or has each number compiled
        (2**30, (3, 32, 32), False, False),  # the embedded model's
        (2**28, (3, 32, 32), False, True),
        (2**30, (2,), False, False),  # points
        (None, IMAGE, False, False),
    ],
)
def test_it_is_measured_where_no_number_is_fixed_and_they_might_not_fit(room, shape, is_fixed, measured):
    planted = Planted(room)
    assert (to_measure(planted, shape, 32, is_fixed) is planted) is measured


def test_what_a_control_group_leaves_is_all_there_is(tmp_path, monkeypatch):
    """Of both versions of the interface, and of groups above. Files that are cached and not mapped are free;
    mapped shared memory is no file."""
    folder = tmp_path / "cgroup"
    for below, names in (
        ("job/step", ("memory.max", "max", "memory.current", "70", "inactive_file 0")),
        (
            "job",
            (
                "memory.max",
                "9000",
                "memory.current",
                "5000",
                "inactive_file 1500\nactive_file 9\nfile_mapped 99\nshmem 90",
            ),
        ),
        ("memory/old", ("memory.limit_in_bytes", "800", "memory.usage_in_bytes", "900", "total_inactive_file 30")),
    ):
        place = folder / below
        place.mkdir(parents=True, exist_ok=True)
        limit, most, use, used, statistics = names
        for name, content in ((limit, most), (use, used), ("memory.stat", statistics)):
            (place / name).write_text(f"{content}\n")
    (tmp_path / "info").write_text("MemTotal: 90 kB\nMemAvailable:   9 kB\nMapped: 8 kB\nShmem: 7 kB\n")
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
    highest = own.peak()
    _, added = own.during(lambda: torch.ones(2**26).sum())
    assert 2**27 < added < 2**29
    assert own.peak() >= highest


@pytest.mark.skipif(not keep_freed(), reason="another C library keeps nothing")
def test_memory_that_a_pass_freed_and_the_allocator_kept_is_seen_when_the_next_one_uses_it():
    def work() -> None:
        del [torch.ones(2**20) for _ in range(64)][:]  # 256 MiB, by 4

    own = Memory("cpu")
    work()
    assert min(own.during(work)[1] for _ in range(2)) > 2**27


def test_processes_of_one_machine_share_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    alone, shared = (Memory("cpu", sharing).free() for sharing in (1, 2))
    assert (alone, shared) == (int(0.9 * 2**40), int(0.45 * 2**40))


def test_a_gpu_is_not_measured():
    assert to_measure(Memory("cuda"), IMAGE, 32, False) is None
