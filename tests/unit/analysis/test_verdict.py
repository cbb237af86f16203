"""What a comparison says in sentences: computed, and no more than it knows."""

from __future__ import annotations

import pytest

from alignbench.analysis.verdict import sentences

WINS = [1.0] * 40
NONE = [0.01 * (-1) ** i for i in range(40)]


@pytest.fixture
def base(make_result):
    return make_result("base", {"r": [0.0] * 40, "s": [0.0] * 40})


def test_who_is_better_who_is_worse_and_what_stays_undecided(base, make_result):
    better = make_result("a", {"r": WINS, "s": [-x for x in WINS]}, "best_of_n")
    unsure = make_result("b", {"r": NONE, "s": NONE}, "demon")
    lines = sentences([base, better, unsure])
    assert lines[0] == "On shapes/test, 40 prompts, against base:"
    assert lines[1].startswith("  r, the reward that was optimised: best_of_n (wins 100.0 %, 95 % interval 9")
    assert lines[1].endswith(" is better. Undecided: demon.")
    assert lines[2].startswith("  s, for which nothing was optimised: best_of_n (wins 0.0 %, 95 % interval")
    assert "is worse. Undecided: demon." in lines[2]
    assert lines[3] == "  best_of_n gains on r and loses on s: it may exploit the errors of its reward."
    assert lines[4] == "  Cost of an image, in evaluations of the denoiser: base 2; best_of_n 2; demon 2."
    assert len(lines) == 5


def test_one_run_of_a_method_that_trains_is_said_to_be_one(base, make_result):
    one = make_result("one", {"r": NONE, "s": NONE}, "ddpo", seed=1)
    assert sentences([base, one])[1:] == [
        "  r, the reward that was optimised: nothing is decided (ddpo).",
        "  s, for which nothing was optimised: nothing is decided (ddpo).",
        "  Cost of an image, in evaluations of the denoiser: base 2; ddpo 2.",
        "  ddpo: trained once, so undecided whatever that run won; another seed may come out otherwise.",
    ]
    two = make_result("two", {"r": NONE, "s": NONE}, "ddpo", seed=2)
    assert not any("trained once" in line for line in sentences([base, one, two]))


def test_without_a_baseline_there_is_nothing_to_say(make_result):
    assert sentences([make_result("a", [1.0, 2.0], "demon"), make_result("b", [1.0, 2.0], "svdd")]) == []


def test_lower_scores_may_be_the_better_ones(make_result):
    scorers = {"r": {"higher_is_better": False}}
    base = make_result("base", [1.0] * 40, scorers=scorers)
    lower = make_result("lower", [0.0] * 40, "demon", scorers=scorers)
    assert "demon (wins 100.0 %, " in sentences([base, lower])[1]
    assert sentences([base, lower])[1].endswith("is better.")
