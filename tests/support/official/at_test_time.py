"""What our test-time methods make of the golden inputs: a function per quantity, and some that undo a departure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alignbench import Edict, Prediction, ProbabilityFlow, Sampling, Steps
from alignbench.algorithms import classifier_guidance, demon, doodl, rollover, steering, svdd, universal_guidance
from alignbench.diffusion.lookahead import rewards_of, slope
from alignbench.experiment.problem import CellProblem
from official.models import denoiser, given, keys, noise, problem_of, prompts_of, schedule, tensor

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]


def _problem(inputs: Inputs, eta: float, **start: Tensor) -> CellProblem:
    pipeline = denoiser(inputs.get("model", "reference"), schedule(inputs), **start)
    return problem_of(pipeline, Sampling(inputs["steps"], inputs.get("guidance", 1.0), eta))


def _at(inputs: Inputs, problem: CellProblem) -> Iterator[tuple[str, Steps]]:
    """The steps that an entry asks for, by the key of its outputs: a timestep or a place."""
    steps = problem.pipeline.timesteps(inputs["steps"])
    places = inputs.get("places") or [steps.t.tolist().index(t) for t in inputs["t"]]
    for name, place in zip(inputs.get("t") or places, places, strict=True):
        yield str(name), steps[place]


def _classifier(inputs: Inputs, rule: str, eta: float) -> dict[str, Any]:
    problem = _problem(inputs, eta)
    algorithm = classifier_guidance.ClassifierGuidance(beta=inputs["beta"], scale=inputs.get("scale", 1.0), rule=rule)
    latents, condition = tensor(inputs["latents"]), given(tensor(inputs["text"]))
    asked = prompts_of(inputs["text"])
    return {
        name: algorithm.guided(problem, latents, step, condition, problem.sampling, asked)
        for name, step in _at(inputs, problem)
    }


def condition_mean(inputs: Inputs) -> Outputs:
    moves = _classifier(inputs, "variance", inputs["eta"])
    return {"mean": {name: move.mean for name, move in moves.items()}}


def condition_score(inputs: Inputs) -> Outputs:
    problem, latents = _problem(inputs, inputs["eta"]), tensor(inputs["latents"])
    condition, asked = given(tensor(inputs["text"])), prompts_of(inputs["text"])

    def log_tilt(x0: Tensor) -> Tensor:
        return rewards_of(problem.pipeline, problem.reward, x0, asked) / inputs["beta"]

    rises = {
        name: slope(problem.pipeline, latents, int(step.t), condition, inputs["guidance"], log_tilt).gradient
        for name, step in _at(inputs, problem)
    }
    moves = _classifier(inputs, "score", inputs["eta"])
    return {"mean": {name: move.mean for name, move in moves.items()}, "gradient": rises}


def guided_ddim(inputs: Inputs) -> Outputs:
    found = {}
    for eta in (0, 1):
        for name, move in _classifier(inputs, "score", float(eta)).items():
            found[f"{eta}/{name}"] = move.sample(tensor(inputs["noise"]))
    return {"next_latents": found}


def _universal(inputs: Inputs, forward: bool, keep_noise: bool) -> Outputs:
    found = {}
    asked, condition = prompts_of(inputs["text"]), given(tensor(inputs["text"]))
    for eta in (0, 1):
        problem = _problem(inputs, float(eta))
        for name, step in _at(inputs, problem):
            algorithm = universal_guidance.UniversalGuidance(
                beta=inputs["beta"],
                forward=inputs["strength"] if forward else 0.0,
                backward=inputs["strength"] / float(1 - step.alpha_bar),
                backward_steps=inputs.get("backward_steps", 1),
                keep_noise=keep_noise,
            )
            tilt = algorithm.log_tilt(problem, asked, step, keys(len(asked)))
            latents = tensor(inputs["latents"])
            move = algorithm.guided(problem, latents, step, condition, problem.sampling, tilt)
            found[f"{eta}/{name}"] = move.sample(tensor(inputs["noise"]))
    return {"next_latents": found}


def universal(inputs: Inputs) -> Outputs:
    return _universal(inputs, forward=True, keep_noise=False)


def estimate_moved(inputs: Inputs) -> Outputs:
    """MPGD, and TFG's mean guidance."""
    return _universal(inputs, forward=False, keep_noise=True)


