"""The committed figures of a made-up electorate are of the script as it stands, and hang together."""

from __future__ import annotations

import pytest
import torch
from pages import stored
from simulate_voting import CANDIDATES, DISLIKED, EACH, RATERS, SEEDS, SETTINGS, TESTED, VOTED

from alignbench import Prompt, plugins


@pytest.fixture(scope="module")
def found():
    return stored("statistics/voting")


def test_the_figures_are_of_the_script_as_it_stands(found):
    assert found["settings"] == {
        "raters": RATERS,
        "each": EACH,
        "voted prompts": VOTED,
        "test prompts": TESTED,
        "split": "test",
        "best and worst of": CANDIDATES,
        "fields": SETTINGS,
        "seeds": list(SEEDS),
    }


def test_the_second_trial_has_other_seeds_and_prompts_and_is_the_same_otherwise(found):
    again = stored("statistics/voting_dev")
    differ = {"seeds": [4, 5, 6], "split": "dev", "test prompts": 100}
    assert again["settings"] == found["settings"] | differ
    assert {name: again[name] for name in found if name not in ("settings", "human")} == {
        name: found[name] for name in found if name not in ("settings", "human")
    }


def test_every_rater_voted_to_the_end_and_checks_make_no_pairs(found):
    votes, pairs = found["votes"], found["pairs"]
    assert votes["cast"] == RATERS * EACH == 200
    assert pairs["ties"] < pairs["pairs"] < votes["on new pairs"] < votes["cast"]


def test_all_six_seeds_are_those_of_the_first_trial_and_three_more(found):
    six = stored("statistics/voting_six")
    assert six["settings"] == found["settings"] | {"seeds": [1, 2, 3, 4, 5, 6]}
    assert six["human"]["seeds"][:3] == found["human"]["seeds"]


@pytest.mark.parametrize("file", ["voting", "voting_dev", "voting_six"])
def test_the_win_rate_is_the_mean_of_its_seeds_and_lies_in_its_interval(file):
    content = stored(f"statistics/{file}")
    human, seeds = content["human"], content["settings"]["seeds"]
    assert len(human["seeds"]) == len(seeds)
    assert human["win rate"] == pytest.approx(sum(human["seeds"]) / len(seeds))
    assert human["low"] < human["win rate"] < human["high"]


def test_the_utility_that_raters_vote_by_agrees_with_the_labels_more_than_either_part(found):
    half = {name: rates["half"] for name, rates in found["agree with the labels"].items()}
    assert half["Human"] > max(half["shapes_style"], half["shapes_truth"])


def test_the_worst_picture_is_the_one_that_the_learned_reward_likes_least():
    pictures = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt("a", "a red star on a white background")] * len(pictures)
    disliked = plugins.load("rewards", DISLIKED)()
    liked = plugins.load("rewards", "shapes_preference")()
    assert int(disliked(pictures, prompts).argmax()) == int(liked(pictures, prompts).argmin())
    assert len(set(liked(pictures, prompts).tolist())) == 6
