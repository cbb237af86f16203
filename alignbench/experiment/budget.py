"""Budgets per image: what the command line says, and what a second comes to in evaluations."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from alignbench import devices
from alignbench.experiment.problem import CellProblem
from alignbench.files import canonical_json, write_text
from alignbench.interface import Prompt
from alignbench.keys import Key
from alignbench.reading import json_of, read_bytes

BATCH = 8  # images timed at once
TIMES = 3  # the fastest counts


def resolve_budget(
    budget: Mapping[str, float], folder: Path, problem: CellProblem, prompts: Sequence[Prompt], dtype: str
) -> dict[str, float]:
    """The budget with, for `seconds`, what an evaluation of each resource takes: measured once for a model, a reward
    and a kind of device, and kept in the folder of the results, so that methods are given the same, and a run that is
    continued too, also on another card of that kind."""
    if "seconds" not in budget:
        return dict(budget)
    device = devices.kind_of(problem.pipeline.initial_noise([Key("budget", 0)]).device)
    about = [dict(problem.pipeline.info()), problem.reward.info().id, dtype, device, torch.get_num_threads()]
    digest = hashlib.sha256(canonical_json(about).encode()).hexdigest()[:12]
    path = folder / f".seconds-{digest}"  # without .json: those are results
    measured = _kept(path) if path.exists() else None
    if measured is None:
        measured = _measured(problem, prompts)
        measured = (_kept(path) if path.exists() else None) or measured  # another cell's, which has used it by now
        write_text(path, json.dumps(measured) + "\n")
    return {**budget, **measured}


def _kept(path: Path) -> dict[str, float] | None:
    """What was measured before; None where nobody can read it: it is measured again."""
    try:
        return {str(name): float(value) for name, value in json_of(read_bytes(path)).items()}
    except (ValueError, AttributeError, TypeError):
        return None


@torch.no_grad()
def _measured(problem: CellProblem, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Seconds of one evaluation of each resource, forward, on the machine at hand; not counted as cost."""
    pipeline, before = problem.pipeline, problem.meter.total
    asked = [prompts[i % len(prompts)] for i in range(BATCH)]
    condition = pipeline.condition(asked)
    latents = pipeline.initial_noise([Key("budget", i) for i in range(BATCH)])
    t = pipeline.timesteps(2).t[0].item()
    images = pipeline.decode(latents)
    found = {
        "seconds_per_denoiser": _fastest(lambda: pipeline.predict(latents, t, condition)),
        "seconds_per_decode": _fastest(lambda: pipeline.decode(latents)),
        "seconds_per_reward": _fastest(lambda: problem.reward(images, asked)),
    }
    problem.meter.total = before
    return found


def _fastest(work: Callable[[], object]) -> float:
    timed = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        timed.append(time.perf_counter() - started)
    return min(timed) / BATCH
