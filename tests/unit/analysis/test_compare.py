"""Comparing result files: what is paired, pooled and left out, with win rates worked by hand."""

from __future__ import annotations

import gc
import itertools
import json
import re

import numpy as np
import pytest

from alignbench.analysis import compare as comparing
from alignbench.analysis.compare import compare
from alignbench.analysis.statistics import win_rate
from alignbench.analysis.tables import render
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError, ResultFileError, UnknownName
from alignbench.keys import Key


def only_group(paths, **options):
    (group,) = compare(paths, **options).groups
    return group


def only_row(paths, **options):
    (row,) = only_group(paths, **options).versus
    return row


def noise(*path):
    """Sixty scores that no two paths share."""
    return [float(x) for x in Key("scores", *path).generator().normal(size=60)]


def test_the_win_rate_against_base_by_hand(make_result):
    """Three wins, a loss and a tie: (3 + 1/2) / 5."""
    base = make_result("base", [1, 1, 1, 1, 1])
    best = make_result("best", [2, 2, 2, 0, 1], "best_of_n")
    row = only_row([base, best])
    assert (row.method, row.scorer) == ("best_of_n", "r")
    assert row.rate.rate == 0.7
    assert row.rate.ties == 0.2
    assert (row.rate.pairs, row.rate.prompts) == (5, 5)
    assert (row.mean, row.baseline_mean) == (1.4, 1.0)
    assert row.difference == pytest.approx(0.4)
    assert row.rate[:6] == pytest.approx(win_rate(np.array([1, 1, 1, 0, 0.5]), np.arange(5))[:6])
    assert row.random == "prompts"


def test_differences_within_the_scorers_epsilon_are_ties(make_result):
    """Differences 0.5, 0.6, -0.5, -0.6 with epsilon 0.5: a tie, a win, a tie, a loss."""
    loose = {"r": {"tie_epsilon": 0.5}}
    base = make_result("base", [0, 0, 0, 0], scorers=loose)
    best = make_result("best", [0.5, 0.6, -0.5, -0.6], "best_of_n", scorers=loose)
    row = only_row([base, best])
    assert row.rate.rate == 0.5
    assert row.rate.ties == 0.5


def test_a_scorer_whose_low_values_are_good_turns_wins_round_but_not_differences(make_result):
    """Two lower, one higher, one lower by no more than epsilon: (2 + 1/2) / 4; the difference keeps its sign."""
    low = {"r": {"higher_is_better": False, "tie_epsilon": 0.1}}
    base = make_result("base", [1, 1, 1, 1], scorers=low)
    best = make_result("best", [0, 0, 2, 0.95], "best_of_n", scorers=low)
    row = only_row([base, best])
    assert row.rate.rate == 0.625
    assert row.difference == pytest.approx(-1.05 / 4)


def test_every_prompt_weighs_alike_in_the_means_the_difference_and_the_win_rate(make_result):
    """Three images of one prompt gain 1, one image of another loses 1: difference 0 and half of the wins."""
    pairs = [("p0", 0), ("p0", 1), ("p0", 2), ("p1", 0)]
    base = make_result("base", [0, 0, 0, 0], pairs=pairs)
    best = make_result("best", [1, 1, 1, -1], "best_of_n", pairs=pairs)
    row = only_row([base, best])
    assert row.difference == row.mean == 0
    assert row.rate.rate == 0.5
    assert (row.rate.pairs, row.rate.prompts) == (4, 2)


def test_the_p_value_of_the_win_rate_is_that_of_a_sign_flip_over_prompts(make_result):
    """Three prompts with two images each, all won: 2 of the 8 sign patterns are as extreme, whatever the images."""
    base = make_result("base", [0] * 6, samples=2)
    best = make_result("best", [1, 1, 2, 2, 4, 4], "best_of_n", samples=2)
    row = only_row([base, best])
    assert row.rate_test.p == pytest.approx(0.25)
    assert row.difference_test.p >= 0.25  # nor can three prompts say more about the mean


def test_no_number_of_a_comparison_is_drawn_at_random(make_result, monkeypatch):
    monkeypatch.setattr(Key, "generator", lambda _: pytest.fail("something is drawn"))
    paths = [make_result("base", [0.0, 1.0] * 10), make_result("other", [0.5, 0.7] * 10, "demon")]
    group = only_group([*paths, *(make_result(f"s{k}", [0.1 * k, 2.0] * 10, "ddpo", seed=k) for k in range(3))])
    assert len(group.versus) == 2
    assert group.ranks["r"] is not None


def test_rows_pair_by_prompt_and_sample_whatever_their_order_in_the_file(make_result):
    pairs = [("p0", 0), ("p0", 1), ("p1", 0)]
    base = make_result("base", [0, 5, 9], pairs=pairs)
    best = make_result("best", [10, 6, 1], "best_of_n", pairs=pairs[::-1])
    row = only_row([base, best])
    assert row.rate.rate == 1
    assert row.difference == 1


def test_only_the_intersection_is_compared_and_a_note_says_so(make_result):
    """Shared are (p0, 1) and (p1, 0): one win, one loss; the large scores elsewhere do not enter the difference."""
    base = make_result("base", [9, 0, 1], pairs=[("p0", 0), ("p0", 1), ("p1", 0)])
    best = make_result("best", [1, 0, 99], "best_of_n", pairs=[("p0", 1), ("p1", 0), ("p2", 0)])
    group = only_group([base, best])
    (row,) = group.versus
    assert (row.rate.rate, row.rate.pairs, row.rate.prompts) == (0.5, 2, 2)
    assert row.difference == 0
    assert (row.mean, row.baseline_mean) == (0.5, 0.5)
    assert not row.whole
    assert group.notes[0] == "r: best_of_n and base share 2 images (of 3 and 3); only those are compared."


