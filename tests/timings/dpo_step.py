"""Prints pairs per second and memory of a Diffusion-DPO update, against the plain way of making one.

    python tests/timings/dpo_step.py --output results/timings/dpo_step.json
    python tests/timings/dpo_step.py --large --output results/timings/dpo_step_large.json
    python tests/timings/dpo_step.py 16 8 --model FOLDER --resolution 512 --dtype bfloat16

The peer is the plain way: a frozen second denoiser, winner and loser in forward passes of their own, pictures and
captions encoded anew each time. Ours shares one denoiser (adapter off), runs winners and losers together, and with the
cache encodes a pair once. Both are given the same pairs, timesteps and noise; their gradients are compared first, in
float32.

Each way has a process of its own, on the embedded model, on a folder's (see tests/support/random_models.py), or with
--large on one that is made here: Stable Diffusion 1.5 of half the width at 64 pixels, two pairs an update, whose
denoiser is larger than its activations. All three processes hold their models at once and take turns; the first turn is
not counted. A ratio is of two turns that follow each other. It runs on the GPU where there is one, else on this
machine's threads.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from alignbench import Key, LoRA
from alignbench import devices as memory
from alignbench.algorithms.diffusion_dpo import DiffusionDPO
from alignbench.diffusion.latent import LatentPipeline
from alignbench.diffusion.objectives import noising
from alignbench.diffusion.registry import Hold, find, load
from alignbench.files import write_text
from alignbench.images import fitted
from alignbench.interface import PairBatch
from alignbench.meter import Meter
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs
from alignbench.quantities import Condition
from alignbench.record.environment import environment
from alignbench.shapes.render import render, sample_scene
from alignbench.shapes.scene import sample_caption

ROADS = ("two copies, no caches", "ours, no caches", "ours, with caches")
ALGORITHM = DiffusionDPO(beta=2500.0, caption_dropout=0.0, rank=8)
PASSES = 4  # updates in which every pair is seen once
COMPARED = 8  # pairs whose gradients are compared
LARGE = "sd15-half"  # the name of the model that --large makes


@dataclass(frozen=True)
class Work:
    """What is measured, and where the pairs are."""

    folder: Path
    model: str
    resolution: int | None
    dtype: str
    pairs: int  # an update

    def pipeline(self) -> LatentPipeline:
        size = (self.resolution, self.resolution) if self.resolution else None
        found = load(find(self.model), Meter(), Hold(device(), self.dtype, size))
        assert isinstance(found, LatentPipeline)
        return found


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_pairs(folder: Path, count: int, side: int | None) -> None:
    """Pairs of rendered pictures of one caption, one of them of another scene."""
    lines = []
    for i in range(count):
        caption = sample_caption(Key("bench", i), "train")
        names = [f"{i:04d}-{j}.png" for j in (0, 1)]
        for j, name in enumerate(names):
            picture = Image.fromarray(render(sample_scene(Key("bench", i, j), caption)))
            (picture.resize((side, side)) if side else picture).save(folder / name)
        lines.append(json.dumps({"prompt": caption.text, "images": names, "label": i % 2}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def keys_of(indices: list[int], update: int) -> list[Key]:
    return [Key("bench", "draw", update, i) for i in indices]


class Ours:
    """An update as the algorithm makes it."""

    def __init__(self, work: Work, cached: bool) -> None:
        pipeline = work.pipeline()
        cache = TensorCache(work.folder / f"{work.dtype}.sqlite") if cached else None
        chosen = choose(open_pairs(work.folder), "drop", None, ())
        self.pairs = EncodedPairs(chosen, pipeline, cache, "centre", Key(), print)
        self.policy = pipeline.adapt(LoRA(ALGORITHM.rank), Key("bench", "adapter"))

    def batch(self, indices: list[int]) -> PairBatch:
        return self.pairs.batch(indices)

    def gradient(self, indices: list[int], update: int) -> list[torch.Tensor]:
        loss, _ = ALGORITHM.loss(self.policy, self.batch(indices), keys_of(indices, update))
        return list(torch.autograd.grad(loss.mean(), self.policy.parameters()))


class TwoCopies:
    """The plain way, on the same weights and draws."""

    def __init__(self, work: Work) -> None:
        self.pipeline = work.pipeline()
        self.frozen = copy.deepcopy(self.pipeline.denoiser)
        self.policy = self.pipeline.adapt(LoRA(ALGORITHM.rank), Key("bench", "adapter"))
        self.chosen = choose(open_pairs(work.folder), "drop", None, ())

    @torch.no_grad()
    def encoded(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        found = dict(self.chosen.images(indices))
        winners, losers = [], []
        height, width = self.pipeline.info()["image_shape"][1:]
        for i in indices:
            first, second = (fitted(content, (height, width), None) for content in found[i])
            won = self.chosen.pair(i).label == 1
            winners.append(first if won else second)
            losers.append(second if won else first)
        condition = self.pipeline.condition([self.chosen.pair(i).prompt for i in indices])
        return self.pipeline.encode(torch.stack(winners)), self.pipeline.encode(torch.stack(losers)), condition

    def gradient(self, indices: list[int], update: int) -> list[torch.Tensor]:
        winner, loser, condition = self.encoded(indices)
        drawn = noising(keys_of(indices, update), winner, condition, self.pipeline)
        self.pipeline.components.switch(self.policy.adapter)
        call = self.pipeline.components.architecture.call

        def error(unet: torch.nn.Module, x0: torch.Tensor) -> torch.Tensor:
            noisy = self.pipeline.add_noise(x0, drawn.noise, drawn.t)
            eps = call(unet, noisy, drawn.t.to(x0.device), condition.tensors).float()
            return (eps - drawn.noise).square().flatten(1).mean(1)

        own = error(self.pipeline.denoiser, winner) - error(self.pipeline.denoiser, loser)
        with torch.no_grad():
            reference = error(self.frozen, winner) - error(self.frozen, loser)
        loss = -functional.logsigmoid(-ALGORITHM.beta / 2 * (own - reference)).mean()
        return list(torch.autograd.grad(loss, self.policy.parameters()))


def made(road: str, work: Work) -> Ours | TwoCopies:
    return TwoCopies(work) if road == ROADS[0] else Ours(work, road == ROADS[2])


def moved(road: Ours | TwoCopies) -> Ours | TwoCopies:
    """Off the reference, so that a wrong reference would show."""
    with torch.no_grad():
        for i, parameter in enumerate(road.policy.parameters()):
            parameter.add_(0.02 * Key("bench", "moved", i).normal(*parameter.shape).to(parameter.device))
    return road


def compare_gradients(work: Work) -> float:
    """The largest difference of the gradients of the three roads, relative to the largest entry."""
    torch.backends.cudnn.allow_tf32 = False  # which rounds to 1e-3
    indices = list(range(min(work.pairs, COMPARED)))
    plain, *others = ([g.cpu() for g in moved(made(road, work)).gradient(indices, 0)] for road in ROADS)
    scale = max(float(g.abs().max()) for g in plain)
    assert scale > 0, "there is no gradient to compare"
    return max(float((a - b).abs().max()) / scale for other in others for a, b in zip(plain, other, strict=True))


def work_on(road: str, work: Work) -> None:
    """In a process of its own: the updates of a turn for each line that comes in, and what they took as a line."""
    maker = made(road, work)
    optimiser = torch.optim.AdamW(maker.policy.parameters(), lr=1e-4)
    count = work.pairs * PASSES
    memory.reset_peak(device())  # it was that of importing the libraries, or of loading
    loaded, done = memory.peak(device()), 0
    for line in sys.stdin:
        times: list[float] = []
        used = time.process_time()
        for update in range(done, done + int(line)):
            started = time.perf_counter()
            indices = [(update * work.pairs + k) % count for k in range(work.pairs)]
            for parameter, gradient in zip(maker.policy.parameters(), maker.gradient(indices, update), strict=True):
                parameter.grad = gradient
            optimiser.step()
            if device() == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        done += len(times)
        found = {"seconds": statistics.median(times), "processor_seconds": (time.process_time() - used) / len(times)}
        print(json.dumps(found | {"peak": memory.peak(device()) / 2**20, "loaded": loaded / 2**20}), flush=True)


class Worker:
    """A process that makes updates of one road when it is asked to."""

    def __init__(self, road: str, folder: str, arguments: list[str]) -> None:
        self.road, self.errors = road, tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, __file__, *arguments, "--work", road, folder]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def __call__(self, updates: int) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{updates}\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            self.errors.seek(0)
            raise SystemExit(f"{self.road}: {(self.errors.read().strip().splitlines() or ['killed'])[-1]}")
        found: dict[str, float] = json.loads(line)
        return found


@contextlib.contextmanager
def workers(folder: str, arguments: list[str]) -> Iterator[dict[str, Worker]]:
    found = {road: Worker(road, folder, arguments) for road in ROADS}
    try:
        yield found
    finally:
        for worker in found.values():
            worker.process.kill()
            worker.process.wait()


def taking_turns(own: Mapping[str, Worker], updates: int, turns: int) -> dict[str, Any]:
    """Speed and memory of each road, and how many times as fast as the first it is, turn by turn."""
    for worker in own.values():
        worker(PASSES)  # fills the caches
    rows: dict[str, list[dict[str, float]]] = {road: [] for road in own}
    for _ in range(turns):
        for road, worker in own.items():
            rows[road].append(worker(updates))
    found: dict[str, Any] = {}
    for road, each in rows.items():
        found[road] = {
            name: round(statistics.median(row[name] for row in each), 4) for name in ("seconds", "processor_seconds")
        } | {"peak": round(max(row["peak"] for row in each), 1), "loaded": round(each[0]["loaded"], 1)}
        for name, kind in (("ratio", "seconds"), ("processor_ratio", "processor_seconds")):
            ratios = [first[kind] / row[kind] for first, row in zip(rows[ROADS[0]], each, strict=True)]
            spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            found[road][name] = {key: round(value, 3) for key, value in spread.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", help="an update; 32, with --large 2")
    parser.add_argument("updates", type=int, nargs="?", default=8, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="a denoiser that is larger than its activations")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=2, metavar=("ROAD", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    pairs, side = asked.pairs or (2 if asked.large else 32), asked.resolution or (64 if asked.large else None)
    with contextlib.ExitStack() as stack:
        name = asked.work[1] if asked.work else stack.enter_context(tempfile.TemporaryDirectory(prefix="dpo-step-"))
        model = str(Path(name) / LARGE) if asked.large else asked.model
        work = Work(Path(name) / "pairs", model, side, asked.dtype, pairs)
        if asked.work:
            work_on(asked.work[0], work)
            return
        prepare(work, asked.large)
        difference = compare_gradients(replace(work, dtype="float32"))
        assert difference < 1e-3, f"the gradients differ by {difference:.2g} of the largest"
        print(f"gradients of the three roads differ by at most {difference:.1e} of the largest entry", flush=True)
        memory.release()
        own = stack.enter_context(workers(name, sys.argv[1:]))
        roads = taking_turns(own, asked.updates, asked.turns)
    report = {"model": Path(model).name, "resolution": side, "dtype": asked.dtype, "pairs_an_update": pairs}
    report |= {"rank": ALGORITHM.rank, "updates_a_turn": asked.updates, "turns": asked.turns}
    report |= {"gradients_differ_by": difference, "environment": environment(device()), "roads": roads}
    print(table(report))
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


def prepare(work: Work, large: bool) -> None:
    """The pairs, and the model where it is made here."""
    work.folder.mkdir()
    write_pairs(work.folder, work.pairs * PASSES, work.resolution)
    if large:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
        from random_models import half_sd15

        torch.manual_seed(0)
        half_sd15(Path(work.model))


def table(report: Mapping[str, Any]) -> str:
    environment = report["environment"]
    lines = [
        f"{report['model']}, {report['dtype']}, LoRA of rank {report['rank']}, {report['pairs_an_update']} pairs an "
        f"update, {environment['device']}, {environment['threads']} threads, {report['turns']} turns",
        f"{'':24}{'pairs/s':>8}{'times as fast':>22}{'by processor seconds':>22}{'peak MiB':>10}{'over loading':>14}",
    ]
    for road, values in report["roads"].items():
        wall, own = (
            "{median:.2f} ({least:.2f} to {most:.2f})".format(**values[name]) for name in ("ratio", "processor_ratio")
        )
        lines.append(
            f"{road:24}{report['pairs_an_update'] / values['seconds']:8.1f}{wall:>22}{own:>22}"
            f"{values['peak']:10.0f}{values['peak'] - values['loaded']:14.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
