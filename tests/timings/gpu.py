"""Speed, memory and share of the peak of one GPU, with random weights of the true sizes, against the plain ways.

    python tests/timings/gpu.py --output results/timings/gpu.json          # or: make gpu-timings
    python tests/timings/gpu.py --small --output FILE.json                 # miniatures, on any machine
    python tests/timings/gpu.py --output FILE.json --only sd15-ddpo sd15-ddpo-plain

The parts are in gpu_parts.py and the plain ways in gpu_plain.py; --list names them. Each has a process of its own and a
budget of seconds: one that runs out of memory or of time ends alone, and the file says so. The file is written after
each part, and parts that it has are not run again, so that a killed run goes on where it was; --only runs its parts
anew. No part begins that could end after --most seconds. Models are made in a folder beside the output, in bfloat16,
and stay there for the next run; delete it when all is done.

Where packages are missing, the first line says which. For a machine without a network that has PyTorch, transformers
and peft, `make gpu-wheels` downloads the others into .wheels (for Python 3.12); carry the folder with the checkout:

    pip install --no-index --no-deps .wheels/*.whl
    python tests/timings/gpu.py --output FILE.json

The checkout need not be installed. PyTorch and transformers there may be older than pyproject.toml asks for.
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
NEEDED = ("torch", "diffusers", "transformers", "open_clip", "peft", "safetensors", "jaxtyping", "ftfy")
MODELS = {"sd15": 60, "sdxl": 120}  # seconds to make one
ROOT = HERE.parents[1]
IMPORTS = 120.0  # seconds at most, of a process that is not forked
SPARE = 5.0  # seconds that a part needs to begin and to end
COMPLETE = "complete"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="miniatures in float32, a few steps")
    parser.add_argument("--only", nargs="+", metavar="PART", default=(), help="these alone, and anew")
    parser.add_argument("--most", type=float, default=460.0, help="seconds in all; default: %(default)s")
    parser.add_argument("--budget", type=float, help="seconds of each part, instead of its own")
    parser.add_argument("--start", choices=("fork", "spawn"), help="of processes; default: fork where a GPU allows it")
    parser.add_argument("--list", action="store_true", help="name the parts and their seconds")
    asked = parser.parse_args()
    ended = time.monotonic() + asked.most
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"missing here: {' '.join(missing)}; the head of {Path(__file__).name} says how to carry them."
        )
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"DIFFUSERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}  # no bars among the lines
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # diffusers looks for a GPU when it is imported
    find_checkout()
    import gpu_parts

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
    apart = Apart(asked.start)
    for name in asked.only or gpu_parts.PARTS:
        if name in report["parts"]:
            continue
        part, left = gpu_parts.PARTS[name], ended - time.monotonic()
        making = MODELS[part.family] if part.family and not (work / part.family).exists() else 0
        budget = asked.budget or part.seconds
        if left < making + budget + SPARE:
            print(f"{name}: not begun, with {left:.0f} of --most {asked.most:g} seconds left; the same command goes on")
            continue
        if making and part.family and not make_model(apart, part.family, work, asked.small):
            continue
        found = apart("measure", (name, work, asked.small), budget)
        report["parts"][name] = found
        report["environment"] = found.pop("environment", report.get("environment"))
        keep(asked.output, report)
        print(gpu_parts.line(name, report["parts"]), flush=True)


def find_checkout() -> None:
    """Import alignbench and its plug-ins from this checkout where it is not installed."""
    if importlib.util.find_spec("alignbench") is None:
        sys.path.insert(0, str(ROOT))
        import alignbench

        alignbench.__path__.append(str(ROOT))


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


def make_model(apart: Apart, family: str, work: Path, small: bool) -> bool:
    """Make a family's random checkpoint. Whether that went well."""
    half = work / f"{family}.half"
    shutil.rmtree(half, ignore_errors=True)  # a killed run's
    started = time.monotonic()
    status = apart("make_model", (family, half, small), MODELS[family])["status"]
    if status == COMPLETE:
        half.rename(work / family)
        print(f"{family}: random weights made in {time.monotonic() - started:.0f} s", flush=True)
    else:
        print(f"{family}: no random weights ({status}); the same command tries again", flush=True)
    return bool(status == COMPLETE)


class Apart:
    """Runs functions of gpu_parts.py in processes of their own. They are forked, since imports take longer than many
    parts, unless a library has touched the GPU in this process already: then no fork of it may."""

    def __init__(self, method: str | None) -> None:
        self.method = method or "fork"
        found = self("device", (), 120)
        if method is None and "name" not in found:
            self.method = "spawn"
            found = self("device", (), 120)
        print(f"on {found.get('name', found['status'])}", flush=True)

    def __call__(self, function: str, arguments: Sequence[Any], seconds: float) -> dict[str, Any]:
        """What the function says; its process is killed after so many seconds."""
        context: Any = multiprocessing.get_context(self.method)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(theirs, function, arguments, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        try:
            begun = ours.poll(IMPORTS) and ours.recv()  # it has imported the libraries
            found: dict[str, Any] = {"status": f"over its {seconds:g} seconds"}
            if begun and ours.poll(seconds):
                found = ours.recv()
        except EOFError:
            found = {"status": "killed"}
        process.join(SPARE if found["status"] == COMPLETE else 0)
        process.kill()
        process.join()
        return found


def child(answers: Connection, function: str, arguments: Sequence[Any], parent: int) -> None:
    find_checkout()
    from alignbench import children

    os.environ[children.PARENT] = str(parent)
    children.follow_parent()
    try:
        import gpu_parts

        answers.send("begun")
        found = {"status": COMPLETE} | (getattr(gpu_parts, function)(*arguments) or {})
    except BaseException as error:
        from alignbench.devices import is_full

        traceback.print_exc()
        text = " ".join(str(error).split())[:200]
        found = {"status": "out of memory" if is_full(error) else f"{type(error).__name__}: {text}"}
    answers.send(found)
    answers.close()


if __name__ == "__main__":
    main()
