"""How many items fit into memory at once: measured on a processor, and learned where memory runs out.

A GPU says when its memory is full. On a processor Linux ends the process instead, so it has to be known before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from alignbench.devices import is_full, peak, release, reset_peak, resident
from alignbench.errors import RunError
from alignbench.meter import Meter

T = TypeVar("T")
R = TypeVar("R")
INFO, GROUPS, CONTROLLERS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
KINDS = {  # of control groups, by version: memory's folder, limit, use, what of it are files, mapped, and shared memory
    2: ("", "memory.max", "memory.current", ("active_file", "inactive_file"), "file_mapped", "shmem"),
    1: (
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"),
        "total_mapped_file", "total_shmem",
    ),
}  # fmt: skip
MARGIN = 0.1  # of what is free, left alone
PER_PIXEL = 2**14  # bytes: Stable Diffusion 1.5 takes 5,000 a pixel, and less than this with gradients
ADVICE = "try --dtype bfloat16, --vae-slicing, --vae-tiling or a smaller --resolution."


class Measured(Protocol):
    """Memory that can be looked at."""

    def during(self, work: Callable[[], R]) -> tuple[R, int]:
        """What some work gives, and how many bytes more than before were held in it at most."""

    def free(self) -> int | None:
        """The bytes that may be taken besides what is held; None where nothing says so."""


class Memory:
    """The memory of a device, of which some processes of this run take the same share. `peak` is the most since the
    beginning, whatever was looked at in between.

    Freed memory that the allocator keeps is given back before each look: the next pass would use it again, unseen.
    Pages of files, as most weights are, come into memory when they are first touched. They are not counted as what a
    pass needs, nor as free, though Linux would take them away: they would be read again in every pass.
    """

    def __init__(self, device: str, sharing: int = 1) -> None:
        self.device, self._sharing, self._before = device, sharing, 0
        reset_peak(device)

    def peak(self) -> int:
        return max(self._before, peak(self.device))

    def during(self, work: Callable[[], R]) -> tuple[R, int]:
        release()
        self._before, before = self.peak(), resident("VmRSS:") - resident("RssFile:")
        reset_peak(self.device)
        found = work()
        return found, peak(self.device) - resident("RssFile:") - before

    def free(self) -> int | None:
        """Of a processor alone."""
        if not self.device.startswith("cpu"):
            return None
        release()
        left = available()
        return None if left is None else int((1 - MARGIN) * left / self._sharing)


def available() -> int | None:
    """Bytes that processes may still take before Linux ends one, or takes away the files that it has mapped; None on
    another system."""
    try:
        rows = [line.split() for line in INFO.read_text(encoding="ascii").splitlines()]
        found = {row[0]: 1024 * int(row[1]) for row in rows}
        free = max(0, found["MemAvailable:"] - max(0, found["Mapped:"] - found["Shmem:"]))
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
        below, limit, use, files, mapped, shared = KINDS[1 if controllers else 2]
        root = CONTROLLERS / below
        folder = root / own.lstrip("/")
        for place in [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]:
            try:
                most, used = (int((place / name).read_text(encoding="ascii")) for name in (limit, use))
                rows = [row.split() for row in (place / "memory.stat").read_text(encoding="ascii").splitlines()]
            except (OSError, ValueError):  # no limit, or the container does not show its group
                continue
            found = {name: int(count) for name, count in rows}
            kept = max(0, found.get(mapped, 0) - found.get(shared, 0))
            cached = sum(found.get(name, 0) for name in files) - kept
            yield max(0, most - used + max(0, cached))


def to_measure(memory: Measured, shape: Sequence[int], count: int, is_fixed: bool) -> Measured | None:
    """The memory, where it has to be measured how many images of this shape fit into it: not where their number is
    fixed, nor where `count` of them fit whatever makes them."""
    free, pixels = memory.free(), shape[1] * shape[2] if len(shape) == 3 else 1
    return None if is_fixed or free is None or count * pixels * PER_PIXEL <= free else memory


class Fitting:
    """Work on as many items at once as memory holds, of so many images each. With `memory` one comes first, then
    another one, then twice as many each time, while the most that an item has needed says that they fit. The first is
    not measured: what it loads may stay. Where memory runs out all the same, half as many go on.

    An attempt that failed leaves nothing on the meter: a result says what its images cost.
    """

    def __init__(
        self, meter: Meter, say: Callable[[str], None], memory: Measured | None = None, images: int = 1
    ) -> None:
        self._meter, self._say, self._memory, self._images = meter, say, memory, images
        self._largest = None if memory is None else 1
        self._needed = 0.0  # bytes of an item: the most of all times
        self._is_warm = self._has_said = False

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
                    raise RunError(f"out of memory with {self._said(1)}; {ADVICE}") from error
            release()  # outside of the handler, whose error holds what did not fit
            self._meter.total, self._largest, self._memory = before, len(part) // 2, None
            self._say(f"out of memory: going on with {self._said(self._largest)} at once")
        return done

    def _measured(self, work: Callable[[Sequence[T]], R], part: Sequence[T], wanted: int) -> R:
        """Work on a part, and see how large the next one may be."""
        if self._memory is None or not self._is_warm:
            result, self._is_warm = work(part), True
            return result
        result, needed = self._memory.during(lambda: work(part))
        free, largest = self._memory.free(), self._largest or 1
        if free is None:
            self._memory = self._largest = None
            return result
        self._needed = max(self._needed, needed / len(part))
        following = max(largest, min(2 * largest, wanted)) if len(part) == largest else largest
        fits = following * self._needed <= free
        self._largest = following if fits else max(1, min(largest, int(free / max(1.0, self._needed))))
        if not fits and not self._has_said:
            self._has_said = True
            self._say(self._few(self._largest, wanted, following, free))
        return result

    def _few(self, count: int, wanted: int, following: int, free: int) -> str:
        """Why no more are worked on at once, and what to do about it."""
        if self._needed > free:
            return f"{self._said(1)} may need {_gib(self._needed)} of memory, and {_gib(free)} are free; {ADVICE}"
        why = f"{following * self._images} may need {_gib(following * self._needed)} of memory, {_gib(free)} are free"
        return f"making {self._said(count)} at once, not {wanted * self._images}: {why}; --batch-size sets the number."

    def _said(self, items: int) -> str:
        count = items * self._images
        return "one image" if count == 1 else f"{count} images"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
