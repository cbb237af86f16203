"""Prints speed and memory of five scorers beside the official code, on the same random weights, and of all together.

    python tests/timings/scorers.py [--oracle FOLDER] [--full] [--scorers NAME ...] [--output FILE.json] [--shared]

FOLDER is the isolated environment of tests/support/parity/live.py, built where it is not there; without it, one is
built for this run and deleted. 64 PNG files of 512 x 512 pixels, four of a prompt, go from disk to scores; networks are
small (a CPU), so that most of the time is reading and preprocessing. With --full they have the published sizes, four
pictures are scored in each of three turns, and each scorer's files are removed before the next one's are written (8 GB
at most, beside 14 GB of memory).

Ours are scored as `alignbench score` does it, without what it kept before. The official code is called as its README
says: PickScore and CLIP with transformers, the pictures of a prompt together; hpsv2's `score`, which reads its weights
each time; `ImageReward.score` and LAION's script one by one. Each side is a process of its own with one thread for its
networks. They take turns, and a ratio is of two turns that follow each other, in seconds of a processor. In the first
turn scores have to be equal, and memory is looked at; it is not counted as one of speed but with --full.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parents[1] / "support"
NAMES = ("pickscore", "hpsv2_1", "clip_l14", "aesthetic_v2", "imagereward")
IMAGES, PER_PROMPT, SIDE = 64, 4, 512
TIMES = 4  # as many pictures, to see whether memory grows with them
SHARED = "shared with other work"  # of a machine
LARGEST = 1e-4  # difference of two scores that count as equal
IMPORTS = {  # what scoring imports for its networks, and on which side
    "torch": ("ours", "import torch"),
    "transformers": ("ours", "import torch; from transformers import CLIPModel"),
    "open_clip": ("ours", "import torch, open_clip"),
    "both": ("ours", "import torch, open_clip; from transformers import CLIPModel"),
    "official": ("official", "import torch; from transformers import CLIPModel"),
}

Score = Callable[[Sequence[Path], Sequence[str]], list[float]]


def ours(names: Sequence[str], work: Path, apart: bool) -> Score:
    """As `alignbench score` does it: all scorers in one command, or each in one of its own."""
    from alignbench import Prompt, plugins
    from alignbench.judging.picture_folders import Item
    from alignbench.judging.score import score_items
    from alignbench.progress import Progress
    from alignbench.scoring.blip import BlipArchitecture
    from alignbench.scoring.clip import ClipArchitecture

    os.environ["ALIGNBENCH_DATA"] = str(work)
    rewards: dict[str, Any] = {}
    for name in names:
        sizes = json.loads((work / "architectures.json").read_text())[name]
        architecture = (BlipArchitecture if name == "imagereward" else ClipArchitecture)(**sizes)
        rewards[name] = plugins.load("rewards", name)(allow_unverified=True, architecture=architecture)

    def forget() -> None:
        for reward in rewards.values():
            if hasattr(reward, "features"):
                reward.features.__init__(reward.features.encoder)

    def score(paths: Sequence[Path], texts: Sequence[str]) -> list[float]:
        items = [Item(path, Prompt(str(i), text), 0) for i, (path, text) in enumerate(zip(paths, texts, strict=True))]
        values: list[float] = []
        for command in [[name] for name in rewards] if apart else [list(rewards)]:
            forget()
            with tempfile.TemporaryDirectory() as kept:
                own = {name: rewards[name] for name in command}
                report = score_items(items, own, 32, "cpu", Path(kept), Progress(quiet=True))
            values += [float(row.scores[name]) for name in command for row in report.rows]  # type: ignore[arg-type]
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


def work_on(side: str, names: Sequence[str], work: Path, full: bool) -> None:
    """In a process of its own: a pass over the pictures for each line that comes in, and what it took as a line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    import torch

    torch.set_num_threads(1)
    score = official(names[0], work) if side == "official" else ours(names, work, side == "apart")
    known = json.loads((work / "texts.json").read_text())
    warm = 1 if full else PER_PROMPT  # at the published sizes a picture takes seconds
    score([work / "warm.png"] * warm, ["a square"] * warm)
    for line in sys.stdin:
        texts = known * int(line)
        paths = [work / f"{i:04d}.png" for i in range(len(texts))]
        before = resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of loading
        loaded, started, used = resident("VmRSS"), time.perf_counter(), time.process_time()
        scores = score(paths, texts)
        found = {
            "processor_seconds": time.process_time() - used,
            "seconds": time.perf_counter() - started,
            "loading_mib": before,
            "loaded_mib": loaded,
            "peak_mib": resident("VmHWM"),
            "scores": scores,
        }
        print(json.dumps(found), file=answers, flush=True)