def test_files_that_share_no_prompt_give_no_row(make_result):
    base = make_result("base", [1, 2], pairs=[("p0", 0), ("p1", 0)])
    best = make_result("best", [1, 2], "best_of_n", pairs=[("q0", 0), ("q1", 0)])
    group = only_group([base, best])
    assert group.versus == []
    assert group.ranks["r"] is None
    assert group.notes[0] == "r: best_of_n and base share 0 images (of 2 and 2); only those are compared."


def test_null_scores_are_counted_and_left_out(make_result):
    base = make_result("base", [1, None, 1, 1])
    best = make_result("best", [2, 2, None, 0], "best_of_n")
    group = only_group([base, best])
    (row,) = group.versus
    assert (row.rate.rate, row.rate.pairs) == (0.5, 2)
    assert (row.mean, row.baseline_mean) == (1, 1)  # over the two pairs that both have
    assert row.failed == 2
    assert row.if_failed == (0.25, 0.75)
    assert sum("r: 1 scores of " in note and "failed (null) and are left out" in note for note in group.notes) == 2


def test_a_method_whose_scores_all_failed_has_no_row_and_no_mean(make_result):
    base = make_result("base", [1, 2])
    best = make_result("best", [None, None], "best_of_n")
    group = only_group([base, best])
    assert group.versus == []
    assert np.isnan(group.means["r"]["best_of_n"])
    assert any(note.startswith("r: 2 scores of best_of_n failed (null) and are left out") for note in group.notes)


def test_files_with_different_evaluations_are_apart_and_the_one_difference_is_named(make_result):
    one = make_result("one", [1, 2])
    other = make_result("other", [3, 4], "best_of_n", evaluation={"eval_seed": 7})
    comparison = compare([one, other])
    assert sorted(group.methods for group in comparison.groups) == [["base"], ["best_of_n"]]
    assert all(group.versus == [] for group in comparison.groups)
    first, second = (group.evaluation.fingerprint for group in comparison.groups)
    assert comparison.notes == [f"evaluations {first} and {second} are not paired: they differ in eval_seed (0 and 7)."]


def test_models_that_differ_are_told_apart_by_what_differs_in_them(make_result):
    models = [{"name": name, "sha256": name * 64, "image_shape": [3, 8, 8]} for name in "xy"]
    comparison = compare([make_result(model["name"], [1, 2], evaluation={"model": model}) for model in models])
    assert comparison.notes[0].endswith(" are not paired: they differ in model name (x and y), model sha256.")


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompts", "parti"), ("split", "train"), ("prompts_sha256", "f" * 64)],
)
def test_whatever_the_one_difference_is_it_is_named(make_result, field, value):
    paths = [make_result("one", [1, 2]), make_result("other", [3, 4], evaluation={field: value})]
    (note,) = compare(paths).notes
    assert f"they differ in {field} (" in note
    assert str(value) in note


def test_evaluations_that_differ_in_more_than_one_field_need_no_note(make_result):
    paths = [make_result("one", [1]), make_result("other", [1], evaluation={"eval_seed": 7, "prompts": "parti"})]
    comparison = compare(paths)
    assert len(comparison.groups) == 2
    assert comparison.notes == []


def test_a_run_with_another_scorer_under_the_same_name_is_left_out_of_that_column(make_result):
    base = make_result("base", {"r": [0, 0], "s": [0, 0]})
    best = make_result("best", {"r": [1, 1], "s": [1, 1]}, "best_of_n", scorers={"r": {"id": "r-2"}})
    group = only_group([base, best])
    (row,) = group.versus
    assert row.scorer == "s"
    assert np.isnan(group.means["r"]["best_of_n"])
    assert f"r: {best} is left out: its scorer differs from {base} in id." in group.notes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", {"w": "0" * 64}),
        ("preprocessing", "resize"),
        ("tie_epsilon", 0.1),
        ("range", "0 to 1"),
        ("higher_is_better", False),
        ("versions", {"torch": "2"}),
    ],
)
def test_every_part_of_a_scorers_identity_counts(make_result, field, value):
    base = make_result("base", [0, 0])
    best = make_result("best", [1, 1], "best_of_n", scorers={"r": {field: value}})
    group = only_group([base, best])
    assert group.versus == []
    assert f"r: {best} is left out: its scorer differs from {base} in {field}." in group.notes


def test_of_two_seeds_only_the_one_with_the_baselines_scorer_counts(make_result):
    base = make_result("base", [0, 0, 0])
    kept = make_result("kept", [1, 1, -1], "ddpo", seed=0)
    dropped = make_result("dropped", [-1, -1, -1], "ddpo", seed=1, scorers={"r": {"id": "r-2"}})
    row = only_row([base, kept, dropped])
    assert row.seeds == [(0, pytest.approx(2 / 3))]
    assert row.mean == pytest.approx(1 / 3)


def test_the_baselines_scorer_decides_on_ties_and_direction(make_result):
    """The file that is left out stands first; its epsilon of 9 and its direction must not be used."""
    foreign = {"r": {"tie_epsilon": 9, "higher_is_better": False}}
    base = make_result("base", [0, 0, 0], scorers=foreign)
    ddpo = make_result("ddpo", [0, 0, 0], "ddpo", seed=0)
    dpo = make_result("dpo", [1, 1, -1], "dpo", seed=0)
    row = only_row([base, ddpo, dpo], baseline="ddpo")
    assert row.method == "dpo"
    assert row.rate.rate == pytest.approx(2 / 3)
    assert row.rate.ties == pytest.approx(0)


