"""Prints what each option of computing does: speed, memory, and the largest difference in the result.

    python tests/timings/options.py [--output results/timings/options.json]

The embedded model generates images and makes an update of Diffusion-DPO, on the GPU where there is one. Each option is
a process of its own; they take turns. An option that this device does not have is left out, and said to be.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from turns import by_turns, ratios, serve, shown, sides, spread

from alignbench import Key, LoRA
from alignbench.algorithms.diffusion_dpo import DiffusionDPO
from alignbench.asking import prompts
from alignbench.diffusion import ways
from alignbench.diffusion.registry import Hold, find, load
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError
from alignbench.files import write_text
from alignbench.interface import PairBatch, Sampling
from alignbench.meter import Meter
from alignbench.record.environment import environment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = "none"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "channels-last": {"channels_last": True},
    "attention math": {"attention": "math"},
    "attention flash": {"attention": "flash"},
    "attention efficient": {"attention": "efficient"},
    "attention cudnn": {"attention": "cudnn"},
    "dtype bfloat16": {"dtype": "bfloat16"},
    "compile default": {"compiling": "default"},
    "compile reduce-overhead": {"compiling": "reduce-overhead"},
}
ALGORITHM = DiffusionDPO(beta=2500.0, caption_dropout=0.0, rank=8)


class Work:
    """What is timed, with one option."""

    def __init__(self, name: str, images: int, pairs: int) -> None:
        model = find("tiny")
        self.pipeline = load(model, Meter(), Hold(device=DEVICE, **OPTIONS[name]))
        self.policy = self.pipeline.adapt(LoRA(ALGORITHM.rank), Key("adapter"))
        with torch.no_grad():
            for i, parameter in enumerate(self.policy.parameters()):
                parameter.add_(0.02 * Key("moved", i).normal(*parameter.shape).to(DEVICE))
        self.optimiser = torch.optim.SGD(self.policy.parameters(), lr=0.0)  # the same update at each turn
        self.sampler = PipelineSampler(self.pipeline, Sampling(model.steps, model.guidance, 0.0))
        self.prompts = list(prompts.take("shapes", "test")[:images])
        self.keys = [Key("noise", i) for i in range(pairs)]
        winner, loser = (Key(name).normal(pairs, *self.pipeline.latent_shape).to(DEVICE) for name in ("won", "lost"))
        condition = self.pipeline.condition([self.prompts[i % images] for i in range(pairs)])
        self.batch = PairBatch(winner, loser, condition, torch.ones(pairs, device=DEVICE), range(pairs))

    def generate(self) -> torch.Tensor:
        return self.sampler(self.prompts, [Key("picture", i) for i in range(len(self.prompts))]).images.cpu()

    def update(self) -> torch.Tensor:
        self.optimiser.zero_grad()
        loss, _ = ALGORITHM.loss(self.policy, self.batch, self.keys)
        loss.mean().backward()
        self.optimiser.step()
        return torch.cat([p.grad.flatten().cpu() for p in self.policy.parameters() if p.grad is not None])

    def __call__(self, word: str) -> None:
        self.generate() if word == "generate" else self.update()


def work_on(name: str, images: int, pairs: int, folder: Path) -> None:
    started, work = time.perf_counter(), Work(name, images, pairs)
    torch.save({"picture": work.generate(), "gradient": work.update()}, folder / f"{name}.pt")
    serve(work, DEVICE, first_seconds=time.perf_counter() - started)


def there(name: str) -> bool:
    """Whether this device has what an option asks for."""
    try:
        ways.check(Hold(device=DEVICE, **OPTIONS[name]))
    except InputError as error:
        print(f"left out: {error}", flush=True)
        return False
    return True


def measured(names: list[str], images: int, pairs: int, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = [str(images), str(pairs), name]
        with sides({name: [__file__, "--work", name, *told] for name in names}) as own:
            rows = {
                word: by_turns({name: functools.partial(side, word) for name, side in own.items()}, turns)
                for word in ("generate", "update")
            }
            first = {name: side.about["first_seconds"] for name, side in own.items()}
        made = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}
    plain, found = made[PLAIN], {}
    for name in names:
        found[name] = {"first_seconds": round(first[name], 1)}
        for word, count in (("generate", images), ("update", pairs)):
            own_rows = rows[word][name]
            found[name][word] = {
                "a_second": spread([count / row["seconds"] for row in own_rows]),
                "ratio_of_seconds": ratios(own_rows, rows[word][PLAIN], "seconds"),
                "ratio_of_processor_seconds": ratios(own_rows, rows[word][PLAIN], "processor_seconds"),
                "peak_mib": round(max(row["peak_mib"] for row in own_rows)),
            }
        found[name]["picture_differs_by"] = float((made[name]["picture"] - plain["picture"]).abs().max())
        gradient = (made[name]["gradient"] - plain["gradient"]).abs().max() / plain["gradient"].abs().max()
        found[name]["gradient_differs_by"] = float(gradient)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        name, images, pairs, folder = asked.work
        work_on(name, int(images), int(pairs), Path(folder))
        return
    names = [name for name in dict.fromkeys([PLAIN, *asked.options]) if there(name)]
    found = measured(names, asked.images, asked.pairs, asked.turns)
    for name, own in found.items():
        speeds = [
            f"{word} {shown(own[word]['ratio_of_seconds'])} x, of processors "
            f"{shown(own[word]['ratio_of_processor_seconds'])} x, {own[word]['peak_mib']} MiB"
            for word in ("generate", "update")
        ]
        differences = f"picture {own['picture_differs_by']:.1e}, gradient {own['gradient_differs_by']:.1e}"
        print(f"{name}: {'; '.join(speeds)}; differs by {differences}; first {own['first_seconds']:.0f} s", flush=True)
    report = {"images": asked.images, "pairs": asked.pairs, "turns": asked.turns, "algorithm": asdict(ALGORITHM)}
    report |= {"environment": environment(DEVICE), "options": found}
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
