"""Fixtures: the closed-form mixture as a fast double of every model, and the real test files where they are."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity import recipe
from places import ROOT, TOY

from alignbench import Key, Prompts, Sampling
from alignbench.asking.resolve import Cell, resolve
from alignbench.asking.suite import read_suite
from alignbench.diffusion.schedule import Schedule
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import CellProblem
from alignbench.meter import Meter
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid


@pytest.fixture(scope="session")
def reference_cells() -> list[Cell]:
    """The cells of the embedded model's reference results, once for all tests: resolving them takes seconds."""
    specs = read_suite(ROOT / "benchmarks" / "suites" / "tiny.yaml")
    return [resolve(spec.model_copy(update={"output": ROOT / "results"})) for spec in specs]


@pytest.fixture(autouse=True)
def _one_thread():
    """Thread counts change summation order, and two threads crawl beside another busy process."""
    torch.set_num_threads(1)


@pytest.fixture
def mixture() -> MixturePipeline:
    levels = Schedule.scaled_linear()
    return MixturePipeline(grid().mixture, Schedule(levels, float(levels[0]), steps_offset=1), Meter())


@pytest.fixture
def make_problem(mixture, tmp_path: Path):
    """A function that builds the problem of a pipeline, the grid by default, and a reward of its own."""

    def build(reward, pipeline=None, sampling: Sampling | None = None) -> CellProblem:
        pipeline = pipeline or mixture
        meter = getattr(pipeline, "meter", None) or pipeline.components.meter
        return CellProblem(
            pipeline=pipeline,
            reward=MeteredReward("reward", reward, meter),
            prompts=Prompts(()),
            sampling=sampling or Sampling(steps=8, guidance=1.0, eta=1.0),
            key=Key("align", 0),
            meter=meter,
            folder=tmp_path,
            progress=Progress(quiet=True),
        )

    return build


@pytest.fixture
def real_data() -> Path:
    """The folder of published files that are not committed."""
    folder = os.environ.get("ALIGNBENCH_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNBENCH_TEST_DATA is not set; it names the folder with PartiPrompts.tsv and other real files")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A folder of small random checkpoints in the published layouts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    recipe.write(folder)
    return folder


@pytest.fixture
def scorer_files(checkpoints: Path, monkeypatch) -> Path:
    """The same, where scorers look for their files."""
    monkeypatch.setenv("ALIGNBENCH_DATA", str(checkpoints))
    return checkpoints