def test_a_method_that_a_scorer_never_scored_is_said_to_be_left_out(make_result):
    base = make_result("base", {"r": [1.0, 2.0], "s": [1.0, 2.0]})
    other = make_result("a", {"r": [2.0, 3.0]}, "demon")
    (group,) = compare([base, other]).groups
    assert "s: demon was not scored by it and is not compared on it." in group.notes


def test_a_scorer_that_one_file_lacks_is_compared_among_the_others(make_result):
    base = make_result("base", {"r": [0, 0], "s": [0, 0]})
    best = make_result("best", {"r": [1, 1]}, "best_of_n")
    sds = make_result("sds", {"r": [1, 1], "s": [1, -1]}, "sds")
    rows = only_group([base, best, sds]).versus
    assert {(row.method, row.scorer): row.rate.rate for row in rows} == {
        ("best_of_n", "r"): 1.0,
        ("sds", "r"): 1.0,
        ("sds", "s"): 0.5,
    }


def test_chosen_scorers_are_the_only_ones(make_result):
    base = make_result("base", {"r": [0, 0], "s": [0, 0]})
    best = make_result("best", {"r": [1, 1], "s": [1, 1]}, "best_of_n")
    group = only_group([base, best], scorers=["s"])
    assert group.scorers == list(group.means) == list(group.pairwise) == list(group.ranks) == ["s"]
    assert [row.scorer for row in group.versus] == ["s"]


def test_an_unknown_scorer_names_the_near_one(make_result):
    base = make_result("base", {"hpsv2": [0], "truth": [0]})
    with pytest.raises(UnknownName, match=r"no scorer in these files named 'hps2'\. Did you mean hpsv2\?") as caught:
        compare([base], scorers=["hps2"])
    assert "Known: hpsv2, truth." in str(caught.value)


def seeded(make_result, scores, **changes):
    return [make_result(f"ddpo-{seed}", own, "ddpo", seed=seed, **changes) for seed, own in scores.items()]


def test_equal_configurations_with_different_seeds_are_one_method(make_result):
    """Seeds 2, 0 and 10 win 1, 2 and 3 of 4: pooled 6 of 12, over the same four prompts; means 0.25, 0 and 0.5."""
    base = make_result("base", [0, 0, 0, 0])
    runs = seeded(make_result, {2: [4, -1, -1, -1], 0: [1, 1, -1, -1], 10: [1, 1, 1, -1]})
    group = only_group([base, *runs])
    assert group.methods == ["base", "ddpo"]
    (row,) = group.versus
    assert row.seeds == [(0, 0.5), (2, 0.25), (10, 0.75)]
    assert row.rate.rate == pytest.approx(0.5)
    assert (row.rate.pairs, row.rate.prompts, row.random) == (12, 4, "prompts and seeds")
    assert row.difference == pytest.approx(0.25)
    assert row.mean == group.means["r"]["ddpo"] == 0.25


def test_pooled_seeds_are_worth_less_than_as_many_prompts(make_result):
    """Three seeds that win on the same prompts tell hardly more than one of them."""
    won = [1] * 20 + [-1] * 20
    base = make_result("base", [0] * 40)
    runs = seeded(make_result, {0: won, 1: won, 2: won})
    pooled, alone = only_row([base, *runs]), only_row([base, runs[0]])
    assert pooled.rate.pairs == 120
    assert pooled.rate.high - pooled.rate.low == pytest.approx(alone.rate.high - alone.rate.low, rel=0.1)


def test_one_seed_of_a_trained_method_is_that_run_and_gets_no_mark(make_result):
    base = make_result("base", [0] * 12)
    runs = seeded(make_result, {seed: [1] * 12 for seed in range(2)})
    one = only_row([base, runs[0]])
    assert (one.this_run, one.random, one.rate_test.mark) == (True, "prompts", None)
    assert one.rate_test.p < 0.001
    both = only_row([base, *runs])
    assert (both.this_run, both.random, both.rate_test.mark) == (False, "prompts and seeds", "better")
    assert only_row([*runs, base], baseline="base").rate_test.mark == "better"
    turned = only_row([base, runs[0]], baseline="ddpo")
    assert (turned.method, turned.this_run, turned.rate_test.mark) == ("base", True, None)  # the baseline is one run


def test_seeds_that_differ_widen_the_interval_and_take_the_mark(make_result):
    """Three runs that win 90, 60 and 45 of 100 prompts: far from one half, were the runs all there is."""
    base = make_result("base", [0] * 100)
    seeds = {k: [1] * won + [-1] * (100 - won) for k, won in enumerate((90, 60, 45))}
    apart = only_row([base, *seeded(make_result, seeds)])
    assert apart.rate.rate == pytest.approx(0.65)
    assert apart.rate.low < 0.4
    assert apart.rate_test.p > 0.2
    assert apart.rate_test.mark is None


def test_seeds_of_a_trained_baseline_are_random_too(make_result):
    runs = seeded(make_result, {k: [1] * won + [-1] * (40 - won) for k, won in enumerate((36, 20, 8))})
    other = [make_result(f"dpo-{k}", noise("dpo", k)[:40], "dpo", seed=k) for k in range(2)]
    row = only_row([*runs, *other], baseline="ddpo")
    assert (row.method, row.random) == ("dpo", "prompts and seeds")
    assert row.rate.pairs == 6 * 40
    assert row.rate.high - row.rate.low > 0.5


