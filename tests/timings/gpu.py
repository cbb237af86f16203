"""Speed, memory and share of the peak of one GPU, with random weights of the true sizes, against the plain ways.

    python tests/timings/gpu.py --output results/timings/gpu.json          # or: make gpu-timings
    python tests/timings/gpu.py --small --output FILE.json                 # miniatures, on any machine
    python tests/timings/gpu.py --output FILE.json --only sd15-ddpo sd15-ddpo-plain

The parts are in gpu_parts.py and the plain ways in gpu_plain.py; --list names them. Each has a process of its own and a
budget of seconds: one that runs out of memory or of time ends alone, and the file says so. The file is written after
each part, and parts that it has are not run again, so that a killed run goes on where it was; --only runs its parts
anew. No part begins that could end after --most seconds. Models are made in a folder beside the output, in bfloat16,
and stay there for the next run; delete it when all is done.

Where packages are missing, the first line says which. For a machine without a network, carry them as wheels:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest .wheels PACKAGE ...       # elsewhere
    pip install --no-index --no-deps .wheels/*.whl && pip install --no-index --no-deps --no-build-isolation -e .

PyTorch and transformers there may be older than pyproject.toml asks for; what this script needs, they have.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent / "support" / "parity")]
NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip",
    "peft",
    "safetensors",
    "jaxtyping",
    "pydantic",
    "alignbench",
)
MODELS = {"sd15": 60, "sdxl": 120}  # seconds to make one
SPARE = 5.0  # seconds that a part needs to begin and to end
KILLED = "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="miniatures in float32, a few steps")
    parser.add_argument("--only", nargs="+", metavar="PART", default=(), help="these alone, and anew")
    parser.add_argument("--most", type=float, default=460.0, help="seconds in all; default: %(default)s")
    parser.add_argument("--budget", type=float, help="seconds of each part, instead of its own")
    parser.add_argument("--list", action="store_true", help="name the parts and their seconds")
    asked = parser.parse_args()
    ended = time.monotonic() + asked.most
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"missing here: {' '.join(missing)}; the head of {Path(__file__).name} says how to carry them."
        )
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DIFFUSERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    import gpu_parts  # which imports the libraries once for all parts; nothing touches the GPU here

    if unknown := [name for name in asked.only if name not in gpu_parts.PARTS]:
        raise SystemExit(f"--only {unknown[0]}: expected one of {', '.join(gpu_parts.PARTS)}.")
    if asked.list:
        print("\n".join(f"{name:28}{part.seconds:5.0f} s" for name, part in gpu_parts.PARTS.items()))
        return
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    work = asked.output.absolute().with_suffix(".models")
    report = read(asked.output, asked.small)
    for name in asked.only:
        report["parts"].pop(name, None)
    for name in asked.only or gpu_parts.PARTS:
        if name in report["parts"]:
            continue
        budget = asked.budget or gpu_parts.PARTS[name].seconds
        left = ended - time.monotonic()
        if left < budget + SPARE:
            print(f"{name}: not begun, with {left:.0f} of --most {asked.most:g} seconds left; the same command goes on")
            continue
        made = model_of(gpu_parts.PARTS[name].family, work, asked.small, ended)
        found = made or apart(gpu_parts.measure, (name, work, asked.small), min(budget, ended - time.monotonic()))
        report["parts"][name] = found
        report["environment"] = found.pop("environment", report.get("environment"))
        keep(asked.output, report)
        print(gpu_parts.line(name, report["parts"]), flush=True)


def read(path: Path, small: bool) -> dict[str, Any]:
    """What an earlier run of the same sizes found."""
    if not path.exists():
        return {"schema": 1, "small": small, "parts": {}}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report["small"] != small:
        raise SystemExit(
            f"{path} is of {'miniatures' if report['small'] else 'the true sizes'}; name another --output."
        )
    return report


def keep(path: Path, report: dict[str, Any]) -> None:
    from alignbench.files import write_text

    write_text(path, json.dumps(report, indent=1) + "\n")


def model_of(family: str | None, work: Path, small: bool, ended: float) -> dict[str, Any] | None:
    """Make a family's random checkpoint unless it is there. What went wrong, or None."""
    import gpu_parts

    if family is None or (work / family).exists():
        return None
    half = work / f"{family}.half"
    shutil.rmtree(half, ignore_errors=True)  # a killed run's
    started = time.monotonic()
    found = apart(gpu_parts.make_model, (family, half, small), min(MODELS[family], ended - time.monotonic()))
    if found["status"] == "complete":
        half.rename(work / family)
        print(f"{family}: random weights made in {time.monotonic() - started:.0f} s", flush=True)
        return None
    return found | {"status": f"its model was not made: {found['status']}"}


def apart(function: Any, arguments: Sequence[Any], seconds: float) -> dict[str, Any]:
    """What a function says, in a process of its own that is killed after so many seconds. Forked, since imports take
    longer than many parts."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv() if ours.poll(seconds) else {"status": f"over its {seconds:.0f} seconds"}
    except EOFError:
        found = {"status": KILLED}
    process.join(SPARE if found["status"] == "complete" else 0)
    process.kill()
    process.join()
    return found


def child(answers: Connection, function: Any, arguments: Sequence[Any]) -> None:
    from alignbench import children

    os.environ[children.PARENT] = str(os.getppid())
    children.follow_parent()
    try:
        found = {"status": "complete"} | (function(*arguments) or {})
    except BaseException as error:
        from alignbench.devices import is_full

        traceback.print_exc()
        text = " ".join(str(error).split())[:200]
        found = {"status": "out of memory" if is_full(error) else f"{type(error).__name__}: {text}"}
    answers.send(found)
    answers.close()


if __name__ == "__main__":
    main()
