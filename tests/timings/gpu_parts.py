"""The parts of gpu.py: each measures one thing in a process of its own, and says what it found as a dictionary.

A part's work is done once with its operations counted, which also warms up, and then `times` times by the clock.
`count` are the pairs, images or updates of one such time, `flops` the operations of its multiplications, forward and
backward, and `peak_mib` the most memory that tensors held.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dpo_step
import gpu_plain
import peft.tuners.lora  # the parts are forked from a process that has imported what they use
import random_models
import recipe
import torch
import torch._dynamo  # which every optimiser imports
from diffusers import DiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from alignbench import Key, LoRA, Prompt, Prompts, Sampling, plugins
from alignbench import devices as memory
from alignbench.algorithms.ddpo import DDPO
from alignbench.algorithms.doodl import DOODL
from alignbench.algorithms.draft import DRaFT
from alignbench.diffusion.registry import Hold, find, load
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.experiment.problem import CellProblem, TrainingRound
from alignbench.meter import Meter
from alignbench.progress import Progress
from alignbench.record.environment import environment

sys.path.insert(0, str(Path(random_models.__file__).parent / "plugins"))
from colours import Brightness

assert peft.tuners.lora
SCORERS = ("pickscore", "hpsv2_1", "clip_l14", "aesthetic_v2", "imagereward")
REWARD = Brightness()


@dataclass(frozen=True)
class Size:
    """How much work a family's parts do."""

    pixels: int | None  # None: the model's own
    dtype: str
    steps: int  # of generation
    path_steps: int  # of DDPO's paths and DOODL's chains
    images: int  # at once, generated or trained on
    round: int  # images of DDPO's rounds
    pairs: int  # an update of DPO
    times: int = 3
    guidance: float = 5.0


SIZES = {
    "sd15": Size(512, "bfloat16", steps=20, path_steps=10, images=8, round=16, pairs=16),
    "sdxl": Size(1024, "bfloat16", steps=20, path_steps=10, images=2, round=4, pairs=2),
}
SMALL = Size(None, "float32", steps=3, path_steps=3, images=2, round=4, pairs=2, times=2)
PICTURES, SIDE = 64, 512  # that scorers score


@dataclass(frozen=True)
class Place:
    """Where a part works, and how much it does."""

    family: str
    folder: Path
    size: Size
    small: bool

    def pipeline(self) -> Any:
        pixels = (self.size.pixels, self.size.pixels) if self.size.pixels else None
        return load(find(str(self.folder)), Meter(), Hold(dpo_step.device(), self.size.dtype, pixels))

    def asked(self, count: int) -> tuple[list[Prompt], list[Key]]:
        return [Prompt(f"p{i}", f"a red circle left of star {i}") for i in range(count)], [
            Key("gpu", i) for i in range(count)
        ]

    def problem(self, eta: float, pipeline: Any = None) -> Timed:
        prompts, _ = self.asked(self.size.round)
        sampling = Sampling(self.size.path_steps, self.size.guidance, eta)
        quiet = (Meter(), Path("unused"), Progress(quiet=True))
        return Timed(pipeline or self.pipeline(), REWARD, Prompts(prompts), sampling, Key("gpu", "align"), *quiet)


def synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Timed(CellProblem):
    """A problem whose rounds keep nothing on disk, and say what they took: in all, and in `step`."""

    rows: list[tuple[float, float]] = field(default_factory=list)
    stepping: float = 0.0

    def check(self, policy: Any, plan: Any, probe: Any) -> None:
        pass

    def rounds(self, n: int, state: Mapping[str, Any]) -> Iterator[TrainingRound]:
        for index in range(n):
            started, self.stepping = synchronised(), 0.0
            yield TrainingRound(index, self.key("round", index))
            self.rows.append((synchronised() - started, self.stepping))

    def step(self, *arguments: Any) -> float:
        started = synchronised()
        norm = super().step(*arguments)
        self.stepping += synchronised() - started
        return norm


def found(count: int, what: str, seconds: list[float], flops: int, **more: Any) -> dict[str, Any]:
    shown = {"what": what, "count": count, "seconds": round(statistics.median(seconds), 4)}
    shown |= {"least": round(min(seconds), 4), "most": round(max(seconds), 4), "flops": flops, **more}
    return shown | {"peak_mib": round(memory.peak(dpo_step.device()) / 2**20, 1)}


def by_the_clock(work: Callable[[], object], count: int, what: str, times: int, **more: Any) -> dict[str, Any]:
    memory.reset_peak(dpo_step.device())
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = []
    for _ in range(times):
        started = synchronised()
        work()
        seconds.append(synchronised() - started)
    return found(count, what, seconds, counter.get_total_flops(), **more)


