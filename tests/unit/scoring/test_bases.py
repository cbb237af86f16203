"""The bases of scorers: what a file declares is all that makes a scorer of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from parity import recipe

from alignbench import (
    AestheticScorer,
    ContrastiveScorer,
    Crop,
    Key,
    LinearChain,
    PaddedContrastiveScorer,
    Prompt,
    Reward,
)
from alignbench.interface import Truncates
from alignbench.plugins import load
from alignbench.scoring.preprocessing import Pad

KEY = Key("test", "bases")
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["a red circle", "a blue star", recipe.TO_MEND])]


@pytest.fixture(autouse=True)
def _small_weights(scorer_files):
    pass


@pytest.fixture
def images() -> torch.Tensor:
    return KEY("images").uniform(3, 3, 40, 53)


@dataclass(frozen=True)
class Own(ContrastiveScorer):
    """A scorer as somebody else would declare it: on the weights of clip_h14."""

    architecture: recipe.ClipArchitecture = recipe.TINY

    id = "own"
    range = "-1 to 1"
    files = load("rewards", "clip_h14").files
    library = "open_clip_torch"
    crop = Crop("half-even")


def test_a_declared_scorer_is_a_reward_that_scores_as_its_weights_say(images):
    own = Own(allow_unverified=True)
    assert isinstance(own, Reward)
    assert isinstance(own, Truncates)
    assert torch.equal(own(images, PROMPTS), recipe.scorer("clip_h14")(images, PROMPTS))
    assert own.info().id.startswith("own unverified ")
    assert own.info().range == "-1 to 1"


def test_a_scaled_score_is_the_cosine_times_the_exponential_of_the_learned_scale(images):
    @dataclass(frozen=True)
    class Scaled(Own):
        scaled = True

    plain, scaled = (kind(allow_unverified=True) for kind in (Own, Scaled))
    expected = math.exp(recipe.LOGIT_SCALE) * plain(images, PROMPTS)
    torch.testing.assert_close(scaled(images, PROMPTS), expected, atol=1e-5, rtol=1e-6)
    expected = math.exp(recipe.LOGIT_SCALE) * plain.with_grad(images, PROMPTS)
    torch.testing.assert_close(scaled.with_grad(images, PROMPTS), expected, atol=1e-5, rtol=1e-6)


def test_cropping_depends_on_pillow_and_padding_on_torch_alone():
    assert recipe.scorer("clip_h14").info().versions.keys() == {"open_clip_torch", "pillow"}
    assert recipe.scorer("pickscore").info().versions.keys() == {"transformers", "pillow"}
    assert recipe.scorer("hpsv2_1").info().versions.keys() == {"open_clip_torch"}


def test_a_padded_scorer_fits_pictures_by_its_own_field():
    reward = recipe.scorer("hpsv2_1")
    assert isinstance(reward, PaddedContrastiveScorer)
    assert reward.fit == Pad(antialias=True)
    assert replace(reward, antialias=False).fit == Pad(antialias=False)
    assert recipe.scorer("clip_l14").fit == Crop("half-even")
    assert recipe.scorer("pickscore").fit == Crop("down")


def test_a_scorer_that_names_no_architecture_cannot_be_made():
    with pytest.raises(TypeError, match="architecture"):
        ContrastiveScorer()


def test_a_declared_head_is_read_from_the_second_file_and_sees_no_prompt(images):
    @dataclass(frozen=True)
    class Head(AestheticScorer):
        architecture: recipe.ClipArchitecture = recipe.TINY_OPENAI

        id = "own"
        range = "real"
        files = load("rewards", "aesthetic_v2").files
        layers = LinearChain

    own = Head(allow_unverified=True)
    assert torch.equal(own(images, PROMPTS), recipe.scorer("aesthetic_v2")(images, PROMPTS[::-1]))
    assert list(own.info().files) == [file.place for file in Head.files]
