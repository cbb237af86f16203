"""Episodes: sampled paths that earn a reward, the prompts they are asked for, and their moves one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.devices import chunked
from alignbench.diffusion.rollout import PipelineSampler, Trajectory, reverse, rollout
from alignbench.diffusion.transition import Reduction, Transition
from alignbench.interface import (
    Pipeline,
    Policy,
    Problem,
    Prompt,
    Prompts,
    Sampling,
)
from alignbench.keys import Key
from alignbench.quantities import Condition, Prediction, Steps

T = TypeVar("T")


class Episode(NamedTuple):
    """Sampled paths and what their images earned."""

    path: Trajectory
    rewards: Float[Tensor, " b"]


def collect(
    problem: Problem,
    policy: Policy,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    reduction: Reduction = "mean",
    initial: Float[Tensor, b * latent] | None = None,
    keep_x0: bool = False,
    window: range | None = None,
    keep_means: bool = False,
) -> Episode:
    """Sample one path per prompt and have its image rewarded; the rest is `rollout`'s."""
    condition = policy.condition(prompts)
    path = rollout(
        policy, condition, keys, sampling, reduction, initial=initial, keep_x0=keep_x0, window=window,
        keep_means=keep_means,
    )  # fmt: skip
    with torch.no_grad():
        images = policy.decode(path.final)
    return Episode(path, problem.reward(images, prompts).cpu())


def collect_all(
    problem: Problem,
    policy: Policy,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    batch: int,
    reduction: Reduction = "mean",
    keep_x0: bool = False,
) -> list[Episode]:
    """`collect`, at most `batch` prompts at a time, shared among processes. All of them get all episodes, in the order
    of the prompts."""
    return problem.gather([
        collect(
            problem, policy, [prompts[i] for i in part], [keys[i] for i in part], sampling, reduction, keep_x0=keep_x0
        )
        for part in problem.shard(chunked(range(len(prompts)), batch))
    ])  # fmt: skip


class Batch(NamedTuple):
    """Paths of one forward pass, and their places among all of a round."""

    places: Sequence[int]
    path: Trajectory


def collect_own(
    problem: Problem,
    policy: Policy,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    batch: int,
    reduction: Reduction = "mean",
    window: range | None = None,
    keep_means: bool = False,
) -> tuple[list[Batch], Float[Tensor, " n"]]:
    """`collect_all` where the paths, which are megabytes each, stay with the process that made them: its own, for it to
    train on, and all rewards, in the order of the prompts."""
    own, rewards = [], []
    for part in problem.shard(chunked(range(len(prompts)), batch)):
        path, earned = collect(
            problem, policy, [prompts[i] for i in part], [keys[i] for i in part], sampling, reduction, window=window,
            keep_means=keep_means,
        )  # fmt: skip
        own.append(Batch(part, path))
        rewards.append(earned)
    return own, torch.cat(problem.gather(rewards))


@torch.no_grad()
def sample_rewarded(
    problem: Problem,
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    batch: int,
    sampling: Sampling | None = None,
) -> tuple[Float[Tensor, n * latent], Float[Tensor, " n"]]:
    """One image of each prompt as latents, sampled as in evaluation unless another sampling is given, and what it
    earns. Processes share the work, and all get all of it."""
    sampler, made = PipelineSampler(pipeline, sampling or problem.sampling), []
    for part in problem.shard(chunked(range(len(prompts)), batch)):
        some = [prompts[i] for i in part]
        samples = sampler(some, [keys[i] for i in part])
        made.append((samples.latents, problem.reward(samples.images, some).cpu()))
    latents, rewards = zip(*problem.gather(made), strict=True)
    return torch.cat(latents), torch.cat(rewards)


def joined(episodes: Sequence[Episode]) -> Episode:
    """Episodes of one sampling as one."""
    paths = [episode.path for episode in episodes]
    kept: list[Tensor | None] = []
    for values in ([path.x0 for path in paths], [path.means for path in paths]):
        there = [value for value in values if value is not None]
        kept.append(torch.cat(there, 1) if there else None)
    whole = replace(
        paths[0],
        latents=torch.cat([path.latents for path in paths], 1),
        log_prob=torch.cat([path.log_prob for path in paths]),
        condition=Condition.cat([path.condition for path in paths]),
        x0=kept[0],
        means=kept[1],
    )
    return Episode(whole, torch.cat([episode.rewards for episode in episodes]))


