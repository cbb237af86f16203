"""Prints how soon a run says something, how long `compare` takes on the reference files, and how long a whole `base`
cell takes on the embedded model.

    python tests/timings/start_up.py [--peer FOLDER] [--output results/timings/start_up.json]

With `--peer`, a folder with another state of this repository does the same by turns, in the same environment. Then what
of the cell is not alignbench: importing the libraries, and the denoiser's passes on random numbers, by diffusers alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turns import Row, by_turns, ratios, shown, spread

from alignbench.files import write_text
from alignbench.record.environment import environment

ROOT = Path(__file__).resolve().parents[2]
# The command of a folder: plug-ins lie beside the core there.
COMMAND = """
import sys
root = sys.argv.pop(1)
sys.path.insert(0, root)
import alignbench
alignbench.__path__.append(root)
from alignbench.__main__ import main
main()
"""
CELL = ("run", "--algo", "base", "--model", "tiny", "--device", "cpu", "--output")
WORKS = {
    "first line": "of `alignbench run --algo base --model tiny`",
    "compare results": "`alignbench compare` on the reference files",
    "compare testbed": "`alignbench compare results/testbed`",
    "cell": "`alignbench run --algo base --model tiny`, whole",
}
IMPORTS = """
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""
PASSES = """
import sys, time
from alignbench.devices import keep_freed
keep_freed()
unet = UNet2DConditionModel.from_pretrained(sys.argv[1]).eval()
channels, side, width = unet.config.in_channels, unet.config.sample_size, unet.config.cross_attention_dim
before = time.process_time()
with torch.no_grad():
    for b in map(int, sys.argv[4:]):
        x, text = torch.randn(2 * b, channels, side, side), torch.randn(2 * b, int(sys.argv[3]), width)
        for step in range(int(sys.argv[2])):
            unet(x, step, text)
print(time.process_time() - before)
"""
WITHIN = {"first line": 3.0, "compare results": 3.0, "compare testbed": 3.0}  # seconds


def words(work: str, folder: Path) -> Sequence[str]:
    if work == "compare results":
        return ["compare", *map(str, sorted((ROOT / "results").glob("*.json")))]
    if work == "compare testbed":
        return ["compare", str(ROOT / "results" / "testbed")]
    return [*CELL, str(folder)]


def timed(root: Path, work: str) -> Row:
    """Seconds of one command, or until its first line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COMMAND, str(root), *words(work, Path(folder) / "results")]
        own = os.environ | {"XDG_CACHE_HOME": folder}  # else the scores would be known
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=own, cwd=folder)
        assert process.stdout is not None
        first = process.stdout.readline()
        if work == "first line":
            seconds = time.perf_counter() - started
            process.kill()
        rest = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if work != "first line":
            seconds = time.perf_counter() - started
            if process.returncode:
                raise SystemExit(f"{work} in {root}: {(first + rest).decode().strip().splitlines()[-1]}")
        return {"seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime}


def of_libraries(turns: int) -> dict[str, list[float]]:
    """Processor seconds of importing what the cell imports of others, and of its passes of the denoiser, guided."""
    from alignbench.asking import prompts
    from alignbench.devices import BATCH, chunked
    from alignbench.diffusion.registry import find

    tiny = find("tiny")
    weights = ROOT / "alignbench" / "shapes" / "weights" / "tiny"
    words = json.loads((weights / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    batches = [str(len(part)) for part in chunked(range(len(prompts.take("shapes", "test"))), BATCH[3])]
    found: dict[str, list[float]] = {"imports": [], "passes": []}
    for _ in range(turns):
        before = os.times()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        after = os.times()
        found["imports"].append(sum(after[2:4]) - sum(before[2:4]))  # of children that have ended
        own = [str(weights / "unet"), str(tiny.steps), str(words), *batches]
        said = subprocess.run(
            [sys.executable, "-c", IMPORTS + PASSES, *own], check=True, capture_output=True, text=True
        )
        found["passes"].append(float(said.stdout))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    roots = {"ours": ROOT} | ({"peer": asked.peer.resolve()} if asked.peer else {})
    report: dict[str, Any] = {"turns": asked.turns, "works": {}}
    if asked.peer:
        commit = ["git", "-C", str(asked.peer), "rev-parse", "--short", "HEAD"]
        report["peer"] = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    for work in asked.works:
        rows = by_turns({name: functools.partial(timed, root, work) for name, root in roots.items()}, asked.turns)
        kinds = ["seconds"] if work == "first line" else ["seconds", "processor_seconds"]
        found: dict[str, Any] = {
            name: {kind: spread([row[kind] for row in of]) for kind in kinds} for name, of in rows.items()
        }
        line = f"{work}: {shown(found['ours']['seconds'])} s"
        line += f", wanted within {WITHIN[work]:g}" if work in WITHIN else ""
        if asked.peer:
            found |= {f"ratio_of_{kind}": ratios(rows["ours"], rows["peer"], kind) for kind in kinds}
            line += "".join(f"; the peer's {kind} by ours {shown(found[f'ratio_of_{kind}'])}" for kind in kinds)
        print(line.replace("_", " "), flush=True)
        report["works"][work] = found
    if "cell" in asked.works:
        parts = of_libraries(asked.turns)
        report["libraries"] = {name: {"processor_seconds": spread(seconds)} for name, seconds in parts.items()}
        for name, found in report["libraries"].items():
            print(f"{name}: {shown(found['processor_seconds'])} processor seconds", flush=True)
    report["environment"] = environment("cpu")
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
