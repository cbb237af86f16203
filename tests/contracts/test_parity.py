"""Our scorers against what the official packages said of the same checkpoints (tests/support/parity)."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from parity import recipe
from places import TESTS

GOLDEN = json.loads((TESTS / "support" / "parity" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _small_checkpoints(scorer_files):
    pass


def largest_difference(name: str, reward) -> float:
    ours = recipe.score(reward, recipe.pictures(), GOLDEN["cases"][name])
    return max(abs(a - b) for a, b in zip(ours, GOLDEN["scores"][name], strict=True))


@pytest.mark.parametrize("name", sorted(GOLDEN["scores"]))
def test_a_scorer_says_what_the_official_code_says(name):
    assert len(GOLDEN["scores"][name]) >= 6
    assert max(GOLDEN["scores"][name]) - min(GOLDEN["scores"][name]) > 1e-2  # they are not all one number
    assert largest_difference(name, recipe.scorer(name)) <= 1e-5


def test_the_golden_scores_are_of_the_official_packages():
    assert set(GOLDEN["scores"]) == {"pickscore", "hpsv2_0", "hpsv2_1", "clip_l14", "clip_h14", "imagereward"}
    assert GOLDEN["versions"]["hpsv2"] == "1.2.0"
    assert GOLDEN["versions"]["image-reward"] == "1.5"


def test_another_crop_activation_resampling_or_epsilon_would_show():
    """Each of these is a mistake that was made somewhere; the golden scores tell them from the truth."""
    no_antialias = recipe.scorer("hpsv2_1", antialias=False)
    assert largest_difference("hpsv2_1", no_antialias) > 1e-4
    gelu = dataclasses.replace(recipe.scorer("clip_l14"), architecture=recipe.TINY)
    assert largest_difference("clip_l14", gelu) > 1e-4
    reward = recipe.scorer("imagereward")
    norms = [m for m in reward.scorer.network.vision.modules() if isinstance(m, torch.nn.LayerNorm)]
    try:
        for norm in norms:
            norm.eps = 1e-3
        assert largest_difference("imagereward", reward) > 1e-4
    finally:
        for norm in norms:
            norm.eps = 1e-6
    attentions = [m for m in reward.scorer.network.text.modules() if hasattr(m, "num_attention_heads")]
    kept = [dict(vars(attention)) for attention in attentions]
    assert attentions
    try:
        for attention in attentions:  # transformers' default of eight, on the same weights
            attention.num_attention_heads, attention.attention_head_size = 8, 96
        assert largest_difference("imagereward", reward) > 1e-4
    finally:
        for attention, values in zip(attentions, kept, strict=True):
            vars(attention).update(values)
    assert largest_difference("imagereward", reward) <= 1e-5
