"""One problem of the exact testbed: a mixture, rewards with their mis-specified proxies, and prompts that carry them.

Prompts of a problem are interchangeable: each asks for one point of the same mixture. They differ in their text, so
that training and evaluation share none, and in their id, which is what the noise of a point is drawn from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.errors import InputError
from alignbench.interface import Prompt, RewardInfo
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.tilt import Quadratic, rates

PROMPTS = 1000  # of every split
METADATA = "exact_problem"
DECIMALS = 9  # that identify a number: rounding differs between machines


class Known(NamedTuple):
    """Closed-form numbers of a problem and one of its rewards."""

    base_reward: float  # E_{p_ref} r
    reward: float  # R at λ = 1
    kl: float  # KL(p* ‖ p_ref) at λ = 1, in nats
    log_z: float  # log Z(1)


@dataclass(frozen=True)
class ExactProblem:
    """A mixture as reference, and rewards by name. `plane` holds the two axes that matter, where there are others:
    along those the mixture is N(0, I), independent of the plane, and no reward depends on them."""

    name: str
    mixture: Mixture
    rewards: Mapping[str, Quadratic]
    beta: float = 1.0  # at which regret is measured
    plane: Float[Tensor, "d 2"] | None = None

    def __post_init__(self) -> None:
        for name, reward in self.rewards.items():
            low, high = rates(self.mixture, reward)
            if not (self.beta > 0 and low < 1 / self.beta < high):
                where = f"problem {self.name!r}: reward {name!r}"
                raise ValueError(f"{where} has no optimum at β = {self.beta:g}; choose β > {1 / high:g}.")

    @cached_property
    def sha256(self) -> str:
        """Over all that defines the problem but the direction of the plane."""
        flat = self.flat
        numbers = [flat.mixture.weights, flat.mixture.means, flat.mixture.covariances]
        for name in sorted(flat.rewards):
            r = flat.rewards[name]
            numbers += [r.curvature, r.slope, torch.tensor([r.constant], dtype=torch.float64)]
        content = [[round(x, DECIMALS) + 0.0 for x in part.flatten().tolist()] for part in numbers]
        facts = [self.name, sorted(self.rewards), self.beta, self.mixture.dimension]
        return hashlib.sha256(json.dumps([facts, content]).encode()).hexdigest()

    @cached_property
    def flat(self) -> ExactProblem:
        """The problem in its plane: the same optimum, frontier and divergences in two dimensions."""
        if self.plane is None:
            return self
        axes, m = self.plane.double(), self.mixture
        mixture = Mixture(m.weights, m.means @ axes, axes.T @ m.covariances @ axes)
        rewards = {
            name: Quadratic(axes.T @ r.curvature @ axes, r.slope @ axes, r.constant) for name, r in self.rewards.items()
        }
        return ExactProblem(self.name, mixture, rewards, self.beta)

    def embedded(self, name: str, rotation: Float[Tensor, "d d"]) -> ExactProblem:
        """This two-dimensional problem beside d − 2 axes of N(0, I), all turned by an orthogonal matrix."""
        q, m = rotation.double(), self.mixture
        axes, rest = q[:, :2], q[:, 2:]
        mixture = Mixture(m.weights, m.means @ axes.T, axes @ m.covariances @ axes.T + rest @ rest.T)
        rewards = {
            key: Quadratic(axes @ r.curvature @ axes.T, axes @ r.slope, r.constant) for key, r in self.rewards.items()
        }
        return ExactProblem(name, mixture, rewards, self.beta, axes)

    @cached_property
    def _prompts(self) -> dict[str, tuple[Prompt, ...]]:
        return {}  # by split, as they are asked for

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split."""
        if split not in self._prompts:
            self._prompts[split] = tuple(
                Prompt(f"{split}-{i:04d}", f"{self.name} {split} {i}", metadata={METADATA: self})
                for i in range(PROMPTS)
            )
        return self._prompts[split]


def problem_of(prompts: Sequence[Prompt]) -> ExactProblem | None:
    """The problem that prompts carry, or None. Raises InputError where they carry several."""
    found = _carried(prompts)
    if len(found) > 1:
        raise InputError(f"these prompts belong to {_names(found)}; use those of one.")
    return found[0] if found else None


def _carried(prompts: Sequence[Prompt]) -> list[ExactProblem | None]:
    """The different problems of prompts, None standing for those that carry none."""
    found = {id(carried): carried for prompt in prompts for carried in [prompt.metadata.get(METADATA)]}
    return list({problem.sha256 if problem else None: problem for problem in found.values()}.values())


def _names(found: Sequence[ExactProblem | None]) -> str:
    names = sorted(problem.name if problem else "none" for problem in found)
    return f"several exact problems ({', '.join(names)})"


def evaluate(reward: str, images: Tensor, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
    """What points earn under the problem's reward of this name; differentiable."""
    problem = problem_of(prompts)
    if problem is None or reward not in problem.rewards:
        raise InputError(f"reward {reward!r} cannot score these prompts: {unsuitable(reward, prompts, ())}")
    value: Tensor = problem.rewards[reward](images.cpu())
    return value.to(images.device, torch.float32)


def unsuitable(reward: str, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
    """Why the reward of this name cannot score these prompts or images, or None. An empty shape is not known yet."""
    found = _carried(prompts)
    if len(found) > 1:
        return f"they belong to {_names(found)}; use those of one."
    problem = found[0] if found else None
    if problem is None:
        return "it belongs to the exact testbed; use --prompts with one of its problems, such as grid."
    if reward not in problem.rewards:
        return f"problem {problem.name!r} has no such reward; it has {', '.join(problem.rewards)}."
    if image_shape and tuple(image_shape) != (problem.mixture.dimension,):
        return f"it scores points of {problem.mixture.dimension} numbers, not images of shape {tuple(image_shape)}."
    return None


def info(reward: str) -> RewardInfo:
    return RewardInfo(id=f"{reward}-1", preprocessing="float64", range="real")


def describe(problem: ExactProblem) -> dict[str, Any]:
    """What identifies a problem in a result file."""
    return {"problem": problem.name, "problem_sha256": problem.sha256}
