"""Which reward a cell optimises, and whether it needs one at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from alignbench.asking.options import RunOptions
from alignbench.asking.presets import Defaults
from alignbench.choices import NO_REWARD
from alignbench.declared import SaysWhetherItIsRewarded
from alignbench.errors import InputError, RunError
from alignbench.interface import Algorithm, PairAlgorithm, Prompt, RewardInfo
from alignbench.plugins import label
from alignbench.record.result import Configuration


@dataclass(frozen=True)
class NoReward:
    """What stands for the reward of a cell that has none. Raises RunError where it is asked for one after all."""

    differentiable: ClassVar[bool] = False

    def __call__(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise RunError("the algorithm asks for a reward, and this cell has none; name one with --reward.")

    with_grad = __call__

    def info(self) -> RewardInfo:
        return RewardInfo(id=NO_REWARD)

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None


def why_rewarded(options: RunOptions, algorithm: Algorithm) -> str | None:
    """Why a cell cannot do without a reward, or None."""
    if isinstance(algorithm, PairAlgorithm) and algorithm.learns_from_pairs and options.pairs is None:
        return f"{options.algo!r} learns from pairs, none are given (--pairs), and a reward labels those that are made"
    if isinstance(algorithm, SaysWhetherItIsRewarded) and not algorithm.reads_reward:
        return None
    return f"{options.algo!r} optimises a reward"


def reward_name_of(
    options: RunOptions, defaults: Defaults, algorithm: Algorithm, evaluated: Sequence[Prompt]
) -> str | None:
    """The reward of a cell; None where it has none. One that needs none has the model's own if that is scored anyway.

    Raises InputError where none is wanted and one is needed.
    """
    why = why_rewarded(options, algorithm)
    if options.reward == NO_REWARD and why is not None:
        raise InputError(f"--reward {NO_REWARD}: {why}; name one (see `alignbench list`).")
    if options.reward is not None:
        return options.named_reward
    return None if why is None and options.scorers else defaults.reward(evaluated)


def reward_needs(options: RunOptions, defaults: Defaults, algorithm: Algorithm) -> Sequence[str]:
    """The rewards whose files a cell may need, before its prompts are read."""
    if options.named_reward is not None:
        return (options.named_reward,)
    return () if why_rewarded(options, algorithm) is None and options.scorers else defaults.rewards[:1]


def as_without_reward(found: Configuration, asked: Configuration) -> Configuration:
    """What a file says, read for a cell without a reward: older ones name the model's own, which was only scored."""
    if asked.reward is not None or found.reward is None:
        return found
    shared = [name for name in asked.scorers if name in found.scorers]
    more = [name for name in found.scorers if name not in (*shared, label(found.reward))]
    return found.model_copy(update={"reward": None, "scorers": [*shared, *more]})
