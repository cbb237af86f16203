"""How many items fit into memory at once: measured as they grow in number, and learned where memory runs out.

A GPU says when its memory is full. On a processor Linux ends the process instead, so it has to be known before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from alignbench.devices import is_full, peak, release, reset_peak, resident
from alignbench.errors import RunError
from alignbench.meter import Meter

T = TypeVar("T")
R = TypeVar("R")
INFO, GROUPS, CONTROLLERS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
KINDS = {  # of control groups, by version: folder of memory's, limit, use, and what of it are files, and mapped ones
    2: ("", "memory.max", "memory.current", ("active_file", "inactive_file"), "file_mapped"),
    1: (
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"),
        "total_mapped_file",
    ),
}  # fmt: skip
MARGIN = 0.1  # of what is free, left alone
PER_PIXEL = 2**16  # bytes: Stable Diffusion 1.5 takes 5,000 a pixel, and less than this with gradients
ADVICE = "try --dtype bfloat16, --vae-slicing, --vae-tiling or a smaller --resolution."


class Measured(Protocol):
    """Memory that can be looked at."""

    def during(self, work: Callable[[], R]) -> tuple[R, int]:
        """What some work gives, and the most bytes that were held in it."""

    def held(self) -> int: ...

    def limit(self) -> int | None:
        """The most bytes that may be held; None where nothing says so."""


class Memory:
    """The memory of a device, of which some processes of this run take the same share: on a GPU what its tensors hold,
    else what the process does. `peak` is the most since the beginning, whatever was looked at in between.

    Pages of files, as most weights are, come into memory when they are first touched. They are not counted as what a
    pass needs, nor as free, though Linux would take them away: they would be read again in every pass.
    """

    def __init__(self, device: str, sharing: int = 1) -> None:
        self.device, self._sharing, self._before = device, sharing, 0
        self._is_gpu = device.startswith("cuda")
        reset_peak(device)

    def peak(self) -> int:
        return max(self._before, peak(self.device))

    def during(self, work: Callable[[], R]) -> tuple[R, int]:
        self._before = self.peak()
        reset_peak(self.device)
        found = work()
        return found, peak(self.device) - (0 if self._is_gpu else resident("RssFile:"))

    def held(self) -> int:
        if self._is_gpu:
            return torch.cuda.memory_allocated(self.device)
        return resident("VmRSS:") - resident("RssFile:")

    def limit(self) -> int | None:
        held, left = self.held(), None if self._is_gpu else available()
        if self._is_gpu:
            free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - held
        elif left is not None:
            free = left // self._sharing
        else:
            return None
        return held + int((1 - MARGIN) * free)


def available() -> int | None:
    """Bytes that processes may still take before Linux ends one, or takes away the files that it has mapped; None on
    another system."""
    try:
        rows = [line.split() for line in INFO.read_text(encoding="ascii").splitlines()]
        found = {row[0]: 1024 * int(row[1]) for row in rows}
        free = max(0, found["MemAvailable:"] - found["Mapped:"])
    except (OSError, KeyError):
        return None
    return min([free, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """What is left of each limit of the control groups that this process is in: a container's, or a job's."""
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        below, limit, use, files, mapped = KINDS[1 if controllers else 2]
        root = CONTROLLERS / below
        folder = root / own.lstrip("/")
        for place in [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]:
            try:
                most, used = (int((place / name).read_text(encoding="ascii")) for name in (limit, use))
                rows = [row.split() for row in (place / "memory.stat").read_text(encoding="ascii").splitlines()]
            except (OSError, ValueError):  # no limit, or the container does not show its group
                continue
            found = {name: int(count) for name, count in rows}
            cached = sum(found.get(name, 0) for name in files) - found.get(mapped, 0)
            yield max(0, most - used + max(0, cached))


def to_measure(memory: Measured, shape: Sequence[int], count: int, asked: bool) -> Measured | None:
    """The memory, where it has to be measured how many images of this shape fit into it: not where somebody asked for
    so many, nor where these fit whatever makes them."""
    limit, pixels = memory.limit(), shape[1] * shape[2] if len(shape) == 3 else 1
    fits = limit is None or memory.held() + count * pixels * PER_PIXEL <= limit
    return None if asked or fits else memory


class Fitting:
    """Work on as many items at once as memory holds. With `memory` one comes first, then twice as many each time, as
    long as what the last ones added says that they fit. Where memory runs out all the same, half as many go on.

    An attempt that failed leaves nothing on the meter: a result says what its images cost.
    """

    def __init__(self, meter: Meter, say: Callable[[str], None], memory: Measured | None = None) -> None:
        self._meter, self._say, self._memory = meter, say, memory
        self._largest = None if memory is None else 1
        self._peak = 0  # of the last time

    def __call__(self, work: Callable[[Sequence[T]], R], items: Sequence[T]) -> list[R]:
        """What `work` gives for the items, part after part. Raises RunError where one alone does not fit."""
        done, left = list[R](), list(items)
        while left:
            part, before = left[: self._largest], self._meter.total
            try:
                done.append(self._measured(work, part, len(items)))
                del left[: len(part)]
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_full(error):
                    raise
                if len(part) == 1:
                    raise RunError(f"out of memory with one image; {ADVICE}") from error
            release()  # outside of the handler, whose error holds what did not fit
            self._meter.total, self._largest, self._memory = before, len(part) // 2, None
            self._say(f"out of memory: going on with {self._largest} images at once")
        return done

    def _measured(self, work: Callable[[Sequence[T]], R], part: Sequence[T], wanted: int) -> R:
        """Work on a part, and how large the next one may be."""
        memory, count = self._memory, len(part)
        if memory is None or self._largest is None or count < self._largest:
            return work(part)
        before = self._peak or memory.held()
        result, found = memory.during(lambda: work(part))
        self._peak, limit, following = max(found, before), memory.limit(), min(2 * count, wanted)
        if limit is None or count >= wanted:
            self._memory = self._largest = None
            return result
        # The last time added half of these images to those before, the first time the one that there is.
        needed = self._peak + int((self._peak - before) * (following - count) / max(1, count // 2))
        if needed <= limit:
            self._largest = following
        else:
            self._memory = None
            self._say(
                f"making {count} at once, not {wanted}: {following} might need {needed / 2**30:.1f} GiB of memory, and "
                f"there are {limit / 2**30:.1f}"
            )
        return result