def smoothing(inputs: Inputs) -> Outputs:
    problem, drawn = _problem(inputs, 0.0), inputs["noise"]
    algorithm = universal_guidance.UniversalGuidance(
        beta=inputs["beta"], smoothing=inputs["smoothing"], smoothing_samples=len(drawn)
    )
    ((_, step),) = _at(inputs, problem)
    x0 = tensor(inputs["estimate"]).requires_grad_()
    asked = prompts_of([[0.0] * 4] * len(x0))
    table = {(i, j): image for j, images in enumerate(drawn) for i, image in enumerate(images)}
    with noise(table, universal_guidance):
        value = algorithm.log_tilt(problem, asked, step, keys(len(x0)))(x0)
    return {"log_tilt": value, "gradient": torch.autograd.grad(value.sum(), x0)[0]}


def renoise(inputs: Inputs) -> Outputs:
    latents, drawn = tensor(inputs["latents"]), tensor(inputs["noise"])
    steps = _at(inputs, _problem(inputs, 0.0))
    return {"latents": {name: universal_guidance.renoised(latents, step, drawn) for name, step in steps}}


def _edict(inputs: Inputs) -> Edict:
    pipeline = _problem(inputs, 0.0).pipeline
    condition = given(tensor(inputs["text"]))
    return Edict(pipeline, pipeline.timesteps(inputs["steps"]), condition, inputs["guidance"], inputs["mixing"])


def edict(inputs: Inputs) -> Outputs:
    return {"pair": _edict(inputs).reconstruct(doodl.twice(tensor(inputs["initial_latents"])))}


def edict_undone(inputs: Inputs) -> Outputs:
    return {"pair": _edict(inputs).invert(tensor(inputs["pair"]))}


def latent_updates(inputs: Inputs) -> Outputs:
    """DOODL's z after each update: what its chain is run from next."""
    problem = _problem(inputs, 0.0, start=tensor(inputs["initial_latents"]))
    own = ("steps", "mixing", "learning_rate", "clip", "momentum", "perturbation")
    drawn = inputs["perturbation_noise"]
    algorithm = doodl.DOODL(updates=len(drawn), **{name: inputs[name] for name in own})
    started: list[Tensor] = []
    swept, ran = doodl.chain_gradient, doodl.run

    def sweep(steps: Sequence[Any], z: Tensor, function: Any) -> Any:
        started.append(z)
        return swept(steps, z, function)

    def run(steps: Sequence[Any], z: Tensor) -> Tensor:
        started.append(z)
        return ran(steps, z)

    asked = prompts_of(inputs["text"])
    table = {(i, "perturbation", k): image for k, images in enumerate(drawn) for i, image in enumerate(images)}
    with noise(table, doodl), mock.patch.multiple(doodl, chain_gradient=sweep, run=run):
        algorithm.align(problem)(asked, keys(len(asked)))
    return {"initial_latents_after": torch.stack(started[1:])}


def _flow(inputs: Inputs) -> tuple[ProbabilityFlow, dict[str, Tensor]]:
    pipeline = _problem(inputs, 0.0).pipeline
    flow = ProbabilityFlow(
        pipeline, pipeline.timesteps(inputs["steps"]), inputs["guidance"], inputs.get("stochasticity")
    )
    latents = tensor(inputs["latents"])
    return flow, {str(place): latents / flow.alpha_bar[place] ** 0.5 for place in inputs["places"]}


def sde_step(inputs: Inputs) -> Outputs:
    flow, starts = _flow(inputs)
    condition, drawn = given(tensor(inputs["text"])), tensor(inputs["noise"])
    found = {}
    for place, x in starts.items():
        found[place] = flow.sde(x, flow.noise(x, int(place), condition), drawn, int(place), condition)
    return {"x": found}


def ode_step(inputs: Inputs) -> Outputs:
    flow, starts = _flow(inputs)
    condition = given(tensor(inputs["text"]))
    return {"x": {place: flow.ode(x, [int(place), int(place) + 1], condition) for place, x in starts.items()}}


def mixture(inputs: Inputs) -> Outputs:
    weights = demon.weights_of(tensor(inputs["values"])[None], inputs["rule"], inputs["temperature"])
    return {"weights": weights[0], "mixed": demon.mixed(tensor(inputs["noise"]), weights, shell=True)}


def mixture_of_the_sample(inputs: Inputs) -> Outputs:
    """Undone: their spread divides by n − 1."""
    return mixture({**inputs, "temperature": float(tensor(inputs["values"]).std())})


