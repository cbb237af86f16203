"""Prints pairs per second and memory of a Diffusion-DPO update: `python tests/benchmarks/dpo_step.py 32 8 [FILE.json]`.

The peer is the plain way: a frozen second denoiser, winner and loser in forward passes of their own, pictures and
captions encoded anew each time. Ours shares one denoiser (adapter off), runs winners and losers together, and with the
cache encodes a pair once. Both are given the same pairs, timesteps and noise; their gradients are compared first. Each
road is timed in a process of its own, on the embedded model, on this machine's threads.
"""

from __future__ import annotations

import copy
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional

from alignbench import Key, LoRA
from alignbench.algorithms.diffusion_dpo import DiffusionDPO
from alignbench.diffusion.latent import LatentPipeline
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.models import PRESETS, load
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

PAIRS = 128
ALGORITHM = DiffusionDPO(beta=2500.0, caption_dropout=0.0, rank=8)
ROADS = ("two copies, no caches", "ours, no caches", "ours, with caches")


def write_pairs(folder: Path) -> None:
    """Pairs of rendered pictures of one caption, one of them of another scene."""
    lines = []
    for i in range(PAIRS):
        caption = sample_caption(Key("bench", i), "train")
        names = [f"{i:04d}-{j}.png" for j in (0, 1)]
        for j, name in enumerate(names):
            Image.fromarray(render(sample_scene(Key("bench", i, j), caption))).save(folder / name)
        lines.append(json.dumps({"prompt": caption.text, "images": names, "label": i % 2}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def keys_of(indices: list[int], update: int) -> list[Key]:
    return [Key("bench", "draw", update, i) for i in indices]


class Ours:
    """An update as the algorithm makes it."""

    def __init__(self, folder: Path, cached: bool) -> None:
        pipeline = load(PRESETS["tiny"], Meter())
        cache = TensorCache(folder / "tensors.sqlite") if cached else None
        self.pairs = EncodedPairs(choose(open_pairs(folder), "drop", None, ()), pipeline, cache, "centre", Key(), print)
        self.policy = pipeline.adapt(LoRA(ALGORITHM.rank), Key("bench", "adapter"))

    def batch(self, indices: list[int]) -> PairBatch:
        return self.pairs.batch(indices)

    def gradient(self, indices: list[int], update: int) -> list[torch.Tensor]:
        loss, _ = ALGORITHM.loss(self.policy, self.batch(indices), keys_of(indices, update))
        return list(torch.autograd.grad(loss.mean(), self.policy.parameters()))


class TwoCopies:
    """The plain way, on the same weights and draws."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = load(PRESETS["tiny"], Meter())
        assert isinstance(self.pipeline, LatentPipeline)
        self.frozen = copy.deepcopy(self.pipeline.unet)
        self.policy = self.pipeline.adapt(LoRA(ALGORITHM.rank), Key("bench", "adapter"))
        self.chosen = choose(open_pairs(folder), "drop", None, ())

    @torch.no_grad()
    def encoded(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        found = dict(self.chosen.images(indices))
        winners, losers = [], []
        for i in indices:
            first, second = (fitted(content, (32, 32), None) for content in found[i])
            won = self.chosen.pair(i).label == 1
            winners.append(first if won else second)
            losers.append(second if won else first)
        condition = self.pipeline.condition([self.chosen.pair(i).prompt for i in indices])
        return self.pipeline.encode(torch.stack(winners)), self.pipeline.encode(torch.stack(losers)), condition

    def gradient(self, indices: list[int], update: int) -> list[torch.Tensor]:
        winner, loser, condition = self.encoded(indices)
        drawn = noising(keys_of(indices, update), winner, condition, self.pipeline.train_timesteps)
        self.pipeline.components.switch(self.policy.adapter)

        def error(unet: torch.nn.Module, x0: torch.Tensor) -> torch.Tensor:
            noisy = self.pipeline.add_noise(x0, drawn.noise, drawn.t)
            eps = unet(noisy, drawn.t, encoder_hidden_states=condition.tensors["text"]).sample
            return (eps - drawn.noise).square().flatten(1).mean(1)

        own = error(self.pipeline.unet, winner) - error(self.pipeline.unet, loser)
        with torch.no_grad():
            reference = error(self.frozen, winner) - error(self.frozen, loser)
        loss = -functional.logsigmoid(-ALGORITHM.beta / 2 * (own - reference)).mean()
        return list(torch.autograd.grad(loss, self.policy.parameters()))


def made(road: str, folder: Path) -> Ours | TwoCopies:
    return TwoCopies(folder) if road == ROADS[0] else Ours(folder, road == ROADS[2])


def moved(road: Ours | TwoCopies) -> Ours | TwoCopies:
    """Off the reference, so that a wrong reference would show."""
    with torch.no_grad():
        for i, parameter in enumerate(road.policy.parameters()):
            parameter.add_(0.02 * Key("bench", "moved", i).normal(*parameter.shape))
    return road


def compare_gradients(folder: Path, batch: int) -> float:
    """The largest relative difference of the gradients of the three roads."""
    plain, *others = (moved(made(road, folder)).gradient(list(range(batch)), 0) for road in ROADS)
    scale = max(float(g.abs().max()) for g in plain)
    return max(float((a - b).abs().max()) / scale for other in others for a, b in zip(plain, other, strict=True))


def measure(road: str, folder: Path, batch: int, updates: int) -> None:
    """In a process of its own: seconds of each update after the first pass over the pairs, and peak memory."""
    maker = made(road, folder)
    optimiser = torch.optim.AdamW(maker.policy.parameters(), lr=1e-4)
    orders = [
        [(update * batch + k) % PAIRS for k in range(batch)] for update in range(math.ceil(PAIRS / batch) + updates)
    ]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of importing the libraries
    loaded = resident("VmRSS")
    times = []
    for update, indices in enumerate(orders):
        started = time.perf_counter()
        for parameter, gradient in zip(maker.policy.parameters(), maker.gradient(indices, update), strict=True):
            parameter.grad = gradient
        optimiser.step()
        times.append(time.perf_counter() - started)
    print(json.dumps({"seconds": statistics.median(times[-updates:]), "peak": resident("VmHWM"), "loaded": loaded}))


def resident(name: str) -> float:
    """MiB of memory this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main(batch: int = 32, updates: int = 8, output: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder)
        difference = compare_gradients(folder, batch)
        assert difference < 1e-3, f"the gradients differ by {difference:.2g} of the largest"
        print(f"gradients of the three roads differ by at most {difference:.1e} of the largest entry")
        found = {}
        for road in ROADS:
            command = [sys.executable, __file__, "--measure", road, name, str(batch), str(updates)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[road] = json.load(io.StringIO(done.stdout.splitlines()[-1]))
        print(
            f"embedded model, LoRA of rank {ALGORITHM.rank}, {batch} pairs an update, {torch.get_num_threads()} threads"
        )
        print(f"{'':24}{'pairs/s':>10}{'ratio':>8}{'peak MiB':>10}{'over loading':>14}")
        first = found[ROADS[0]]["seconds"]
        for road, values in found.items():
            print(
                f"{road:24}{batch / values['seconds']:10.1f}{first / values['seconds']:8.2f}{values['peak']:10.0f}"
                f"{values['peak'] - values['loaded']:14.0f}"
            )
        if output is not None:
            roads = {road: {name: round(value, 4) for name, value in values.items()} for road, values in found.items()}
            content = {"pairs_an_update": batch, "rank": ALGORITHM.rank, "gradients_differ_by": difference}
            content |= {"threads": torch.get_num_threads(), "environment": environment(), "roads": roads}
            write_text(output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(*map(int, sys.argv[1:3]), *map(Path, sys.argv[3:4]))