def test_the_same_configuration_and_seed_twice_is_an_error_naming_both_files(make_result):
    paths = [make_result("base", [0, 0]), *(make_result(name, [1, 1], "ddpo", seed=3) for name in ("one", "two"))]
    with pytest.raises(InputError, match="hold the same configuration and seed; leave one out") as caught:
        compare(paths)
    assert str(paths[1]) in str(caught.value)
    assert str(paths[2]) in str(caught.value)


def test_two_untrained_results_of_one_configuration_are_an_error_too(make_result):
    with pytest.raises(InputError, match="hold the same configuration and seed"):
        compare([make_result("one", [0, 0]), make_result("two", [0, 0])])


def test_methods_of_one_algorithm_are_told_apart_by_the_fields_that_differ(make_result):
    base = make_result("base", [0, 0])
    paths = [make_result(f"n{n}", [1, 1], "best_of_n", {"n": n, "keep": "max"}) for n in (2, 4)]
    assert only_group([base, *paths]).methods == ["base", "best_of_n n=2", "best_of_n n=4"]


def test_methods_are_told_apart_by_their_reward_with_seeds_pooled(make_result):
    paths = [
        make_result(f"{reward}{seed}", [1, 1], "ddpo", {"clip": 0.1}, seed=seed, configuration={"reward": reward})
        for reward in ("truth", "style")
        for seed in (0, 1)
    ]
    assert only_group(paths).methods == ["ddpo reward=style", "ddpo reward=truth"]


def test_methods_are_listed_by_the_size_of_their_numbers(make_result):
    paths = [
        make_result(f"n{i}", [float(i)], "best_of_n", {"n": n, "rate": rate})
        for i, (n, rate) in enumerate([(64, 1e-4), (8, 2e-3), (8, 1e-4), (2, 1e-4)])
    ]
    (group,) = compare(paths).groups
    assert group.methods == [f"best_of_n n={n} rate={r}" for n, r in ((2, 1e-4), (8, 1e-4), (8, 2e-3), (64, 1e-4))]


def test_the_order_in_which_scorers_were_named_tells_no_methods_apart(make_result):
    paths = [
        make_result(f"{seed}", [1, 1], "ddpo", seed=seed, configuration={"scorers": scorers})
        for seed, scorers in enumerate((["r", "s"], ["s", "r"], ["r", "s"]))
    ]
    assert only_group(paths).methods == ["ddpo"]


@pytest.mark.parametrize(
    ("configuration", "ending"),
    [
        ({"fields": {"rate": 1234567.0}}, "rate=1234567.0"),
        ({"fields": {"n": 1}}, "n=1"),
        ({"fields": {"n": 1.0}}, "n=1.0"),
        ({"fields": {"n": True}}, "n=True"),
        ({"limit": 5}, "limit=5"),
        ({"images_per_prompt": 2}, "images_per_prompt=2"),
        ({"reward": None}, "reward=None"),
        ({"train_prompts": "shapes"}, "train_prompts=shapes"),
        ({"scorers": ["r", "s"]}, "scorers=r,s"),
        ({"sampling": {"steps": 50, "guidance": 3.0, "eta": 1.0}}, "steps=50"),
        ({"dtype": "float16"}, "dtype=float16"),
    ],
)
def test_whatever_differs_two_methods_never_share_a_label(make_result, configuration, ending):
    others = {"rate": 1234568.0, "n": 2}
    plain = make_result("plain", [1, 1], "ddpo", others)
    changed = {**configuration, "fields": others | configuration.get("fields", {})}
    path = make_result("changed", [1, 1], "ddpo", configuration=changed)
    methods = only_group([plain, path]).methods
    assert len(set(methods)) == 2
    assert f"ddpo {ending}" in methods


def test_methods_are_told_apart_by_what_their_samplers_report(make_result):
    paths = [make_result(f"s{steps}", [1, 1], sampler={"kind": "ddim", "steps": steps}) for steps in (10, 20)]
    group = only_group(paths, baseline="base steps=10")
    assert group.methods == ["base steps=10", "base steps=20"]
    assert group.samplers["base steps=20"] == {"kind": "ddim", "steps": 20}
    assert [row.method for row in group.versus] == ["base steps=20"]


def test_a_step_count_asked_for_and_reported_is_said_once(make_result):
    paths = [
        make_result(f"s{n}", [1], configuration={"sampling": {"steps": n}}, sampler={"steps": n}) for n in (10, 20)
    ]
    assert only_group(paths, baseline="base steps=10").methods == ["base steps=10", "base steps=20"]


def test_methods_that_train_come_last(make_result):
    paths = [make_result("a", [1], "a_trainer", seed=0), make_result("b", [1]), make_result("z", [1], "z_search")]
    assert only_group(paths).methods == ["base", "z_search", "a_trainer"]


def test_any_method_can_be_the_baseline_by_algorithm_or_by_label(make_result):
    base = make_result("base", [0, 0, 0])
    two, four = (make_result(f"n{n}", [1, 1, n], "best_of_n", {"n": n}) for n in (2, 4))
    ddpo = make_result("ddpo", [2, 2, 2], "ddpo", seed=0)
    group = only_group([base, two, four, ddpo], baseline="ddpo")
    assert group.baseline == "ddpo"
    assert {row.method: row.rate.rate for row in group.versus} == {
        "base": 0,
        "best_of_n n=2": pytest.approx(1 / 6),
        "best_of_n n=4": pytest.approx(1 / 3),
    }
    labelled = only_group([base, two, four, ddpo], baseline="best_of_n n=4")
    assert labelled.baseline == "best_of_n n=4"
    assert [row.method for row in labelled.versus] == ["base", "best_of_n n=2", "ddpo"]


