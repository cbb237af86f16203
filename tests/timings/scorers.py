"""Prints images per second and memory of five scorers beside the official code, on the same random weights.

    python tests/timings/scorers.py --oracle FOLDER [--output FILE.json]

FOLDER is the isolated environment of tests/support/parity/live.py, built where it is not there. 256 PNG files of 512 x
512 pixels, four of a prompt, go from disk to scores; networks are small (a CPU), so that most of the time is reading
and preprocessing. The official code is called as its README says: PickScore and CLIP with transformers, the pictures of
a prompt together; hpsv2's `score`, which reads its weights each time; `ImageReward.score` and LAION's script one by
one.
Each is timed in a process of its own, one thread for its networks, after its weights were read and a prompt was scored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parents[1] / "support"
NAMES = ("pickscore", "hpsv2_1", "clip_l14", "aesthetic_v2", "imagereward")
IMAGES, PER_PROMPT, SIDE = 256, 4, 512
BATCH = 32  # of ours

Score = Callable[[Sequence[Path], Sequence[str]], list[float]]


def ours(name: str, work: Path) -> Score:
    """As `alignbench score` does it."""
    import torch
    from parity import recipe
    from PIL import Image

    from alignbench import Prompt
    from alignbench.images import as_tensor

    os.environ["ALIGNBENCH_DATA"] = str(work)
    reward = recipe.scorer(name)

    def score(paths: Sequence[Path], texts: Sequence[str]) -> list[float]:
        values: list[float] = []
        for i in range(0, len(paths), BATCH):
            images = torch.stack([as_tensor(Image.open(path)) for path in paths[i : i + BATCH]])
            values += reward(images, [Prompt(str(k), text) for k, text in enumerate(texts[i : i + BATCH])]).tolist()
        return values

    return score


def official(name: str, work: Path) -> Score:
    """In the isolated environment: the official code, called as its README says."""
    sys.path.insert(0, str(SUPPORT / "parity"))
    import official as parity
    import torch
    from PIL import Image

    job = json.loads((work / "plan.json").read_text())[name]

    def grouped(one: Callable[[list[Path], str], list[float]]) -> Score:
        def score(paths: Sequence[Path], texts: Sequence[str]) -> list[float]:
            values = []
            for i in range(0, len(paths), PER_PROMPT):
                values += one(list(paths[i : i + PER_PROMPT]), texts[i])
            return values

        return score

    if name == "hpsv2_1":
        from hpsv2 import img_score

        parity.hpsv2(work, **job["arguments"])  # the small network; the rest is as the package does it
        img_score.torch = torch
        del img_score.model_dict["model"].load_state_dict
        file = str(work / job["arguments"]["file"])
        return grouped(lambda paths, text: [float(x) for x in img_score.score([*map(str, paths)], text, cp=file)])
    if name == "imagereward":
        each = parity.image_reward(work, **job["arguments"])
        return grouped(lambda paths, text: [each([Image.open(path)], [text])[0] for path in paths])
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(work / job["folder"])
    model = AutoModel.from_pretrained(work / job["folder"]).eval()

    def embedded(paths: Sequence[Path]) -> torch.Tensor:
        features = model.get_image_features(**processor(images=[Image.open(p) for p in paths], return_tensors="pt"))
        return features / torch.norm(features, dim=-1, keepdim=True)

    if name == "aesthetic_v2":
        widths = ((768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))
        layers: list[Any] = [torch.nn.Linear(*wide) for wide in widths]
        for place, rate in ((1, 0.2), (3, 0.2), (5, 0.1)):
            layers.insert(place, torch.nn.Dropout(rate))
        head = torch.nn.Sequential(*layers)
        content = torch.load(work / job["head"], weights_only=True)
        head.load_state_dict({key.removeprefix("layers."): value for key, value in content.items()})
        head.eval()

        @torch.no_grad()
        def rated(paths: list[Path], text: str) -> list[float]:
            return [float(head(embedded([path]))) for path in paths]

        return grouped(rated)

    @torch.no_grad()
    def scored(paths: list[Path], text: str) -> list[float]:
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        features = model.get_text_features(**processor(text=text, **options))
        cosine = (features / torch.norm(features, dim=-1, keepdim=True) @ embedded(paths).T)[0]
        return (model.logit_scale.exp() * cosine if name == "pickscore" else cosine).tolist()

    return grouped(scored)


def measure(side: str, name: str, work: Path) -> None:
    """In a process of its own: seconds, memory and scores of one pass."""
    import torch

    torch.set_num_threads(1)
    texts = json.loads((work / "texts.json").read_text())
    paths = [work / f"{i:04d}.png" for i in range(len(texts))]
    score = {"ours": ours, "official": official}[side](name, work)
    score([work / "warm.png"] * PER_PROMPT, ["a square"] * PER_PROMPT)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of importing the libraries
    loaded, started, used = resident("VmRSS"), time.perf_counter(), time.process_time()
    scores = score(paths, texts)
    found = {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "peak_mib": resident("VmHWM"),
        "loaded_mib": loaded,
        "scores": scores,
    }
    (work / "measured.json").write_text(json.dumps(found))


def resident(name: str) -> float:
    """MiB of memory this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def prepare(work: Path) -> None:
    """Checkpoints, pictures, texts, and what the official side needs to know."""
    sys.path[:0] = [str(SUPPORT), str(SUPPORT / "parity")]
    import live
    import numpy as np
    from parity import recipe
    from PIL import Image

    from alignbench import Key, plugins

    jobs = live.plan(work, {name: recipe.ARCHITECTURES[name] for name in NAMES}, recipe.pictures())
    tower = plugins.load("rewards", "clip_l14").files[0].place
    tensors = recipe.drawn(recipe.KEY(tower), recipe.hugging_face_shapes(recipe.TINY_OPENAI))
    recipe.write_hugging_face_folder(recipe.TINY_OPENAI, tensors, work / "aesthetic_v2")
    head = plugins.load("rewards", "aesthetic_v2").files[1].place
    jobs["aesthetic_v2"] = {"folder": "aesthetic_v2", "head": head}
    for name in ("pickscore", "clip_l14"):
        jobs[name]["folder"] = name
    (work / "plan.json").write_text(json.dumps(jobs))
    for i in range(-1, IMAGES):
        coarse = (Key("bench", i).uniform(24, 24, 3).numpy() * 255).round().astype(np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(work / ("warm.png" if i < 0 else f"{i:04d}.png"))
    (work / "texts.json").write_text(json.dumps([f"a picture of star {i // PER_PROMPT}" for i in range(IMAGES)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="scorers-") as folder:
        work = Path(folder)
        prepare(work)
        import live

        pythons = {"ours": sys.executable, "official": live.build(options.oracle.absolute())}
        environment = os.environ | {"PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        print(f"{IMAGES} pictures of {SIDE} x {SIDE}, small networks, one thread, {processor()}")
        print(f"{'':14}{'images/s':>20}{'per s of a processor':>24}{'peak MiB':>18}{'over loading':>18}{'differ':>9}")
        for name in NAMES:
            found = {}
            for side, python in pythons.items():
                command = [python, __file__, "--measure", side, name, work]
                subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
                found[side] = json.loads((work / "measured.json").read_text())
            a, b = found["ours"], found["official"]
            difference = max(abs(x - y) for x, y in zip(a.pop("scores"), b.pop("scores"), strict=True))
            assert difference < 1e-4, f"{name}: the scores differ by {difference}"
            rows[name] = found | {"largest_difference": difference}
            line = f"{name:14}"
            for key, width in (("seconds", 20), ("processor_seconds", 24)):
                line += f"{IMAGES / a[key]:.1f} / {IMAGES / b[key]:.1f} = {b[key] / a[key]:.2f}".rjust(width)
            line += f"{a['peak_mib']:.0f} / {b['peak_mib']:.0f}".rjust(18)
            line += f"{a['peak_mib'] - a['loaded_mib']:.0f} / {b['peak_mib'] - b['loaded_mib']:.0f}".rjust(18)
            print(f"{line}{difference:9.0e}", flush=True)
    if options.output:
        from alignbench.files import write_text
        from alignbench.record.environment import environment as own_environment

        content = {
            "schema": 1, "images": IMAGES, "per_prompt": PER_PROMPT, "side": SIDE, "threads": 1,
            "machine": f"{processor()}, {os.cpu_count()} cores, shared with other work", "scorers": rows,
            "environment": own_environment(),
        }  # fmt: skip
        write_text(options.output, json.dumps(content, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
