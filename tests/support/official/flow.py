"""What Flow-GRPO, DiffusionNFT and AWM make of the golden inputs: a function per quantity, and one that undoes a
departure. Their latents are the flow model's own, x = ρ y."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from alignbench import Batch, Key, Prediction, Prompt, Sampling, Trajectory, noise_of
from alignbench.algorithms import awm, diffusion_nft, flow_grpo
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.flow_transition import flow_step, official_log_density
from alignbench.diffusion.groups import GroupTraining
from alignbench.quantities import flow_scale, flow_sigma
from official.models import KEY, Linear, denoiser, given, gradients, noise, prompts_of, tensor

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]
GRID = FlowSchedule(shift=3.0, sigmas="scheduler")  # Stable Diffusion 3's


def midway() -> Linear:
    """The denoiser between the policy and the reference."""
    one, other = (denoiser(name, GRID) for name in ("policy", "reference"))
    return Linear(GRID, ((one.a + other.a) / 2).detach(), ((one.b + other.b) / 2).detach())


def step(inputs: Inputs) -> Outputs:
    """A step with noise from a given velocity, and the authors' log probability of what follows."""
    steps, found = GRID.steps(inputs["steps"]), {}
    for k, place in enumerate(inputs["places"]):
        at, scale = steps[place], flow_scale(steps[place].next_alpha_bar)
        x, v, z, after = (tensor(inputs[name][k]) for name in ("latents", "output", "noise", "given_next_latents"))
        prediction = GRID.predict(v, x / flow_scale(at.alpha_bar), at.t)
        move = flow_step(prediction, at, inputs["kernel"], inputs["noise_level"])
        log_prob = official_log_density(after / scale, move, at, inputs["kernel"])
        made = {"mean": scale * move.mean, "next_latents": scale * move.sample(z), "log_prob": log_prob}
        for name, value in made.items():
            found.setdefault(name, {})[str(place)] = value
    return {"sigmas": torch.cat([flow_sigma(steps.alpha_bar), torch.zeros(1).double()]), **found}


def _path(inputs: Inputs) -> Trajectory:
    """The stored path, in our coordinates and units."""
    sampling = Sampling(inputs["steps"], inputs["guidance"], inputs["noise_level"], inputs["kernel"])
    steps = GRID.steps(sampling.steps)
    scale = torch.cat([flow_scale(steps.alpha_bar), torch.ones(1)]).reshape(-1, 1, 1, 1, 1)
    latents, means, old = (tensor(inputs[name]) for name in ("latents", "old_means", "old_log_prob"))
    # The authors' log probability is ours less log ρ, of CPS without variance and constants.
    log_prob = old + flow_scale(steps.next_alpha_bar).log()
    if sampling.kernel == "cps":
        std, unit = noise_of(steps, sampling), flow_scale(steps.next_alpha_bar)
        log_prob = old / (2 * (std * unit) ** 2) - std.log() - math.log(2 * math.pi) / 2
    return Trajectory(
        latents / scale, log_prob, tuple(range(len(steps))), steps, given(tensor(inputs["text"])), sampling,
        means=means / scale[1:],
    )  # fmt: skip


def grpo(inputs: Inputs) -> Outputs:
    policy, path = denoiser(inputs["model"], GRID), _path(inputs)
    advantages = tensor(inputs["advantage"]).clamp(-5, 5)
    algorithm = flow_grpo.FlowGRPO(
        kernel=inputs["kernel"], eta=inputs["noise_level"], clip=inputs["clip"], beta=inputs["beta"],
        guard=inputs["guard"], skip_last=inputs["steps"] - inputs["trained"], batch=len(advantages),
    )  # fmt: skip
    seen: list[flow_grpo.Moved] = []
    own = [Batch(range(len(advantages)), path)]
    loss = torch.stack(list(algorithm.losses(policy, own, advantages, len(advantages), seen))).sum()
    ratio = torch.stack([moved.log_ratio for moved in seen], 1).exp()
    return {"ratio": ratio, "loss": loss, **gradients(loss, policy)}


def grpo_dropped(inputs: Inputs) -> Outputs:
    """Undone: they leave images without advantage out."""
    kept = [i for i, advantage in enumerate(inputs["advantage"]) if advantage]
    by_row = {name: [inputs[name][i] for i in kept] for name in ("advantage", "text", "old_log_prob")}
    by_step = {name: [[row[i] for i in kept] for row in inputs[name]] for name in ("latents", "old_means")}
    return grpo({**inputs, **by_row, **by_step})


def advantages(inputs: Inputs) -> Outputs:
    algorithm: GroupTraining = flow_grpo.FlowGRPO(spread=inputs["spread"])
    return {"advantages": algorithm.advantages(list(map(str, inputs["prompts"])), tensor(inputs["rewards"]))}


def nft(inputs: Inputs) -> Outputs:
    policy, r = denoiser(inputs["model"], GRID), diffusion_nft.optimality(tensor(inputs["advantage"]), 5.0)
    algorithm = diffusion_nft.DiffusionNFT(mixing=inputs["mixing"], beta=inputs["beta"])
    x0, steps = tensor(inputs["winner"]), GRID.steps(inputs["steps"])[inputs["places"]]
    condition = given(tensor(inputs["text"]))
    three: tuple[Prediction, ...] = algorithm.predictions(
        policy, midway(), x0, tensor(inputs["noise"]), steps, condition, 1.0
    )
    both = diffusion_nft.implicit_errors(three[0].x0, three[1].x0, x0, algorithm.mixing)
    losses, distance = algorithm.loss(*three, x0, r)
    loss = (losses + algorithm.beta * distance).mean()
    made = {"r": r, "positive": both[0], "negative": both[1], "distance": distance, "loss": loss}
    return {**made, **gradients(loss, policy)}


def decay(inputs: Inputs) -> Outputs:
    own = {name: inputs[name] for name in ("decay_start", "decay_rate", "decay_most")}
    return {"decay": tensor([diffusion_nft.DiffusionNFT(**own).decay(k) for k in inputs["updates"]])}


def awm_loss(inputs: Inputs) -> Outputs:
    """Each image at its own levels, which are given instead of drawn."""

    class Placed(awm.AWM):
        def draw_levels(self, key: Key, steps: int) -> list[int]:
            return [row[key.path[-1]] for row in inputs["places"]]

    own = {name: inputs[name] for name in ("weighting", "power", "clip", "beta", "ema_beta")}
    policy, algorithm = denoiser(inputs["model"], GRID), Placed(levels=len(inputs["places"]), **own)
    prompts: list[Prompt] = prompts_of(inputs["text"])
    shares = (tensor(inputs["advantage"]).clamp(-5, 5) / 5).tolist()
    data = [awm.Advantaged(*row) for row in zip(tensor(inputs["winner"]), prompts, shares, strict=True)]
    drawn = {("noise", i, k): image for k, images in enumerate(inputs["noise"]) for i, image in enumerate(images)}
    with noise(drawn, awm):
        terms = list(algorithm.terms(policy, data, Sampling(inputs["steps"], 1.0), KEY, range(len(data))))
    old = [algorithm.score(term.under(midway()), term) for term in terms] if inputs["later"] else None
    seen: list[awm.Seen] = []
    loss = torch.stack(list(algorithm.losses(policy, midway(), terms, old, seen))).mean()
    score = torch.stack([algorithm.score(term.under(policy), term) for term in terms])
    ratio = torch.stack([one.log_ratio for one in seen]).exp()
    return {"score": score, "ratio": ratio, "loss": loss, **gradients(loss, policy)}
