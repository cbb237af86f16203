"""Statistics of pictures beside the baseline's, and who looks hacked: raised where it should be, and not elsewhere."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

import alignbench
from alignbench.analysis.compare import compare
from alignbench.analysis.picture_shifts import STEP
from alignbench.analysis.tables import render
from alignbench.analysis.verdict import sentences
from alignbench.cli.app import run_command_line
from alignbench.keys import Key
from alignbench.page.statements import statements
from alignbench.record.result import read

PROMPTS = 60
ZEROS, UP = [0.0] * PROMPTS, [1.0] * PROMPTS


def colours(name: str = "base", mean: float = 0.4, spread: float = 0.1, within: float = 0.03) -> list[float]:
    """Saturations of one picture a prompt: of the prompt, which all methods share, and of the picture."""
    prompt = Key("prompt").generator().normal(0, spread, PROMPTS)
    return np.clip(mean + prompt + Key("noise", name).generator().normal(0, within, PROMPTS), 0, 1).tolist()


@pytest.fixture
def cell(make_result):
    """A result with these saturations."""

    def write(name, scores, saturation, algorithm="refl", **changes):
        return make_result(name, scores, algorithm, pictures={"saturation": saturation}, **changes)

    return write


@pytest.fixture
def base(cell):
    return cell("base", ZEROS, colours(), "base")


def group_of(*paths, **asked):
    (group,) = compare(list(paths), **asked).groups
    return group


def test_by_hand_a_shift_is_the_paired_difference_over_the_baselines_spread(cell):
    """Base 0.1, 0.2, 0.3, 0.4 has the standard deviation √(0.05 / 3) = 0.1291; the mean difference is 0.2."""
    base = cell("base", [0.0] * 4, [0.1, 0.2, 0.3, 0.4], "base")
    other = cell("other", [1.0] * 4, [0.2, 0.4, 0.6, 0.6])
    (shift,) = group_of(base, other).pictures
    assert (shift.method, shift.statistic, shift.family) == ("refl", "saturation", 1)
    assert (shift.mean, shift.baseline_mean) == (pytest.approx(0.45), pytest.approx(0.25))
    assert shift.difference == pytest.approx(0.2)
    assert shift.spread == pytest.approx(np.sqrt(0.05 / 3))
    assert shift.distance == pytest.approx(0.2 / np.sqrt(0.05 / 3))


def test_an_over_optimised_method_looks_hacked(base, cell):
    hacked = cell("hacked", UP, colours("hacked", mean=0.6))
    (item,) = group_of(base, hacked).hacked
    assert (item.method, item.reward, [s.statistic for s in item.shifts]) == ("refl", "r", ["saturation"])
    assert item.shifts[0].distance > 1.5


def test_the_baseline_from_other_noise_does_not(base, cell):
    """Pictures like base's, drawn anew, and scores that rise."""
    for seed in range(20):
        other = cell("other", UP, colours(f"other {seed}"))
        group = group_of(base, other)
        assert group.hacked == []
        assert abs(group.pictures[0].distance) < 0.3


def test_a_mild_change_of_style_does_not_though_it_is_sure(base, cell):
    """Half a standard deviation, with a p value far below 0.05."""
    mild = cell("mild", UP, colours("mild", mean=0.45))
    group = group_of(base, mild)
    assert group.pictures[0].adjusted < 1e-6
    assert 0.3 < group.pictures[0].distance < 0.7
    assert group.hacked == []


def test_a_large_shift_of_a_few_pictures_is_not_sure_and_does_not(cell):
    base = cell("base", [0.0] * 4, [0.3, 0.4, 0.5, 0.6], "base")
    other = cell("other", [1.0] * 4, [0.3, 0.4, 0.5, 1.0])
    group = group_of(base, other)
    assert not group.pictures[0].leaves


def test_without_a_gain_on_the_reward_nothing_looks_hacked(base, cell):
    for scores in (ZEROS, [-1.0] * PROMPTS):
        group = group_of(base, cell("moved", scores, colours("moved", mean=0.7)))
        assert group.pictures[0].leaves
        assert group.hacked == []


def test_a_gain_on_a_scorer_that_is_not_the_reward_counts_nothing(cell):
    base = cell("base", {"r": ZEROS, "s": ZEROS}, colours(), "base")
    other = cell("other", {"r": ZEROS, "s": UP}, colours("other", mean=0.7))
    assert group_of(base, other).hacked == []