def test_an_ambiguous_baseline_names_the_candidates(make_result):
    paths = [make_result(f"n{n}", [1, 1], "best_of_n", {"n": n}) for n in (2, 4)]
    message = "baseline 'best_of_n' is ambiguous: 'best_of_n n=2', 'best_of_n n=4'; name one of them"
    with pytest.raises(InputError, match=message):
        compare(paths, baseline="best_of_n")


def test_the_same_model_and_prompts_pool_from_wherever_they_were_read(make_result):
    """Seeds run on two machines: the evaluation says that model and prompts are the same."""
    here, there = {"model": "/here/sd", "prompts": "/here/p.txt"}, {"model": "/there/sd", "prompts": "/there/p.txt"}
    paths = [make_result("base", [0, 0])]
    paths += [
        make_result(f"s{seed}", [1, 1], "ddpo", seed=seed, configuration=c) for seed, c in enumerate((here, there))
    ]
    (row,) = compare(paths).groups[0].versus
    assert [seed for seed, _ in row.seeds] == [0, 1]


def test_several_bases_still_make_sense_without_win_rates_against_one(make_result):
    paths = [
        make_result("a", [1, 1], configuration={"sampling": {"steps": 20, "guidance": 3.0, "eta": 1.0}}),
        make_result("b", [0, 0], configuration={"sampling": {"steps": 10, "guidance": 3.0, "eta": 1.0}}),
    ]
    (group,) = compare(paths).groups
    assert group.baseline is None
    assert group.versus == []
    assert any("'base' is ambiguous: " in note and "name one of them with --baseline" in note for note in group.notes)
    assert compare(paths, baseline=group.methods[0]).groups[0].baseline == group.methods[0]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_bases_that_draw_the_same_pictures_the_one_with_most_scores_is_the_baseline(make_result, order):
    """A trial with two prompts and another reward, and the whole: neither changes what is drawn."""
    few, whole = order
    paths = [
        make_result(few, [0, 0], configuration={"limit": 2, "reward": "other"}),
        make_result(whole, [0, 0, 0]),
        make_result("best", [1, 1, 1], "best_of_n"),
    ]
    (group,) = compare(paths).groups
    assert group.baseline == "base reward=r limit=None"
    assert {row.method: row.rate.prompts for row in group.versus} == {"best_of_n": 3}
    (note,) = [note for note in group.notes if note.startswith("baseline: 2 of 'base' draw the same pictures; ")]
    assert note.endswith("'base reward=r limit=None' has most scores, 'base reward=other limit=2' is left out.")


def test_a_trial_that_was_left_over_changes_no_number(make_result):
    whole = [
        make_result("base", noise("base")),
        make_result("best", [x + 0.6 for x in noise("best")], "best_of_n"),
        make_result("demon", noise("demon"), "demon"),
    ]
    trial = make_result("trial", noise("base")[:2], configuration={"limit": 2})
    groups = [only_group(paths, duels=True) for paths in (whole, [*whole, trial])]
    rows, places, duels = (
        [[(v.family, v.rate_test, v.rate, v.difference_test) for v in group.versus] for group in groups],
        [group.ranks["r"].strength.tolist() for group in groups],
        [[(d.family, d.rate, d.rate_test) for d in group.duels] for group in groups],
    )
    for with_trial, without in (rows, places, duels):
        assert with_trial == without
    assert len(groups[1].methods) == 3


def test_a_method_without_scores_leaves_the_others_their_ranks(make_result):
    paths = [
        make_result("base", [0, 0, 1]),
        make_result("best", [1, 1, 0], "best_of_n"),
        make_result("blind", [None, None, None], "ddpo"),
    ]
    ranks = compare(paths).groups[0].ranks["r"]
    assert ranks.strength[0] == 0
    assert ranks.strength[1] > 0
    assert np.isnan(ranks.strength[2])


def test_an_unknown_baseline_names_the_near_ones(make_result):
    paths = [make_result("base", [0, 0]), make_result("best", [1, 1], "best_of_n")]
    with pytest.raises(UnknownName, match=r"named 'best_of_m'\. Did you mean best_of_n\?") as caught:
        compare(paths, baseline="best_of_m")
    assert "Known: base, best_of_n." in str(caught.value)


def test_a_baseline_that_one_evaluation_lacks_is_a_note_there(make_result):
    paths = [
        make_result("base", [0, 0]),
        make_result("best", [1, 1], "best_of_n"),
        make_result("other", [1, 1], evaluation={"eval_seed": 7}),
    ]
    groups = {group.evaluation.eval_seed: group for group in compare(paths, baseline="best_of_n").groups}
    assert groups[0].baseline == "best_of_n"
    assert groups[7].baseline is None
    assert groups[7].notes[:1] == ["no complete result of 'best_of_n' with this evaluation: no win rates against it."]


