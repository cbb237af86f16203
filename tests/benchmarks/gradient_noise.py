"""Prints how many images a policy gradient needs before it stands out of its noise, for each action of a path.

    python tests/benchmarks/gradient_noise.py --images 1024 --output results/benchmarks/gradient_noise.json

For one action the policy gradient is the mean over images of A ∇ log p(x_s | x_t). Its noise is measured on that
estimator itself, its signal on another of the same expectation: the reward's gradient, carried back through the rest of
the path and the mean of the step. The images are split into parts; the signal's square is the mean dot product between
parts, which is unbiased and may come out below zero. Where it is not twice its standard error, "-" is printed. All are
taken at θ = reference, on the embedded model's training prompts, for the weights that a LoRA of rank 4 or the biases
train. A is the reward less the mean of the prompt's other images, or less what the image that x_t seems to become would
earn (the lookahead of DPOK).
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
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.models import find, load
from alignbench.diffusion.rollout import rollout
from alignbench.diffusion.training import drawn, moves_of, tuning_of
from alignbench.diffusion.transition import log_density
from alignbench.experiment.run import environment
from alignbench.files import write_text

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
    x = path.final.requires_grad_()
    rewards = reward.with_grad(policy.decode(x), prompts)
    (slope,) = torch.autograd.grad(rewards.sum(), x)
    rewards = rewards.detach()
    signal, estimates = [], []
    for action in reversed(range(len(path.actions))):
        foreseen = reward(policy.decode(path.x0[action]), prompts)
        advantages = [rewards - of_others(rewards), (rewards - foreseen) - (rewards - foreseen).mean()]
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


def of_others(rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The mean reward of the prompt's other images, of which each prompt has PER_PROMPT in a row."""
    groups = rewards.reshape(-1, PER_PROMPT)
    return ((groups.sum(1, keepdim=True) - groups) / (PER_PROMPT - 1)).flatten()


def measure(tuning: str, how: Sampling, images: int) -> list[dict[str, Any]]:
    """A row per action: the signal's square with its standard error, and for each baseline the noise's of one image."""
    pipeline = load(find("tiny"), Meter())
    policy = pipeline.adapt(tuning_of(tuning, 4), Key("noise", "adapter"))
    reward = plugins.load("rewards", "shapes_preference")()
    prompts = Prompts(tuple(plugins.load("benchmarks", "shapes")().prompts("train")))
    batches = []
    for k in range(images // BATCH):
        key = Key("noise", k)
        asked = drawn(prompts, key("prompts"), BATCH, PER_PROMPT)
        batches.append(gradients(policy, reward, asked, [key("sample", i) for i in range(BATCH)], how))
    signal = torch.stack([batch.signal for batch in batches]).unflatten(0, (PARTS, -1)).mean(1)
    dots = torch.einsum("iad,jad->aij", signal, signal)
    rows = []
    for action in range(dots.shape[0]):
        square, error = between(dots[action])
        estimates = torch.stack([batch.estimates[:, action] for batch in batches])
        noise = estimates.var(0).sum(1) * BATCH
        rows.append({"action": action, "signal": square, "signal_error": error, "noise": noise.tolist()})
    return rows


def between(dots: Float[Tensor, "n n"]) -> tuple[float, float]:
    """The mean dot product of different parts, and its standard error by leaving out one part at a time."""
    n = len(dots)

    def mean(kept: Sequence[int]) -> float:
        own = dots[list(kept)][:, list(kept)]
        return float((own.sum() - own.trace()) / (len(kept) * (len(kept) - 1)))

    without = torch.tensor([mean([i for i in range(n) if i != j]) for j in range(n)])
    return mean(range(n)), float(((n - 1) * without.var(correction=0)).sqrt())


def table(report: dict[str, Any]) -> str:
    lines = [f"images until signal = noise ({report['tuning']}, {report['images']} images), by action"]
    for case in report["cases"]:
        lines.append(f"{'':62}" + "".join(f"{row['action']:>9}" for row in case["rows"]))
        for k, baseline in enumerate(BASELINES):
            cells = [
                f"{row['noise'][k] / row['signal']:9.0f}" if row["signal"] > 2 * row["signal_error"] else f"{'-':>9}"
                for row in case["rows"]
            ]
            name = f"{case['steps']} steps, guidance {case['guidance']:g}, A against {baseline}"
            lines.append(f"{name:62}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--steps", type=int, nargs="+", default=[6])
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 1.0])
    parser.add_argument("--tuning", choices=("lora", "bias"), default="lora")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.images < BATCH * PARTS or asked.images % (BATCH * PARTS):
        parser.error(f"--images must be a multiple of {BATCH * PARTS}, got {asked.images}.")
    cases = [
        {"steps": steps, "guidance": scale, "rows": measure(asked.tuning, Sampling(steps, scale, 1.0), asked.images)}
        for steps in asked.steps
        for scale in asked.guidance
    ]
    report = {"tuning": asked.tuning, "images": asked.images, "baselines": BASELINES, "cases": cases}
    report["environment"] = environment("cpu")
    print(table(report))
    if asked.output is not None:
        write_text(asked.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
