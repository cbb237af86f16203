"""Fixtures: the closed-form mixture as a fast double of every model, and the real test files where they are."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two threads that spin take ten times as long beside other work

import checked_shapes  # noqa: F401, from here on the import hook checks shapes alone
import torch
import warm
from pages import Facts
from parity import recipe
from places import ROOT, TOY
from result_files import writer

from alignbench import Key, Prompts, Sampling
from alignbench.asking.resolve import Cell, resolve
from alignbench.asking.suite import read_suite
from alignbench.diffusion.schedule import Schedule
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import CellProblem
from alignbench.meter import Meter
from alignbench.progress import Progress
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid


def pytest_collection_finish(session: pytest.Session) -> None:
    """Garbage collections need not walk all modules and tests again and again, and may be rare: they take 6 % of the
    time at Python's thresholds."""
    if any(item.get_closest_marker("slow") for item in session.items):
        warm.preload_networks()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def reference_cells() -> list[Cell]:
    """The cells of the embedded model's reference results, once for all tests: resolving them takes seconds."""
    specs = read_suite(ROOT / "benchmarks" / "suites" / "tiny.yaml")
    return [resolve(spec.model_copy(update={"output": ROOT / "results"})) for spec in specs]


@pytest.fixture(scope="session")
def facts() -> Facts:
    """What pages say of the committed results, compared once for all tests: that takes seconds a folder."""
    return Facts()


@pytest.fixture(autouse=True)
def _one_thread():
    """Thread counts change summation order, and two threads crawl beside another busy process."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch):
    """Lines of any length are printed, as into a pipe, whatever terminal the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


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
    """A function that writes a small complete result file to `tmp_path`; see `result_files.writer`."""
    return writer(tmp_path)