def test_without_base_there_are_means_matrix_ranks_and_a_note(make_result):
    paths = [make_result("best", [1, 1, 0], "best_of_n"), make_result("sds", [0, 0, 1], "sds")]
    group = only_group(paths)
    assert group.baseline is None
    assert group.versus == []
    assert group.notes[0] == "no complete result of 'base' with this evaluation: no win rates against it."
    assert group.means == {"r": {"best_of_n": pytest.approx(2 / 3), "sds": pytest.approx(1 / 3)}}
    assert group.pairwise["r"][0, 1] == pytest.approx(2 / 3)
    assert group.ranks["r"].strength[1] < 0


def test_a_single_file_is_compared_with_nothing(make_result):
    group = only_group([make_result("base", [1, 2])])
    assert (group.methods, group.baseline, group.versus) == (["base"], "base", [])
    assert group.ranks == {"r": None}
    assert group.means == {"r": {"base": 1.5}}
    assert group.notes == ["2 prompts: no p can fall below 0.5; take more."]


@pytest.mark.parametrize("status", ["partial", "diverged", "unsupported", "failed"])
def test_unfinished_results_are_listed_with_their_reason_and_stay_out_of_the_tables(make_result, status):
    base = make_result("base", [0, 0])
    path = make_result("ddpo", [1, 1], "ddpo", seed=0, status=status, reason="it stopped in round 3")
    comparison = compare([base, path])
    (item,) = comparison.unfinished
    assert (item.path, item.status, item.reason) == (path, status, "it stopped in round 3")
    (group,) = comparison.groups
    assert group.methods == ["base"]
    assert group.versus == []


def test_an_unfinished_base_is_no_baseline(make_result):
    base = make_result("base", [0, 0], status="partial")
    best = make_result("best", [1, 1], "best_of_n")
    group = only_group([base, best])
    assert group.baseline is None
    assert "no complete result of 'base'" in group.notes[0]


def test_only_unfinished_results_make_no_group(make_result):
    comparison = compare([make_result("base", [], status="failed", reason="out of memory")])
    assert comparison.groups == []
    assert comparison.unfinished[0].reason == "out of memory"


def test_a_damaged_file_stops_the_comparison_unless_it_may_be_skipped(make_result):
    base = make_result("base", [0, 0])
    best = make_result("best", [1, 1], "best_of_n")
    bad = make_result("bad", [5, 5], "sds")
    bad.write_text(bad.read_text().replace("5", "6", 1))
    with pytest.raises(
        ResultFileError, match=r"bad\.json: the digest does not match.*--skip-bad leaves such files out"
    ):
        compare([base, best, bad])
    comparison = compare([base, best, bad], skip_bad=True)
    (skipped,) = comparison.skipped
    assert skipped.path == bad
    assert "the digest does not match" in skipped.reason
    assert comparison.groups[0].methods == ["base", "best_of_n"]


def test_a_folder_stands_for_the_json_files_in_it_and_no_file_counts_twice(make_result, tmp_path):
    base = make_result("base", [0, 0])
    make_result("best", [1, 1], "best_of_n")
    (tmp_path / "notes.txt").write_text("not a result")
    assert only_group([tmp_path, base]).methods == ["base", "best_of_n"]


def test_nothing_to_compare_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"no result files in {tmp_path}; make one with `alignbench run`")):
        compare([tmp_path])
    with pytest.raises(ResultFileError, match=r"missing\.json: there is no such file"):
        compare([tmp_path / "missing.json"])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(make_result, tmp_path, enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        compare([make_result("base", [0, 0])])
        assert gc.isenabled() == enabled
        with pytest.raises(ResultFileError, match="there is no such file"):
            compare([tmp_path / "missing.json"])
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def labelled(prompts):
    return [{"id": name, "text": name, "category": kind, "challenge": hard} for name, kind, hard in prompts]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("category", {"animals": (0.75, 2), "(none)": (0.5, 1), "vehicles": (0.0, 1)}),
        ("challenge", {"counting": (0.5, 3), "(none)": (0.5, 1)}),
    ],
)
def test_parts_by_category_and_challenge_by_hand(make_result, by, expected):
    prompts = labelled(
        [("p0", "animals", "counting"), ("p1", "animals", "counting"), ("p2", "vehicles", "counting"), ("p3", "", "")]
    )
    base = make_result("base", [0, 0, 0, 0], prompts=prompts)
    best = make_result("best", [1, 0, -1, 0], "best_of_n", prompts=prompts)
    parts = only_group([base, best], by=by).parts
    assert {part.part: (part.rate.rate, part.rate.prompts) for part in parts} == expected
    assert {(part.method, part.scorer) for part in parts} == {("best_of_n", "r")}
    assert only_group([base, best]).parts == []


