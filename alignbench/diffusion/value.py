"""The value network of DPOK's authors: what a sampling path will earn, told from a latent on its way.

Departures  Theirs starts at zero, near which their reward is; others are not, so ours starts at each action's mean
            return. With a lookahead, V also has a line in what was foreseen, r(x̂_0(x_t), c): one for each action,
            fitted to the first round's returns and fixed from then on. A V that knows x_t, c and t, and not what came
            after, leaves the mean of the policy gradient at ρ = 1 as it is and takes noise out of it. (Ours, as theirs,
            has been fitted to the same round.) One more image is decoded and rewarded per action. A larger text scale
            makes V learn what prompts earn before it learns single images by heart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.devices import chunked
from alignbench.diffusion.episodes import Moves, moves_of
from alignbench.diffusion.rollout import Trajectory
from alignbench.interface import Policy, Problem, Prompt
from alignbench.keys import Key

WIDTH = 256


class Experience(NamedTuple):
    """The moves of a round, numbered image by image, what each is followed by and what was foreseen before it."""

    path: Trajectory
    returns: Float[Tensor, "n actions"]
    foreseen: Float[Tensor, "n actions"]  # r of the x0 estimate; zeros without a lookahead

    def draw(self, count: int, key: Key) -> list[int]:
        """Numbers of random moves, without repetition while they last."""
        return key.sample(range(self.returns.numel()), count)

    def pick(self, rows: Sequence[int]) -> tuple[Moves, Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Moves by their numbers, their returns and what was foreseen."""
        trained = self.returns.shape[1]
        images, actions = [row // trained for row in rows], [row % trained for row in rows]
        return moves_of(self.path, images, actions), self.returns[images, actions], self.foreseen[images, actions]


def sum_of_later(values: Float[Tensor, "n actions"]) -> Float[Tensor, "n actions"]:
    """The sum of what stands after each action."""
    return values.flip(1).cumsum(1).flip(1) - values


def foreseen_rewards(
    problem: Problem, policy: Policy, path: Trajectory, prompts: Sequence[Prompt], batch: int
) -> Float[Tensor, "n actions"]:
    """r(x̂_0(x_t), c) before each action, `batch` prompts at a time; zeros where a path was stored without its x0
    estimates."""
    if path.x0 is None:
        return torch.zeros_like(path.log_prob)
    found = []
    with torch.no_grad():
        for part in problem.shard(chunked(range(len(prompts)), batch)):
            some = [prompts[i] for i in part]
            estimates = path.x0[:, part[0] : part[-1] + 1]
            found.append(torch.stack([problem.reward(policy.decode(x0), some).cpu() for x0 in estimates], 1))
    return torch.cat(problem.gather(found)).to(path.latents.device)


class Value(nn.Module):
    """V(x_t, c, t): a line in what was foreseen at x_t, one per action and fixed once it is fitted, plus three layers,
    each scaled element by element by the embedding of the step, and one. `text_scale` multiplies the text embedding
    where it stands beside the latents."""

    start: Tensor
    slope: Tensor

    def __init__(self, inputs: int, actions: int, key: Key, text_scale: float = 1.0) -> None:
        super().__init__()
        self.text_scale = text_scale
        self.register_buffer("start", torch.zeros(actions))  # the line of each action
        self.register_buffer("slope", torch.zeros(actions))
        sizes = (inputs, WIDTH, WIDTH, WIDTH, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.scales = nn.ParameterList(nn.Parameter(key("scale", i).uniform(actions, WIDTH)) for i in range(3))
        for name, parameter in self.layers.named_parameters():
            if parameter.dim() == 1:
                parameter.data.zero_()
            else:  # Glorot and Bengio 2010
                parameter.data.copy_(key(name).normal(*parameter.shape) * (2 / sum(parameter.shape)) ** 0.5)

    def begin(self, foreseen: Float[Tensor, "n actions"], returns: Float[Tensor, "n actions"]) -> None:
        """Fit the line of each action by least squares. It is flat where what was foreseen differs by no more than
        rounding, on the scale of either."""
        x, y = foreseen.cpu().double(), returns.cpu().double()
        centred, deviation = x - x.mean(0), y - y.mean(0)
        scale = torch.maximum(x.abs().amax(0), deviation.abs().amax(0))
        variance, covariance = centred.square().mean(0), (centred * deviation).mean(0)
        slope = torch.where(variance > (1e-6 * scale).square(), covariance / variance, 0)
        self.slope.copy_(slope)
        self.start.copy_(y.mean(0) - slope * x.mean(0))

    def forward(self, moves: Moves, foreseen: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        text = self.text_scale * moves.condition.pooled.to(moves.latents)
        x = torch.cat([moves.latents.flatten(1), text], 1)
        for layer, scale in zip(self.layers, self.scales, strict=False):
            x = (scale[moves.actions] * layer(x)).relu()
        line = self.start[moves.actions] + self.slope[moves.actions] * foreseen
        values: Tensor = line + self.layers[-1](x)[:, 0]
        return values
