"""Prints how many images a policy gradient needs before it stands out of its noise, for each action of a path.

    python tests/timings/gradient_noise.py --output results/timings/gradient_noise.json

For one action the policy gradient is the mean over images of A ∇ log p(x_s | x_t). Its noise is measured on that
estimator itself, its signal on another of the same expectation: the reward's gradient, carried back through the rest of
the path and the mean of the step. The images are split into parts; the signal's square is the mean dot product between
parts, which is unbiased and may come out below zero. Where it is not twice its standard error, "-" is printed: it was
not seen, which does not say that it is small. All are taken at θ = reference, on the embedded model's training prompts
with eight images each, for the weights that a LoRA of rank 4 or the biases train. A is the reward less the mean of the
prompt's other images, or less what the image that x_t seems to become would earn and the mean of that difference (the
lookahead of DPOK, with a slope of one). With two guidance scales the cosine of their gradients is printed as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench import Key, Policy, Prompt, Prompts, Sampling, plugins
from alignbench.diffusion.episodes import draw_prompts, moves_of
from alignbench.diffusion.optimisers import Tuned, tuning_of
from alignbench.diffusion.registry import find, load
from alignbench.diffusion.rollout import rollout
from alignbench.diffusion.transition import log_density
from alignbench.files import write_text
from alignbench.meter import Meter
from alignbench.record.environment import environment

PER_PROMPT = 8  # images
BATCH = 32
PARTS = 8
BASELINES = ("the prompt's other images", "lookahead")


class Gradients(NamedTuple):
    """Of one batch of images, for each action: the mean over images, in nats."""

    signal: Float[Tensor, "actions d"]
    estimates: Float[Tensor, "baselines actions d"]


def gradients(policy: Policy, reward: Any, prompts: Sequence[Prompt], keys: Sequence[Key], how: Sampling) -> Gradients:
    path = rollout(policy, policy.condition(prompts), keys, how, "sum", keep_x0=True)
    assert len(path.actions) == how.steps, "the reward's gradient is carried through actions alone"
    x = path.final.requires_grad_()
    rewards = reward.with_grad(policy.decode(x), prompts)
    (slope,) = torch.autograd.grad(rewards.sum(), x)
    rewards = rewards.detach()
    signal, estimates = [], []
    assert path.x0 is not None
    for action in reversed(range(len(path.actions))):
        foreseen = reward(policy.decode(path.x0[action]), prompts)
        missed = rewards - foreseen
        advantages = [rewards - mean_of_others(rewards, PER_PROMPT), missed - mean_of_others(missed, len(missed))]
        moves = moves_of(path, range(len(keys)), [action] * len(keys))
        moves = moves._replace(latents=moves.latents.detach().requires_grad_())
        step = moves.under(moves.predict(policy))
        density = log_density(moves.next_latents, step, "sum")
        own = [mean_gradient(policy, density, advantage) for advantage in advantages]
        slope, *parts = torch.autograd.grad(step.mean, [moves.latents, *policy.parameters()], slope)
        signal.append(torch.cat([part.flatten() for part in parts]) / len(keys))
        estimates.append(torch.stack(own))
    return Gradients(torch.stack(signal[::-1]), torch.stack(estimates[::-1], 1))


def mean_gradient(policy: Policy, density: Float[Tensor, " b"], advantage: Float[Tensor, " b"]) -> Float[Tensor, " d"]:
    parts = torch.autograd.grad((density * advantage).mean(), policy.parameters(), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def mean_of_others(values: Float[Tensor, " b"], size: int) -> Float[Tensor, " b"]:
    """The mean of the others in each run of `size`."""
    groups = values.reshape(-1, size)
    return ((groups.sum(1, keepdim=True) - groups) / (size - 1)).flatten()


class Found(NamedTuple):
    """Of one way of sampling."""

    signals: Float[Tensor, "parts actions d"]
    noise: Float[Tensor, "actions baselines"]  # squared, of a single image


def measure(tuning: Tuned, how: Sampling, images: int) -> Found:
    pipeline = load(find("tiny"), Meter())
    policy = pipeline.adapt(tuning_of(tuning, 4), Key("noise", "adapter"))
    reward = plugins.load("rewards", "shapes_preference")()
    prompts = Prompts(tuple(plugins.load("benchmarks", "shapes")().prompts("train")))
    batches = []
    for k in range(images // BATCH):
        key = Key("noise", k)
        asked = draw_prompts(prompts, key("prompts"), BATCH, PER_PROMPT)
        batches.append(gradients(policy, reward, asked, [key("sample", i) for i in range(BATCH)], how))
    signals = torch.stack([batch.signal for batch in batches]).unflatten(0, (PARTS, -1)).mean(1)
    estimates = torch.stack([batch.estimates for batch in batches])
    return Found(signals, estimates.var(0).sum(-1).T * BATCH)


def between(dots: Float[Tensor, "n n"]) -> tuple[float, float]:
    """The mean dot product of different parts, and its standard error by leaving out one part at a time."""
    n = len(dots)

    def mean(kept: Sequence[int]) -> float:
        own = dots[list(kept)][:, list(kept)]
        return float((own.sum() - own.trace()) / (len(kept) * (len(kept) - 1)))

    without = torch.tensor([mean([i for i in range(n) if i != j]) for j in range(n)], dtype=torch.float64)
    return mean(range(n)), float(((n - 1) * without.var(correction=0)).sqrt())


def rows(found: Found) -> list[dict[str, Any]]:
    """For each action, numbered from one: the signal's square with its standard error, and each baseline's noise."""
    listed = []
    for k, noise in enumerate(found.noise.tolist()):
        parts = found.signals[:, k]
        signal, error = between(parts @ parts.T)
        listed.append({"action": k + 1, "signal": signal, "signal_error": error, "noise": noise})
    return listed


def cosines(a: Found, b: Found) -> list[float | None]:
    """Of the gradients of each action under two guidance scales; None where either was not seen."""
    listed: list[float | None] = []
    for k in range(len(a.noise)):
        one, other = (found.signals[:, k] for found in (a, b))
        squares = [between(parts @ parts.T) for parts in (one, other)]
        seen = all(square > 2 * error for square, error in squares)
        across, _ = between(one @ other.T)  # different parts alone: equal ones share their prompts and noise
        listed.append(across / (squares[0][0] * squares[1][0]) ** 0.5 if seen else None)
    return listed


def needed(row: dict[str, Any], baseline: int) -> str:
    """Images until the gradient's square equals its noise's, to two digits."""
    if not row["signal"] > 2 * row["signal_error"]:
        return "-"
    images = row["noise"][baseline] / row["signal"]
    return f"{float(f'{images:.2g}'):,.0f}"


def table(report: dict[str, Any]) -> str:
    lines = [f"images until signal = noise ({report['tuning']}, {report['images']} images), by action"]
    for case in report["cases"]:
        lines.append(f"{'':62}" + "".join(f"{row['action']:>11}" for row in case["rows"]))
        for k, baseline in enumerate(BASELINES):
            name = f"{case['steps']} steps, guidance {case['guidance']:g}, A against {baseline}"
            lines.append(f"{name:62}" + "".join(f"{needed(row, k):>11}" for row in case["rows"]))
    for steps, found in report["cosines"].items():
        cells = "".join(f"{'-' if cosine is None else f'{cosine:.2f}':>11}" for cosine in found)
        lines.append(f"{f'{steps} steps, cosine of the gradients under the two':62}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, nargs="+", default=[6])
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 1.0])
    parser.add_argument("--tuning", choices=("lora", "bias"), default="lora")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.images < BATCH * PARTS or asked.images % (BATCH * PARTS):
        parser.error(f"--images must be a multiple of {BATCH * PARTS}, got {asked.images}.")
    cases, cosine = [], {}
    for steps in asked.steps:
        found = [measure(asked.tuning, Sampling(steps, scale, 1.0), asked.images) for scale in asked.guidance]
        for scale, one in zip(asked.guidance, found, strict=True):
            cases.append({"steps": steps, "guidance": scale, "rows": rows(one)})
        if len(found) == 2:
            cosine[str(steps)] = cosines(*found)
    report = {"tuning": asked.tuning, "images": asked.images, "baselines": BASELINES, "cases": cases, "cosines": cosine}
    report["environment"] = environment("cpu")
    print(table(report))
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
