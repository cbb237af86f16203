"""Stage 3 of the recipe: a reward learned from the simulated human's choices.

A small image-text network s(x, c) is first taught, on rendered pictures x, to tell their caption c from a caption c'
with one attribute wrong (as CLIP precedes PickScore), then trained on noisy choices between generated pictures:
    L_matching = E[ −log σ(s(x, c) − s(x, c')) ]                                                                (1)
    L_choosing = E[ −log σ(s(x_preferred, c) − s(x_other, c)) ]                                                 (2)
Half of the choices are seen in a mirror, pictures and words: the human's taste knows no left and right. Keeping (1)
beside (2) was tried and predicts choices less well. The reward is differentiable, and imperfect in the ways learned
rewards are: what algorithms optimise on the embedded model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from alignbench.diffusion import registry as models
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.files import replace_file
from alignbench.interface import Prompt, Sampling
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.shapes.autoencoder import initialise
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.judge import read
from alignbench.shapes.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    PLURALS,
    SHAPES,
    SIZES,
    Split,
    one_wrong,
    parse,
    sample_caption,
)
from alignbench.shapes.style import prefers_first, utility

WIDTH = 96
LENGTH = 16  # words; the longest caption has 14
WORDS = [
    "", *"a an and on left right of above below background".split(),
    *SHAPES, *PLURALS.values(), *COLOURS, *BACKGROUNDS, *SIZES, *NUMBERS,
]  # fmt: skip
NUMBER_OF = {word: i for i, word in enumerate(WORDS)}
# Two pictures as the model is used, and two of poorer faithfulness: without guidance and with too much of it.
SETTINGS = (Sampling(20, 3.0, 1.0), Sampling(20, 3.0, 1.0), Sampling(10, 1.0, 1.0), Sampling(10, 5.0, 1.0))
CAPTIONS_PER_FILE = 50


def words_of(texts: Sequence[str]) -> Int[Tensor, "b words"]:
    """Word numbers of captions, 0 for padding and unknown words."""
    rows = [[NUMBER_OF.get(word, 0) for word in re.findall(r"[a-z]+", text.lower())][:LENGTH] for text in texts]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


class PreferenceNet(nn.Module):
    """s(x, c): a convolutional image tower, word embeddings, and words that attend to image positions."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(5, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(64, WIDTH, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )  # fmt: skip
        self.words = nn.Embedding(len(WORDS), WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.text = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True)
        self.fusion = nn.ModuleList(
            nn.TransformerDecoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        initialise(self, Key("shapes", "preference", "init"))

    def forward(self, images: Float[Tensor, "b 3 h w"], words: Int[Tensor, "b words"]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1] for captions."""
        axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        across, down = axis.expand(len(images), 1, len(axis), -1), axis[:, None].expand(len(images), 1, -1, len(axis))
        seen = self.image(torch.cat([2 * images - 1, across, down], 1)).flatten(2).transpose(1, 2)
        padding = words == 0
        said = self.text(self.words(words) + self.places, src_key_padding_mask=padding)
        for layer in self.fusion:
            said = layer(said, seen, tgt_key_padding_mask=padding)
        counts = (~padding).sum(1, keepdim=True)
        pooled = (said * ~padding[..., None]).sum(1) / counts
        score: Tensor = self.head(torch.cat([pooled, seen.mean(1)], 1))[:, 0]
        return score


def load(path: Path) -> PreferenceNet:
    """The trained network, frozen."""
    from safetensors.torch import load_file

    network = PreferenceNet()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return network.requires_grad_(False).eval()


@dataclass(frozen=True)
class Choices:
    """Pairs of generated pictures of one caption with the simulated human's choice."""

    preferred: UInt8[np.ndarray, "n h w 3"]
    other: UInt8[np.ndarray, "n h w 3"]
    captions: list[str]
    clear: np.ndarray  # utility difference, preferred minus other: what the human felt, without noise


def generated(pipeline_folder: Path, name: str, split: Split, count: int, folder: Path) -> Choices:
    """Choices over four pictures each of `count` captions, generated once and kept in `folder`, 50 captions a file."""
    key = Key("shapes", "choices", name)
    pipeline = models.load(models.Model("tiny", source=str(pipeline_folder)), Meter())
    preferred, other, captions, clear = [], [], [], []
    for first in range(0, count, CAPTIONS_PER_FILE):
        path = folder / f"generated-{name}-{first:05d}.npz"
        texts = [sample_caption(key("caption", i), split).text for i in range(first, first + CAPTIONS_PER_FILE)]
        if not path.exists():
            prompts = [Prompt(text, text) for text in texts]
            made = []
            for k, sampling in enumerate(SETTINGS):
                keys = [key("picture", first + i, k) for i in range(len(texts))]
                images = PipelineSampler(pipeline, sampling)(prompts, keys).images
                made.append((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
            pictures = np.stack(made, 1)  # [captions, 4, h, w, 3]
            utilities = np.array(
                [
                    [utility(parse(text), read(p.transpose(2, 0, 1) / 255)) for p in four]
                    for text, four in zip(texts, pictures, strict=True)
                ]
            )
            with replace_file(path) as temporary, open(temporary, "wb") as handle:
                np.savez_compressed(handle, pictures=pictures, utilities=utilities)
            print(f"generated ({name}): {first + len(texts)}/{count} captions", flush=True)
        saved = np.load(path)
        pictures, utilities = saved["pictures"], saved["utilities"]
        for i, text in enumerate(texts):
            for a in range(len(SETTINGS)):
                for b in range(a):
                    first_wins = prefers_first(utilities[i, a], utilities[i, b], key("choice", first + i, a, b))
                    won, lost = (a, b) if first_wins else (b, a)
                    preferred.append(pictures[i, won])
                    other.append(pictures[i, lost])
                    captions.append(text)
                    clear.append(utilities[i, won] - utilities[i, lost])
    return Choices(np.stack(preferred), np.stack(other), captions, np.array(clear))


def to_unit(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures of 0 to 255 as images in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def mirrored(text: str) -> str:
    """The caption of a picture seen in a mirror."""
    return re.sub("left|right", lambda side: "right" if side[0] == "left" else "left", text)


def train(
    pictures: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str],
    choices: Choices,
    matching: Fit,
    choosing: Fit,
    folder: Path,
    output: Path,
) -> PreferenceNet:
    """(1), then (2); the weights go to `output` in float16."""
    from safetensors.torch import save_file

    network = PreferenceNet()
    parsed = [parse(text) for text in captions]
    key = Key("shapes", "preference")

    def matching_loss(step: int) -> Tensor:
        rng = key("matching", step).generator()
        chosen = rng.integers(len(parsed), size=64)
        wrong = []
        for place, i in enumerate(chosen):
            order = key("wrong", step, place).permutation(len(ATTRIBUTES))
            candidates = (one_wrong(parsed[i], ATTRIBUTES[a], key("wrong", step, place, a)) for a in order)
            wrong.append(next(caption.text for caption in candidates if caption is not None))
        images = to_unit(pictures[chosen])
        right = network(images, words_of([captions[i] for i in chosen]))
        return functional.softplus(network(images, words_of(wrong)) - right).mean()

    fit("preference-matching", matching, network, matching_loss, folder)

    def choosing_loss(step: int) -> Tensor:
        rng = key("choosing", step).generator()
        chosen, flip = rng.integers(len(choices.captions), size=64), rng.random(64) < 0.5
        captions = [choices.captions[i] for i in chosen]
        words = words_of([mirrored(text) if f else text for text, f in zip(captions, flip, strict=True)])
        better, worse = (
            to_unit(np.where(flip[:, None, None, None], pictures[:, :, ::-1], pictures))
            for pictures in (choices.preferred[chosen], choices.other[chosen])
        )
        return functional.softplus(network(worse, words) - network(better, words)).mean()

    fit("preference-choosing", choosing, network, choosing_loss, folder)
    with replace_file(output) as temporary:
        save_file({name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}, temporary)
    return network


@torch.no_grad()
def pair_accuracy(network: PreferenceNet, choices: Choices) -> dict[str, float]:
    """How often the network agrees with the noisy choices, with the noiseless utilities, and what noise allows."""
    network.eval()
    margins = []
    for i in range(0, len(choices.captions), 500):
        words = words_of(choices.captions[i : i + 500])
        better, worse = (to_unit(p[i : i + 500]) for p in (choices.preferred, choices.other))
        margins.append((network(better, words) - network(worse, words)).numpy())
    margin = np.concatenate(margins)
    return {
        "agrees_with_choices": round(float((margin > 0).mean()), 4),
        "agrees_with_utility": round(float(((margin > 0) == (choices.clear > 0)).mean()), 4),
        "utility_agrees_with_choices": round(float((choices.clear > 0).mean()), 4),
        "pairs": len(margin),
    }
