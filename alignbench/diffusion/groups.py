"""What methods share that draw a group of images for each prompt and compare them among themselves.

Papers    Shao et al. 2024, "DeepSeekMath" (GRPO), https://arxiv.org/abs/2402.03300, for the advantage; Liu et al. 2025,
          "Understanding R1-Zero-Like Training", https://arxiv.org/abs/2503.20783, for the one without a spread. The
          values are those that the code of Flow-GRPO, DiffusionNFT and AWM has in common.
Advantage A = (r − m_c) / (s + 1e-4), m_c the mean reward of the prompt's images in this round, s the population
          standard deviation of the whole round or of the prompt's images; or A = r − m_c. Then it is cut to
          ± advantage_clip. A prompt whose images earn the same has A = 0. Nothing is dropped for it, so that no
          sample's weight depends on the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from alignbench.choices import Kernel
from alignbench.diffusion.optimisers import OptimiserName, Tuned, optimiser_of, tuning_of
from alignbench.diffusion.training import Training, scale_of
from alignbench.fields import at_least_one, positive
from alignbench.interface import LoRA, Policy, Problem, Sampling

Spread = Literal["round", "prompt", "none"]


@dataclass(frozen=True, kw_only=True)
class GroupTraining(Training):
    """A method that draws `samples_per_prompt` images of each prompt in a round."""

    samples_per_round: int
    samples_per_prompt: int = 24
    steps: int | None = 10  # of the sampled paths; None: as in evaluation
    guided: bool  # sample and train under the evaluation's guidance; False: without any
    spread: Spread = "round"  # whose standard deviation divides an advantage; "none": it stays in units of the reward
    advantage_clip: float = 5.0  # in the units of the advantage
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # of the gradient
    tuning: Tuned = "lora"
    rank: int = 32  # of the LoRA
    alpha: float | None = 64.0  # its scale times its rank; None: the rank

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "samples_per_round", "samples_per_prompt")
        positive(self, "advantage_clip")
        self.cut("images", self.samples_per_round)

    def start(self, problem: Problem, optimiser: OptimiserName = "adamw") -> tuple[Policy, Optimizer]:
        policy = self.policy(problem)
        return policy, optimiser_of(policy.parameters(), optimiser, self.learning_rate, self.weight_decay)

    def policy(self, problem: Problem) -> Policy:
        """A policy that equals the model so far; each call makes another one with the same weights."""
        tuning = tuning_of(self.tuning, self.rank)
        if isinstance(tuning, LoRA):
            tuning = replace(tuning, alpha=self.alpha)
        return problem.pipeline.adapt(tuning, problem.key("adapter"))

    def path_sampling(self, problem: Problem, kernel: Kernel = "ddim", eta: float = 0.0) -> Sampling:
        """How images are sampled to train on: without noise unless a kernel and its η are given."""
        evaluated = problem.sampling
        guidance = scale_of(evaluated, self.guided)
        return replace(evaluated, steps=self.steps or evaluated.steps, guidance=guidance, eta=eta, kernel=kernel)

    def advantages(self, prompts: Sequence[str], rewards: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A of a round's images, each with the id of its prompt."""
        return group_advantages(prompts, rewards, self.spread).clamp(-self.advantage_clip, self.advantage_clip)


def group_advantages(prompts: Sequence[str], rewards: Float[Tensor, " n"], spread: Spread) -> Float[Tensor, " n"]:
    """A before it is cut; see the head of this file."""
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(i)
    whole, result = rewards.double(), torch.empty(len(rewards), dtype=torch.float64)
    for rows in groups.values():
        own = whole[rows]
        of = own if spread == "prompt" else whole
        result[rows] = (own - own.mean()) / (1 if spread == "none" else of.std(correction=0) + 1e-4)
    return result.float()


@torch.no_grad()
def blend(average: Policy, policy: Policy, decay: float) -> None:
    """average ← decay · average + (1 − decay) · policy, in place, over the trained weights."""
    for own, new in zip(average.parameters(), policy.parameters(), strict=True):
        own.lerp_(new, 1 - decay)
