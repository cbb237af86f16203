"""Prints how time, memory and files grow with prompts and pairs: `python tests/timings/growth.py [--output FILE]`.

Cells of the embedded model with one sampling step, so that what is measured is all that is not the model. Results of
many prompts with random scores, which `compare` and `report` read. Folders of preference pairs that share a few
pictures. Each measurement is a process of its own; seconds are those of a processor, and memory is the most that the
process held. The defaults need some four minutes of a core; a tenth of the sizes needs half a minute:

    python tests/timings/growth.py --prompts 200 2000 --rows 2000 --pairs 100000
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

IMAGES = 4  # a prompt, in results that are made up
RESULTS = (("base", None), ("refl", 0), ("refl", 1), ("refl", 2), ("draft", 0), ("best_of_n", None))
MIB = 2**20


def captions() -> Iterator[str]:
    """Captions of the shapes world, each once."""
    from alignbench.shapes.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES

    things = [f"a {' '.join(words)}" for words in itertools.product(SIZES, COLOURS, SHAPES)]
    for background, other, relation, one in itertools.product(BACKGROUNDS, things, RELATIONS, things):
        yield f"{one} {relation} {other} on a {background} background"


def measured(*words: object) -> dict[str, float]:
    """What a process of this Python needs: seconds of a processor, and MiB at its peak."""
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {process.returncode}: {said[-2000:]}")
    peak = used.ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    return {"processor_seconds": round(used.ru_utime + used.ru_stime, 3), "peak_mib": round(peak, 1)}


def here(what: Callable[[], Any]) -> dict[str, float]:
    """What something needs in this process, beyond what it held before."""
    import resource
    import time

    unit = MIB if sys.platform == "darwin" else 1024
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    what()
    seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"processor_seconds": round(seconds, 3), "added_mib": round((after - before) / unit, 1)}


def apart(name: str, *words: object) -> Any:
    """What a function of this script finds in a process of its own."""
    command = [sys.executable, __file__, "--part", name, *map(str, words)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def bytes_of(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def of_a_cell(folder: Path, prompts: int) -> dict[str, Any]:
    """One whole cell, from its command to its result."""
    file, output = folder / "captions.txt", folder / f"cell-{prompts}"
    file.write_text("\n".join(itertools.islice(captions(), prompts)), encoding="utf-8")
    words = "--algo base --model tiny --steps 1 --guidance 1 --eta 0 --scorers shapes_truth".split()
    found = measured("-m", "alignbench", "run", *words, "--prompts", file, "--output", output)
    return {"prompts": prompts, **found, "result_bytes": sum(p.stat().st_size for p in output.iterdir() if p.is_file())}


def of_results(folder: Path, prompts: int) -> dict[str, Any]:
    """Writing, reading, comparing and reporting results of so many prompts."""
    place = folder / f"results-{prompts}"
    found: dict[str, Any] = {"prompts": prompts, "rows": prompts * IMAGES}
    found |= {"write": apart("write", place, prompts), "read": apart("read", place / "base.json")}
    own = [path for path in place.iterdir() if path.name.startswith("base.")]
    found["bytes"] = {"json": (place / "base.json").stat().st_size, "all": sum(path.stat().st_size for path in own)}
    files = sorted(place.glob("*.json"))
    found["compare"] = {
        str(count): measured("-m", "alignbench", "compare", *files[:count]) for count in (2, len(files))
    }
    page = folder / "report.html"
    found["report"] = measured("-m", "alignbench", "report", *files[:2], "--output", page)
    return found | {"report_bytes": page.stat().st_size}


def written(place: Path, prompts: int) -> dict[str, float]:
    """Write results of random scores; what the last one needs."""
    from dataclasses import replace
    from hashlib import sha256

    from compare_many import Method, one

    from alignbench.record import result as results
    from alignbench.record.result import Diversity, PictureStatistic, Result

    def made(algorithm: str, seed: int | None) -> Result:
        plain = one(Method(algorithm, {}, "truth"), seed, prompts, IMAGES)
        like: dict[PictureStatistic, float] = {
            "edge_density": 0.123456,
            "colour_entropy": 3.123456,
            "saturation": 0.123456,
            "darkness": 0.123456,
        }
        rows = [
            replace(row, sha256=sha256(f"{algorithm} {seed} {i}".encode()).hexdigest(), picture=like)
            for i, row in enumerate(plain.rows)
        ]
        apart_from = [Diversity(prompt=prompt.id, pictures=0.123456, latents=1.123456) for prompt in plain.prompts]
        return plain.model_copy(update={"schema_": 2, "rows": rows, "diversity": apart_from})

    place.mkdir()
    for algorithm, seed in RESULTS:
        path = place / f"{algorithm}{'' if seed is None else seed}.json"
        result = made(algorithm, seed)
        found = here(lambda path=path, result=result: results.write(path, result))  # type: ignore[misc]
    return found


def loaded(path: Path) -> dict[str, float]:
    """Read one result."""
    from alignbench.record import result as results

    return here(lambda: results.read(path))


def of_pairs(folder: Path, pairs: int) -> dict[str, Any]:
    """A folder of pairs: opened, chosen from, known by its digest, and read in batches."""
    place = folder / f"pairs-{pairs}"
    place.mkdir()
    for i in range(4):
        (place / f"{i}.png").write_bytes(bytes(4000 + i))  # nobody looks at them
    with open(place / "pairs.jsonl", "w", encoding="utf-8") as file:
        texts = itertools.cycle(captions())
        for i, text in zip(range(pairs), texts, strict=False):
            row = {"prompt": f"{text} {i}", "images": [f"{i % 4}.png", f"{(i + 1) % 4}.png"], "label": i % 2}
            file.write(json.dumps(row | {"models": ["one", "other"]}) + "\n")
    return {"pairs": pairs, "bytes": (place / "pairs.jsonl").stat().st_size, **apart("pairs", place)}


def opened(place: Path) -> dict[str, Any]:
    import random

    import torch  # noqa: F401, what a run holds anyway

    from alignbench.preferences.choosing import Chosen, choose
    from alignbench.preferences.columns import PairSource
    from alignbench.preferences.source import open_pairs

    sources: list[PairSource] = []
    chosen: list[Chosen] = []
    drawn = random.Random(0)

    def batches() -> None:
        for _ in range(32):
            assert len(dict(chosen[0].images([drawn.randrange(len(chosen[0])) for _ in range(32)])))

    return {
        "open": here(lambda: sources.append(open_pairs(place))),
        "choose": here(lambda: chosen.append(choose(sources[0], "drop", "o", ["a prompt that is evaluated"]))),
        "digest": here(lambda: chosen[0].sha256),
        "batches_of_32": here(batches),
    }


def shown(name: str, found: Any) -> None:
    flat = {k: v for k, v in found.items() if not isinstance(v, dict)}
    print(f"{name:8} {'  '.join(f'{k} {v:,}' for k, v in flat.items())}")
    for k, v in found.items():
        if isinstance(v, dict):
            print(f"{'':10}{k:14} {v}")
    sys.stdout.flush()


def parts(name: str, words: Sequence[str]) -> Any:
    if name == "write":
        return written(Path(words[0]), int(words[1]))
    return loaded(Path(words[0])) if name == "read" else opened(Path(words[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="*", default=[200, 2000, 20000], help="of cells that are run")
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[2000, 20000], help="prompts of results that are made up"
    )
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(parts(asked.part[0], asked.part[1:])))
        return
    content: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count()}}
    content |= {"cells": [], "results": [], "pairs": []}
    kinds: list[tuple[str, Sequence[int], Callable[[Path, int], dict[str, Any]]]] = [
        ("cells", asked.prompts, of_a_cell), ("results", asked.rows, of_results), ("pairs", asked.pairs, of_pairs)
    ]  # fmt: skip
    for name, sizes, measure in kinds:
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), size)
            content[name].append(found)
            shown(name, found)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if asked.output:
        asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