def _checks(inputs: Inputs) -> Iterator[steering.Weights]:
    """The weights after each check, before its resampling by the ancestors that are given."""
    rewards = tensor(inputs["rewards"]) / inputs["beta"]
    weights = steering.Weights.even(1, rewards.shape[1])
    for row, ancestors in zip(rewards[:4], inputs.get("ancestors", [None] * 4), strict=True):
        weights = weights.times(inputs["potential"], row[None])
        yield weights
        if ancestors is None:
            weights, _ = weights.resampled(inputs["resample_below"], torch.zeros(1))
            continue
        with mock.patch.object(steering, "systematic", lambda *_, chosen=ancestors: torch.tensor([chosen])):
            weights, _ = weights.resampled(2.0, torch.zeros(1))
    yield weights


def _normal(log_weights: Tensor) -> Tensor:
    return log_weights.softmax(1)[0]


def particles(inputs: Inputs) -> Outputs:
    *checks, last = _checks(inputs)
    found = {"weights": torch.stack([_normal(weights.log_weights) for weights in checks])}
    if len(inputs["rewards"]) > len(checks):
        found["final"] = _normal(last.final(tensor(inputs["rewards"][-1])[None] / inputs["beta"]))
    return found


def floored_particles(inputs: Inputs) -> Outputs:
    """Undone: their maximum starts at a reward of 0."""
    return particles({**inputs, "rewards": tensor(inputs["rewards"]).clamp(min=0).tolist()})


def cut_particles(inputs: Inputs) -> Outputs:
    """Undone: they cut weights at 1e10."""
    checks = list(_checks(inputs))[:-1]
    cut = [weights.log_weights.clamp(max=torch.tensor(1e10).double().log()) for weights in checks]
    return {"weights": torch.stack([_normal(log_weights) for log_weights in cut])}


def kept_potential(inputs: Inputs) -> Outputs:
    """Undone: their last weight keeps the maximum, or the sum, over all checks and the image."""
    *_, last = _checks(inputs)
    after = last.times(inputs["potential"], tensor(inputs["rewards"][-1])[None] / inputs["beta"])
    kept = {"max": after.highest, "sum": after.total}[inputs["potential"]]
    return {"final": _normal(last.log_weights + kept - last.log_past)}


def dropped_particles(inputs: Inputs) -> Outputs:
    """Undone: they drop the weights of a check that resamples nothing."""
    checks = list(_checks(inputs))[:-1]
    before = [torch.zeros_like(checks[0].log_weights), *(weights.log_weights for weights in checks)]
    alone = [_normal(weights.log_weights - past) for weights, past in zip(checks, before, strict=False)]
    return {"weights": torch.stack(alone)}


def best_candidates(inputs: Inputs) -> Outputs:
    """A whole chain of SVDD; what its reward said at each step, and whom it chose."""
    m, asked = inputs["candidates"], prompts_of(inputs["text"])
    problem = _problem(inputs, inputs["eta"], start=tensor(inputs["initial_latents"]))
    algorithm = svdd.SVDD(candidates=m, choose="argmax", steps=inputs["steps"], eta=inputs["eta"])
    table: dict[tuple[str | int, ...], Any] = {}
    for step, candidates in enumerate(inputs["noise"]):
        for j, images in enumerate(candidates):
            for i, image in enumerate(images):
                table[(i, *(("particle", j) if j else ()), "step", step)] = image
    table |= {(i, "step", inputs["steps"] - 1): image for i, image in enumerate(inputs["last_noise"])}
    with noise(table):
        samples = algorithm.align(problem)(asked, keys(len(asked)))
    values = torch.stack(problem.reward.values).reshape(-1, len(asked), m)
    return {"values": values.transpose(1, 2), "chosen": values.argmax(2), "latents": samples.latents}


def search(inputs: Inputs) -> Outputs:
    """Where rollover's search of several images stands after each draw. A latent is the number of its draw."""

    def drawn(number: int) -> Prediction:
        latents = torch.full((len(inputs["highest"]), 1), float(number), dtype=torch.float64)
        return Prediction(latents, latents, latents[:, 0], "epsilon")

    state = rollover.Search.begun(drawn(0), tensor(inputs["highest"]), 0, inputs["candidates"])
    states = []
    for number, values in enumerate(inputs["rewards"], 1):
        state = state.after(drawn(number), tensor(values), inputs["candidates"], inputs["last"])
        states.append(state)
    found = {name: torch.stack([getattr(s, name) for s in states]) for name in ("place", "highest", "allowance")}
    current = torch.stack([s.current.latents[:, 0] for s in states])
    return {**found, "current": current, "kept": state.kept.latents[:, 0]}
