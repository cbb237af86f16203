"""The value network of DPOK's authors: what a sampling path will earn, told from a latent on its way."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.diffusion.episodes import Moves
from alignbench.keys import Key

WIDTH = 256


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
