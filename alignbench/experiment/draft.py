"""The result of a cell: what is known from the beginning, and what its run found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from alignbench.asking import prompts as prompt_sets
from alignbench.asking.resolve import Cell
from alignbench.experiment.evaluate import Scores
from alignbench.interface import Pipeline, Sampling
from alignbench.quantities import flow_sigma
from alignbench.record.contents import SCHEMA
from alignbench.record.environment import environment
from alignbench.record.pictures import PictureFacts, Slot
from alignbench.record.result import (
    Costs,
    Diversity,
    Evaluation,
    FrontierCurve,
    Kept,
    Metric,
    PromptRow,
    Result,
    Row,
    Status,
    identity,
)


def rows_of(cell: Cell, wanted: Sequence[Slot], scores: Scores, pictures: Mapping[Slot, PictureFacts]) -> list[Row]:
    return [
        Row(
            prompt=cell.evaluated[slot.place].id,
            sample=slot.sample,
            scores={name: scores.values[name].get(slot) for name in cell.scorers},
            failures={name: scores.failures[name][slot] for name in cell.scorers if slot in scores.failures[name]},
            sha256=pictures[slot].sha256 if slot in pictures else None,
            picture=pictures[slot].statistics if slot in pictures else {},  # type: ignore[arg-type]
        )
        for slot in wanted
    ]


def _levels(pipeline: Pipeline, sampling: Sampling) -> dict[str, list[float]]:
    """Of a flow model σ before each of the cell's steps and after the last, as they were computed: what libraries make
    of a grid's name may change."""
    if "sigmas" not in pipeline.info():
        return {}
    steps = pipeline.timesteps(sampling.steps)
    levels = torch.cat([steps.alpha_bar, steps.next_alpha_bar[-1:]])
    return {"sigmas": [round(sigma, 6) for sigma in flow_sigma(levels).tolist()]}


@dataclass(frozen=True)
class Found:
    """What a run found out, as far as it came."""

    sampler: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    diversity: list[Diversity] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    frontiers: dict[str, FrontierCurve] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    budget: dict[str, float] | None = None
    cost: Costs | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Draft:
    """What is known about a result before it is finished."""

    cell: Cell
    pipeline: Pipeline
    aligned: Mapping[str, str]  # what was done to the model before this run
    device: str
    attempts: int
    started: str
    cut: Mapping[str, int]  # prompts that the model cuts off
    origin: str | None  # the result whose weights are evaluated

    def result(self, status: Status, reason: str | None, found: Found | None = None) -> Result:
        cell = self.cell
        return Result(
            schema=SCHEMA,
            status=status,
            reason=reason,
            trains=cell.algorithm.trains,
            configuration=cell.configuration,
            preset=cell.preset,
            published=str(cell.beside.nearest) if cell.beside else None,
            differs_from_paper=cell.beside.differences if cell.beside else {},
            evaluation=Evaluation(
                model=dict(self.pipeline.info()),
                prompts=prompt_sets.label(cell.configuration.prompts),
                split=cell.configuration.split,
                prompts_sha256=cell.prompts_sha256,
                eval_seed=cell.options.eval_seed,
                task=cell.configuration.task,
            ),
            scorers={name: identity(scorer.info()) for name, scorer in cell.scorers.items()},
            prompts=[
                PromptRow(id=p.id, text=p.text, category=p.category, challenge=p.challenge) for p in cell.evaluated
            ],
            model_truncated=dict(self.cut),
            environment={**environment(self.device), **_levels(self.pipeline, cell.sampling)},
            asked=cell.options.asked,
            origin=self.origin,
            attempts=self.attempts,
            started=self.started,
            finished=datetime.now(UTC).isoformat(timespec="seconds") if status != "partial" else None,
            **vars(found or Found()),
        )
