r"""Every algorithm on checkpoints of the true architectures with random weights: seconds and peak memory.

    python tests/support/random_models.py sd15 /tmp/sd15
    python tests/timings/real_models.py /tmp/sd15 --resolution 64 --output results/timings/sd15.json
    python tests/support/random_models.py sd35 /tmp/sd35 --dtype bfloat16
    python tests/timings/real_models.py /tmp/sd35 --dtype bfloat16 --algorithms base diffusion_dpo \
        --output results/timings/sd35.json

One process per algorithm, as a user starts it: two training prompts, one evaluated, two or three steps. `--memory` also
measures what each memory option is worth. Rows that the output has already are not measured again. On a machine with a
GPU the runs are on it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from places import COLOURS
from random_models import SHORTEST

from alignbench.files import write_text
from alignbench.record.environment import environment

REWARD = f"{COLOURS}:Brightness"
SHORT_REWARD = "tests/support/plugins/colours.py:Brightness"
OWN_STEPS = ("classifier_guidance", "demon", "doodl")  # take --set steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--resolution", default="64")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--algorithms", nargs="*", default=sorted(SHORTEST))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    import torch

    common = ["--dtype", asked.dtype, "--resolution", asked.resolution, "--guidance", "2"]
    wanted: list[tuple[str, str, list[str], Mapping[str, Any]]] = [("", algo, common, {}) for algo in asked.algorithms]
    if asked.memory:
        wanted += [(what, algo, ["--dtype", asked.dtype, *more], fields) for what, algo, more, fields in MEMORY]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {"model": asked.model.name, "resolution": asked.resolution, "dtype": asked.dtype}
    report |= {"environment": environment(device)}
    rows = json.loads(asked.output.read_text())["rows"] if asked.output and asked.output.exists() else []
    done = {(row["option"], row["algorithm"]) for row in rows if row["status"] == "complete"}
    rows = [row for row in rows if row["status"] == "complete"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "train.txt").write_text("a training prompt\nanother training prompt\n")
        (work / "test.txt").write_text("a red circle\n")
        for what, algo, more, fields in wanted:
            if (what, algo) in done:
                continue
            rows.append({"option": what} | run(asked.model, work, algo, more, fields))
            print(line(rows[-1]), flush=True)
            if asked.output is not None:
                write_text(asked.output, json.dumps(report | {"rows": rows}, indent=1) + "\n")


# What each memory option is worth: the same work with and without it.
DRAFT = {"rounds": 1, "updates_per_round": 1, "samples_per_update": 4, "batch": 4, "steps": 2, "last_steps": 1}
TRAIN = {"rounds": 1, "updates_per_round": 1, "pairs_per_update": 4, "batch": 4, "warmup": 0}
TRAINED = ["--resolution", "128", "--batch-size", "1", "--guidance", "1"]
DRAWN = ["--resolution", "256", "--images-per-prompt", "4", "--guidance", "1"]
LARGE = ["--resolution", "768", "--guidance", "1"]
MEMORY: Sequence[tuple[str, str, list[str], Mapping[str, Any]]] = (
    ("four pairs in a forward pass", "diffusion_dpo", TRAINED, TRAIN),
    ("checkpointing", "diffusion_dpo", [*TRAINED, "--checkpointing"], TRAIN),
    ("one pair, accumulated", "diffusion_dpo", TRAINED, TRAIN | {"batch": 1}),
    ("through the decoder", "draft", TRAINED, DRAFT),
    ("through the decoder, checkpointing", "draft", [*TRAINED, "--checkpointing"], DRAFT),
    ("through the decoder, one image", "draft", TRAINED, DRAFT | {"batch": 1}),
    ("four images decoded", "base", DRAWN, {}),
    ("sliced", "base", [*DRAWN, "--vae-slicing"], {}),
    ("one large image decoded", "base", LARGE, {}),
    ("tiled", "base", [*LARGE, "--vae-tiling"], {}),
)


def run(model: Path, work: Path, algo: str, more: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell in a process of its own."""
    own = {**SHORTEST[algo], **fields}
    command = [
        "run",
        "--algo",
        algo,
        "--model",
        str(model),
        "--reward",
        REWARD,
        "--scorers",
        REWARD,
        "--output",
        str(work / "results"),
    ]
    command += ["--prompts", str(work / "test.txt"), "--train-prompts", str(work / "train.txt")]
    command += ["--force", "--json", *more]
    steps = "3" if algo == "steering" else "1" if fields else "2"  # it looks at its particles before the last
    command += [] if algo in OWN_STEPS else ["--steps", steps]
    command += [] if algo in ("demon", "doodl") else ["--eta", "1"]
    if algo in ("diffusion_dpo", "sft"):
        command += ["--pair-count", "4"]
    for name, value in own.items():
        command += ["--set", f"{name}={value}"]
    variables = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}
    before = processor_seconds()
    done = subprocess.run([sys.executable, "-m", "alignbench", *command], capture_output=True, text=True, env=variables)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"]  # 9: out of memory
        return {"algorithm": algo, "status": said[-1][:300]}
    values = json.loads(done.stdout)
    content = json.loads(Path(values["path"]).read_text())
    cost = content["cost"]
    return {
        "algorithm": algo,
        "status": content["status"],
        "command": " ".join(["alignbench", *(plain(part, work, model) for part in command)]),
        "alignment_seconds": cost["alignment_seconds"],
        "image_seconds": round(cost["per_image_seconds"], 2),
        "processor_seconds": round(processor_seconds() - before, 1),
        "peak_mib": round(cost["peak_memory_bytes"] / 2**20),
    }


def processor_seconds() -> float:
    """Of the processes that have ended: of a whole command, with its start and loading. Other work adds nothing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plain(part: str, work: Path, model: Path) -> str:
    """A word of a command, without folders of this machine."""
    return part.replace(f"{work}/", "").replace(str(model), model.name).replace(str(REWARD), SHORT_REWARD)


def line(row: Mapping[str, Any]) -> str:
    shown = [f"{row.get('option', ''):36}{row['algorithm']:28}{row['status']:10}"]
    figures = ("alignment_seconds", "image_seconds", "processor_seconds", "peak_mib")
    shown += [f"{name} {row[name]}" for name in figures if name in row]
    return "  ".join(shown)


if __name__ == "__main__":
    main()
