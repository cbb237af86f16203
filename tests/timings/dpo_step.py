"""Prints pairs per second and memory of a Diffusion-DPO update, against the plain way of making one.

    python tests/timings/dpo_step.py 32 8 --output results/timings/dpo_step.json
    python tests/timings/dpo_step.py 16 8 --model FOLDER --resolution 512 --dtype bfloat16

The peer is the plain way: a frozen second denoiser, winner and loser in forward passes of their own, pictures and
captions encoded anew each time. Ours shares one denoiser (adapter off), runs winners and losers together, and with the
cache encodes a pair once. Both are given the same pairs, timesteps and noise; their gradients are compared first, in
float32. Each road is timed in a process of its own, on the embedded model or a folder's (see
tests/support/random_models.py), on the GPU where there is one, else on this machine's threads.
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
from alignbench.diffusion.text import added
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


@dataclass(frozen=True)
class Work:
    """What is measured, and where the pairs are."""

    folder: Path
    model: str
    resolution: int | None
    dtype: str
    pairs: int  # an update
    updates: int  # that count

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
        dtype = self.pipeline.denoiser.dtype
        text, sizes = condition.tensors["text"].to(dtype), added(condition.tensors, dtype)

        def error(unet: torch.nn.Module, x0: torch.Tensor) -> torch.Tensor:
            noisy = self.pipeline.add_noise(x0, drawn.noise, drawn.t)
            eps = unet(noisy.to(dtype), drawn.t.to(x0.device), encoder_hidden_states=text, **sizes).sample.float()
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


def measure(road: str, work: Work) -> None:
    """In a process of its own: seconds of each update after the first pass over the pairs, and peak memory."""
    maker = made(road, work)
    optimiser = torch.optim.AdamW(maker.policy.parameters(), lr=1e-4)
    count = work.pairs * PASSES
    orders = [[(update * work.pairs + k) % count for k in range(work.pairs)] for update in range(PASSES + work.updates)]
    memory.reset_peak(device())  # it was that of importing the libraries, or of loading
    loaded = memory.peak(device())
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
    print(json.dumps({"seconds": seconds, "peak": memory.peak(device()) / 2**20, "loaded": loaded / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", default=32, help="an update")
    parser.add_argument("updates", type=int, nargs="?", default=8)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("ROAD", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    own = (asked.model, asked.resolution, asked.dtype, asked.pairs, asked.updates)
    if asked.measure:
        measure(asked.measure[0], Work(Path(asked.measure[1]), *own))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder, asked.pairs * PASSES, asked.resolution)
        difference = compare_gradients(replace(Work(folder, *own), dtype="float32"))
        assert difference < 1e-3, f"the gradients differ by {difference:.2g} of the largest"
        print(f"gradients of the three roads differ by at most {difference:.1e} of the largest entry")
        memory.release()
        found = {}
        for road in ROADS:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", road, name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{road}: {done.stderr.strip().splitlines()[-1]}")
            found[road] = json.load(io.StringIO(done.stdout.splitlines()[-1]))
    report = {"model": Path(asked.model).name, "resolution": asked.resolution, "dtype": asked.dtype}
    report |= {"pairs_an_update": asked.pairs, "rank": ALGORITHM.rank}
    report |= {"gradients_differ_by": difference, "environment": environment(device())}
    report["roads"] = {
        road: {name: round(value, 4) for name, value in values.items()} for road, values in found.items()
    }
    print(table(report))
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


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
