"""Sides of a comparison, each in a process of its own, that work by turns: what else this machine does meets all."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def serve(work: Callable[[str], None], device: str, **about: Any) -> None:
    """In a side's process: says `about` once. At each word on standard input does the work it means, and says the
    seconds of the clock and of processors that it took, and the most MiB that were held so far."""
    from alignbench import devices

    stream, sys.stdout = sys.stdout, sys.stderr

    def say(found: Row) -> None:
        print(json.dumps(found), file=stream, flush=True)

    say(about)
    devices.reset_peak(device)
    for line in sys.stdin:
        clock, used = time.perf_counter(), time.process_time()
        work(line.strip())
        if device != "cpu":
            import torch

            torch.cuda.synchronize()
        found = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - used}
        say(found | {"peak_mib": devices.peak(device) / 2**20})


class Side:
    """A process that works when it is asked to."""

    def __init__(self, command: Sequence[str]) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process: Any = subprocess.Popen([sys.executable, *command], env=environment, text=True, **pipes)
        self.about = self._read()

    def __call__(self, word: str = "") -> Row:
        """One turn."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Row:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args[1:])}: ended with {self.process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def sides(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Side]]:
    """The sides by name, at work."""
    found: dict[str, Side] = {}
    try:
        for name, command in commands.items():
            found[name] = Side(command)
        yield found
    finally:
        for side in found.values():
            side.process.kill()
            side.process.wait()


def by_turns(own: Mapping[str, Callable[[], Row]], turns: int) -> dict[str, list[Row]]:
    """What each side says of each turn, after one that does not count."""
    for side in own.values():
        side()
    found: dict[str, list[Row]] = {name: [] for name in own}
    for _ in range(turns):
        for name, side in own.items():
            found[name].append(side())
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """The middle, the least and the most of several turns."""
    rounded = [round(value, 4) for value in (statistics.median(values), min(values), max(values))]
    return dict(zip(("median", "least", "most"), rounded, strict=True))


def ratios(rows: Sequence[Row], peer: Sequence[Row], what: str) -> dict[str, float]:
    """How many times as long as ours the peer took, turn by turn."""
    return spread([theirs[what] / ours[what] for ours, theirs in zip(rows, peer, strict=True)])


def shown(found: Mapping[str, float], digits: int = 2) -> str:
    """A spread, as tables show it."""
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"
