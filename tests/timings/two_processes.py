"""Prints how much sooner two processes end than one: `python tests/timings/two_processes.py [--output FILE]`.

Generation, DDPO and Diffusion-DPO on the embedded model, one thread for each process, one and two processes by turns.
Seconds are those from when all processes are ready until the last one is done; the share of communication is what the
first process spends in exchanges, and in waiting for them. Then a suite of eight cells of DDPO on the exact testbed,
one after another and two at once (`--jobs 2`), from the command's start to its end; what both write must be equal. Give
it a machine with two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "system")]

FIELDS: dict[str, dict[str, Any]] = {
    "ddpo": {"rounds": 2, "samples_per_round": 64, "updates_per_round": 2, "batch": 8},
    "diffusion_dpo": {"rounds": 2, "updates_per_round": 4, "pairs_per_update": 64, "batch": 8},
}
IMAGES, BATCH = 128, 8
SUITE, CELLS = "a suite of eight cells", 8


def of_one_process(folder: Path) -> None:
    import torch
    from on_tiny import pictures_with_pairs

    from alignbench import plugins
    from alignbench.asking.presets import build_algorithm
    from alignbench.diffusion.rollout import PipelineSampler
    from alignbench.experiment import evaluate
    from alignbench.experiment.align import align
    from alignbench.processes import Processes, joined
    from alignbench.progress import Progress
    from alignbench.record.pictures import slots

    torch.set_num_threads(1)
    exchanging = [0.0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            started = time.monotonic()
            try:
                return method(*given)
            finally:
                exchanging[0] += time.monotonic() - started

        return call

    for name in ("gather", "sum_gradients", "agree", "told", "total", "check_same"):
        inner = timed(getattr(Processes, name))
        setattr(Processes, name, inner)

    with joined("cpu") as processes, processes.together():
        toy, found = pictures_with_pairs(steps=10), {}
        nobody_inside = Processes.agree

        def measured(name: str, what: Callable[[], Any]) -> None:
            nobody_inside(processes, 0)
            exchanging[0], started = 0.0, time.monotonic()
            what()
            own = exchanging[0]
            nobody_inside(processes, 0)
            seconds = time.monotonic() - started
            found[name] = {"seconds": seconds, "exchanging": own / seconds}

        def generated() -> None:
            wanted, sampler = slots(4, IMAGES // 4), PipelineSampler(toy.pipeline, toy.sampling)
            evaluate.generate(
                sampler, toy.prompts, wanted, 0, BATCH, toy.meter, folder / "images", Progress(quiet=True), None, None,
                processes,
            )  # fmt: skip

        def aligned(name: str) -> None:
            problem = toy.problem(folder / f"{name}-{processes.rank}")
            problem.processes = processes
            align(build_algorithm(name, plugins.load("algorithms", name), "tiny", FIELDS[name])[0], problem)

        (folder / "images").mkdir(exist_ok=True)
        toy.pipeline.condition(toy.training[:2])  # the first pass allocates
        measured("generation", generated)
        for name in FIELDS:
            measured(name, lambda name=name: aligned(name))  # type: ignore[misc]
        if processes.first:
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def measured_with(processes: int) -> dict[str, dict[str, float]]:
    from several import environments

    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen([sys.executable, __file__, "--process", folder], env=own)
            for own in environments(processes)
        ]
        assert [process.wait(1200) for process in running] == [0] * processes
        found: dict[str, dict[str, float]] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return found


def suites(rounds: int) -> list[float]:
    """Seconds of a suite with one cell at a time, and with two, which come to the same results."""
    from suites import FEW, came_to, finished, write_suite

    with tempfile.TemporaryDirectory() as folder:
        cells = [
            {"algo": "ddpo", "seed": list(range(1, CELLS + 1)), "set": FEW | {"rounds": rounds, "learning_rate": 1e-4}}
        ]
        path, seconds = write_suite(Path(folder), cells), []
        for jobs in ("1", "2"):
            started = time.monotonic()
            finished(["suite", str(path), "--jobs", jobs, "--output", str(Path(folder, jobs))])
            seconds.append(time.monotonic() - started)
        one, two = (came_to(Path(folder, jobs)) for jobs in ("1", "2"))
        assert len(one) == CELLS
        assert one == two
    return seconds


def turn(rounds: int) -> dict[int, dict[str, dict[str, float]]]:
    """Each work with one process and with two."""
    found = {n: measured_with(n) for n in (1, 2)}
    for n, seconds in zip((1, 2), suites(rounds), strict=True):
        found[n][SUITE] = {"seconds": seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100, help="of each cell of the suite")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.process:
        of_one_process(asked.process)
        return
    runs = [turn(asked.rounds) for _ in range(asked.repeats)]
    content: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count()}}
    for name in ("generation", *FIELDS, SUITE):
        ratios = sorted(run[1][name]["seconds"] / run[2][name]["seconds"] for run in runs)
        one, two = (statistics.median(run[n][name]["seconds"] for run in runs) for n in (1, 2))
        content[name] = {"one": one, "two": two, "ratios": ratios, "exchanging": None}
        shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        if name != SUITE:
            share = statistics.median(run[2][name]["exchanging"] for run in runs)
            content[name]["exchanging"], shown = share, f"{shown}  exchanging and waiting {100 * share:.0f} %"
        print(f"{name:22} one {one:6.2f} s  two {two:6.2f} s  ratio {shown}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if asked.output:
        asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
