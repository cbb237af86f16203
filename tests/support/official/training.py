"""What our training methods make of the golden inputs: a function per quantity, and some that undo a departure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignbench import (
    Condition,
    Experience,
    Key,
    Moves,
    PairBatch,
    PromptStatistics,
    Sampling,
    Value,
    clipped_loss,
    ddim,
    denoising_error,
    log_density,
    pair_errors,
    rewards_of,
    sample_through,
    warmed_up,
)
from alignbench.algorithms import d3po, diffusion_dpo, diffusion_kto, dpok, mapo, refl, reward_weighted_regression
from alignbench.diffusion.objectives import Noising
from alignbench.processes import ALONE
from official.models import (
    Linear,
    Quadratic,
    by_step,
    denoiser,
    given,
    gradients,
    keys,
    noise,
    prompts_of,
    schedule,
    tensor,
)

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]


def step(inputs: Inputs) -> Outputs:
    """The Gaussian step that DDPO's paths are made of, and its density."""
    levels, latents = schedule(inputs), tensor(inputs["latents"])
    steps = levels.steps(inputs["steps"])
    chosen = steps[[steps.t.tolist().index(t) for t in inputs["t"]]]
    prediction = levels.predict(tensor(inputs["output"]), latents, chosen.t)
    moves = {eta: ddim(prediction, chosen, float(eta)) for eta in ("0.0", "0.5", "1.0")}
    density = {eta: log_density(tensor(inputs["given_next_latents"]), moves[eta]) for eta in ("0.5", "1.0")}
    return {
        "next_latents": {eta: move.sample(tensor(inputs["noise"])) for eta, move in moves.items()},
        "log_prob": density,
    }


def ppo(inputs: Inputs) -> Outputs:
    log_prob, bound = tensor(inputs["log_prob"]).requires_grad_(), inputs["advantage_clip"]
    advantage = tensor(inputs["advantage"]).clamp(-bound, bound)
    loss = clipped_loss(log_prob, tensor(inputs["old_log_prob"]), advantage, inputs["clip"]).mean()
    return {"loss": loss, "gradient": torch.autograd.grad(loss, log_prob)[0]}


def advantages(inputs: Inputs) -> Outputs:
    statistics = PromptStatistics(inputs["buffer"], inputs["min_count"])
    rounds = zip(inputs["prompts"], inputs["rewards"], strict=True)
    return {"advantages": torch.stack([statistics.advantages(list(map(str, p)), tensor(r)) for p, r in rounds])}


def whole_advantages(inputs: Inputs) -> Outputs:
    """Undone: their array of integer rewards cuts fractions off."""
    return {"advantages": advantages(inputs)["advantages"].trunc()}


def _moves(inputs: Inputs, policy: Linear) -> Moves:
    steps = policy.timesteps(inputs["steps"])[inputs["places"]]
    sampling = Sampling(inputs["steps"], inputs["guidance"], inputs["eta"])
    latents, after, old = (tensor(inputs[name]) for name in ("latents", "next_latents", "old_log_prob"))
    return Moves(latents, after, range(len(latents)), steps, given(tensor(inputs["text"])), old, sampling)


def dpok_measure(inputs: Inputs) -> Outputs:
    policy = denoiser(inputs["model"], schedule(inputs))
    log_prob, kl = dpok.DPOK(kl="eps_mse").measure(policy, _moves(inputs, policy))
    return {"log_prob": log_prob, "kl": kl}


def dpok_loss(inputs: Inputs) -> Outputs:
    policy = denoiser(inputs["model"], schedule(inputs))
    own = {name: inputs[name] for name in ("reward_weight", "kl_weight", "clip")}
    moves, rewards, values = _moves(inputs, policy), tensor(inputs["reward"]), tensor(inputs["value"])

    class AllMoves(Experience):
        def pick(self, rows: Sequence[int]) -> tuple[Moves, Tensor, Tensor]:
            return moves, rewards, torch.zeros_like(rewards)

    class Known(Value):
        def forward(self, moves: Moves, foreseen: Tensor) -> Tensor:
            return values

    algorithm, rows = dpok.DPOK(kl="eps_mse", batch=len(rewards), **own), range(len(rewards))
    (loss,) = algorithm.losses(ALONE, policy, Known(4, 1, Key("value")), AllMoves(None, None, None), rows, [])
    return {"loss": loss, **gradients(loss, policy)}


