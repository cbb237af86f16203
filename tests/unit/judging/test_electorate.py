"""A made-up electorate whose wishes are known, through the real log: what is printed about it is so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from electorate import BETTER, hold
from PIL import Image
from result_files import writer
from voted import cells

from alignbench import Key
from alignbench.analysis.compare import compare
from alignbench.analysis.tables import render
from alignbench.analysis.vote_statistics import FEWEST_RATERS, alpha_of, rates, vote_mean
from alignbench.errors import InputError
from alignbench.judging import voting_log
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.record.votes import Rules, checks_of, read_log, suspects


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch):
    """Thousands of syncs take minutes; that votes survive is tested elsewhere."""
    monkeypatch.setattr(voting_log.os, "fsync", lambda descriptor: None)


def column_of(files, log, **asked):
    (group,) = compare(files, votes=[log], **asked).groups
    return group, group.votes[0]


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results", ("base", "refl", "draft"), prompts=80)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "votes.jsonl"


def test_who_is_better_is_found_by_ten_raters_with_intervals_that_hold_the_truth(files, log):
    hold(files, log, dict.fromkeys([f"r{i}" for i in range(10)], 0.0))
    _, column = column_of(files, log, duels=True)
    truth = {}
    rng = np.random.default_rng(0)
    for name in ("refl", "draft"):
        gains = BETTER[name] * (1 + 0.3 * rng.standard_normal(200_000)) + 0.5 * rng.standard_normal(200_000)
        truth[name] = 0.5 * 0.15 + 0.85 * float((1 / (1 + np.exp(-gains))).mean())
    for item in column.versus:
        assert item.people.low < truth[item.method] < item.people.high
        assert item.people.low < item.rate.low < item.rate.high < item.people.high
        assert item.raters == 10
    assert {item.method: item.test.mark for item in column.versus} == {"refl": "better", "draft": "worse"}
    assert len(column.duels) == 3
    text = render(compare(files, votes=[log]), "table")
    assert "votes: against base" in text
    assert "within ±5 points takes about" in text


def test_below_five_raters_the_claim_is_about_these_raters_and_gets_no_mark(files, log):
    hold(files, log, {"anna": 0.0, "ben": 0.0, "carl": 0.0})
    _, column = column_of(files, log)
    assert all(item.people is None and item.test.mark is None for item in column.versus)
    assert min(item.test.p for item in column.versus) < 0.01
    assert "of people, 5 raters at least" in render(compare(files, votes=[log]), "table")


def test_a_draw_to_the_left_is_found_and_hardly_moves_the_rates(files, log, tmp_path):
    people = {f"r{i}": 0.0 for i in range(6)}
    hold(files, log, people)
    hold(files, tmp_path / "left.jsonl", dict.fromkeys(people, 1.5))
    _, fair = column_of(files, log)
    _, biased = column_of(files, tmp_path / "left.jsonl")
    assert fair.worth.left.low < 0.5 < fair.worth.left.high
    assert biased.worth.left.low > 0.55
    assert "the left picture was chosen more often" in render(compare(files, votes=[tmp_path / "left.jsonl"]), "table")
    before, after = ({v.method: v.rate.rate for v in c.versus} for c in (fair, biased))
    assert all(abs(before[name] - after[name]) < 0.15 for name in before)


def test_the_careless_fail_the_checks_and_the_figure_without_them_stands_beside(files, log):
    people = {**{f"r{i}": 0.0 for i in range(5)}, "lazy": "careless", "idle": "careless"}
    found = hold(files, log, people, Rules(same=0.06, other_prompt=0.06), each=80)
    assert suspects(found) == {"lazy", "idle"}
    assert all(all(passed) for name, passed in checks_of(found).items() if name.startswith("r"))
    _, column = column_of(files, log)
    (refl,) = (item for item in column.versus if item.method == "refl")
    assert refl.trusted.rate > refl.rate.rate
    assert list(column.worth.failed) == ["idle", "lazy"]
    text = render(compare(files, votes=[log]), "table")
    assert "idle, lazy failed checks; a rater who fails more than 33 %" in text
    assert "without failed checks" in text


def test_raters_who_agree_have_a_higher_alpha_with_others_and_themselves(files, log, tmp_path):
    people = {f"r{i}": 0.0 for i in range(6)}
    rules = Rules(overlap=0.5, repeat=0.2)
    hold(files, log, people, rules, sure=4.0)
    hold(files, tmp_path / "dice.jsonl", dict.fromkeys(people, "careless"), rules)
    _, alike = column_of(files, log)
    _, dice = column_of(files, tmp_path / "dice.jsonl")
    assert alike.worth.alpha.low > 0.02
    assert dice.worth.alpha.low < 0 < dice.worth.alpha.high < 0.2
    assert alike.worth.myself.rate > dice.worth.myself.rate
    assert dice.worth.alpha.units > 50


def test_alpha_is_krippendorffs_in_his_example_of_two_raters():
    """Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, part B: two observers, ten units, α = 0.095."""
    one, other = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    units = np.r_[np.arange(10), np.arange(10)]
    found = alpha_of(units, np.array(one + other), Key("test"))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)
    assert found.raw == 0.6
    assert found.low < found.alpha < found.high


def test_without_a_second_rater_there_is_no_alpha():
    assert math.isnan(alpha_of(np.arange(4), np.array([0, 1, 2, 0]), Key("test")).alpha)


def test_the_variance_of_one_vote_a_prompt_is_that_of_prompts():
    won = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 0.0])
    found = vote_mean(won, np.arange(6), [])
    assert found.variance == pytest.approx(won.var(ddof=1) / 6)
    assert found.mean == pytest.approx(won.mean())


def test_two_way_variance_is_both_less_what_they_share():
    """Two prompts, two raters, by hand: residuals ±1/8, sums over prompts and over raters, and of single votes."""
    won = np.array([1.0, 1.0, 0.0, 1.0])
    prompts, raters = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    e = (won - 0.75) / 4
    by_prompt = 2 * ((e[0] + e[1]) ** 2 + (e[2] + e[3]) ** 2)
    by_rater = 2 * ((e[0] + e[2]) ** 2 + (e[1] + e[3]) ** 2)
    both = 4 / 3 * (e**2).sum()
    expected = max(by_prompt, by_prompt + by_rater - both)
    assert vote_mean(won, prompts, [raters]).variance == pytest.approx(expected)


@pytest.mark.parametrize(("prompts", "each", "raters"), [(200, 1, 5), (200, 2, 10), (400, 1, 20)])
def test_intervals_cover(prompts, each, raters):
    """Prompts vary by a logit and raters by 0.4 of one, a fifth ties: of these raters and of people, in 200 studies."""
    rng = np.random.default_rng(prompts + each + raters)
    held = {"these": 0, "people": 0}
    z = rng.standard_normal((2, 100_000))
    truth = 0.1 + 0.8 * (1 / (1 + np.exp(-(0.3 + z[0] + 0.4 * z[1])))).mean()
    for _ in range(200):
        hard, lenient = rng.standard_normal(prompts), 0.4 * rng.standard_normal(raters)
        who = np.concatenate([rng.permutation(raters)[:each] for _ in range(prompts)])
        of = np.repeat(np.arange(prompts), each)
        won = (rng.random(len(of)) < 1 / (1 + np.exp(-(0.3 + hard[of] + lenient[who])))).astype(float)
        won[rng.random(len(of)) < 0.2] = 0.5
        these, people = rates(won, of, who, [])
        own = 0.1 + 0.8 * (1 / (1 + np.exp(-(0.3 + z[0][:5000, None] + lenient)))).mean()
        held["these"] += these.low <= own <= these.high
        held["people"] += people.low <= truth <= people.high
    assert held["these"] >= 182  # of 200 at 95 %, once in a thousand below
    assert held["people"] >= 182


def test_the_majority_of_three_is_counted_as_the_paper_does(tmp_path, log):
    files = cells(tmp_path / "results", prompts=6)
    session = begin(files, Asked(log, rules=Rules(same=0, other_prompt=0, repeat=0)))
    wishes = {"anna": "refl", "ben": "refl", "carl": "base"}
    for name, wish in wishes.items():
        while (seen := session.next(name, "", [])["pair"]) is not None:
            pair = session.log.served[seen["nonce"]]
            wanted = next(
                s for s in ("left", "right") if session.ground.cells[getattr(pair, s).cell].voted.method == wish
            )
            session.vote(name, "", seen["nonce"], "tie" if pair.prompt == "p0" else wanted, 100)
    session.close()
    _, column = column_of(files, log)
    assert column.versus[0].majority == (5, 1, 0)
    assert column.versus[0].rate.rate == pytest.approx((5 * 2 / 3 + 0.5) / 6)
    assert column.worth.alpha.raw == pytest.approx((5 / 3 + 1) / 6)


def test_the_same_picture_of_two_methods_counts_as_a_tie(tmp_path, log):
    files = cells(tmp_path / "results", prompts=8, same=(0, 1, 2, 3))
    session = begin(files, Asked(log, rules=Rules(same=0, other_prompt=0, repeat=0)))
    while (seen := session.next("anna", "", [])["pair"]) is not None:
        pair = session.log.served[seen["nonce"]]
        wanted = "left" if session.ground.cells[pair.left.cell].voted.method == "refl" else "right"
        session.vote("anna", "", seen["nonce"], wanted, 100)
    session.close()
    _, column = column_of(files, log)
    (item,) = column.versus
    assert (item.rate.rate, item.identical, item.votes) == (0.75, 4, 4)


def test_votes_on_pictures_that_have_changed_are_refused_by_name(files, log):
    hold(files, log, {"anna": 0.0}, each=40)
    pair = read_log(log).cast[0].pair
    path = files[0].parent / "base" / "images" / f"{pair.left.place:05d}-0.png"
    content = path.read_bytes()
    Image.new("RGB", (24, 24), "white").save(path)
    with pytest.raises(InputError, match=r"base/images/\d+-0.png is another picture than was voted on"):
        compare(files, votes=[log])
    path.write_bytes(content)
    compare(files, votes=[log])


def test_votes_stand_when_a_picture_is_encoded_anew(files, log):
    """What they are bound to is what it shows."""
    hold(files, log, {"anna": 0.0}, each=10)
    for path in (files[0].with_suffix("") / "images").iterdir():
        Image.open(path).convert("RGB").save(path, compress_level=0)
    compare(files, votes=[log])
    begin(files, Asked(log, each=10)).close()


def test_a_vote_is_not_begun_on_a_picture_that_was_changed_after_its_run(files, log):
    Image.new("RGB", (24, 24), "white").save(files[0].with_suffix("") / "images" / "00003-0.png")
    with pytest.raises(InputError, match=r"base/images/00003-0\.png was changed after .*base\.json was written"):
        begin(files, Asked(log, each=10))


def test_older_results_are_voted_on_by_their_files(tmp_path, log):
    """Their identical pictures are found as well, and a changed one is."""
    files = cells(tmp_path / "results", prompts=8, same=(0, 1, 2, 3), rows=False)
    hold(files, log, {"anna": 0.0}, rules=Rules(same=0, other_prompt=0, repeat=0))
    assert len(read_log(log).identical) == 4
    compare(files, votes=[log])
    Image.new("RGB", (24, 24), "white").save(files[0].with_suffix("") / "images" / "00005-0.png")
    with pytest.raises(InputError, match="is another picture than was voted on"):
        compare(files, votes=[log])


def test_votes_on_a_cell_that_was_made_again_are_refused_by_name(files, log, tmp_path):
    hold(files, log, {"anna": 0.0}, each=10)
    again = cells(tmp_path / "again", ("base", "refl", "draft"), prompts=80, size=32)
    with pytest.raises(InputError, match=r"on other pictures of .*again/base.json, which was made again since"):
        compare(again, votes=[log])


def test_pictures_need_not_lie_beside_results_that_say_which_they_are_of(files, log):
    hold(files, log, {"anna": 0.0}, each=20)
    for path in files:
        (path.with_suffix("")).rename(path.with_name(f"away-{path.stem}"))
    _, column = column_of(files, log)
    assert column.versus


def test_votes_on_a_cell_that_is_not_compared_are_left_out_with_a_note(files, log):
    hold(files, log, {"anna": 0.0}, each=40)
    group, column = column_of(files[:2], log)
    assert [item.method for item in column.versus] == ["refl"]
    assert any("its votes on draft.json are left out" in note for note in group.notes)


def test_votes_on_another_evaluation_are_refused(files, log, tmp_path):
    hold(files, log, {"anna": 0.0}, each=5)

    other = writer(tmp_path)("other", [1.0, 2.0], evaluation={"eval_seed": 7})
    with pytest.raises(InputError, match="which no file here is of"):
        compare([other], votes=[log])


def test_votes_on_other_cells_of_the_evaluation_are_refused(files, log, tmp_path):
    hold(files, log, {"anna": 0.0}, each=5)
    other = writer(tmp_path)("other", [1.0, 2.0], algorithm="ddpo")
    with pytest.raises(InputError, match="other cells than these files hold"):
        compare([files[0], other], votes=[log])


def test_every_question_has_its_column_and_json_and_frames_have_them_too(files, log):
    hold(files, log, {f"r{i}": 0.0 for i in range(FEWEST_RATERS)}, each=12, questions=("overall", "appearance"))
    comparison = compare(files, votes=[log])
    assert [column.name for column in comparison.groups[0].votes] == ["votes: overall", "votes: appearance"]
    frame = comparison.to_frame()
    assert set(frame.loc[frame.scorer == "votes: appearance", "method"]) == {"refl", "draft"}
    for form in ("json", "csv", "markdown", "latex", "table"):
        assert "votes" in render(comparison, form)
    votes = json.loads(render(comparison, "json"))["groups"][0]["votes"][0]
    assert {tuple(row) for row in votes["pictures"]} == {("result", "prompt", "sample", "won", "tied", "lost")}
    assert sum(row["won"] - row["lost"] for row in votes["pictures"]) == 0
    assert "Path(" not in render(comparison, "json")


def test_one_picture_of_an_older_and_a_newer_result_is_a_tie_too(tmp_path, log):
    """The older one's digests are of files, the newer one's of what pictures show."""
    old = cells(tmp_path / "old", ("base", "refl"), prompts=10, same=(1, 5), rows=False)
    new = cells(tmp_path / "new", ("base", "refl"), prompts=10, same=(1, 5))
    files = [old[0], new[1]]
    found = hold(files, log, {"anna": 0.0}, Rules(same=0, other_prompt=0, repeat=0, overlap=0))
    assert {line.prompt for line in found.identical} == {"p1", "p5"}
    assert len(found.votes) == 8
    _, column = column_of(files, log)
    assert column.versus[0].identical == 2