def resident(name: str) -> float:
    """MiB of memory this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def prepare(work: Path, full: bool, asked: Sequence[str]) -> Sequence[str]:
    """Checkpoints, pictures, texts, and what each side needs to know. The scorers that there are."""
    sys.path[:0] = [str(SUPPORT), str(SUPPORT / "parity")]
    import live
    import numpy as np
    from parity import recipe
    from PIL import Image

    from alignbench import Key, plugins

    known = recipe.FULL if full else recipe.ARCHITECTURES
    names, images = [name for name in NAMES if name in asked], PER_PROMPT if full else IMAGES
    sizes = {name: known[name] for name in names}
    jobs = live.plan(work, sizes, recipe.pictures())
    if "aesthetic_v2" in names:
        tower, head = (file.place for file in plugins.load("rewards", "aesthetic_v2").files)
        own = sizes["aesthetic_v2"]
        tensors = recipe.drawn(recipe.KEY(tower), recipe.hugging_face_shapes(own))
        recipe.write_hugging_face_folder(own, tensors, work / "aesthetic_v2")
        jobs["aesthetic_v2"] = {"folder": "aesthetic_v2", "head": head}
    for name in {"pickscore", "clip_l14"}.intersection(names):
        jobs[name]["folder"] = name
    (work / "plan.json").write_text(json.dumps(jobs))
    (work / "architectures.json").write_text(json.dumps({n: dataclasses.asdict(a) for n, a in sizes.items()}))
    for i in range(-1, images):
        coarse = (Key("bench", i).uniform(24, 24, 3).numpy() * 255).round().astype(np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(work / ("warm.png" if i < 0 else f"{i:04d}.png"))
    for i in range(images, TIMES * images):
        (work / f"{i:04d}.png").symlink_to(f"{i % images:04d}.png")
    (work / "texts.json").write_text(json.dumps([f"a picture of star {i // PER_PROMPT}" for i in range(images)]))
    return names


class Worker:
    """A process that scores the pictures when it is asked to."""

    def __init__(self, python: Path | str, side: str, names: Sequence[str], work: Path, full: bool) -> None:
        own = {"PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
        own |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), __file__, "--work", side, ",".join(names), str(work), *(["--full"] if full else [])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | own, text=True, **pipes)

    def __call__(self, times: int = 1) -> dict[str, Any]:
        """A pass over so many times the pictures."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def workers(
    sides: Mapping[str, Path | str], names: Sequence[str], work: Path, full: bool
) -> Iterator[dict[str, Worker]]:
    found = {side: Worker(python, side, names, work, full) for side, python in sides.items()}
    try:
        yield found
    finally:
        for worker in found.values():
            worker.process.kill()
            worker.process.wait()


def taking_turns(own: Mapping[str, Worker], repetitions: int, first_counts: bool) -> dict[str, Any]:
    """Speed and memory of two workers, the first over the second. Raises AssertionError where scores differ."""
    found = {side: worker() for side, worker in own.items()}
    (one, a), (other, b) = found.items()
    difference = max(abs(x - y) for x, y in zip(a.pop("scores"), b.pop("scores"), strict=True))
    assert difference < LARGEST, f"the scores differ by {difference}"
    seconds = {side: [row["processor_seconds"]] if first_counts else [] for side, row in found.items()}
    for _ in range(repetitions - first_counts):
        for side, worker in own.items():
            seconds[side].append(worker()["processor_seconds"])
    ratios = [y / x for x, y in zip(seconds[one], seconds[other], strict=True)]
    memory = {side: {key: round(row[key], 1) for key in row if key.endswith("_mib")} for side, row in found.items()}
    sides = {side: {"processor_seconds": [round(x, 4) for x in seconds[side]]} | memory[side] for side in own}
    spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return sides | {"ratio": {k: round(x, 3) for k, x in spread.items()}, "largest_difference": difference}