def known(module, split, path: Path, monkeypatch):
    """Make the made file's content the expected one: sets with a hash take no other file."""
    expected = replace(module.FILES[split], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(module.FILES, split, expected)


@pytest.fixture
def prompt_files(tmp_path, monkeypatch):
    """Files of all formats, in full number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from alignbench.benchmarks import geneval

    for folder in ("geneval", "pickapic", "pickapic_train", "ymhao/HPDv2/benchmark"):
        (tmp_path / folder).mkdir(parents=True)
    for style in ("anime", "concept-art", "paintings", "photo"):
        texts = [f"a {style} picture of {i} \u00e9toiles" for i in range(800)]
        (tmp_path / f"ymhao/HPDv2/benchmark/{style}.json").write_text(json.dumps(texts))
    rows = [
        {"tag": tag, "include": [{"class": "cow", "count": i}], "prompt": f"a photo of {tag} {i}"}
        for tag, count in geneval.TAGS.items()
        for i in range(count)
    ]
    path = tmp_path / "geneval/evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(geneval, "FILE", replace(geneval.FILE, sha256=digest))
    with open(tmp_path / "drawbench.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["Prompts", "Category"])
        writer.writerows([f'number {i}, "quoted"', f"kind {i % 11}"] for i in range(200))
    for split in ("validation_unique", "test_unique"):
        table = pa.table({"caption": [f"{split} caption {i}" for i in range(500)], "label_0": [1.0] * 500})
        pq.write_table(table, tmp_path / f"pickapic/{split}-00000-of-00001-c239.parquet")
    monkeypatch.setenv("ALIGNBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def captions(prompt_files, monkeypatch):
    """Captions to train on, in full number."""
    from alignbench.benchmarks import pickapic_train

    for split, name, count in (("train", "train", 25_432), ("dev", "test", 2_048)):
        path = prompt_files / f"pickapic_train/{name}.txt"
        path.write_text("\n".join(f"a caption to {split} with, number {i}" for i in range(count)))
        known(pickapic_train, split, path, monkeypatch)
    return prompt_files


@pytest.fixture
def toy_cell(tmp_path: Path):
    """Options of a small cell on the mixture, and the prompt files it needs."""
    (tmp_path / "points.txt").write_text("".join(f"point {i}\n" for i in range(12)))
    (tmp_path / "training.txt").write_text("".join(f"training point {i}\n" for i in range(20)))

    def options(algo: str, **changes: object) -> dict[str, object]:
        values: dict[str, object] = {
            "algo": algo,
            "model": "mixture",
            "prompts": str(tmp_path / "points.txt"),
            "train_prompts": str(tmp_path / "training.txt"),
            "reward": f"{TOY}:FirstCoordinate",
            "steps": 8,
            "output": tmp_path / "results",
        }
        if algo == "ddpo":
            values["set"] = {"rounds": 4, "samples_per_round": 32, "batch": 16, "learning_rate": 3e-3, "clip": 0.1}
        return values | changes

    return options


@pytest.fixture
def make_result(tmp_path: Path):
    """A function that writes a small complete result file to `tmp_path` and returns its path.

    Scores come as a list for the scorer `r`, or as one list per scorer: prompt after prompt, `samples` images each,
    unless `pairs` names (prompt, sample) of every row. `configuration`, `evaluation`, `cost` and the entries of
    `scorers` change single values of what is written; a file with a seed is of a method that trains.
    """
    both = [f"{r}_{d}" for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")]

    def write(name, scores, algorithm="base", fields=None, seed=None, samples=1, pairs=None, **changes) -> Path:
        columns = scores if isinstance(scores, dict) else {"r": scores}
        length = len(next(iter(columns.values())))
        pairs = pairs or [(f"p{i // samples}", i % samples) for i in range(length)]
        asked = {
            "algorithm": algorithm, "fields": fields or {}, "model": "tiny", "prompts": "shapes", "split": "test",
            "limit": None, "images_per_prompt": samples, "reward": "r", "train_prompts": None,
            "scorers": list(columns), "sampling": {"steps": 20, "guidance": 3.0, "eta": 1.0}, "dtype": "float32",
            "eval_seed": 0, "seed": seed,
        }  # fmt: skip
        protocol = {
            "model": {"name": "tiny", "image_shape": [3, 32, 32]}, "prompts": "shapes", "split": "test",
            "prompts_sha256": "0" * 64, "eval_seed": 0,
        }  # fmt: skip
        identity = {
            "files": {}, "preprocessing": "none", "tie_epsilon": 0.0, "range": "real", "higher_is_better": True,
            "versions": {},
        }  # fmt: skip
        spent = {
            "alignment": dict.fromkeys(both, 0), "alignment_seconds": 0.0, "per_image": dict.fromkeys(both, 1.0),
            "per_image_seconds": 0.1, "peak_memory_bytes": 2**20,
        }  # fmt: skip
        own = changes.pop("scorers", {})
        cost = changes.pop("cost", {})
        content = {
            "schema": 1, "status": "complete", "trains": seed is not None, "preset": None, "differs_from_paper": {},
            "configuration": asked | changes.pop("configuration", {}),
            "evaluation": protocol | changes.pop("evaluation", {}),
            "sampler": {"kind": "ddim", "steps": 20},
            "scorers": {key: {"id": key} | identity | own.get(key, {}) for key in columns},
            "prompts": [{"id": prompt, "text": f"prompt {prompt}"} for prompt in dict.fromkeys(p for p, _ in pairs)],
            "rows": [
                {"prompt": prompt, "sample": sample, "scores": {key: columns[key][i] for key in columns}}
                for i, (prompt, sample) in enumerate(pairs)
            ],
            "metrics": {}, "curve": [], "budget": None, "cost": None if cost is None else spent | cost,
            "environment": {}, "attempts": 1, "started": "2026-01-01T00:00:00+00:00", "finished": None,
        }  # fmt: skip
        path = tmp_path / f"{name}.json"
        results.write(path, results.Result.model_validate(content | changes))
        return path

    return write
