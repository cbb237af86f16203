"""A small suite on the mixture, what its cells came to, and the processes that it leaves: for tests and timings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from places import TOY

from alignbench.record import result as results

FEW = {"rounds": 4, "samples_per_round": 32, "batch": 16, "learning_rate": 3e-3, "clip": 0.1}


def write_suite(folder: Path, cells: list[dict[str, Any]], **defaults: Any) -> Path:
    """A suite file with prompts beside it; results go to `results` there."""
    for name, what, count in (("points", "point", 12), ("training", "training point", 20)):
        (folder / f"{name}.txt").write_text("".join(f"{what} {i}\n" for i in range(count)))
    values = {
        "model": "mixture",
        "prompts": str(folder / "points.txt"),
        "train_prompts": str(folder / "training.txt"),
        "reward": f"{TOY}:FirstCoordinate",
        "steps": 8,
        "output": str(folder / "results"),
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"defaults": values | defaults, "cells": cells}))
    return path


def twelve(rounds: int = 4) -> list[dict[str, Any]]:
    """Twelve cells: three of them search at test time, eight train."""
    trained = {"algo": "ddpo", "seed": list(range(1, 9)), "set": FEW | {"rounds": rounds}}
    return [{"algo": "base"}, {"algo": "best_of_n", "set": {"n": [2, 4, 8]}}, trained]


def came_to(folder: Path) -> dict[str, Any]:
    """The results in a folder without what may differ: times, memory, tries and versions of the machine."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = results.read(path).model_dump(mode="json")
        for name in ("started", "finished", "attempts", "environment"):
            del content[name]
        content["cost"] = {k: v for k, v in content["cost"].items() if "seconds" not in k and "memory" not in k}
        content["curve"] = [{k: v for k, v in line.items() if k != "seconds"} for line in content["curve"]]
        found[path.name] = content
    return found


def started(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """`alignbench` with these words, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "alignbench", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(words: list[str], **environment: str) -> dict[str, Any]:
    """What a suite that must succeed says with --json."""
    process = started([*words, "--json"], **environment)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err + out
    content: dict[str, Any] = json.loads(out)
    return content


def processes_with(word: str) -> Mapping[int, str]:
    """The commands of the processes whose environment holds a word, such as the name of a folder; not this one."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if word.encode() in (place / "environ").read_bytes() and int(place.name) != os.getpid():
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def cells_with(word: str) -> list[int]:
    """Likewise those that run a cell."""
    return [process for process, command in processes_with(word).items() if " run --config " in command]


def wait_for(condition: Any, seconds: float = 120.0) -> Any:
    """What a condition gives once it gives something. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise TimeoutError(f"it never came to be: {condition}")


def parent_of(process: int) -> int | None:
    """The process that started one; None once that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[1]) if fields[0] != "Z" else None
    return None


def children_of(process: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    every = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    return [one for one in every if parent_of(one) == process]


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
