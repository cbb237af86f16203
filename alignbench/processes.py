"""Processes of one run. The only place that knows how many there are, and which of them this one is.

Every process runs the same code on the same draws, and holds the same weights. What takes time is cut into shares last,
within an update (`Processes.shard`); what came of it is gathered (`Processes.gather`), so that all go on with the same
numbers, which are those of one process but for rounding. Gradients are summed over processes, never averaged: every
loss is divided by the number of all items, so that a process with fewer of them weighs less.

A vote goes before each exchange. A process that fails casts it in the handler of its error (`Processes.common`); all
then raise the same, and do the same about it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from alignbench.errors import AlignbenchError, CannotContinue, Diverged, InputError, RunError, Unsupported, described
from alignbench.packed import digest_of, packed, unpacked

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

WIDTH: Final = 8  # numbers in a vote
# What a process may meet, by what the others do about it.
KINDS: Final[tuple[type[BaseException], ...]] = (
    Diverged, MemoryError, Unsupported, InputError, CannotContinue, RunError,
)  # fmt: skip
PATIENCE: Final = timedelta(hours=6)  # for a process that is alive and slow: one may be scoring alone
HANGS: Final = 137  # the exit code where another process hangs: as if somebody had killed it
BEAT, SILENCE = 3.0, 40.0  # seconds between signs of life, and without any after which a process counts as lost
LAUNCHER: Final = "ALIGNBENCH_LAUNCHER"  # is set where one of ours says who has ended


class Lost(RunError):
    """Another process of the run has ended, or does not answer."""

    @property
    def is_told(self) -> bool:
        """Whether the launcher says more of it."""
        return has_launcher()


class Common:
    """Mixed into an error that all processes raise."""


@dataclass(frozen=True)
class Processes:
    """This process among those of its run: by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads, writes and speaks."""
        return self.rank == 0

    def log(self, folder: Path, name: str) -> Path:
        """This process's own log in a folder that all share; the first one's has no number in its name."""
        return folder / (_numbered(name, self.rank) if self.rank else name)

    def shard(self, items: Sequence[T], together: int = 1) -> Sequence[T]:
        """This process's share of items that are the same on every process: every `size`-th run of `together` of them.
        Cut into forward passes of so many it has passes that one process would make, whose sums round as they do there.
        Fewer runs than processes are cut anew, evenly, so that no process idles."""
        if self.size == 1:
            return items
        runs = range(0, len(items), together)
        if len(runs) >= self.size:
            return [item for start in runs[self.rank :: self.size] for item in items[start : start + together]]
        start, end = (-(-len(items) * k // self.size) for k in (self.rank, self.rank + 1))
        return items[start:end]

    def gather(self, parts: Sequence[T]) -> list[T]:
        """What came of all shares, on every process. Part j of process r stands at place j · size + r, which is the
        order of the items that were shared where a part is of one item; of a share taken `together`, where it is of one
        whole forward pass. A part is anything made of tensors and plain values."""
        if self.size == 1:
            return list(parts)
        content = packed(list(parts))
        lengths = [numbers[0] for numbers in self._vote(0, len(content))]
        received = [list(parts) if r == self.rank else unpacked(c) for r, c in enumerate(self._all(content, lengths))]
        longest = max(map(len, received))
        return [own[j] for j in range(longest) for own in received if j < len(own)]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradient of every parameter by the sum over processes; none counts as zero. Raises RunError where
        all have come to the same one: whoever wrote the algorithm forgot to share its losses."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        digests = {numbers[0] for numbers in self._vote(0, digest_of([flat]))}
        if len(digests) == 1 and 0 < float(flat.norm()) < float("inf"):
            raise _common(RunError)(
                "each process has come to the same gradient, so this algorithm does not share its losses "
                "(problem.shard): run it in one process."
            )
        with _connected():
            dist.all_reduce(flat)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter)
            start = end

    def total(self, counts: Sequence[int]) -> list[int]:
        """The sums of counts over processes; at most WIDTH − 1 of them."""
        return [sum(column) for column in zip(*self._vote(0, *counts), strict=True)][: len(counts)]

    def agree(self, number: int) -> int:
        """The number of the first process, on every process."""
        return self._vote(0, number)[0][0] if self.size > 1 else number

    def told(self, value: T) -> T:
        """What the first process holds, on every process. It may be large: a checkpoint."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        content = packed(value) if self.first else None
        length = self.agree(0 if content is None else len(content))
        received = torch.empty(length, dtype=torch.uint8) if content is None else content
        with _connected():
            dist.broadcast(received, src=0)
        return value if self.first else unpacked(received)

    def check_same(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raise RunError where these tensors are not the same, to the last bit, on every process."""
        if self.size == 1:
            return
        digests = [numbers[0] for numbers in self._vote(0, digest_of(tensors))]
        if other := [r for r, digest in enumerate(digests) if digest != digests[0]]:
            raise _common(RunError)(
                f"{what} of process {other[0]} of {self.size} are not those of process 0: its machine computes other "
                "numbers; use machines and libraries of one kind, and type the same command again."
            )

    def common(self, error: BaseException) -> BaseException:
        """The error that all processes raise after this one met `error`: of several kinds the first of KINDS counts
        least, and of several processes the last one speaks."""
        if self.size == 1 or isinstance(error, Common | Lost | KeyboardInterrupt | SystemExit):
            return error
        try:
            self._vote(_status(error), said=_words(error))
        except BaseException as agreed:
            return agreed
        raise AssertionError("a vote with a failure passes for nobody")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within, an error of one process becomes one of all."""
        try:
            yield
        except Exception as error:
            agreed = self.common(error)
            if agreed is error:
                raise
            raise agreed from error

    def _vote(self, status: int, *numbers: int, said: str = "") -> list[list[int]]:
        """The numbers of all processes, once all of them have said that nothing is wrong. Raises what the worst one
        met otherwise."""
        if self.size == 1:
            return [list(numbers)]
        import torch
        import torch.distributed as dist

        own = torch.zeros(WIDTH, dtype=torch.int64)
        own[: 1 + len(numbers)] = torch.tensor([status, *numbers])
        with _connected():
            found = [vote.tolist() for vote in self._everybody(own)]
        worst, speaker = max((vote[0], r) for r, vote in enumerate(found))
        if worst:
            words = [said]
            with _connected():
                dist.broadcast_object_list(words, src=speaker, device=torch.device("cpu"))
            kind = KINDS[worst - 1]
            whose = f"process {speaker} of {self.size}: " if kind is RunError and speaker else ""
            raise _common(kind)(f"{whose}{words[0]}")
        return [vote[1:] for vote in found]

    def _everybody(self, own: Tensor) -> list[Tensor]:
        """A small tensor of each process, by rank. Gloo hands them round a circle, as many times as there are
        processes less one; here each hands on all that it has, so that the logarithm of that is enough (Bruck et al.
        1997, "Efficient algorithms for all-to-all communications")."""
        import torch
        import torch.distributed as dist

        have = [own]  # of this process, the next one, the one after it …
        while (shift := len(have)) < self.size:
            given = torch.stack(have[: self.size - shift])
            taken = torch.empty_like(given)
            sent = dist.isend(given, (self.rank - shift) % self.size)
            dist.recv(taken, (self.rank + shift) % self.size)
            if sent is not None:  # as only those get that are in no group
                sent.wait()
            have += taken
        return [have[(rank - self.rank) % self.size] for rank in range(self.size)]

    def _all(self, content: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """The bytes of all processes."""
        import torch
        import torch.distributed as dist

        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        parts = [torch.empty_like(padded) for _ in lengths]
        with _connected():
            dist.all_gather(parts, padded)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]


ALONE: Final = Processes()


def logs(folder: Path, name: str) -> list[Path]:
    """The logs of one kind that any number of processes have left in a folder."""
    return [folder / name, *sorted(folder.glob(_numbered(name, "*")))]


def _numbered(name: str, rank: int | str) -> str:
    stem, _, ending = name.partition(".")
    return f"{stem}-{rank}.{ending}"


def launched() -> int:
    """How many processes a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_machine() -> int:
    """How many of them run beside each other, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched()))


