"""What a run says of itself against `base`: a sentence behind every win rate."""

from __future__ import annotations

import pytest

from alignbench.analysis.load import load, table
from alignbench.analysis.pairing import meet
from alignbench.analysis.planning import components, smallest
from alignbench.analysis.summary import against_base


def wins(won: int, of: int) -> list[float]:
    """Scores that beat a zero so often, and lose else."""
    return [1.0] * won + [-1.0] * (of - won)


@pytest.fixture
def said(make_result):
    """A function that writes `base` and another result, and returns the sentences on it without their beginning."""

    def say(scores, algorithm="best_of_n", base=None, **others) -> list[str]:
        columns = scores if isinstance(scores, dict) else {"r": scores}
        make_result("base", base or {name: [0.0] * len(column) for name, column in columns.items()}, **others)
        path = make_result("mine", scores, algorithm, seed=1 if algorithm == "ddpo" else None, **others)
        lines, beside = against_base(path)
        assert beside == path.with_name("base.json")
        return [line.removeprefix("  against base  ") for line in lines]

    return say


def test_a_method_that_is_better_or_worse_is_said_to_be(said):
    better, worse = said({"r": wins(90, 100), "s": wins(10, 100)})
    assert better.startswith("r: wins 90.0 % (")
    assert better.endswith("), p <0.001: better than base")
    assert worse.endswith("), p <0.001: worse than base")


def test_a_run_that_was_trained_once_speaks_for_itself_alone(said):
    better, worse, open_ = said({"r": wins(90, 100), "s": wins(10, 100), "t": wins(52, 100)}, "ddpo")
    assert better.endswith(": this run wins more often than base; another seed may not")
    assert worse.endswith(": this run loses more often than base; another seed may not")
    assert ": this run alone: no difference from base that 100 prompts could show (it would need ±14 points)" in open_


def test_where_nothing_is_shown_it_says_how_much_would_have_been(said):
    """104 of 200: sd 0.5 (200/199)^½ over √200 with 199 degrees is 3.54 points, (1.972 + 0.843) times that 9.98."""
    (line,) = said(wins(104, 200))
    assert line.endswith("no difference from base that 200 prompts could show (it would need ±10 points)")


def test_small_numbers_are_not_rounded_to_nothing(said):
    """Of 2000 pairs eight are won and eight lost: variance 16/4 / 2000, an error of 0.1 points, 2.80 times that."""
    (line,) = said([1.0, -1.0] * 8 + [0.0] * 1984)
    assert "(it would need ±0.3 points)" in line


def test_so_few_prompts_could_show_nothing(said):
    (line,) = said(wins(3, 4))
    assert line.endswith("no difference from base, and 4 prompts could show none")


def test_six_prompts_could_show_a_difference_where_all_of_them_are_won(said):
    """Of six wins p is 2 / 2^6 = 0.031; of three wins and three ties 2 / 2^3."""
    (line,) = said([1.0] * 3 + [0.0] * 3)
    assert line.endswith("p 0.250: no difference from base, and 6 prompts could hardly show one")
    (line,) = said(wins(6, 6))
    assert line.endswith("better than base")


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a")])
def test_it_is_against_the_base_that_is_sampled_alike_and_shares_most(make_result, order):
    trial, other, whole = order
    make_result(trial, [0.0] * 2, configuration={"limit": 2})
    make_result(other, [0.0] * 50, configuration={"sampling": {"steps": 10, "guidance": 3.0, "eta": 1.0}})
    base = make_result(whole, [0.0] * 40)
    assert against_base(make_result("mine", wins(30, 40), "best_of_n"))[1] == base


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"sampling": {"steps": 10, "guidance": 3.0, "eta": 1.0}}, "steps"), ({"dtype": "float16"}, "dtype")],
)
def test_where_no_base_is_sampled_alike_the_line_says_so(changed, said, make_result):
    make_result("other", [0.0] * 100, configuration=changed)
    (line,), _ = against_base(make_result("mine", wins(90, 100), "best_of_n"))
    assert "better than base; that base was drawn with other " in line
    assert said in line.rpartition("other ")[2].split(", ")


def test_images_of_one_prompt_are_called_images(said):
    """0.5 (30/29)^½ / √30 is 9.28 points with 29 degrees, (2.045 + 0.854) times that 26.9."""
    (line,) = said(wins(17, 30), samples=30)
    assert "no difference from base that 30 images could show (it would need ±27 points)" in line


def test_what_hangs_on_failed_scores_is_said_to(said):
    """70 of 100 wins are shown; had the 40 failed ones been lost, they were not."""
    (line,) = said([*wins(70, 100), *[None] * 40])
    assert line.endswith("wins more often than base, but for the scores that failed (40)")


def test_the_number_is_that_of_a_single_test(said, tmp_path):
    said(wins(52, 100))
    (runs,) = load([tmp_path / "base.json", tmp_path / "mine.json"]).groups.values()
    columns, _ = table(runs, runs[0].result.scorers)
    parts = components(meet(columns["r"], [1], [0]), "rate")
    assert smallest(parts, parts.size, 0.05, 0.8) == pytest.approx(0.14, abs=0.005)


def test_without_base_there_is_nothing_to_say(make_result):
    assert against_base(make_result("mine", wins(3, 4), "best_of_n")) == ([], None)