class PromptStatistics:
    """The last rewards of each prompt, and how a reward compares with them (DDPO, Black et al. 2023)."""

    def __init__(self, buffer: int, min_count: int) -> None:
        self.buffer, self.min_count = buffer, min_count
        self.rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Remember these rewards, then standardise each by its prompt's statistics, or by the round's."""
        for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
            self.rewards.setdefault(prompt, deque(maxlen=self.buffer)).append(reward)
        whole = rewards.double()
        result = torch.empty_like(whole)
        for i, prompt in enumerate(prompts):
            own = torch.tensor(self.rewards[prompt], dtype=torch.float64)
            group = own if len(own) >= self.min_count else whole
            result[i] = (whole[i] - group.mean()) / (group.std(correction=0) + 1e-6)
        return result.float()

    def state_dict(self) -> dict[str, Any]:
        return {prompt: list(values) for prompt, values in self.rewards.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewards = {prompt: deque(values, maxlen=self.buffer) for prompt, values in state.items()}


class Moves(NamedTuple):
    """Moves x_t → x_s of stored paths, each row with its own image and step."""

    latents: Float[Tensor, b * latent]  # x_t
    next_latents: Float[Tensor, b * latent]  # x_s
    actions: Sequence[int]  # the number of each step among the path's actions
    steps: Steps
    condition: Condition
    log_prob: Float[Tensor, " b"]  # of x_s under the policy that drew the path
    sampling: Sampling

    def predict(self, pipeline: Pipeline) -> Prediction:
        """A pipeline's prediction at every x_t, in one forward pass."""
        return pipeline.predict(self.latents, self.steps.t, self.condition, self.sampling.guidance)

    def under(self, prediction: Prediction) -> Transition:
        """The Gaussians of x_s that a prediction makes."""
        return reverse(prediction, self.steps, self.sampling)


def moves_of(path: Trajectory, images: Sequence[int], actions: Sequence[int]) -> Moves:
    """The moves of these images, each at the action of the same row."""
    chosen, numbers = list(images), list(actions)
    steps = [path.actions[number] for number in numbers]
    return Moves(
        path.latents[steps, chosen],
        path.latents[[step + 1 for step in steps], chosen],
        numbers,
        path.steps[steps],
        path.condition[chosen],
        path.log_prob[chosen, numbers],
        path.sampling,
    )


def repeated(prompts: Sequence[Any], times: int, count: int) -> list[Any]:
    """Every prompt `times` times in a row, cut to `count`."""
    return [prompt for prompt in prompts for _ in range(times)][:count]


def draw_prompts(prompts: Prompts, key: Key, count: int, times: int = 1) -> list[Prompt]:
    """`count` prompts drawn from those to train on, each `times` times in a row."""
    return repeated(prompts.sample(key, -(-count // times)), times, count)


class Asked(NamedTuple):
    """The prompts of a round, or of an update, each with the key of its image."""

    prompts: list[Prompt]
    keys: list[Key]


def ask(problem: Problem, key: Key, count: int, times: int = 1) -> Asked:
    """`draw_prompts` under a key of the round or the update: the same on every process."""
    prompts = draw_prompts(problem.prompts, key("prompts"), count, times)
    return Asked(prompts, [key("sample", i) for i in range(len(prompts))])


def clipped_loss(
    log_prob: Float[Tensor, " b"],  # log p_θ of an action; carries the gradient
    old_log_prob: Float[Tensor, " b"],  # the same under the weights that drew it
    advantage: Float[Tensor, " b"],
    clip: float,
) -> Float[Tensor, " b"]:
    """max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) with ρ = p_θ / p_old (PPO, Schulman et al. 2017)."""
    ratio = (log_prob - old_log_prob).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def clip_fraction(log_ratio: Float[Tensor, " n"], clip: float) -> float:
    """The share of moves whose ratio has left its range [1 − ε, 1 + ε]."""
    return float(((log_ratio.exp() - 1).abs() > clip).float().mean())
