"""Several images of one prompt at once: how they are laid out, and sequential Monte Carlo on their weights.

The n particles of a prompt stand next to each other: row p n + j is particle j of prompt p. Particle 0 has the prompt's
own key, so that one particle alone is plain sampling.

Source    Del Moral, Doucet, Jasra 2006, "Sequential Monte Carlo samplers"; systematic resampling after Kitagawa 1996.
          Everything stays in logarithms: rewards over a small temperature leave the range of floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignbench.interface import Prompt, Start
from alignbench.keys import Key


def particle_keys(keys: Sequence[Key], n: int) -> list[Key]:
    """n keys for each key."""
    return [key("particle", j) if j else key for key in keys for j in range(n)]


def for_particles(prompts: Sequence[Prompt], start: Start | None, n: int) -> tuple[list[Prompt], Start | None]:
    """Each prompt, and each image that a chain starts from, n times in a row."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    return repeated, None if start is None else Start(start.images.repeat_interleave(n, 0), start.strength)


def rows_of(chosen: Int[Tensor, "b m"], n: int) -> Int[Tensor, " bm"]:
    """Row numbers, among n particles of each prompt, of the particles chosen for each."""
    return (torch.arange(len(chosen))[:, None] * n + chosen.cpu()).flatten()


def effective_size(log_weights: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """(Σ w)² / Σ w²: n for equal weights, 1 where one weight is everything (Kong 1992)."""
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


def log_mean(log_weights: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """log of the mean weight."""
    return log_weights.logsumexp(1) - torch.log(torch.tensor(float(log_weights.shape[1])))


def systematic(log_weights: Float[Tensor, "b n"], uniform: Float[Tensor, " b"]) -> Int[Tensor, "b n"]:
    """The ancestors of n particles: particle j is drawn n w_j times up to less than one, and exactly so on average.

    One uniform draw in [0, 1) a row places n equidistant points on the cumulative weights.
    """
    n = log_weights.shape[1]
    edges = log_weights.double().softmax(1).cumsum(1)
    points = (torch.arange(n, dtype=torch.float64) + uniform.double()[:, None]) / n
    return torch.searchsorted(edges, points, right=True).clamp(max=n - 1)  # the last edge may end just below 1


def categorical(log_weights: Float[Tensor, "b n"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """One index a row, drawn by weight from a uniform draw in [0, 1)."""
    edges = log_weights.double().softmax(1).cumsum(1)
    chosen = torch.searchsorted(edges, uniform.double()[:, None], right=True)[:, 0]
    return chosen.clamp(max=log_weights.shape[1] - 1)
