"""Tables of how fast alignbench is, for results/timings/README.md."""

from __future__ import annotations

import json
import statistics
import textwrap
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


def scorers() -> tuple[str, list[Row]]:
    content = _stored("scorers")
    rows = []
    for name, found in content["scorers"].items():
        sides = (found["ours"], found["official"])
        speeds = [f"{content['images'] / statistics.median(side['processor_seconds']):.0f}" for side in sides]
        added = [f"{side['peak_mib'] - side['loaded_mib']:.0f}" for side in sides]
        rows.append([f"`{name}`", *speeds, shown(found["ratio"]), *(f"{x['peak_mib']:.0f}" for x in sides), *added])
    return "scorer|pictures a processor second:|official:|ratio:|peak MiB:|official:|of it in scoring:|official:", rows


def full_scorers() -> tuple[str, list[Row]]:
    """Memory is the most that a process held from its start, loading included."""
    content = _stored("scorers")["full"]
    rows = []
    for name, found in content["scorers"].items():
        sides = (found["ours"], found["official"])
        speeds = [f"{60 * content['images'] / statistics.median(side['processor_seconds']):.0f}" for side in sides]
        most = [f"{max(side['loading_mib'], side['peak_mib']):.0f}" for side in sides]
        loaded = [f"{side['loaded_mib']:.0f}" for side in sides]
        rows.append([f"`{name}`", f"{content['repetitions']}", *speeds, shown(found["ratio"]), *most, *loaded])
    return (
        "scorer|turns:|pictures a processor minute:|official:|ratio:|most MiB:|official:|loaded:|official:",
        rows,
    )


def scorers_together() -> str:
    content = _stored("scorers")
    medians = [found["ratio"]["median"] for found in content["scorers"].values()]
    return _paragraph(
        f"Each of ours scores {min(medians):.2f} to {max(medians):.2f} times the official code's pictures per second "
        "of a processor. All five together, as one `alignbench score` has them, are "
        f"{shown(content['five']['ratio'])} times as fast as one after the other.{_shared(content)}"
    )


def scorers_memory() -> str:
    content = _stored("scorers")
    more = [found["ours"]["loaded_mib"] - found["official"]["loaded_mib"] for found in content["scorers"].values()]
    growth = " and ".join(f"{peak:.0f} MiB with {count}" for count, peak in content["growth"].items())
    said = (
        f"Memory does not grow with the pictures: all five together hold {growth}. With these small networks ours hold "
        f"{min(more):.0f} to {max(more):.0f} MiB more than the official code before they score."
    )
    if found := content.get("imports"):
        own = {name: found[name] - found["torch"] for name in ("transformers", "open_clip", "both", "official")}
        ours, official = (found["versions"][side].rpartition(".")[0] for side in ("ours", "official"))
        said += (
            f" Torch alone holds {found['torch']:.0f}. Importing CLIP from transformers {ours} adds "
            f"{own['transformers']:.0f}, open_clip {own['open_clip']:.0f}, and both {own['both']:.0f}; from "
            f"transformers {official}, which PickScore, CLIP and the aesthetic predictor have on the official side, "
            f"CLIP adds {own['official']:.0f}."
        )
    return _paragraph(said)


def full_scorers_shared() -> str:
    """What to know of the machine of the published sizes, below their table."""
    said = _shared(_stored("scorers")["full"])
    return f"\n{_paragraph(said.strip())}" if said else ""


def _shared(content: dict[str, Any]) -> str:
    return " The machine was shared with other work." if "shared with other work" in content["machine"] else ""


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) + "\n"