def dpok_clamped(inputs: Inputs) -> Outputs:
    """Undone: they clamp the ratio without PPO's maximum."""

    def clamped(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
        return -advantage * (log_prob - old).exp().clamp(1 - clip, 1 + clip)

    with mock.patch.object(dpok, "clipped_loss", clamped):
        return dpok_loss(inputs)


def value_network(inputs: Inputs) -> Outputs:
    latents, actions, count = tensor(inputs["latents"]), inputs["actions"], inputs["number_of_actions"]
    value = Value(latents[0].numel() + 768, count, Key("value")).double()
    for k, layer in enumerate(value.layers):
        i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in layer.weight.shape), indexing="ij")
        layer.weight.data = (0.7 * (k + 1) * i + 1.3 * j).cos() * (2 / layer.weight.shape[1]) ** 0.5
        layer.bias.data = 0.1 * (i[:, 0] + k).sin() if k < 3 else torch.full((1,), 0.25, dtype=torch.float64)
    for k, scale in enumerate(value.scales):
        a, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in scale.shape), indexing="ij")
        scale.data = (0.4 * a + 0.2 * i + k).cos()
    rows = torch.arange(len(latents), dtype=torch.float64)[:, None]
    text = {"pooled": (0.3 * torch.arange(768, dtype=torch.float64) + rows).sin()}
    moves = Moves(latents, latents, actions, None, Condition(text, text), rows[:, 0], None)
    return {"value": value(moves, torch.zeros(len(latents), dtype=torch.float64))}


def d3po_loss(inputs: Inputs) -> Outputs:
    return _d3po(inputs, ties=False)


def d3po_with_ties(inputs: Inputs) -> Outputs:
    """Undone: they count a tie as ln 2 without a gradient."""
    return _d3po(inputs, ties=True)


def _d3po(inputs: Inputs, ties: bool) -> Outputs:
    rewards = torch.stack([tensor(inputs[f"reward_{i}"]) for i in (0, 1)], 1).flatten()
    own = [tensor(inputs[f"log_prob_{i}"]).requires_grad_() for i in (0, 1)]
    reference = [tensor(inputs[f"reference_log_prob_{i}"]) for i in (0, 1)]
    log_ratio = torch.stack([one - other for one, other in zip(own, reference, strict=True)], 1).flatten()
    winner, loser = (log_ratio[list(part)] for part in zip(*d3po.ordered(rewards), strict=True))
    losses = d3po.preference_loss(winner, loser, inputs["beta"], inputs["clip"])
    missing = len(own[0]) - len(losses) if ties else 0
    loss = (losses.sum() + missing * torch.tensor(2.0).double().log()) / (len(losses) + missing)
    return {"loss": loss, **dict(zip(("gradient_0", "gradient_1"), torch.autograd.grad(loss, own), strict=True))}


def _pairs(inputs: Inputs) -> tuple[Linear, PairBatch, Noising]:
    policy, condition = denoiser(inputs["model"], schedule(inputs)), given(tensor(inputs["text"]))
    winner = tensor(inputs["winner"])
    loser = tensor(inputs.get("loser", inputs["winner"]))
    batch = PairBatch(winner, loser, condition, torch.ones(len(winner)).double(), range(len(winner)))
    return policy, batch, Noising(torch.tensor(inputs["t"]), tensor(inputs["noise"]), condition)


def dpo(inputs: Inputs) -> Outputs:
    policy, batch, drawn = _pairs(inputs)
    reference = pair_errors(policy.reference, batch, drawn)
    losses, z = diffusion_dpo.dpo_loss(pair_errors(policy, batch, drawn), reference, batch.label, inputs["beta"])
    loss = losses.mean()
    (output,) = policy.outputs
    won, lost = torch.autograd.grad(loss, output, retain_graph=True)[0].chunk(2)
    noisy = {f"noisy_{n}": policy.add_noise(getattr(batch, n), drawn.noise, drawn.t) for n in ("winner", "loser")}
    moved = {"gradient_winner": won, "gradient_loser": lost}
    return {**noisy, "z": z, "loss": loss, **moved, **gradients(loss, policy)}


def dpo_of_v(inputs: Inputs) -> Outputs:
    """Undone: their script takes the error of v, which is that of the noise over ᾱ."""
    z = dpo(inputs)["z"] / schedule(inputs).alpha_bar[inputs["t"]]
    return {"z": z, "loss": -logsigmoid(z).mean()}


