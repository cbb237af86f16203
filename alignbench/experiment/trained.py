"""Weights that a finished cell has trained, to evaluate its method once more without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignbench.asking.resolve import Cell
from alignbench.diffusion.registry import Family
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import AlignbenchError, InputError
from alignbench.interface import Pipeline, Policy, Sampler
from alignbench.record.digests import digest_of
from alignbench.record.listing import WEIGHTS
from alignbench.record.pictures import ImageStore, PictureFacts, Slot
from alignbench.record.result import Costs, Kept, Result


@dataclass(frozen=True)
class Trained:
    """A complete result of a method that trains, and the weights beside it."""

    path: Path
    result: Result

    @property
    def folder(self) -> Path:
        return self.path.with_suffix("") / WEIGHTS

    def digest(self, family: Family) -> str:
        """SHA-256 over the weights. Raises InputError where they are not those that the result is of."""
        if not self.folder.is_dir():
            raise InputError(
                f"{self.path} has no weights in {self.folder}; keep the cell's folder beside its result, or type its "
                "command again with --force."
            )
        found = family.adapter_digest(self.folder)
        known = self.result.kept.weights if self.result.kept else None
        if known is not None and found != known:
            raise InputError(
                f"the weights in {self.folder} have changed since {self.path} was written (sha256 {found[:12]}, not "
                f"{known[:12]}); bring those back, or type its command again with --force."
            )
        return found

    def sampler(self, cell: Cell, pipeline: Pipeline) -> Sampler:
        """The sampler that the cell's method ended with. Raises InputError where the model or the method's own sampling
        is another."""
        was, now = self.result.evaluation.model, dict(pipeline.info())
        for name in sorted({*was, *now}):
            if _plain(was.get(name)) != _plain(now.get(name)):
                raise InputError(
                    f"{self.path} was trained on a model whose {name} is {was.get(name)!r}, and it is "
                    f"{now.get(name)!r} now; weights belong to the model that they were trained on."
                )
        sampler = PipelineSampler(opened(cell.family, pipeline, self.folder), cell.sampling)
        if dict(sampler.describe()) != self.result.sampler:
            raise InputError(
                f"{self.path} samples in a way of its own ({self.result.sampler}), which its weights alone do not "
                "give; run the method anew."
            )
        return sampler

    def costs(self, new: Costs) -> Costs:
        """The costs of a new evaluation, with what alignment had cost."""
        old = self.result.cost
        if old is None:
            return new
        return new.model_copy(
            update={
                "alignment": old.alignment,
                "alignment_seconds": old.alignment_seconds,
                "pairs_seconds": old.pairs_seconds,
                "forward_batch": old.forward_batch,
                "peak_memory_bytes": max(old.peak_memory_bytes, new.peak_memory_bytes),
            }
        )


def opened(family: Family, pipeline: Pipeline, place: Path) -> Policy:
    """Weights that are only evaluated: no gradient reaches them."""
    policy = family.open_policy(pipeline, place)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    return policy


def kept_of(cell: Cell, images: ImageStore, wanted: list[Slot], pictures: Mapping[Slot, PictureFacts]) -> Kept:
    """What lies in a cell's folder once it is complete."""
    folder = cell.folder / WEIGHTS
    try:
        weights = cell.family.adapter_digest(folder) if cell.algorithm.trains and folder.is_dir() else None
    except AlignbenchError:  # a plug-in may keep weights in a form of its own
        weights = None
    shown = {(slot.place, slot.sample): pictures[slot].sha256 for slot in wanted if slot in pictures}
    return Kept(pictures=digest_of(shown) if shown else images.digest(wanted), weights=weights)


def _plain(value: object) -> object:
    """As JSON holds it."""
    return list(value) if isinstance(value, tuple) else value