def has_launcher() -> bool:
    """Whether a launcher of ours says how this process has ended."""
    return LAUNCHER in os.environ


def started_by_accelerate() -> bool:
    """Whether `accelerate launch` started this process; with --cpu it starts one, whatever number it was given."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def is_first() -> bool:
    """Whether this process is alone, or the one that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def refuse_several() -> None:
    """Raise InputError under a launcher of several processes, each of which would run everything."""
    if launched() > 1:
        raise InputError(
            "several processes share `alignbench run` and `alignbench evaluate` alone: type this command without "
            "torchrun or `accelerate launch`."
        )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes of this run, connected: over gloo, and NCCL for tensors on GPUs, of which each takes its own.
    Raises InputError where there are too few of these, Lost where a process never comes."""
    if launched() == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    own, on_gpus = Processes(int(os.environ["RANK"]), launched()), device.startswith("cuda")
    if on_gpus:
        torch.cuda.set_device(_own_card(device, torch.cuda.device_count()))
    store = _store(own)
    # Of each try at the run, and of each cell of it, their own: what an earlier one left in the store would be found.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    attempt = f"{start}.{store.add(f'cells of {own.rank} in {start}', 1)}"
    with _connected():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            rank=own.rank,
            world_size=own.size,
            timeout=PATIENCE,
            store=PrefixStore(f"attempt{attempt}", store),
        )
    ended = threading.Event()
    _watch(own, PrefixStore(f"beats{attempt}", _store(own, timedelta(seconds=2 * BEAT))), ended)
    try:
        yield own
    finally:
        ended.set()
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _own_card(device: str, cards: int) -> int:
    """The number of this process's GPU. Raises InputError on every process of the machine where one has none."""
    here = on_this_machine()
    if device != "cuda":
        raise InputError(f"--device {device} names one GPU, and each of several processes takes its own; leave it out.")
    if here > cards:
        raise InputError(
            f"{here} processes on this machine need a GPU each, and it has {cards}; start as many as that."
        )
    return int(os.environ.get("LOCAL_RANK", "0"))


