"""Prints what `alignbench compare` needs for 50 large files: `python tests/timings/compare_many.py`.

50 files of 3,200 rows (800 prompts, 4 images each) with 5 scorers: base, best-of-n at four sizes, and 15 trained
methods with three seeds. The command runs as its own process, three times. Beside its seconds and peak memory stand the
limits, and how long a plain `json.load` of the same files takes in this process.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignbench.keys import Key
from alignbench.record import result as results
from alignbench.record.result import Configuration, Costs, Evaluation, PromptRow, Result, Row, Scorer

PROMPTS, IMAGES = 800, 4
SCORERS = ("truth", "style", "preference", "sharpness", "jpeg")
CATEGORIES = ("animals", "people", "vehicles", "indoor scenes")
SECONDS, GIBIBYTES = 5.0, 1.0  # the limits
REPEATS = 3
EVALUATION = Evaluation(
    model={"name": "tiny", "image_shape": [3, 32, 32], "revision": "0" * 40},
    prompts="shapes", split="test", prompts_sha256="0" * 64, eval_seed=0,
)  # fmt: skip


class Method(NamedTuple):
    """What is run once, or once per seed."""

    algorithm: str
    fields: dict[str, float]
    reward: str
    seeds: tuple[int | None, ...] = (None,)


def methods() -> Iterator[Method]:
    yield Method("base", {}, "truth")
    for n in (2, 4, 8, 16):
        yield Method("best_of_n", {"n": n}, "truth")
    for algorithm in ("ddpo", "dpo", "draft", "grpo", "reward_weighted"):
        for rate, reward in ((1e-4, "truth"), (3e-4, "truth"), (1e-4, "style")):
            yield Method(algorithm, {"learning_rate": rate, "clip": 0.1, "rounds": 200}, reward, (0, 1, 2))


def one(method: Method, seed: int | None, prompts: int = PROMPTS, images: int = IMAGES) -> Result:
    """A result whose scores have an effect of the prompt, a gain of the method, and noise of their own."""
    name = f"{method.algorithm} {method.fields} {method.reward}"
    prompt_effect = Key("prompts").generator().normal(size=(prompts, 1, len(SCORERS)))
    gain = 0.3 * Key("gain", name).generator().normal(size=len(SCORERS)) * (method.algorithm != "base")
    noise = Key("noise", name, seed or 0).generator().normal(size=(prompts, images, len(SCORERS)))
    scores = np.round(prompt_effect + gain + noise, 6).tolist()
    counts = {f"{r}_{d}": 1000 for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")}
    curve = [
        {"round": k, "held_out": dict.fromkeys(SCORERS, k / 200), "seconds": 2.0 * k, **counts}
        for k in range(1, 201)
        if seed is not None
    ]
    identity = Scorer(
        id="1", files={"weights": "0" * 64}, preprocessing="none", tie_epsilon=1e-6, range="real",
        higher_is_better=True, versions={"torch": "2.11"},
    )  # fmt: skip
    return Result(
        schema=1, status="complete", trains=seed is not None,
        configuration=Configuration(
            algorithm=method.algorithm, fields=method.fields, model="tiny", prompts="shapes", split="test", limit=None,
            images_per_prompt=images, reward=method.reward, train_prompts="shapes", scorers=list(SCORERS),
            sampling={"steps": 20, "guidance": 3.0, "eta": 1.0}, dtype="float32", eval_seed=0, seed=seed,
        ),
        preset="tiny", differs_from_paper={}, evaluation=EVALUATION,
        sampler={"kind": "ddim", "steps": 20, "guidance": 3.0, "eta": 1.0},
        scorers=dict.fromkeys(SCORERS, identity),
        prompts=[
            PromptRow(id=f"shapes-{i:05}", text=f"prompt number {i} with some words", category=CATEGORIES[i % 4])
            for i in range(prompts)
        ],
        rows=[
            Row(prompt=f"shapes-{i:05}", sample=j, scores=dict(zip(SCORERS, scores[i][j], strict=True)))
            for i in range(prompts)
            for j in range(images)
        ],
        metrics={}, curve=curve, budget=None,
        cost=Costs(
            alignment=counts, alignment_seconds=400.0, per_image=dict[str, float](counts), per_image_seconds=0.1,
            peak_memory_bytes=2**30,
        ),
        environment={}, attempts=1, started="2026-01-01T00:00:00+00:00", finished="2026-01-01T01:00:00+00:00",
    )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k, method in enumerate(methods()):
            for seed in method.seeds:
                results.write(folder / f"{k:02}-{method.algorithm}-seed{seed}.json", one(method, seed))
        files = sorted(folder.glob("*.json"))
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"{len(files)} files, {PROMPTS * IMAGES} rows, {len(SCORERS)} scorers, {size:.0f} MiB")

        # Before the files are loaded here: the memory of a child is never below its parent's at the start.
        seconds, processor = [], []
        for _ in range(REPEATS):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, "-m", "alignbench", "compare", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(time.perf_counter() - start)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

        start = time.perf_counter()
        for file in files:
            with open(file, encoding="utf-8") as handle:
                json.load(handle)
        peer = time.perf_counter() - start

    each = ", ".join(f"{x:.2f}" for x in seconds)
    print(f"compare: {statistics.median(seconds):.2f} s (of {each}), limit {SECONDS:.0f} s")
    print(f"         {statistics.median(processor):.2f} s of processor time, user and system")
    print(f"         {memory:.2f} GiB at its peak, limit {GIBIBYTES:.0f} GiB")
    print(f"json.load of the same files, nothing else: {peer:.2f} s")


if __name__ == "__main__":
    main()
