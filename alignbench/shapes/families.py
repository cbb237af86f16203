"""The embedded models of the shapes world, which come with alignbench: `tiny`, a Stable Diffusion, and `tiny_flow`, a
Stable Diffusion 3."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from alignbench.diffusion.latent_family import LatentFamily, Place
from alignbench.diffusion.registry import Model

__all__ = ["SHAPES"]


def _place(model: Model) -> Place:
    return Place(Path(str(resources.files("alignbench.shapes") / "weights" / model.name)), model.source)


SHAPES = LatentFamily(
    "shapes",
    (
        Model(
            "tiny",
            source="embedded",
            family="shapes",
            steps=20,
            guidance=3.0,
            eta=1.0,
            resolution=32,
            prediction="epsilon",
            note="the embedded 32-pixel model of the shapes world; works offline",
        ),
        Model(
            "tiny_flow",
            source="embedded",
            family="shapes",
            steps=20,
            guidance=3.0,
            resolution=32,
            prediction="flow",
            sigmas="linspace",
            tokens=1,
            note="the same world as a flow model, a miniature Stable Diffusion 3; works offline",
        ),
    ),
    needs=lambda model: (),
    place=_place,
    at_hand=True,
)
