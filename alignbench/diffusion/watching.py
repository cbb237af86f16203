"""The divergence of a policy's paths from the reference's, watched for the training curve at little cost.

Σ_t KL(p_θ(x_s | x_t) ‖ p_ref(x_s | x_t)) of the first images of a round is an estimate with two savings. The last two
actions have the least noise, and most of the sum: they are looked at in all of these images, every other action in an
eighth of them. The sum over actions of the means over those images has the same expectation as the whole, and nearly
its error. And the mean of p_θ is not computed again where an image's key is known: it is x_s less the noise that was
drawn. What is left is one evaluation of the reference for each image and action that is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.devices import chunked
from alignbench.diffusion.episodes import Batch, moves_of
from alignbench.diffusion.rollout import Trajectory, noise_of, rollout
from alignbench.diffusion.transition import Transition, divergence
from alignbench.interface import Policy, Prompt, Sampling, Sharing
from alignbench.keys import Key, normal
from alignbench.quantities import expand

WATCHED_IMAGES = 32  # of a round
EVERY = 8  # of these images, one is looked at in an action that is not one of the
LAST = 2  # actions


def watched_kl(
    problem: Sharing, policy: Policy, trajectory: Trajectory, batch: int, keys: Sequence[Key] | None = None
) -> Float[Tensor, ""]:
    """The divergence in nats (see `path_divergence`) of the policy that drew these paths, as it is now, `batch` moves
    at a time. `keys` are those that the paths were drawn with; without them the policy is evaluated again."""
    images = min(WATCHED_IMAGES, len(trajectory.log_prob))
    seen = [move for image in range(images) for move in looked_at(image, images, len(trajectory.actions))]
    found = [_sum(policy, trajectory, part, images, keys) for part in problem.shard(chunked(seen, batch))]
    return torch.stack(problem.gather(found)).sum()


def watched_kl_of(
    problem: Sharing, policy: Policy, own: Sequence[Batch], keys: Sequence[Key], batch: int
) -> Float[Tensor, ""]:
    """`watched_kl` of paths that stay with the processes that made them; `keys` are of all paths, by place."""
    images, found = min(WATCHED_IMAGES, len(keys)), []
    for places, path in own:
        actions, drawn = len(path.actions), [keys[place] for place in places]
        seen = [(row, a) for row, i in enumerate(places) if i < images for _, a in looked_at(i, images, actions)]
        found += [_sum(policy, path, part, images, drawn) for part in chunked(seen, batch)]
    return torch.stack(problem.gather(found)).sum()


def watched_divergence(
    problem: Sharing, policy: Policy, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling, batch: int
) -> dict[str, float]:
    """The same of paths that are sampled for it, as `kl`, of the first of these prompts, `batch` at a time; nothing
    where the chain has no noise, whose paths have no density."""
    if not (noise_of(policy.timesteps(sampling.steps), sampling) > 0).any():
        return {}
    images, found = min(WATCHED_IMAGES, len(prompts)), []
    for part in problem.shard(chunked(range(images), batch)):
        own = [keys[i] for i in part]
        path = rollout(policy, policy.condition([prompts[i] for i in part]), own, sampling)
        seen = [(i - part[0], a) for image in part for i, a in looked_at(image, images, len(path.actions))]
        found.append(torch.stack([_sum(policy, path, some, images, own) for some in chunked(seen, batch)]).sum())
    return {"kl": float(torch.stack(problem.gather(found)).sum())}


def looked_at(image: int, images: int, actions: int) -> list[tuple[int, int]]:
    """(image, action): the moves of one of so many images that are watched. Every action is in some image's."""
    every, last = min(EVERY, images), max(0, actions - LAST)
    return [(image, action) for action in (*range(image % every, last, every), *range(last, actions))]


@torch.no_grad()
def _sum(
    policy: Policy, path: Trajectory, moves: Sequence[tuple[int, int]], images: int, keys: Sequence[Key] | None
) -> Float[Tensor, ""]:
    """What moves (row, action) of a path add to the sum over actions of the means over images."""
    own = moves_of(path, *zip(*moves, strict=True))
    reference = own.under(own.predict(policy.reference))
    if keys is None:
        step = own.under(own.predict(policy))
    else:
        drawn = [keys[row]("step", path.actions[action]) for row, action in moves]
        noise = normal(drawn, own.latents.shape[1:]).to(own.latents)
        step = Transition(own.next_latents - expand(reference.std, noise) * noise, reference.std)
    every, last = min(EVERY, images), len(path.actions) - LAST
    seen_in = torch.tensor([images if a >= last else len(range(a % every, images, every)) for _, a in moves])
    return (divergence(step, reference).cpu() / seen_in).sum()
