"""What a loaded model is asked before anything is spent on it."""

from __future__ import annotations

from collections.abc import Callable

from alignbench.diffusion.latent import LatentPipeline
from alignbench.interface import Pipeline, Sampling


def check_pipeline(pipeline: Pipeline, sampling: Sampling, say: Callable[[str], None]) -> None:
    """Raise InputError where the model cannot be sampled in that many steps; say what was done to make it work."""
    pipeline.timesteps(sampling.steps)
    for note in pipeline.components.notes if isinstance(pipeline, LatentPipeline) else ():
        say(note)
