"""Prints the images a second of a `base` cell's generation against those of diffusers' own pipeline.

    python tests/timings/generation.py [--output results/timings/generation.json]

Both sample the embedded models: the same weights, prompts, batch, steps, guidance and noise that pictures start from,
without noise on the way; both decode and write PNG files. Their pictures are compared first. Ours writes to each file
the prompt and the seeds besides, and keeps of each picture its digest and statistics. Each side is a process of its
own; they take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from turns import by_turns, ratios, serve, shown, sides, spread

from alignbench.asking import prompts
from alignbench.diffusion.registry import Hold, find, load
from alignbench.diffusion.rollout import PipelineSampler, initial_noise
from alignbench.experiment import evaluate
from alignbench.files import write_text
from alignbench.interface import Sampling
from alignbench.meter import Meter
from alignbench.progress import Progress
from alignbench.quiet import quieten
from alignbench.record.environment import environment
from alignbench.record.pictures import slots

LARGEST = 1e-4  # difference of two pictures in [0, 1]
WEIGHTS = Path(__file__).resolve().parents[2] / "alignbench" / "shapes" / "weights"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def prompts_of(count: int) -> list[Any]:
    return list(prompts.take("shapes", "test")[:count])


class Ours:
    """The generation of a `base` cell."""

    def __init__(self, model: str, count: int, batch: int) -> None:
        found = find(model)
        self.meter = Meter()
        sampling = Sampling(found.steps, found.guidance, 0.0)
        self.sampler = PipelineSampler(load(found, self.meter, Hold(device())), sampling)
        self.prompts, self.batch = prompts_of(count), batch

    def pictures(self) -> torch.Tensor:
        chosen = self.prompts[: self.batch]
        return self.sampler(chosen, [evaluate.evaluation_key(0, p, 0) for p in chosen]).images.cpu()

    def write(self, folder: Path) -> None:
        about = {"method": "base", "noise seed": "0"}
        evaluate.generate(
            self.sampler, self.prompts, slots(len(self.prompts), 1), 0, self.batch, self.meter, folder,
            Progress(quiet=True), None, about,
        )  # fmt: skip


class Diffusers:
    """Their pipeline on the same folder."""

    def __init__(self, model: str, count: int, batch: int) -> None:
        from diffusers import DiffusionPipeline

        quieten("diffusers", "transformers")
        found = find(model)
        absent = {"text_encoder_3": None, "tokenizer_3": None} if model == "tiny_flow" else {}
        self.pipeline = DiffusionPipeline.from_pretrained(WEIGHTS / model, dtype=torch.float32, **absent).to(device())
        self.pipeline.set_progress_bar_config(disable=True)
        self.prompts, self.batch = prompts_of(count), batch
        self.options: dict[str, Any] = {"num_inference_steps": found.steps, "guidance_scale": found.guidance}
        if found.sigmas == "linspace":
            self.options |= {"sigmas": torch.linspace(1, 1 / found.steps, found.steps, dtype=torch.float64).tolist()}
            self.options |= {"max_sequence_length": found.tokens}

    def batch_of(self, first: int, kind: str) -> Any:
        chosen = self.prompts[first : first + self.batch]
        network = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
        noise = initial_noise([evaluate.evaluation_key(0, p, 0) for p in chosen], shape).to(device())
        texts = [prompt.text for prompt in chosen]
        return self.pipeline(texts, latents=noise, output_type=kind, **self.options).images

    def pictures(self) -> torch.Tensor:
        return torch.as_tensor(self.batch_of(0, "pt")).cpu()

    def write(self, folder: Path) -> None:
        folder.mkdir()
        for first in range(0, len(self.prompts), self.batch):
            for i, picture in enumerate(self.batch_of(first, "pil")):
                picture.save(folder / f"{first + i:05d}.png")


SIDES: dict[str, Callable[[str, int, int], Ours | Diffusers]] = {"ours": Ours, "diffusers": Diffusers}


def work_on(side: str, model: str, count: int, batch: int, folder: Path) -> None:
    maker, numbers = SIDES[side](model, count, batch), itertools.count()
    serve(lambda _: maker.write(folder / f"{side}-{next(numbers)}"), device())


def measured(model: str, count: int, batch: int, turns: int) -> dict[str, Any]:
    made = {name: side(model, count, batch).pictures() for name, side in SIDES.items()}
    difference = float((made["ours"] - made["diffusers"]).abs().max())
    assert difference < LARGEST, f"{model}: the pictures differ by {difference:.2g}"
    with tempfile.TemporaryDirectory() as folder:
        told = [model, str(count), str(batch), folder]
        with sides({side: [__file__, "--work", side, *told] for side in SIDES}) as own:
            rows = by_turns(own, turns)
    found: dict[str, Any] = {"pictures_differ_by": difference}
    for side, of in rows.items():
        found[side] = {
            "images_a_second": spread([count / row["seconds"] for row in of]),
            "images_a_processor_second": spread([count / row["processor_seconds"] for row in of]),
            "peak_mib": round(max(row["peak_mib"] for row in of)),
        }
    for what in ("seconds", "processor_seconds"):
        found[f"ratio_of_{what}"] = ratios(rows["ours"], rows["diffusers"], what)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny_flow"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        side, model, count, batch, folder = asked.work
        work_on(side, model, int(count), int(batch), Path(folder))
        return
    report: dict[str, Any] = {"images": asked.images, "batch": asked.batch, "turns": asked.turns}
    report |= {"environment": environment(device()), "models": {}}
    for model in asked.models:
        found = report["models"][model] = measured(model, asked.images, asked.batch, asked.turns)
        print(
            f"{model}: pictures differ by {found['pictures_differ_by']:.1e}; images of ours by those of diffusers "
            f"{shown(found['ratio_of_seconds'])} a second, {shown(found['ratio_of_processor_seconds'])} a processor "
            f"second; {found['ours']['peak_mib']} and {found['diffusers']['peak_mib']} MiB",
            flush=True,
        )
        if asked.output is not None:
            write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