def test_a_method_that_pales_leaves_the_range_on_the_other_side(base, cell):
    (item,) = group_of(base, cell("pale", UP, colours("pale", mean=0.1, spread=0.02))).hacked
    assert item.shifts[0].distance < -1


def test_a_method_that_collapses_is_measured_by_the_baselines_spread_alone(base, cell):
    (item,) = group_of(base, cell("one", UP, [0.8] * PROMPTS)).hacked
    assert item.shifts[0].spread == pytest.approx(np.std(colours(), ddof=1))


def test_a_baseline_without_spread_is_left_by_more_than_a_step_of_eight_bits(cell):
    base = cell("base", ZEROS, [0.5] * PROMPTS, "base")
    small = cell("small", UP, [0.5 + 0.5 * STEP] * PROMPTS)
    assert not group_of(base, small).pictures[0].leaves
    large = cell("large", UP, [0.5 + 2 * STEP] * PROMPTS)
    assert group_of(base, large).pictures[0].leaves


def test_a_lower_reward_may_be_the_better_one(cell):
    lower = {"scorers": {"r": {"higher_is_better": False}}}
    base = cell("base", ZEROS, colours(), "base", **lower)
    assert group_of(base, cell("up", UP, colours("up", mean=0.7), **lower)).hacked == []
    assert group_of(base, cell("down", [-1.0] * PROMPTS, colours("down", mean=0.7), **lower)).hacked


def test_one_training_seed_is_about_this_run(base, cell):
    (item,) = group_of(base, cell("one", UP, colours("one", mean=0.7), seed=1)).hacked
    assert item.this_run
    noise = [0.01 * (-1) ** i for i in range(PROMPTS)]
    assert group_of(base, cell("two", noise, colours("two", mean=0.7), seed=1)).hacked == []


def test_seeds_that_disagree_are_not_sure(base, cell):
    """One of three collapsed: d is above s, and with seeds at random its p is not small."""
    runs = [cell(f"s{seed}", UP, colours(f"s{seed}", mean), seed=seed) for seed, mean in enumerate((0.4, 0.4, 0.9))]
    group = group_of(base, *runs)
    assert group.pictures[0].distance > 1
    assert group.hacked == []
    alike = [cell(f"s{seed}", UP, colours(f"s{seed}", 0.6), seed=seed) for seed in range(3)]
    assert group_of(base, *alike).hacked


def test_all_methods_and_statistics_are_one_family(base, make_result):
    like = {name: colours(name) for name in ("edge_density", "colour_entropy", "saturation", "darkness")}
    paths = [make_result("b", ZEROS, pictures=like)]
    paths += [make_result(name, UP, name, pictures=like) for name in ("refl", "sft", "draft")]
    assert {shift.family for shift in group_of(*paths).pictures} == {12}


def test_the_diversity_of_prompts_is_compared_as_well(make_result):
    """A collapse: all pictures of a prompt are one."""
    wide = [{"prompt": f"p{i}", "pictures": 0.3 + 0.01 * (i % 5), "latents": 1.0 + 0.1 * (i % 5)} for i in range(30)]
    none = [{**own, "pictures": 0.0, "latents": 0.0} for own in wide]
    scores = [0.0] * 60, [1.0] * 60
    base = make_result("base", scores[0], samples=2, diversity=wide)
    group = group_of(base, make_result("one", scores[1], "refl", samples=2, diversity=none))
    assert [shift.statistic for shift in group.pictures] == ["diversity", "latent_diversity"]
    assert group.pictures[0].baseline_mean == pytest.approx(0.32)
    assert [shift.statistic for shift in group.hacked[0].shifts] == ["diversity", "latent_diversity"]


def test_the_warning_does_not_hang_on_the_scorers_that_are_shown(cell):
    base = cell("base", {"r": ZEROS, "s": ZEROS}, colours(), "base")
    other = cell("other", {"r": UP, "s": ZEROS}, colours("other", mean=0.7))
    (item,) = group_of(base, other, scorers=["s"]).hacked
    assert item.reward == "r"


def test_older_files_have_no_statistics_and_compare_as_before(make_result):
    paths = [make_result("base", ZEROS), make_result("old", UP, "refl")]
    group = group_of(*paths)
    assert (group.pictures, group.hacked) == ([], [])
    assert render(compare(paths), "table", pictures=True) == render(compare(paths), "table")
    assert "looks_hacked" not in compare(paths).to_frame()


