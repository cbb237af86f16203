"""What results/README.md says that the reference results can show, and what they lack."""

from __future__ import annotations

import pytest
from pages import read
from places import ROOT

from alignbench.analysis.plan import Wanted, plans

REWARD = "shapes_preference"


@pytest.fixture(scope="module")
def alone():
    """What each method shows on the learned reward, as one test alone."""
    (group,) = plans([ROOT / "results"], Wanted(family=1), scorers=[REWARD]).groups
    return {row.method: row.rate for row in group.rows}


def points(share: float) -> int:
    return round(100 * share)


def test_ddpo_lacks_seeds(alone):
    plan = alone[f"ddpo reward={REWARD}"]
    assert (plan.size.prompts, plan.size.seeds, plan.first) == (200, 3, "seeds")
    assert points(plan.smallest) == points(plan.fixed["seeds"]) == points(plan.doubled["prompts"]) == 18
    assert points(plan.doubled["seeds"]) == 10
    page = " ".join(read("results/README.md").split())
    assert "its three seeds and 200 prompts show a difference of 18 points on its reward. No number of prompts" in page
    assert "Six seeds show 10 points." in page


def test_refl_lacks_prompts(alone):
    plan = alone["refl"]
    assert plan.first == "prompts"
    assert [points(x) for x in (plan.smallest, plan.doubled["prompts"], plan.doubled["seeds"])] == [9, 6, 9]
    page = " ".join(read("results/README.md").split())
    assert "200 prompts show 9 points, 400 show 6. Six seeds still show 9." in page
