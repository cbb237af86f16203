"""An aligned model as a judge: its implicit reward.

A policy's implicit reward (Diffusion-DPO, Wallace et al. 2023, https://arxiv.org/abs/2311.12908, table 2): with L its
denoising error ‖ε − ε_θ(x_t, t, c)‖² averaged over the elements of a latent, and R the reference's,
    r(x) = −E_{t, ε}[L(x) − R(x)],
here the mean over a few draws of t and ε that both images of a pair share. The image with the higher one is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.asking.adapter_folders import name_of
from alignbench.devices import chunked
from alignbench.diffusion.objectives import noising, pair_errors
from alignbench.diffusion.registry import Family
from alignbench.interface import Pairs, Pipeline
from alignbench.judging.judgements import Judgements, Task, short_names
from alignbench.keys import Key
from alignbench.progress import Progress


def judge_by_policies(
    pipeline: Pipeline,
    family: Family,
    adapters: Mapping[Path, str],
    pairs: Pairs,
    task: Task,
    timesteps: int,
    seed: int,
) -> list[Judgements]:
    """Each saved policy (folder and digest) as an implicit reward, one in memory at a time, against its own reference:
    that of a fine-tuned denoiser computes in float32, as it does."""
    if not adapters:
        return []
    chosen, progress = task.chosen, task.progress
    keys = [Key("accuracy", seed)("pair", number) for number in chosen.numbers[: task.n]]
    names = short_names([str(folder) for folder in adapters], lambda folder: name_of(Path(folder)))
    judged = []
    for name, (folder, digest) in zip(names, adapters.items(), strict=True):
        item = Judgements(name, {"folder": str(folder), "sha256": digest})
        progress.stage(name, 2 * task.n)
        policy = family.open_policy(pipeline, folder)
        own, reference = (errors(p, pairs, keys, task.batch, timesteps, progress) for p in (policy, policy.reference))
        for i in sorted(own.keys() & reference.keys()):
            z = float(implicit_margin(own[i], reference[i]))
            if math.isfinite(z):
                winner = 0.5 if z == 0 else float(z > 0)
                item.predicted[i] = winner if chosen.pair(i).label else 1 - winner  # label 0: the second is the winner
            else:
                item.failed[i] = f"its implicit reward is {z}"
        judged.append(item)
    return judged


@torch.no_grad()
def errors(
    pipeline: Pipeline, pairs: Pairs, keys: Sequence[Key], batch: int, timesteps: int, progress: Progress
) -> dict[int, Float[Tensor, "2 k"]]:
    """L of winner and loser of each pair that can be read, at `timesteps` draws from the pair's key."""
    found: dict[int, Tensor] = {}
    for part in chunked(range(len(keys)), batch):
        members = pairs.batch(part)
        if len(members):
            own = [keys[part[row]] for row in members.rows]
            draws = [
                pair_errors(
                    pipeline,
                    members,
                    noising([key(k) for key in own], members.winner, members.condition, pipeline),
                )
                for k in range(timesteps)
            ]
            measured = torch.stack(draws, -1).cpu()
            found |= {part[row]: measured[:, place] for place, row in enumerate(members.rows)}
        progress.advance(len(part))
    return found


def implicit_margin(error: Float[Tensor, "2 k"], reference: Float[Tensor, "2 k"]) -> Float[Tensor, ""]:
    """r(winner) − r(loser), the mean over k draws: Diffusion-DPO's z up to β / 2."""
    winner, loser = error - reference
    return -(winner - loser).double().mean()