def holm_by_hand(p):
    """Smallest times the number of hypotheses, next times one fewer, and so on; never falling, never above 1."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = highest
    return adjusted


@pytest.mark.parametrize("of", ["rate_test", "difference_test"])
def test_p_values_are_adjusted_within_the_declared_family_each_column_by_itself(make_result, of):
    base = make_result("base", {"r": noise("base", "r"), "s": noise("base", "s")})
    others = [
        make_result(name, {s: list(np.array(noise(name, s)) + gain) for s in "rs"}, name)
        for name, gain in (("strong", 0.5), ("middling", 0.25), ("none", 0.0))
    ]
    paths = [base, *others]

    def column(rows, name):
        return [getattr(getattr(row, of), name) for row in rows]

    of_scorer, of_table, alone = (only_group(paths, family=f).versus for f in ("scorer", "table", "none"))
    p = column(of_table, "p")
    assert column(of_table, "adjusted") == pytest.approx(holm_by_hand(p))
    assert {row.family for row in of_table} == {6}
    for scorer in "rs":
        rows = [row for row in of_scorer if row.scorer == scorer]
        assert column(rows, "adjusted") == pytest.approx(holm_by_hand(column(rows, "p")))
        assert {row.family for row in rows} == {3}
    assert column(alone, "adjusted") == column(alone, "p") == p == column(of_scorer, "p")
    assert {row.family for row in alone} == {1}
    assert only_group(paths, scorers=["r"]).versus == [row for row in of_scorer if row.scorer == "r"]


def test_a_family_of_two_can_take_a_mark_away(make_result):
    """Six prompts that are all won: p = 2/64 = 0.031; beside a row without any difference Holm doubles it."""
    base = make_result("base", {"r": [0] * 6, "s": [0] * 6})
    best = make_result("best", {"r": [1, 2, 3, 4, 5, 6], "s": [0] * 6}, "best_of_n")
    won, tied = only_group([base, best], family="table").versus
    assert won.rate_test.p == pytest.approx(2 / 64)
    assert won.rate_test.adjusted == pytest.approx(4 / 64)
    assert won.rate_test.mark is None
    assert (tied.rate_test.p, tied.rate_test.adjusted, tied.rate_test.mark) == (1, 1, None)
    alone = only_group([base, best]).versus[0]
    assert alone.rate_test == (pytest.approx(2 / 64), pytest.approx(2 / 64), "better")
    assert alone.wins


def test_five_prompts_never_make_a_mark_and_six_may(make_result):
    rows = [
        only_row([make_result(f"base{n}", [0] * n), make_result(f"best{n}", list(range(1, n + 1)), "best_of_n")])
        for n in (3, 5, 6)
    ]
    assert [row.rate_test.p for row in rows] == pytest.approx([1 / 4, 1 / 16, 1 / 32])
    assert [row.rate_test.mark for row in rows] == [None, None, "better"]
    assert [row.difference_test.mark for row in rows] == [None, None, "better"]
    assert [row.difference_test.p >= 2 * 0.5**n for row, n in zip(rows, (3, 5, 6), strict=True)] == [True] * 3


def test_each_mark_stands_on_its_own_quantity(make_result):
    """Two wins by 1 and a loss by 10, a hundred times over: most pairs are won, and the mean is worse."""
    base = make_result("base", [0] * 300)
    best = make_result("best", [1, 1, -10] * 100, "best_of_n")
    row = only_row([base, best])
    assert row.rate.rate == pytest.approx(2 / 3)
    assert row.difference < 0
    assert (row.rate_test.mark, row.difference_test.mark) == ("better", "worse")
    assert row.wins
    assert not row.loses


def test_as_many_wins_as_losses_are_no_better_however_large_the_wins(make_result):
    """Half of the pairs won by 3, half lost by 1: the mean is better, the win rate is not (a row "50.0*" before)."""
    base = make_result("base", [0] * 100)
    row = only_row([base, make_result("best", [3, -1] * 50, "best_of_n")])
    assert row.rate.rate == 0.5
    assert (row.rate_test.mark, row.difference_test.mark) == (None, "better")


def test_where_low_is_good_the_winner_is_lower(make_result):
    low = {"r": {"higher_is_better": False}}
    base = make_result("base", [0] * 12, scorers=low)
    best = make_result("best", [-1] * 12, "best_of_n", scorers=low)
    worse = make_result("worse", [1] * 12, "sds", scorers=low)
    rows = {row.method: row for row in only_group([base, best, worse]).versus}
    assert [rows["best_of_n"].rate_test.mark, rows["best_of_n"].difference_test.mark] == ["better", "better"]
    assert [rows["sds"].rate_test.mark, rows["sds"].difference_test.mark] == ["worse", "worse"]
    assert rows["best_of_n"].wins
    assert rows["sds"].loses


def test_the_pairwise_matrix_by_hand(make_result):
    """base 0 0 1 1; best 1 1 1 1: 2 wins, 2 ties; sds 0 1 0 0: against base 1 win, 1 tie, 2 losses."""
    paths = [
        make_result("base", [0, 0, 1, 1]),
        make_result("best", [1, 1, 1, 1], "best_of_n"),
        make_result("sds", [0, 1, 0, 0], "sds"),
    ]
    matrix = only_group(paths).pairwise["r"]
    assert np.isnan(np.diag(matrix)).all()
    assert matrix[0, 1:].tolist() == [0.25, 0.625]
    assert matrix[1, [0, 2]].tolist() == [0.75, 0.875]
    assert matrix[2, :2].tolist() == [0.375, 0.125]


@pytest.fixture
def many(make_result):
    """Four methods with ties, nulls, seeds and missing rows."""

    def rounded(name, gain):
        values = [round(x + gain, 1) for x in noise(name)]
        return [None if i % 17 == len(name) else x for i, x in enumerate(values)]

    loose = {"r": {"tie_epsilon": 0.2}}
    pairs = [(f"p{i // 2}", i % 2) for i in range(60)]
    return [
        make_result("base", rounded("base", 0), pairs=pairs, scorers=loose),
        make_result("best", rounded("best", 1.0), "best_of_n", pairs=pairs, scorers=loose),
        make_result("sds", rounded("sds", 2.0)[:40], "sds", pairs=pairs[:40], scorers=loose),
        *(
            make_result(f"ddpo{s}", rounded(f"seed {s}", -1.0), "ddpo", seed=s, pairs=pairs, scorers=loose)
            for s in range(3)
        ),
    ]


def test_the_two_sides_of_every_pair_add_to_one(many):
    matrix = only_group(many).pairwise["r"]
    off = ~np.eye(4, dtype=bool)
    assert (matrix + matrix.T)[off] == pytest.approx(np.ones(12))
    assert (np.abs(matrix[off] - 0.5) > 0.05).all()


def test_the_matrix_agrees_with_the_win_rates_against_the_baseline(many):
    group = only_group(many)
    column = group.pairwise["r"][1:, 0]
    assert column == pytest.approx([row.rate.rate for row in group.versus])


def test_ranks_follow_the_strengths(many):
    group = only_group(many)
    ranks = group.ranks["r"]
    assert group.methods == ["base", "best_of_n", "sds", "ddpo"]
    assert ranks.strength[0] == 0
    assert np.argsort(ranks.strength).tolist() == [3, 0, 1, 2]
    assert (ranks.low[1:] < ranks.strength[1:]).all()
    assert (ranks.strength[1:] < ranks.high[1:]).all()


def test_a_method_equal_to_another_has_an_interval_without_nan(make_result):
    paths = [make_result("base", [0, 0, 0]), make_result("same", [0, 0, 0], "best_of_n")]
    paths += [make_result(f"m{k}", [0, 0, k], f"method{k}") for k in range(1, 4)]
    ranks = only_group(paths).ranks["r"]
    assert ranks.strength[1] == pytest.approx(0, abs=1e-6)
    assert np.isfinite([ranks.low, ranks.high]).all()


def test_costs_are_means_over_the_seeds(make_result):
    """Denoiser 100 + 50 and 300 + 150 while training: 300 on average; forward and backward count the same."""

    def spent(forward, backward, seconds, memory):
        counts = {"denoiser_forward": forward, "denoiser_backward": backward, "decode_forward": 7, "decode_backward": 0}
        return {
            "alignment": counts | {"reward_forward": forward // 10, "reward_backward": backward // 10},
            "alignment_seconds": seconds,
            "per_image": {"denoiser_forward": forward / 10, "denoiser_backward": 1.0, "decode_forward": 1.0,
                          "decode_backward": 0.0, "reward_forward": 2.0, "reward_backward": 0.5},
            "per_image_seconds": seconds / 100,
            "peak_memory_bytes": memory,
        }  # fmt: skip

    paths = [
        make_result("base", [0, 0]),
        make_result("one", [1, 1], "ddpo", seed=0, cost=spent(100, 50, 10.0, 1000)),
        make_result("two", [1, 1], "ddpo", seed=1, cost=spent(300, 150, 30.0, 3000)),
    ]
    base, ddpo = only_group(paths).costs
    assert (base.method, base.runs, base.alignment_denoiser) == ("base", 1, 0)
    assert (ddpo.method, ddpo.runs) == ("ddpo", 2)
    assert ddpo.alignment_denoiser == 300
    assert ddpo.alignment_reward == 30
    assert ddpo.alignment_seconds == 20
    assert ddpo.image_denoiser == pytest.approx(21)
    assert ddpo.image_reward == 2.5
    assert ddpo.image_seconds == pytest.approx(0.2)
    assert ddpo.memory_bytes == 2000


def test_a_method_without_costs_has_none(make_result):
    (cost,) = only_group([make_result("base", [0], cost=None)]).costs
    assert cost.runs == 1
    assert np.isnan([cost.alignment_denoiser, cost.image_seconds, cost.memory_bytes]).all()


def test_the_order_of_the_files_changes_nothing(make_result):
    paths = [
        make_result("base", {"r": [0, 1, 2], "s": [5, 4, 3]}),
        make_result("best", {"s": [4, 4, 4], "r": [1, 1, 1]}, "best_of_n", pairs=[("p2", 0), ("p0", 0), ("p9", 0)]),
        make_result("seed1", {"r": [2, 2, 0], "s": [1, 5, 5]}, "ddpo", seed=1),
        make_result("seed0", {"r": [2, 0, 2], "s": [6, 5, 5]}, "ddpo", seed=0),
        make_result("other", {"r": [1, 1, 1]}, evaluation={"eval_seed": 7}),
        make_result("failed", {"r": [1, 1, 1]}, "sds", status="failed", reason="out of memory"),
    ]
    expected = render(compare(paths, by="category"), "json")
    for order in itertools.islice(itertools.permutations(paths), 1, 720, 97):
        assert render(compare(order, by="category"), "json") == expected


@pytest.mark.parametrize(("flags", "two"), [([], 0), (["--duels"], 3)])
def test_json_has_every_two_of_few_methods_and_of_more_where_they_are_asked_for(
    flags, two, make_result, tmp_path, monkeypatch
):
    files = [make_result("base", [1.0, 2.0, 3.0])]
    files += [make_result(f"b{n}", [1.0 + n, 2.5, 3.0], "best_of_n", {"n": n}) for n in (2, 4)]

    def compared(few):
        monkeypatch.setattr(comparing, "FEW_METHODS", few)
        words = ["compare", *map(str, files), "--format", "json", "--output", str(tmp_path / "out.json"), *flags]
        assert run_command_line(words) == 0
        return json.loads((tmp_path / "out.json").read_text())["groups"][0]

    few, many = compared(3), compared(2)
    assert [len(group["duels"]) for group in (few, many)] == [3, two]
    assert few.keys() == many.keys()
    said = [note for note in many["notes"] if note not in few["notes"]]
    assert said == ([] if flags else ["3 methods: every two of them, with interval and p, are compared with --duels."])