def test_a_file_without_statistics_beside_others_has_no_row_of_them(base, cell, make_result):
    paths = [base, make_result("old", UP, "sft"), cell("new", UP, colours("new", mean=0.7))]
    assert {shift.method for shift in group_of(*paths).pictures} == {"refl"}


# How it is shown


def test_the_table_is_shown_on_demand_and_the_warning_always(base, cell):
    comparison = compare([base, cell("hacked", UP, colours("hacked", mean=0.7))])
    short, long = render(comparison, "table"), render(comparison, "table", pictures=True)
    for text in (short, long):
        assert "Looks hacked: refl gains on r, its reward, and its pictures leave base's range: saturation 0.6" in text
        assert "it moved by at least one standard deviation of the baseline's prompts" in text
    assert "Pictures, without a scorer" not in short
    assert "Pictures, without a scorer: against base (m = 1)" in long
    (line,) = [line for line in long.splitlines() if line.endswith("  saturation")]
    assert line.split()[0] == "refl"


def test_the_default_table_is_wider_by_one_column_at_most(base, cell):
    mild = render(compare([base, cell("mild", UP, colours("mild"))]), "table")
    assert "looks hacked" not in mild.lower()
    raised = compare([base, cell("hacked", UP, colours("hacked", mean=0.7))])
    header = next(line for line in render(raised, "table").splitlines() if line.startswith("method"))
    assert header.endswith("looks hacked")


def test_the_column_names_what_moved_farthest_and_counts_the_rest(make_result):
    base = make_result("base", ZEROS, pictures={"saturation": colours(), "darkness": colours("d")})
    moved = {"saturation": colours("s", mean=0.6), "darkness": colours("e", mean=0.8)}
    text = render(compare([base, make_result("other", UP, "refl", pictures=moved)]), "csv")
    assert re.search(r"darkness \+4\.\d, 1 more", text)


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "table"])
def test_every_format_has_the_table(base, cell, form, capsys, tmp_path):
    other = cell("hacked", UP, colours("hacked", mean=0.7))
    assert run_command_line(["compare", str(base), str(other), "--pictures", "--format", form]) == 0
    found = capsys.readouterr()
    assert "out of range" in found.out
    assert "Looks hacked: refl gains on r" in found.out + found.err


def test_json_has_every_number(base, cell):
    comparison = compare([base, cell("hacked", UP, colours("hacked", mean=0.7))])
    (group,) = json.loads(render(comparison, "json"))["groups"]
    (shift,) = group["pictures"]
    assert shift["leaves"] is True
    assert shift["distance"] == pytest.approx(comparison.groups[0].pictures[0].distance)
    assert group["hacked"][0]["method"] == "refl"


def test_frames_have_the_statistics_as_columns(base, cell):
    other = cell("hacked", UP, colours("hacked", mean=0.7))
    results = alignbench.load([base, other])
    assert results.rows["saturation"].tolist() == colours() + colours("hacked", mean=0.7)
    assert results.runs["saturation"].tolist() == pytest.approx([np.mean(colours()), np.mean(colours("hacked", 0.7))])
    frame = alignbench.compare([base, other]).to_frame()
    assert frame.loc[frame["method"] == "refl", "looks_hacked"].tolist() == [True]
    assert pd.isna(frame.loc[frame["method"] == "base", "looks_hacked"]).all()


def test_the_verdict_says_it_in_the_suite_and_on_the_page(base, cell):
    paths = [base, cell("hacked", UP, colours("hacked", mean=0.7))]
    said = "refl gains on r, its reward, and its pictures leave base's range"
    assert any(said in line for line in sentences(paths))
    (found,) = [s for s in statements(group_of(*paths), {"refl": "r"}) if s.about == "What looks hacked"]
    assert found.alarming
    assert said in found.lines[0]
    fine = statements(group_of(base, cell("mild", UP, colours("mild"))), {"refl": "r"})
    assert not any(statement.alarming for statement in fine)


def test_a_result_is_shown_with_its_statistics(base, capsys):
    assert run_command_line(["show", str(base)]) == 0
    assert f"pictures    saturation {np.mean(colours()):.4g}" in capsys.readouterr().out
    assert read(base).rows[0].picture == {"saturation": colours()[0]}
