"""Prints pairs per second and memory of a Diffusion-DPO update, against the plain way of making one.

    python tests/benchmarks/dpo_step.py 32 8 --output results/benchmarks/dpo_step.json
    python tests/benchmarks/dpo_step.py 16 8 --model FOLDER --resolution 512 --dtype bfloat16

The peer is the plain way: a frozen second denoiser, winner and loser in forward passes of their own, pictures and
captions encoded anew each time. Ours shares one denoiser (adapter off), runs winners and losers together, and with the
cache encodes a pair once. Both are given the same pairs, timesteps and noise; their gradients are compared first, in
float32. Each road is timed in a process of its own, on the embedded model or a folder's (see tests/random_models.py),
on the GPU where there is one, else on this machine's threads.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from alignbench import Key, LoRA
from alignbench.algorithms.diffusion_dpo import DiffusionDPO
from alignbench.diffusion.checkpoints import Options
from alignbench.diffusion.latent import LatentPipeline
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.models import find, load
from alignbench.diffusion.text import added
from alignbench.diffusion.training import noising
from alignbench.experiment.run import environment
from alignbench.files import write_text
from alignbench.interface import PairBatch
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import choose
from alignbench.preferences.encoded import EncodedPairs, fitted
from alignbench.preferences.source import open_pairs
from alignbench.quantities import Condition
from alignbench.shapes.render import render, sample_scene
from alignbench.shapes.scene import sample_caption

ROADS = ("two copies, no caches", "ours, no caches", "ours, with caches")
PASSES = 4  # updates in which every pair is seen once


@dataclass(frozen=True)
class Work:
    """What is measured, and where the pairs are."""

    folder: Path
    model: str
    resolution: int | None
    dtype: str
    pairs: int  # an update
    updates: int  # that count

    @property
    def algorithm(self) -> DiffusionDPO:
        """On random weights, whose errors are large, the authors' own β would leave no gradient to compare."""
        return DiffusionDPO(beta=2500.0 if self.model == "tiny" else 50.0, caption_dropout=0.0, rank=8)

    def pipeline(self) -> LatentPipeline:
        size = (self.resolution, self.resolution) if self.resolution else None
        found = load(find(self.model), Meter(), Options(device(), self.dtype, size))
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
        self.policy = pipeline.adapt(LoRA(work.algorithm.rank), Key("bench", "adapter"))
        self.algorithm = work.algorithm

    def batch(self, indices: list[int]) -> PairBatch:
        return self.pairs.batch(indices)

    def gradient(self, indices: list[int], update: int) -> list[torch.Tensor]:
        loss, _ = self.algorithm.loss(self.policy, self.batch(indices), keys_of(indices, update))
        return list(torch.autograd.grad(loss.mean(), self.policy.parameters()))


class TwoCopies:
    """The plain way, on the same weights and draws."""

    def __init__(self, work: Work) -> None:
        self.pipeline = work.pipeline()
        self.frozen = copy.deepcopy(self.pipeline.unet)
        self.policy = self.pipeline.adapt(LoRA(work.algorithm.rank), Key("bench", "adapter"))
        self.chosen = choose(open_pairs(work.folder), "drop", None, ())
        self.beta = work.algorithm.beta

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
        drawn = noising(keys_of(indices, update), winner, condition, self.pipeline.train_timesteps)
        self.pipeline.components.switch(self.policy.adapter)
        dtype = self.pipeline.unet.dtype
        text, sizes = condition.tensors["text"].to(dtype), added(condition.tensors, dtype)

        def error(unet: torch.nn.Module, x0: torch.Tensor) -> torch.Tensor:
            noisy = self.pipeline.add_noise(x0, drawn.noise, drawn.t)
            eps = unet(noisy.to(dtype), drawn.t.to(x0.device), encoder_hidden_states=text, **sizes).sample.float()
            return (eps - drawn.noise).square().flatten(1).mean(1)

        own = error(self.pipeline.unet, winner) - error(self.pipeline.unet, loser)
        with torch.no_grad():
            reference = error(self.frozen, winner) - error(self.frozen, loser)
        loss = -functional.logsigmoid(-self.beta / 2 * (own - reference)).mean()
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
    found = [[g.cpu() for g in moved(made(road, work)).gradient(list(range(work.pairs)), 0)] for road in ROADS]
    plain, *others = found
    scale = max(float(g.abs().max()) for g in plain)
    return max(float((a - b).abs().max()) / scale for other in others for a, b in zip(plain, other, strict=True))