def by_rounds(align: Callable[[Timed, int], object], problem: Timed, count: int, times: int) -> dict[str, Any]:
    """Of an algorithm that trains on `count` images in each round."""
    memory.reset_peak(dpo_step.device())
    with FlopCounterMode(display=False) as counter:
        align(problem, 1)
    problem.rows.clear()
    align(problem, times)
    updates = [update for _, update in problem.rows]
    whole = [seconds for seconds, _ in problem.rows]
    rollouts = [seconds - update for seconds, update in problem.rows]
    apart = {
        "rollout_seconds": round(statistics.median(rollouts), 4),
        "update_seconds": round(statistics.median(updates), 4),
    }
    return found(count, "images", whole, counter.get_total_flops(), **apart)


def peak(place: Place) -> dict[str, Any]:
    """Multiplications of square matrices."""
    n, dtype = (256, torch.float32) if place.small else (8192, torch.bfloat16)
    a, b = (torch.randn(n, n, device=dpo_step.device()).to(dtype) for _ in range(2))
    each = 10
    report = by_the_clock(lambda: [a @ b for _ in range(each)], each, "products", 5, side=n)
    return report | {"environment": environment(dpo_step.device())}


def generation(place: Place) -> dict[str, Any]:
    s = place.size
    sampler = PipelineSampler(place.pipeline(), Sampling(s.steps, s.guidance, 0.0))
    return by_the_clock(lambda: sampler(*place.asked(s.images)), s.images, "images", s.times)


def plain_generation(place: Place) -> dict[str, Any]:
    """diffusers' own pipeline."""
    s = place.size
    pipeline = DiffusionPipeline.from_pretrained(place.folder, dtype=getattr(torch, s.dtype)).to(dpo_step.device())
    pipeline.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in place.asked(s.images)[0]]
    asked = {"num_inference_steps": s.steps, "guidance_scale": s.guidance, "height": s.pixels, "width": s.pixels}
    return by_the_clock(lambda: pipeline(texts, output_type="pt", **asked), s.images, "images", s.times)


def dpo(place: Place, road: str = dpo_step.ROADS[2]) -> dict[str, Any]:
    """As dpo_step.py measures it."""
    s = place.size
    with tempfile.TemporaryDirectory() as name:
        dpo_step.write_pairs(Path(name), s.pairs, s.pixels)
        maker = dpo_step.made(road, dpo_step.Work(Path(name), str(place.folder), s.pixels, s.dtype, s.pairs))
        optimiser = torch.optim.AdamW(maker.policy.parameters(), lr=1e-4)
        indices = list(range(s.pairs))
        maker.batch(indices) if isinstance(maker, dpo_step.Ours) else None  # fills the cache

        def update() -> None:
            for parameter, gradient in zip(maker.policy.parameters(), maker.gradient(indices, 0), strict=True):
                parameter.grad = gradient
            optimiser.step()

        return by_the_clock(update, s.pairs, "pairs", s.times)


def plain_dpo(place: Place) -> dict[str, Any]:
    return dpo(place, dpo_step.ROADS[0])


def ddpo(place: Place) -> dict[str, Any]:
    s = place.size

    def align(problem: Timed, rounds: int) -> object:
        return DDPO(rounds=rounds, samples_per_round=s.round, updates_per_round=1, batch=s.images).align(problem)

    return by_rounds(align, place.problem(eta=1.0), s.round, s.times)


def plain_ddpo(place: Place) -> dict[str, Any]:
    s, policy = place.size, place.pipeline().adapt(LoRA(4), Key("gpu", "adapter"))
    policy.components.switch(policy.adapter)
    prompts, keys = place.asked(s.round)
    plain = gpu_plain.PlainDDPO(policy, s.path_steps, s.guidance, lambda pictures: REWARD(pictures, prompts))
    parts = [slice(i, i + s.images) for i in range(0, s.round, s.images)]

    def align(problem: Timed, rounds: int) -> None:
        for _ in problem.rounds(rounds, {}):
            condition, noise = policy.condition(prompts), policy.initial_noise(keys)
            batches = [(rows, *plain.sample(condition[rows], noise[rows])) for rows in parts]
            started = synchronised()
            plain.update(condition, batches)
            problem.stepping += synchronised() - started

    timer = place.problem(eta=1.0, pipeline=policy)
    return by_rounds(align, timer, s.round, s.times)


def draft(place: Place) -> dict[str, Any]:
    """Through the last step and the decoder."""
    s = place.size
    count = max(1, s.images // 2)

    def align(problem: Timed, rounds: int) -> object:
        algorithm = DRaFT(rounds=rounds, updates_per_round=1, samples_per_update=count, batch=count)
        return algorithm.align(problem)

    return by_rounds(align, place.problem(eta=0.0), count, s.times)


UPDATES = 2  # of DOODL, and one chain more


def doodl(place: Place) -> dict[str, Any]:
    s = place.size
    sampler = DOODL(updates=UPDATES, steps=s.path_steps).align(place.problem(eta=0.0))
    return by_the_clock(lambda: sampler(*place.asked(1)), UPDATES, "updates", max(1, s.times - 1))


def plain_doodl(place: Place) -> dict[str, Any]:
    s, pipeline = place.size, place.pipeline()
    prompts, keys = place.asked(1)
    condition = pipeline.condition(prompts)
    plain = gpu_plain.PlainDOODL(pipeline, condition, s.path_steps, s.guidance, lambda x: REWARD(x, prompts))
    noise = pipeline.initial_noise(keys)
    return by_the_clock(lambda: plain(noise, UPDATES), UPDATES, "updates", max(1, s.times - 1))


class Quick:
    """Stands for a key where weights are drawn: random numbers of the device, which are many and need not be the same
    again."""

    def __call__(self, *names: object) -> Quick:
        return self

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=dpo_step.device()).cpu()


