"""Tables of how fast alignbench is, for results/timings/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "results" / "timings"
Row = Sequence[str]


def _stored(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def shown(found: Mapping[str, float], digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def options() -> tuple[str, list[Row]]:
    header = (
        "option|images, times as fast:|pairs of DPO, times as fast:|peak MiB:|picture differs by:|gradient:|first s:"
    )
    rows = []
    for name, found in _stored("options")["options"].items():
        speeds = [shown(found[work]["ratio_of_processor_seconds"]) for work in ("generate", "update")]
        rows.append(
            [
                name if name == "none" else f"`--{name}`",
                *speeds,
                f"{found['update']['peak_mib']}",
                _small(found["picture_differs_by"]),
                _small(found["gradient_differs_by"]),
                f"{found['first_seconds']:.0f}",
            ]
        )
    return header, rows


def generation() -> tuple[str, list[Row]]:
    header = "model|images a processor second:|diffusers:|ratio:|ratio of seconds:|peak MiB:|diffusers:"
    rows = []
    for model, found in _stored("generation")["models"].items():
        of = [found[side] for side in ("ours", "diffusers")]
        speeds = [f"{side['images_a_processor_second']['median']:.1f}" for side in of]
        spreads = [shown(found[f"ratio_of_{kind}"]) for kind in ("processor_seconds", "seconds")]
        rows.append([f"`{model}`", *speeds, *spreads, *(f"{side['peak_mib']}" for side in of)])
    return header, rows


LABELS = {
    "first line": "the first line of `alignbench run --algo base --model tiny`",
    "compare results": "`alignbench compare results/*.json`",
    "compare testbed": "`alignbench compare results/testbed`",
    "cell": "`alignbench run --algo base --model tiny`, whole",
}
PARTS = {
    "imports": "of that, PyTorch, diffusers and transformers are imported",
    "passes": "and the denoiser alone, called by diffusers as often",
}


def start_up() -> tuple[str, list[Row]]:
    content = _stored("start_up")
    rows = []
    for work, found in content["works"].items():
        own = [shown(found["ours"]["seconds"], 1)]
        own += [shown(found["ours"]["processor_seconds"], 1) if "processor_seconds" in found["ours"] else "–"]
        times = found.get("ratio_of_processor_seconds", found.get("ratio_of_seconds"))
        rows.append([LABELS[work], *own, shown(times) if times else "–"])
    for part, label in PARTS.items():
        rows.append([label, "–", shown(content["libraries"][part]["processor_seconds"], 1), "–"])
    before = f"{content['peer']}, " if "peer" in content else ""
    return f"what|seconds:|of processors:|{before}times as long:", rows
