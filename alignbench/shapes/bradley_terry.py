"""The embedded world's reward network, trained on preference pairs by the model of Bradley and Terry, and measured.

With the margin m = s(x₁, c) − s(x₂, c) of two pictures for one caption, and y = P(first preferred) as it was labelled:
    P(x₁ ≻ x₂ | c) = σ(m)                                                                                       (1)
    L = E[ −y log σ(m) − (1 − y) log σ(−m) ]                                                                    (2)
For y = 1 this is −log σ(s(preferred) − s(other)), the usual loss of a reward model (Christiano et al. 2017,
https://arxiv.org/abs/1706.03741); a tie that was kept, y = ½, counts half to either side.

Pictures stay in memory as bytes, 6 KB a pair: 100,000 pairs are 600 MB, and no step waits for a file.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from alignbench.files import replace_file
from alignbench.keys import Key, epochs
from alignbench.shapes.autoencoder import initialise
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.preference import NUMBER_OF, PreferenceNet, to_unit, words_of

Array = NDArray[np.float64]

READER = "shapes_preference"  # the reward that reads the weights
STAGE = "bradley-terry"
BINS = 10  # of the predicted probability, with equally many predictions in each
MEASURED_AT_ONCE = 250  # pairs


def spoken(text: str) -> list[str]:
    """The words of a caption as the network hears them, known or not."""
    return re.findall(r"[a-z]+", text.lower())


def unknown_words(text: str) -> list[str]:
    """Those it was never taught."""
    return [word for word in spoken(text) if word not in NUMBER_OF]


def is_held_out(text: str, share: float) -> bool:
    """Whether pairs of this caption are measured and never trained on: a matter of its words alone, whatever the file,
    the seed and the network it starts from, so that training on does not reach what was held out before. A larger share
    holds out what a smaller one does, and more."""
    return Key("train-reward", "held out", " ".join(spoken(text))).integer < share * 2**63


@dataclass(frozen=True)
class Judged:
    """Pairs of pictures with their captions and P(first preferred)."""

    pictures: UInt8[np.ndarray, "n 2 h w 3"]
    captions: Sequence[str]
    label: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: Sequence[int]) -> Judged:
        return Judged(self.pictures[rows], [self.captions[i] for i in rows], self.label[rows])


def margin(network: PreferenceNet, pairs: Judged) -> Float[Tensor, " n"]:
    """m of (1)."""
    pictures = to_unit(np.concatenate([pairs.pictures[:, 0], pairs.pictures[:, 1]]))
    first, second = network(pictures, words_of(pairs.captions).repeat(2, 1)).chunk(2)
    return first - second


def bradley_terry_loss(margin: Float[Tensor, " n"], label: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """(2)"""
    return -(label * functional.logsigmoid(margin) + (1 - label) * functional.logsigmoid(-margin)).mean()


def fresh(key: Key) -> PreferenceNet:
    """A network that has learned nothing."""
    network = PreferenceNet()
    initialise(network, key)
    return network.requires_grad_(False).eval()


def train(
    start: PreferenceNet, pairs: Judged, steps: int, batch: int, learning_rate: float, key: Key, folder: Path
) -> PreferenceNet:
    """The network after so many steps from `start`, which stays as it is. A checkpoint in `folder` is continued."""
    network = copy.deepcopy(start).requires_grad_(True).train()
    label = torch.from_numpy(pairs.label).float()

    def loss(step: int) -> Tensor:
        rows = epochs(key("order"), len(pairs), step * batch, batch)
        return bradley_terry_loss(margin(network, pairs[rows]), label[rows])

    plan = Fit(
        steps=steps,
        learning_rate=learning_rate,
        warmup=max(1, min(200, steps // 10)),
        checkpoint_every=max(1, min(250, steps // 10)),
    )
    fit(STAGE, plan, network, loss, folder)
    return network.requires_grad_(False).eval()


@torch.no_grad()
def margins(network: PreferenceNet, pairs: Judged) -> Array:
    """m of every pair, measured."""
    parts = [range(i, min(i + MEASURED_AT_ONCE, len(pairs))) for i in range(0, len(pairs), MEASURED_AT_ONCE)]
    return np.concatenate([margin(network, pairs[rows]).double().numpy() for rows in parts])


def agreement(margins: Array, label: Array) -> Array:
    """1 where the network prefers what was preferred, 0 where it prefers the other, ½ where either of them ties."""
    return np.where(margins > 0, label, np.where(margins < 0, 1 - label, 0.5))


def log_loss(margins: Array, label: Array) -> float:
    """(2) of these pairs; log 2 for a network that knows nothing."""
    return float(bradley_terry_loss(torch.from_numpy(margins), torch.from_numpy(label)))


def brier_score(margins: Array, label: Array) -> float:
    """E[(σ(m) − preferred)²], a tie half to either side; ¼ for a network that knows nothing."""
    chance = probability(margins)
    return float((label * (1 - chance) ** 2 + (1 - label) * chance**2).mean())


class Bin(NamedTuple):
    """A point of the reliability curve: predictions of about one probability, and how often they came true."""

    predicted: float
    observed: float
    predictions: int


def reliability(margins: Array, label: Array) -> list[Bin]:
    """The curve over predictions σ(m) of each pair seen from both sides, in bins with equally many.

    The lower half mirrors the upper, as the two sides of a pair say the same. So the predictions of at least one half
    are sorted into half of the bins; a margin of zero, on the border, comes true half the time.
    """
    confidence, outcome = probability(np.abs(margins)), agreement(margins, label)
    parts = np.array_split(np.argsort(confidence, kind="stable"), BINS // 2)
    upper = [Bin(float(confidence[rows].mean()), float(outcome[rows].mean()), len(rows)) for rows in parts if len(rows)]
    return [Bin(1 - point.predicted, 1 - point.observed, point.predictions) for point in upper[::-1]] + upper


def calibration_error(curve: Sequence[Bin]) -> float:
    """The expected calibration error: the mean distance of prediction and outcome, bin by bin."""
    total = sum(point.predictions for point in curve)
    return sum(point.predictions * abs(point.predicted - point.observed) for point in curve) / total


def probability(margins: Array) -> Array:
    """(1)"""
    return torch.from_numpy(margins).sigmoid().numpy()


def save(network: PreferenceNet, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights in float32, so that what is loaded is what was measured; equal ones give equal files."""
    from safetensors.torch import save as serialised

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    content = _ordered(serialised(tensors, dict(metadata)))
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes metadata in another order each time, and the file's
    hash is what identifies a reward."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