def scorer(place: Place) -> dict[str, Any]:
    """A scorer of random weights, from pictures on the device to scores, none of which it has seen before."""
    name = place.family
    known: Mapping[str, Any] = recipe.ARCHITECTURES if place.small else recipe.FULL
    kind, count = plugins.load("rewards", name), 4 if place.small else PICTURES
    with tempfile.TemporaryDirectory() as data:
        for file, make in zip(kind.files, recipe.MAKERS[name], strict=True):
            path = Path(data, file.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(Quick(), known[name], path)
        os.environ["ALIGNBENCH_DATA"] = data
        reward = kind(allow_unverified=True, architecture=known[name])
        prompts = [Prompt(str(i), f"a picture of star {i}") for i in range(count)]

        def score() -> None:
            pictures = torch.rand(count, 3, SIDE, SIDE, device=dpo_step.device())
            assert torch.isfinite(reward(pictures, prompts)).all()

        return by_the_clock(score, count, "images", 3)


@dataclass(frozen=True)
class Part:
    seconds: float  # that it may take
    measure: Callable[[Place], dict[str, Any]]
    family: str | None = None  # whose model it needs
    subject: str = ""  # the family or the scorer


def parts() -> dict[str, Part]:
    """What matters most first: the time may end before all are done."""
    ways = {
        "generation": (25, 45, generation), "generation-plain": (25, 45, plain_generation),
        "dpo": (30, 45, dpo), "dpo-plain": (30, 45, plain_dpo),
        "ddpo": (45, 75, ddpo), "ddpo-plain": (45, 75, plain_ddpo),
        "draft": (25, 45, draft),
        "doodl": (30, 60, doodl), "doodl-plain": (30, 60, plain_doodl),
    }  # fmt: skip
    made = {"peak": Part(20, peak)}
    made |= {f"sd15-{name}": Part(first, way, "sd15", "sd15") for name, (first, _, way) in ways.items()}
    made |= {f"scorer-{name}": Part(45, scorer, None, name) for name in SCORERS}
    return made | {f"sdxl-{name}": Part(second, way, "sdxl", "sdxl") for name, (_, second, way) in ways.items()}


PARTS = parts()


def measure(name: str, work: Path, small: bool) -> dict[str, Any]:
    part = PARTS[name]
    size = SMALL if small else SIZES.get(part.subject, SIZES["sd15"])
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        return part.measure(Place(part.subject, work / part.subject, size, small))


def device() -> dict[str, Any]:
    """The GPU's name, seen by using it; fails in a fork of a process that has used it."""
    if torch.cuda.device_count() == 0:
        return {"name": "this processor, without a GPU"}
    torch.zeros(1, device="cuda")
    return {"name": torch.cuda.get_device_name()}


def make_model(family: str, folder: Path, small: bool) -> None:
    """A random checkpoint. The true ones' weights are drawn by the device, which is faster."""
    if small:
        {"sd15": random_models.small_sd, "sdxl": random_models.small_sdxl}[family](folder)
        return
    with torch.device(dpo_step.device()):
        {"sd15": random_models.true_sd15, "sdxl": random_models.true_sdxl}[family](folder, torch.bfloat16)


def line(name: str, reports: Mapping[str, Any]) -> str:
    """What a part found: speed, share of the peak, memory, and how it stands to the plain way."""
    own = reports[name]
    if own["status"] != "complete":
        return f"{name}: {own['status']}"
    speed = own["flops"] / own["seconds"]
    said = [f"{name}: {own['count'] / own['seconds']:.3g} {own['what']}/s, {speed / 1e12:.3g} TFLOP/s"]
    if "rollout_seconds" in own:
        said.append(f"rollout {own['rollout_seconds']:.2f} s and update {own['update_seconds']:.2f} s")
    if name != "peak" and (best := reports.get("peak", {})).get("status") == "complete":
        said.append(f"{100 * speed * best['seconds'] / best['flops']:.0f} % of the peak")
    said.append(f"{own['peak_mib']:.0f} MiB")
    pair = (reports.get(name.removesuffix("-plain")), own) if name.endswith("-plain") else (None, None)
    if pair[0] is not None and pair[0]["status"] == "complete":
        said.append(f"ours {own['seconds'] / pair[0]['seconds']:.2f} times as fast")
        said.append(f"with {pair[0]['peak_mib'] / own['peak_mib']:.2f} of its memory")
    return ", ".join(said)