def imported(python: Path | str, statement: str) -> float:
    """MiB that a process holds after some imports and nothing else."""
    told = "; print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmRSS')))"
    return float(subprocess.run([python, "-c", statement + told], capture_output=True, check=True).stdout) / 1024


def transformers_of(python: Path | str) -> str:
    """The version that is installed there."""
    code = "from importlib.metadata import version; print(version('transformers'))"
    return subprocess.run([python, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count}: expected at least 1")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--scorers", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--repetitions", type=at_least_one, help="5, and 3 with --full")
    parser.add_argument("--shared", action="store_true", help="say in the file that the machine has other work")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.repetitions = options.repetitions or (3 if options.full else 5)
    content: dict[str, Any] = {"scorers": {}}
    images = PER_PROMPT if options.full else IMAGES
    print(f"{images} pictures of {SIDE} x {SIDE}, one thread, {processor()}")
    with tempfile.TemporaryDirectory(prefix="official-") as built:
        options.oracle = (options.oracle or Path(built)).absolute()
        for group in [[name] for name in options.scorers] if options.full else [options.scorers]:
            with tempfile.TemporaryDirectory(prefix="scorers-") as folder:
                measure(content, Path(folder), group, options)
    if options.output:
        keep(options.output, content, images, options)


def measure(content: dict[str, Any], work: Path, asked: Sequence[str], options: argparse.Namespace) -> None:
    """Scorer by scorer, and what of all of them is asked where all are there."""
    names = prepare(work, options.full, asked)
    import live

    here, there = sys.executable, live.build(options.oracle)
    images = PER_PROMPT if options.full else IMAGES
    for name in names:
        with workers({"ours": here, "official": there}, [name], work, options.full) as own:
            content["scorers"][name] = say(name, images, taking_turns(own, options.repetitions, options.full))
    if list(names) != list(NAMES):
        return
    with workers({"together": here, "apart": here}, names, work, options.full) as own:
        content["five"] = say("five", images, taking_turns(own, options.repetitions, False))
        peaks = {count * images: own["together"](count)["peak_mib"] for count in (1, TIMES)}
    content["growth"] = {str(count): round(peak, 1) for count, peak in peaks.items()}
    sides = {"ours": here, "official": there}
    content["imports"] = {what: round(imported(sides[side], code), 1) for what, (side, code) in IMPORTS.items()}
    content["imports"]["versions"] = {side: transformers_of(python) for side, python in sides.items()}
    print(f"peak MiB by number of pictures: {content['growth']}; after imports: {content['imports']}")


def say(name: str, images: int, found: dict[str, Any]) -> dict[str, Any]:
    """Print a row, and give it back."""
    (one, a), (other, b) = list(found.items())[:2]
    speed = " / ".join(f"{images / statistics.median(row['processor_seconds']):.3g}" for row in (a, b))
    ratio = "{median:.2f} ({least:.2f} to {most:.2f})".format(**found["ratio"])
    peaks, loading = (" / ".join(f"{row[key]:.0f}" for row in (a, b)) for key in ("peak_mib", "loading_mib"))
    over = " / ".join(f"{row['peak_mib'] - row['loaded_mib']:.0f}" for row in (a, b))
    print(f"{name}: {one} / {other}: {speed} pictures a processor second = {ratio}; ", end="")
    print(f"MiB: peak {peaks}, over what was loaded {over}, in loading {loading}; ", end="")
    print(f"scores differ by {found['largest_difference']:.0e}", flush=True)
    return found


def keep(path: Path, content: dict[str, Any], images: int, options: argparse.Namespace) -> None:
    """Write what was found: of --full beside the rest of the file."""
    from alignbench.files import write_text
    from alignbench.record.environment import environment

    content |= {
        "images": images, "per_prompt": PER_PROMPT, "side": SIDE, "threads": 1, "repetitions": options.repetitions,
        "machine": f"{processor()}, {os.cpu_count()} cores" + (f", {SHARED}" if options.shared else ""),
        "environment": environment(),
    }  # fmt: skip
    known = json.loads(path.read_text()) if path.exists() else {}
    full = content if options.full else known.get("full")
    rest = known if options.full else content
    write_text(path, json.dumps({"schema": 2} | rest | ({"full": full} if full else {}), indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work_on(sys.argv[2], sys.argv[3].split(","), Path(sys.argv[4]), full=sys.argv[5:] == ["--full"])
    else:
        main()
