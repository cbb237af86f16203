"""Pipelines of plain diffusers for folders of flow models, and what makes them draw what ours draw."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline

from alignbench import Key, Prompt, Sampling


@functools.cache
def plain_diffusers(folder: Path) -> Any:
    """Of the class that its index names, without the parts that this says are absent."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {part: None for part, known in index.items() if known == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_asked(pipeline: Any, sampling: Sampling, prompts: Sequence[Prompt], keys: Sequence[Key]) -> dict[str, Any]:
    """What makes a pipeline of diffusers draw the same: noise, grid, size and length of the text."""
    n, noise, info = sampling.steps, pipeline.initial_noise(keys), pipeline.info()
    if pipeline.components.layout.packed > 1:
        noise = FluxPipeline._pack_latents(noise, *noise.shape)
    _, height, width = info["image_shape"]
    asked = {
        "num_inference_steps": n,
        "guidance_scale": sampling.guidance,
        "prompt": [prompt.text for prompt in prompts],
    }
    asked |= {"height": height, "width": width, "max_sequence_length": info["text_tokens"], "latents": noise}
    return asked | ({"sigmas": torch.linspace(1, 1 / n, n).tolist()} if info["sigmas"] == "linspace" else {})
