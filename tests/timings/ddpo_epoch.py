"""Prints speed and memory of an epoch of DDPO beside TRL 0.23.1's DDPOTrainer, on the embedded model's weights.

    python tests/timings/ddpo_epoch.py [--peer FOLDER] [--output results/timings/ddpo_epoch.json]

FOLDER is the peer's environment, built where it is not there; without it, one is built for this run and deleted. TRL
0.23.1 is the last release with this trainer. It has the torch of this environment, reads the shipped folder with the
diffusers of its time, and is called as its page says.

Both sides have the same weights, prompts, steps, guidance, images, batch, updates, Adam and LoRA. First, the gradient
of the loss on a stored rollout is compared: same latents, log densities, advantages and LoRA. Then each side is a
process of its own with one thread, which makes an epoch (rollout and updates) whenever it is asked to. They take turns,
and a ratio is of two turns that follow each other, in seconds of a processor. The first epoch is not counted. Ours
writes a checkpoint after each epoch, and TRL none. Memory is what a process holds, its libraries included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from scorers import processor, resident

PEER = ("trl==0.23.1", "transformers==4.57.6", "diffusers<0.36", "peft<0.18", "accelerate", "datasets", "protobuf")
OF_TORCH = ("torch", "torch-*", "torchgen", "functorch", "nvidia*", "cuda*", "triton*")  # in site-packages
SIDES = ("ours", "trl")
SECONDS = ("whole", "rollout", "update")
BATCH, UPDATES, RANK, GUIDANCE, CLIP, RATE, DECAY, NORM = 8, 2, 4, 3.0, 1e-2, 3e-4, 1e-4, 1.0
COMPARED = 2 * BATCH  # images of the stored rollout
LARGEST = 1e-4  # difference of two gradients that count as equal, relative to the largest entry


def build(folder: Path) -> Path:
    """The interpreter of the peer's environment. It has links to the torch that is here: another one would be faster or
    slower, smaller or larger, whoever calls it."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (packages,) = folder.glob("lib/*/site-packages")
        here = Path(str(metadata.distribution("torch").locate_file("")))
        for found in itertools.chain.from_iterable(map(here.glob, OF_TORCH)):
            (packages / found.name).symlink_to(found)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return python


class Turns:
    """A side's part of the protocol: a line comes in for each epoch, and what it took goes out as a line."""

    def __init__(self) -> None:
        self.answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
        self.update, self.begun = 0.0, False
        self.loaded, self.started = 0.0, (0.0, 0.0)

    def wait(self) -> None:
        """Say what the last epoch took, and wait until the next one is asked for."""
        found = {"loading_mib": resident("VmHWM")}
        if self.begun:
            whole, wall = time.process_time() - self.started[0], time.perf_counter() - self.started[1]
            found = {"whole": whole, "update": self.update, "rollout": whole - self.update, "wall": wall}
            found |= {"loaded_mib": self.loaded, "peak_mib": resident("VmHWM")}
        print(json.dumps(found), file=self.answers, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was another epoch's, or of loading
        self.loaded, self.update, self.begun = resident("VmRSS"), 0.0, True
        self.started = time.process_time(), time.perf_counter()

    def updating(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose seconds are those of the updates."""

        def call(*given: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return method(*given, **named)
            finally:
                self.update += time.process_time() - started

        return call


def ours(job: Mapping[str, Any]) -> tuple[Any, Any]:
    """The pipeline and the algorithm."""
    from alignbench.algorithms.ddpo import DDPO
    from alignbench.diffusion.registry import find, load
    from alignbench.meter import Meter

    algorithm = DDPO(
        rounds=10**6, samples_per_round=job["images"], updates_per_round=UPDATES, batch=BATCH, clip=CLIP, rank=RANK,
        min_count=10**6, learning_rate=RATE, weight_decay=DECAY, max_norm=NORM,
    )  # fmt: skip
    return load(find("tiny"), Meter()), algorithm


def epochs_of_ours(job: Mapping[str, Any], work: Path) -> None:
    """Epochs are rounds of `DDPO.align`, in a problem that waits before each."""
    from alignbench import Key, Prompt, Prompts, RewardInfo, Sampling
    from alignbench.experiment.metered import MeteredReward
    from alignbench.experiment.problem import CellProblem
    from alignbench.progress import Progress

    class Red:
        differentiable = True

        def __call__(self, images: Any, prompts: Sequence[Prompt]) -> Any:
            return images[:, 0].mean((1, 2))

        with_grad = __call__

        def info(self) -> RewardInfo:
            return RewardInfo(id="red-1", range="0 to 1")

        def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
            return None

    turns = Turns()

    class Waiting(CellProblem):
        def rounds(self, n: int, state: Mapping[str, Any]) -> Iterator[Any]:
            for current in super().rounds(n, state):  # it writes the last round's checkpoint
                turns.wait()
                yield current

    pipeline, algorithm = ours(job)
    prompts = Prompts([Prompt(str(i), text) for i, text in enumerate(job["texts"])])
    sampling, meter = Sampling(job["steps"], GUIDANCE, 1.0), pipeline.components.meter
    reward, folder = MeteredReward("red", Red(), meter), work / "ours"
    folder.mkdir()
    problem = Waiting(pipeline, reward, prompts, sampling, Key("align"), meter, folder, Progress(quiet=True))
    problem.step = turns.updating(problem.step)  # type: ignore[method-assign]
    algorithm.align(problem)


def gradient_of_ours(job: Mapping[str, Any], work: Path) -> None:
    """Write a rollout, the LoRA to take its loss's gradient at, which is not the one that drew it, and the gradient."""
    import numpy as np
    import torch

    from alignbench import Key, LoRA, Prompt, Sampling, rollout
    from alignbench.processes import ALONE

    pipeline, algorithm = ours(job)
    policy = pipeline.adapt(LoRA(RANK), Key("lora"))

    def move(name: str, by: float) -> None:
        with torch.no_grad():
            for place, parameter in policy.state_dict().items():
                parameter.add_(by * Key(name, place).normal(*parameter.shape))

    move("drawn with", 0.02)
    condition = policy.condition([Prompt(str(i), text) for i, text in enumerate(job["texts"][:COMPARED])])
    path = rollout(policy, condition, [Key("path", i) for i in range(COMPARED)], Sampling(job["steps"], GUIDANCE, 1.0))
    move("updated at", 0.01)
    advantages, ratios = Key("advantages").normal(COMPARED), list[torch.Tensor]()
    images = range(COMPARED)
    for loss in algorithm.losses(ALONE, policy, path, advantages, images, Key("order"), ratios):
        loss.backward()
    clipped = float(((torch.cat(ratios).exp() - 1).abs() > CLIP).float().mean())
    assert 0.05 < clipped < 0.95, f"{clipped:.0%} of the ratios are clipped: nothing is compared where all or none are"
    lora = policy.state_dict()
    stored = {
        "latents": path.latents, "log_prob": path.log_prob, "advantages": advantages, "t": path.steps.t,
        **{f"lora.{name}": value for name, value in lora.items()},
    }  # fmt: skip
    np.savez(work / "stored.npz", **{name: value.numpy() for name, value in stored.items()})
    gradient = {name: p.grad for name, p in zip(lora, policy.parameters(), strict=True)}
    np.savez(work / "ours.npz", **{name: value.numpy() for name, value in gradient.items() if value is not None})


def trainer_of_trl(job: Mapping[str, Any], work: Path) -> Any:
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    PartialState(cpu=True)  # TRL logs before it makes one
    texts = itertools.cycle(job["texts"])
    config = DDPOConfig(
        sample_num_steps=job["steps"], sample_guidance_scale=GUIDANCE, sample_eta=1.0, sample_batch_size=BATCH,
        sample_num_batches_per_epoch=job["images"] // BATCH, train_batch_size=BATCH, train_learning_rate=RATE,
        train_gradient_accumulation_steps=job["images"] // BATCH // UPDATES, train_adam_weight_decay=DECAY,
        train_max_grad_norm=NORM, train_clip_range=CLIP, mixed_precision="no", save_freq=10**6,
        project_kwargs={"project_dir": str(work / "trl")}, accelerator_kwargs={"cpu": True},
    )  # fmt: skip

    def red(images: torch.Tensor, *_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        return images[:, 0].mean((1, 2)), {}

    return DDPOTrainer(config, red, lambda: (next(texts), {}), DefaultDDPOStableDiffusionPipeline(job["weights"]))


def epochs_of_trl(job: Mapping[str, Any], work: Path) -> None:
    turns, trainer = Turns(), trainer_of_trl(job, work)
    trainer._train_batched_samples = turns.updating(trainer._train_batched_samples)
    done = 0
    for epoch in itertools.count():
        turns.wait()
        done = trainer.step(epoch, done)


def gradient_of_trl(job: Mapping[str, Any], work: Path) -> None:
    """The gradient of the same loss, a part of `DDPOTrainer.step` for each batch and step."""
    import numpy as np
    import torch

    trainer = trainer_of_trl(job, work)
    stored = {name: torch.from_numpy(value) for name, value in np.load(work / "stored.npz").items()}
    unet = trainer.sd_pipeline.unet
    lora = {name.replace(".default.", "."): p for name, p in unet.named_parameters() if p.requires_grad}
    assert set(lora) == {name.removeprefix("lora.") for name in stored if name.startswith("lora.")}
    with torch.no_grad():
        for name, parameter in lora.items():
            parameter.copy_(stored[f"lora.{name}"])
    read = trainer.sd_pipeline.tokenizer(
        job["texts"][:COMPARED], return_tensors="pt", padding="max_length", truncation=True,
        max_length=trainer.sd_pipeline.tokenizer.model_max_length,
    )  # fmt: skip
    texts = trainer.sd_pipeline.text_encoder(read.input_ids)[0]
    trainer.sd_pipeline.scheduler.set_timesteps(job["steps"])
    parts, steps = COMPARED // BATCH, len(stored["t"])
    for part in range(parts):
        rows = slice(part * BATCH, (part + 1) * BATCH)
        embeds = torch.cat([trainer.neg_prompt_embed.repeat(BATCH, 1, 1), texts[rows]])
        for i in range(steps):
            latents, after = stored["latents"][i, rows], stored["latents"][i + 1, rows]
            t, drawn = stored["t"][i].expand(BATCH), stored["log_prob"][rows, i]
            loss, _, _ = trainer.calculate_loss(latents, t, after, drawn, stored["advantages"][rows], embeds)
            (loss / (parts * steps)).backward()
    np.savez(work / "trl.npz", **{name: p.grad.numpy() for name, p in lora.items()})


class Worker:
    """A process that makes an epoch when it is asked to."""

    def __init__(self, python: Path, side: str, work: Path) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process: Any = subprocess.Popen(command(python, "epochs", side, work), env=own(side), text=True, **pipes)
        self.loading_mib = self.read()["loading_mib"]

    def __call__(self) -> dict[str, float]:
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with {self.process.wait()}; run {' '.join(map(str, self.process.args))}")
        return json.loads(line)


def command(python: Path, what: str, side: str, work: Path) -> list[str]:
    return [str(python), __file__, "--work", what, side, str(work)]


def own(side: str) -> dict[str, str]:
    """The environment variables of a side."""
    outside = {} if side == "ours" else {"PYTHONPATH": ""}
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | outside


def compare_gradients(pythons: Mapping[str, Path], work: Path) -> float:
    """The largest difference relative to the largest entry."""
    import numpy as np

    for side in SIDES:
        asked = command(pythons[side], "gradient", side, work)
        done = subprocess.run(asked, env=own(side), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{side}: {done.stderr.strip()[-2000:]}")
    one, other = (dict(np.load(work / f"{side}.npz")) for side in SIDES)
    assert set(one) == set(other)
    scale = max(float(np.abs(value).max()) for value in one.values())
    assert scale > 0, "there is no gradient to compare"
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / scale


def taking_turns(pythons: Mapping[str, Path], work: Path, repetitions: int) -> dict[str, Any]:
    workers = {side: Worker(pythons[side], side, work) for side in SIDES}
    try:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(repetitions + 1):
            for side, worker in workers.items():
                taken = worker()
                if turn:
                    found[side].append(taken)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    content: dict[str, Any] = {"sides": {}, "ratio": {}}
    for side, rows in found.items():
        content["sides"][side] = {name: [round(row[name], 3) for row in rows] for name in (*SECONDS, "wall")} | {
            "peak_mib": round(max(row["peak_mib"] for row in rows), 1),
            "loaded_mib": round(rows[0]["loaded_mib"], 1),
            "loading_mib": round(workers[side].loading_mib, 1),
        }
    for name in SECONDS:
        ratios = [b[name] / a[name] for a, b in zip(*(found[side] for side in SIDES), strict=True)]
        spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        content["ratio"][name] = {key: round(value, 3) for key, value in spread.items()}
    one, other = (content["sides"][side]["peak_mib"] for side in SIDES)
    content["ratio"]["peak_mib"] = round(one / other, 3)
    return content


def roofline(job: Mapping[str, Any]) -> dict[str, float]:
    """What the denoiser multiplies for an image of an epoch, and what this core multiplies in a second at most."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from alignbench import Key, LoRA, Prompt

    torch.set_num_threads(1)
    pipeline, _ = ours(job)
    policy, latents = pipeline.adapt(LoRA(RANK), Key("lora")), Key("x").normal(BATCH, *pipeline.latent_shape)
    condition = policy.condition([Prompt("0", job["texts"][0])] * BATCH)
    with FlopCounterMode(display=False) as sampled, torch.no_grad():
        policy.predict(latents, 500, condition, GUIDANCE)
    with FlopCounterMode(display=False) as trained:
        policy.predict(latents, 500, condition, GUIDANCE).native.sum().backward()
    matrix, seconds = Key("matrix").normal(1024, 1024), []
    for _ in range(20):
        started = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - started)
    multiplied = (sampled.get_total_flops() + trained.get_total_flops()) / 2 / BATCH * job["steps"]
    return {"multiplications_an_image": multiplied, "multiplications_a_second": 1024**3 / min(seconds)}


def say(content: Mapping[str, Any], images: int) -> None:
    for name, label in zip(SECONDS, ("epoch", "rollout", "updates"), strict=True):
        speeds = (images / statistics.median(content["sides"][side][name]) for side in SIDES)
        ratio = "{median:.2f} ({least:.2f} to {most:.2f})".format(**content["ratio"][name])
        print(f"{label:8} ours / TRL: {' / '.join(f'{x:.2f}' for x in speeds)} images a processor second = {ratio}")
    for name, label in (("peak_mib", "peak"), ("loaded_mib", "held before"), ("loading_mib", "peak of loading")):
        held = (content["sides"][side][name] for side in SIDES)
        print(f"{label} MiB, ours / TRL: {' / '.join(f'{x:.0f}' for x in held)}")
    peak, each = content["roofline"]["multiplications_a_second"], content["roofline"]["multiplications_an_image"]
    for side in SIDES:
        share = each * images / statistics.median(content["sides"][side]["whole"]) / peak
        print(f"{side}: {100 * share:.0f} % of a core's {peak / 1e9:.0f} thousand million multiplications a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--images", type=int, default=64, help="of an epoch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    from alignbench import shapes
    from alignbench.files import write_text
    from alignbench.keys import Key
    from alignbench.record.environment import environment
    from alignbench.shapes.scene import sample_caption

    with tempfile.TemporaryDirectory(prefix="ddpo-") as name:
        work = Path(name)
        pythons = {"ours": Path(sys.executable), "trl": build((asked.peer or work / "peer").absolute())}
        job = {
            "images": asked.images, "steps": asked.steps,
            "weights": str(Path(shapes.__file__).parent / "weights" / "tiny"),
            "texts": [sample_caption(Key("prompt", i), "train").text for i in range(asked.images)],
        }  # fmt: skip
        (work / "job.json").write_text(json.dumps(job))
        difference = compare_gradients(pythons, work)
        print(f"gradients differ by {difference:.1e} of the largest entry", flush=True)
        assert difference < LARGEST
        content = taking_turns(pythons, work, asked.repetitions)
    content |= {"roofline": roofline(job), "gradients_differ_by": difference}
    say(content, asked.images)
    if asked.output:
        content |= {
            "images": asked.images, "steps": asked.steps, "batch": BATCH, "updates": UPDATES, "rank": RANK,
            "guidance": GUIDANCE, "threads": 1, "repetitions": asked.repetitions, "peer": list(PEER),
            "machine": f"{processor()}, {os.cpu_count()} cores", "environment": environment(),
        }  # fmt: skip
        write_text(asked.output, json.dumps(content, indent=1) + "\n")


def work_on(what: str, side: str, work: Path) -> None:
    import torch

    torch.set_num_threads(1)
    job = json.loads((work / "job.json").read_text())
    known = {
        ("epochs", "ours"): epochs_of_ours, ("epochs", "trl"): epochs_of_trl, ("gradient", "ours"): gradient_of_ours,
        ("gradient", "trl"): gradient_of_trl,
    }  # fmt: skip
    known[what, side](job, work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work_on(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