def sft_loss(inputs: Inputs) -> Outputs:
    policy, batch, drawn = _pairs(inputs)
    loss = denoising_error(policy, batch.winner, drawn.noise, drawn.t, drawn.condition).mean()
    output = torch.autograd.grad(loss, policy.outputs[0], retain_graph=True)[0]
    return {"loss": loss, "gradient_output": output, **gradients(loss, policy)}


def kto_loss(inputs: Inputs) -> Outputs:
    policy, batch, drawn = _pairs(inputs)
    shown = diffusion_kto.Shown(batch.winner, tensor(inputs["label"]), drawn)
    gains = shown.error(policy.reference) - shown.error(policy)
    kappa = diffusion_kto.reference_point(gains.detach())
    loss = diffusion_kto.kto_loss(gains, shown.desirable, kappa, inputs["beta"], inputs["utility"]).mean()
    output = torch.autograd.grad(loss, policy.outputs[0], retain_graph=True)[0]
    return {"kappa": tensor(kappa), "loss": loss, "gradient_output": output, **gradients(loss, policy)}


def mapo_loss(inputs: Inputs) -> Outputs:
    policy, batch, drawn = _pairs(inputs)
    errors = pair_errors(policy, batch, drawn)
    losses, z = mapo.mapo_loss(errors, batch.label, inputs["beta"], inputs["sharpness"], policy.train_timesteps)
    loss = losses.mean()
    won, lost = torch.autograd.grad(loss, policy.outputs[0], retain_graph=True)[0].chunk(2)
    return {"z": z, "loss": loss, "gradient_winner": won, "gradient_loser": lost, **gradients(loss, policy)}


def warmup(inputs: Inputs, ahead: int = 0) -> Outputs:
    rates = [warmed_up(inputs["learning_rate"], update - ahead, inputs["warmup"]) for update in inputs["updates"]]
    return {"rate": tensor(rates)}


def later_warmup(inputs: Inputs) -> Outputs:
    """Undone: theirs is one update behind."""
    return warmup(inputs, ahead=1)


def last_steps(inputs: Inputs) -> Outputs:
    policy = denoiser(inputs["model"], schedule(inputs), tensor(inputs["initial_latents"]))
    sampling = Sampling(inputs["steps"], inputs["guidance"], inputs["eta"])
    condition, asked = given(tensor(inputs["text"])), prompts_of(inputs["text"])
    with noise(by_step(inputs["noise"])):
        x0 = sample_through(policy, condition, keys(len(asked)), sampling, inputs["last_steps"])
    reward = rewards_of(policy, Quadratic(), x0, asked).mean()
    return {"latents": x0, **gradients(reward, policy)}


def one_step(inputs: Inputs) -> Outputs:
    """ReFL, each image alone at its own step."""
    places = inputs["places"]

    class Placed(refl.ReFL):
        def place(self, key: Key, sampling: Sampling) -> int:
            return places[key.path[-1]]

    policy = denoiser(inputs["model"], schedule(inputs), tensor(inputs["initial_latents"]))
    sampling = Sampling(inputs["steps"], inputs["guidance"], inputs["eta"])
    algorithm = Placed(margin=inputs["margin"], reward_weight=inputs["reward_weight"])
    found: dict[str, list[Tensor]] = {}
    for prompt, key in zip(prompts_of(inputs["text"]), keys(len(places)), strict=True):
        with noise(by_step(inputs["noise"])):
            estimate = algorithm.estimates(policy, [prompt], [key], sampling)
        reward = rewards_of(policy, Quadratic(), estimate, [prompt])
        loss = algorithm.reward_weight * refl.gated_loss(reward, algorithm.margin)
        made = {"estimate": estimate[0], "reward": reward[0], "loss": loss[0], **gradients(loss.sum(), policy)}
        for name, value in made.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def weights(inputs: Inputs, per_prompt: bool = False) -> Outputs:
    algorithm = reward_weighted_regression.RewardWeightedRegression(
        temperature=inputs["temperature"], per_prompt=per_prompt
    )
    return {"weights": algorithm.weigh(list(map(str, inputs["prompts"])), tensor(inputs["rewards"]))}


def weights_per_prompt(inputs: Inputs) -> Outputs:
    return weights(inputs, per_prompt=True)