def _store(own: Processes, patience: timedelta = timedelta(minutes=5)) -> Any:
    """A connection to the store of the launcher, or to that of the first process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            own.size,
            is_master=own.first and not hosted,
            timeout=patience,
            multi_tenant=True,
        )
    except (KeyError, RuntimeError) as error:
        raise Lost(f"the processes of this run do not find each other: {described(error, 200)}") from error


def _watch(own: Processes, store: Any, ended: threading.Event) -> None:
    """Give a sign of life now and then, and end this process where another one gives none for SILENCE seconds: it
    hangs, and everybody would wait for it."""
    voice, others = _voice(), [rank for rank in range(own.size) if rank != own.rank]

    def watch() -> None:
        heard, seen, asleep, count = dict.fromkeys(others, time.monotonic()), dict.fromkeys(others, b""), 0.0, 0
        while True:
            asleep, count = time.monotonic(), count + 1
            if ended.wait(BEAT):
                return
            if time.monotonic() - asleep > 3 * BEAT:  # this process was stopped itself, and others perhaps with it
                heard = dict.fromkeys(others, time.monotonic())
            with contextlib.suppress(RuntimeError):  # the store is gone, or its host hangs: nobody is heard
                store.set(str(own.rank), str(count))
                for rank in others:
                    beat = store.get(str(rank)) if store.check([str(rank)]) else b""
                    if beat != seen[rank]:
                        seen[rank], heard[rank] = beat, time.monotonic()
            silent = [rank for rank, at in heard.items() if time.monotonic() - at > SILENCE]
            if not silent or ended.is_set():
                continue
            if own.rank == min(rank for rank in range(own.size) if rank not in silent):
                said = f"process {silent[0]} of {own.size} does not answer any more; the same command continues."
                print(f"alignbench: {said}", file=voice, flush=True)
            os._exit(HANGS)

    threading.Thread(target=watch, daemon=True, name="alignbench-watch").start()


_VOICE: Final = "ALIGNBENCH_VOICE"  # the file descriptor of standard error before it was silenced


def silence() -> None:
    """Let this process say nothing, if another one of its run speaks."""
    if is_first():
        return
    os.environ[_VOICE] = str(os.dup(2))
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _voice() -> Any:
    """Where a process speaks for another one that cannot."""
    place = os.environ.pop(_VOICE, None)
    return sys.stderr if place is None else os.fdopen(int(place), "w", encoding="utf-8")


def leave(code: int) -> NoReturn:
    """End this process. One of several does not take its connections apart: where the run has failed they are in use,
    and their library would abort."""
    if launched() > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Within, what the connection says of a process that has gone becomes Lost."""
    try:
        yield
    except RuntimeError as error:  # DistNetworkError, DistStoreError and gloo's own
        said = "another process of this run has ended; the same command continues from the last checkpoint."
        raise Lost(said) from error


def _words(error: BaseException) -> str:
    """What an error is made of when it is raised anew."""
    if isinstance(error, CannotContinue):
        return error.what
    return str(error) if isinstance(error, AlignbenchError) else described(error, 600)


def _status(error: BaseException) -> int:
    """The place of an error among KINDS, from 1."""
    from alignbench.devices import is_full

    if is_full(error):
        return 1 + KINDS.index(MemoryError)
    return 1 + next((k for k, kind in enumerate(KINDS) if isinstance(error, kind)), KINDS.index(RunError))


def _common(kind: type[BaseException]) -> type[BaseException]:
    """The same kind of error, known to be everybody's."""
    return type(kind.__name__, (kind, Common), {})
