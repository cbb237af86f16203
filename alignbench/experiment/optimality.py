"""Where the optimum is known, how far a cell's images are from it: the metrics that only the exact testbed can give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignbench.asking.resolve import Cell
from alignbench.diffusion.rollout import PipelineSampler, density_of_chain, noise_of, path_divergence, rollout
from alignbench.experiment.evaluate import evaluation_key
from alignbench.interface import KnownDivergence, Pipeline, Policy, Prompt, Sampler
from alignbench.keys import Key
from alignbench.record.pictures import ImageStore, Slot
from alignbench.record.result import FrontierCurve, Metric
from alignbench.testbed import scores
from alignbench.testbed.exact_problem import ExactProblem
from alignbench.testbed.exact_problem import info as reward_info
from alignbench.testbed.tilt import Frontier, rates

MANTISSAS = (10.0, 8.0, 6.5, 5.0, 4.0, 3.0, 2.5, 2.0, 1.6, 1.3)
RATES = (0.0, *(10.0**i / m for i in range(-1, 3) for m in MANTISSAS))  # λ = 1/β along the stored frontier: 0.01 to 77
WIDEST_CHAIN = 4  # dimensions up to which a chain's Jacobians are worth their cost


def problem_of(pipeline: Pipeline) -> ExactProblem | None:
    """The exact problem a pipeline is of, or None for every real model."""
    found = getattr(pipeline, "problem", None)
    return found if isinstance(found, ExactProblem) else None


def frontiers(cell: Cell, pipeline: Pipeline) -> dict[str, FrontierCurve]:
    """The frontier of every scorer that is a reward of the exact problem."""
    problem = problem_of(pipeline)
    if problem is None:
        return {}
    flat = problem.flat
    found = {}
    for name in _rewards(cell, problem):
        low, high = rates(flat.mixture, flat.rewards[name])
        chosen = sorted({rate for rate in (*RATES, 1 / problem.beta) if low < rate < high})
        found[name] = FrontierCurve(beta=problem.beta, points=Frontier(flat.mixture, flat.rewards[name]).points(chosen))
    return found


def metrics(
    cell: Cell,
    pipeline: Pipeline,
    sampler: Sampler,
    images: ImageStore,
    wanted: Sequence[Slot],
) -> dict[str, Metric]:
    """The scores of alignbench/testbed/scores.py for a cell's images; empty for a real model."""
    problem = problem_of(pipeline)
    if problem is None:
        return {}
    names = _rewards(cell, problem)
    prompts = [cell.evaluated[slot.place] for slot in wanted]
    keys = [evaluation_key(cell.options.eval_seed, p, slot.sample) for p, slot in zip(prompts, wanted, strict=True)]
    known = _known_divergence(cell, sampler, problem)
    density = None if known is not None else _density(sampler, prompts, keys)
    places = torch.tensor([slot.place for slot in wanted])
    points = images.read(wanted)
    found = scores.measure(problem, names, points, places, Key("optimality"), known, density)
    if (bound := _path_divergence(sampler, prompts, keys)) is not None:
        found["path_kl"] = bound
    return {name: Metric(**vars(measure)) for name, measure in found.items()}


def _known_divergence(cell: Cell, sampler: Sampler, problem: ExactProblem) -> float | None:
    """What the sampler knows; of another reward than the problem's, which may have ties, only that nothing changed."""
    known = sampler.divergence() if isinstance(sampler, KnownDivergence) else None
    return known if known == 0 or cell.configuration.reward in problem.rewards else None


def _rewards(cell: Cell, problem: ExactProblem) -> list[str]:
    return [
        name for name, scorer in cell.scorers.items() if name in problem.rewards and scorer.info() == reward_info(name)
    ]


def _density(sampler: Sampler, prompts: Sequence[Prompt], keys: Sequence[Key]) -> Tensor | None:
    """log q of each image where the sampler is a deterministic chain of few dimensions."""
    if not isinstance(sampler, PipelineSampler) or math.prod(sampler.pipeline.latent_shape) > WIDEST_CHAIN:
        return None
    steps, sampling = sampler.pipeline.timesteps(sampler.sampling.steps), sampler.sampling
    if sampling.kernel == "exact" or (noise_of(steps, sampling) > 0).any():
        return None
    return density_of_chain(sampler.pipeline, prompts, keys, sampling)


def _path_divergence(sampler: Sampler, prompts: Sequence[Prompt], keys: Sequence[Key]) -> scores.Measure | None:
    """Σ_t KL of a trained policy's steps from the reference's along its own paths, where every step has noise."""
    if not isinstance(sampler, PipelineSampler) or not isinstance(sampler.pipeline, Policy):
        return None
    policy, sampling = sampler.pipeline, sampler.sampling
    if not (noise_of(policy.timesteps(sampling.steps), sampling) > 0).all():
        return None
    each = path_divergence(policy, rollout(policy, policy.condition(prompts), keys, sampling)).double()
    about = "Σ_t KL of the policy's steps from the reference's: bounds the divergence from the reference's own chain"
    value, error = float(each.mean()), float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    half = 1.96 * error
    ends = (value - half, value + half) if math.isfinite(half) else (None, None)
    return scores.Measure(value, about, "upper bound", *ends)
