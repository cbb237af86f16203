"""Fixtures: the closed-form mixture as a fast double of every model, and the real test files where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from alignbench.diffusion.meter import Meter
from alignbench.diffusion.mixture import Mixture, MixturePipeline
from alignbench.diffusion.schedule import Schedule

TOY = Path(__file__).parent / "plugins" / "toy.py"


@pytest.fixture(autouse=True)
def _two_threads():
    """Thread counts change summation order; a fixed one keeps numbers equal between tests."""
    torch.set_num_threads(2)


@pytest.fixture
def mixture() -> MixturePipeline:
    levels = Schedule.scaled_linear()
    return MixturePipeline(Mixture.grid(), Schedule(levels, float(levels[0]), steps_offset=1), Meter())


@pytest.fixture
def real_data() -> Path:
    """The folder of published files that are not committed."""
    folder = os.environ.get("ALIGNBENCH_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNBENCH_TEST_DATA is not set; it names the folder with PartiPrompts.tsv and other real files")
    return Path(folder)


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