def measure(road: str, work: Work) -> None:
    """In a process of its own: seconds of each update after the first pass over the pairs, and peak memory."""
    maker = made(road, work)
    optimiser = torch.optim.AdamW(maker.policy.parameters(), lr=1e-4)
    count = work.pairs * PASSES
    orders = [[(update * work.pairs + k) % count for k in range(work.pairs)] for update in range(PASSES + work.updates)]
    if device() == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of importing the libraries
    loaded = resident("VmRSS")
    times = []
    for update, indices in enumerate(orders):
        started = time.perf_counter()
        for parameter, gradient in zip(maker.policy.parameters(), maker.gradient(indices, update), strict=True):
            parameter.grad = gradient
        optimiser.step()
        if device() == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[-work.updates :])
    print(json.dumps({"seconds": seconds, "peak": resident("VmHWM"), "loaded": loaded}))


def resident(name: str) -> float:
    """MiB of memory this process holds (VmRSS), or held at most (VmHWM); of the GPU's where there is one."""
    if device() == "cuda":
        return (torch.cuda.memory_allocated() if name == "VmRSS" else torch.cuda.max_memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", default=32, help="an update")
    parser.add_argument("updates", type=int, nargs="?", default=8)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compared", type=int, help="pairs of the comparison of gradients, where all are too many")
    parser.add_argument("--output", type=Path, help="a file; what it says of other models and dtypes stays")
    parser.add_argument("--measure", nargs=2, metavar=("ROAD", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    own = (asked.model, asked.resolution, asked.dtype, asked.pairs, asked.updates)
    if asked.measure:
        measure(asked.measure[0], Work(Path(asked.measure[1]), *own))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder, asked.pairs * PASSES, asked.resolution)
        most = asked.compared or asked.pairs
        difference = compare_gradients(Work(folder, asked.model, asked.resolution, "float32", most, 1))
        assert difference < 1e-3, f"the gradients differ by {difference:.2g} of the largest"
        print(f"gradients of the three roads differ by at most {difference:.1e} of the largest entry")
        torch.cuda.empty_cache()
        found = {}
        for road in ROADS:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", road, name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{road}: {done.stderr.strip().splitlines()[-1]}")
            found[road] = json.load(io.StringIO(done.stdout.splitlines()[-1]))
    report = {"model": Path(asked.model).name, "resolution": asked.resolution, "dtype": asked.dtype}
    report |= {"pairs_an_update": asked.pairs, "rank": Work(folder, *own).algorithm.rank}
    report |= {"gradients_differ_by": difference, "environment": environment(device())}
    report["roads"] = {
        road: {name: round(value, 4) for name, value in values.items()} for road, values in found.items()
    }
    print(table(report))
    if asked.output is not None:
        about = ("model", "resolution", "dtype")
        others = json.loads(asked.output.read_text()) if asked.output.exists() else []
        kept = [other for other in others if [other[key] for key in about] != [report[key] for key in about]]
        write_text(asked.output, json.dumps([*kept, report], indent=1) + "\n")


def table(report: Mapping[str, Any]) -> str:
    roads, environment = report["roads"], report["environment"]
    first = roads[ROADS[0]]["seconds"]
    lines = [
        f"{report['model']}, {report['dtype']}, LoRA of rank {report['rank']}, {report['pairs_an_update']} pairs an "
        f"update, {environment['device']}, {environment['threads']} threads",
        f"{'':24}{'pairs/s':>10}{'ratio':>8}{'peak MiB':>10}{'over loading':>14}",
    ]
    for road, values in roads.items():
        lines.append(
            f"{road:24}{report['pairs_an_update'] / values['seconds']:10.1f}{first / values['seconds']:8.2f}"
            f"{values['peak']:10.0f}{values['peak'] - values['loaded']:14.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
