"""Groups of images: their advantages by hand, and averages of weights."""

from __future__ import annotations

import pytest
import torch

from alignbench import LoRA, blend, group_advantages
from alignbench.keys import Key

PROMPTS = ["a", "a", "b", "b", "b", "b"]
REWARDS = torch.tensor([0.0, 2.0, 10.0, 10.0, 14.0, 14.0])


def test_an_advantage_by_the_prompts_own_spread():
    """Prompt a: mean 1, deviation 1; prompt b: mean 12, deviation 2."""
    expected = [-1 / 1.0001, 1 / 1.0001, -2 / 2.0001, -2 / 2.0001, 2 / 2.0001, 2 / 2.0001]
    assert group_advantages(PROMPTS, REWARDS, "prompt").tolist() == pytest.approx(expected, rel=1e-6)


def test_an_advantage_by_the_spread_of_the_round():
    """The round: mean 25/3, variance (2 · 100 + 2 · 196 + 4) / 6 − 625/9."""
    deviation = ((4 + 200 + 392) / 6 - 625 / 9) ** 0.5
    expected = [centred / (deviation + 1e-4) for centred in (-1, 1, -2, -2, 2, 2)]
    assert group_advantages(PROMPTS, REWARDS, "round").tolist() == pytest.approx(expected, rel=1e-6)


def test_without_a_spread_an_advantage_is_in_units_of_the_reward():
    assert group_advantages(PROMPTS, REWARDS, "none").tolist() == [-1, 1, -2, -2, 2, 2]


@pytest.mark.parametrize("spread", ["round", "prompt", "none"])
def test_a_group_of_equal_rewards_has_no_advantage_and_changes_no_other_group(spread):
    found = group_advantages(["a", "a", "b", "b"], torch.tensor([3.0, 3.0, 0.0, 1.0]), spread)
    assert found[:2].tolist() == [0, 0]
    assert found[2] == -found[3] != 0


@pytest.mark.parametrize("spread", ["prompt", "none"])
def test_an_advantage_depends_on_its_own_group_alone(spread):
    alone = group_advantages(PROMPTS[2:], REWARDS[2:], spread)
    assert torch.equal(group_advantages(PROMPTS, REWARDS, spread)[2:], alone)


def test_the_order_of_a_round_changes_no_advantage():
    order = [4, 0, 5, 2, 1, 3]
    shuffled = group_advantages([PROMPTS[i] for i in order], REWARDS[order], "round")
    assert torch.equal(shuffled, group_advantages(PROMPTS, REWARDS, "round")[order])


def test_an_average_keeps_its_share_and_leaves_the_policy_as_it_is(mixture):
    policy, average = (mixture.adapt(LoRA(), Key("adapter")) for _ in range(2))
    with torch.no_grad():
        policy.parameters()[0].add_(1)
    before = [parameter.clone() for parameter in policy.parameters()]
    old = average.parameters()[0].clone()
    blend(average, policy, 0.75)
    torch.testing.assert_close(average.parameters()[0], old + 0.25)
    assert all(torch.equal(one, other) for one, other in zip(policy.parameters(), before, strict=True))
    blend(average, policy, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(average.parameters(), before, strict=True))
