"""Votes of people in the report: in the verdict, the chart, the tables and under pictures; votes that are refused."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from electorate import hold
from PIL import Image
from voted import cells

from alignbench.analysis.compare import compare
from alignbench.analysis.vote_entries import Entry
from alignbench.analysis.vote_ranks import vote_ranks, vote_shares
from alignbench.analysis.vote_tables import vote_reading
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.judging import voting_log
from alignbench.judging.outside_votes import import_votes
from alignbench.page.build import Wanted, build
from alignbench.page.charts import forest
from alignbench.page.people import of_votes
from alignbench.record.digests import picture_of
from alignbench.record.votes import Rules, read_log


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch):
    """Thousands of syncs take minutes; that votes survive is tested elsewhere."""
    monkeypatch.setattr(voting_log.os, "fsync", lambda descriptor: None)


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results", ("base", "refl", "draft"), prompts=24)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "votes.jsonl"


def data_of(page: str):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def of(files, log):
    (group,) = compare(files, votes=[log]).groups
    return group


def test_the_verdict_says_whom_people_prefer_and_how_far_they_agree(files, log):
    hold(files, log, dict.fromkeys([f"r{i}" for i in range(10)], 0.0), each=40)
    group = of(files, log)
    (statement,) = of_votes(group)
    refl, draft = (next(v for v in group.votes[0].versus if v.method == name) for name in ("refl", "draft"))
    assert statement.about == "votes"
    assert re.fullmatch(r"\d+ votes, 10 raters", statement.detail)
    assert statement.lines[0] == (
        f"Preferred by people: refl over base, {100 * refl.rate.rate:.1f} % ({100 * refl.people.low:.1f} to "
        f"{100 * refl.people.high:.1f}) of {refl.votes} votes by 10 raters."
    )
    assert any(line.startswith("Less liked by people: draft over base") for line in statement.lines) == (
        draft.test.mark == "worse"
    )
    assert re.fullmatch(r"Raters agree on [\d.]+ % of \d+ pairs that several judged \(α .*\)\.", statement.lines[-1])


def test_few_raters_decide_nothing_about_people(files, log):
    hold(files, log, {"anna": 0.0, "ben": 0.0}, each=20)
    group = of(files, log)
    (statement,) = of_votes(group)
    assert statement.lines[0].startswith("Of these raters alone, since fewer than 5 compared them: ")
    strips = [row.strips[-1] for row in forest(group)]
    assert [strip.alone for strip in strips] == ["these raters"] * 2
    assert [strip.mark for strip in strips] == [None, None]


def test_a_rater_who_fails_the_checks_is_left_out_in_a_second_figure(files, log):
    people = {**dict.fromkeys([f"r{i}" for i in range(5)], 0.0), "bot": "careless"}
    hold(files, log, people, Rules(same=0.15, other_prompt=0.15))
    (statement,) = of_votes(of(files, log))
    assert any(line.startswith("Without 1 rater who failed checks: draft ") for line in statement.lines)


def test_the_chart_has_a_column_of_people_with_their_interval(files, log):
    hold(files, log, dict.fromkeys([f"r{i}" for i in range(6)], 0.0), each=20)
    group = of(files, log)
    for row in forest(group):
        item = next(v for v in group.votes[0].versus if v.method == row.method)
        assert len(row.strips) == 2
        assert row.strips[-1].at == round(100 * item.rate.rate, 2)
        assert row.strips[-1].start == round(100 * item.people.low, 2)
        assert row.strips[-1].alone == ""


def test_votes_are_counted_under_each_picture(files, log, tmp_path):
    hold(files, log, dict.fromkeys([f"r{i}" for i in range(2)], 0.0), each=20)
    expected: dict[tuple[int, int], Counter[str]] = {}
    for cast in read_log(log).cast:
        if not cast.pair.check and cast.vote.choice != "skip":
            for side, own in (("left", cast.pair.left), ("right", cast.pair.right)):
                said = {"tie": "tied", side: "won"}.get(cast.vote.choice, "lost")
                expected.setdefault((own.cell, own.place), Counter())[said] += 1
    page = build([tmp_path / "results"], tmp_path / "report.html", Wanted(votes=[log])).text
    (section,) = data_of(page)["sections"]
    assert section["votes"] == ["votes"]
    assert section["methods"] == ["base", "draft", "refl"]
    numbers = {cell.method: place for place, cell in enumerate(read_log(log).header.cells)}
    seen = 0
    for card in section["cards"]:
        for method, _, _, (counts,) in card["shots"]:
            own = expected.get((numbers[section["methods"][method]], int(card["id"][1:])), Counter())
            assert (counts or [0, 0, 0]) == [own["won"], own["tied"], own["lost"]]
            seen += sum(counts or [])
    assert seen == 2 * sum(c.vote.choice != "skip" and not c.pair.check for c in read_log(log).cast)
    assert "won–tied–lost" in page
    assert "no votes" not in page


def test_raters_are_not_named_but_for_those_who_failed(files, log, tmp_path):
    hold(files, log, {"anna-maria": 0.0}, each=8)
    page = build([tmp_path / "results"], tmp_path / "report.html", Wanted(votes=[log])).text
    assert "anna-maria" not in page
    assert re.search(r"votes are those of votes\.jsonl, SHA-256 [0-9a-f]{64}", page)


def test_without_votes_nothing_is_said_of_them(files, tmp_path):
    page = build([tmp_path / "results"], tmp_path / "report.html").text
    assert "-votes" not in page
    assert "raters" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_votes_on_a_picture_that_was_changed_are_refused(files, log, tmp_path, capsys):
    hold(files, log, {"anna": 0.0}, each=8)
    Image.new("RGB", (24, 24), "white").save(picture_of(files[1], 3, 0))
    with pytest.raises(InputError, match=r"00003-0\.png is another picture than was voted on"):
        build([tmp_path / "results"], tmp_path / "report.html", Wanted(votes=[log]))
    target = tmp_path / "report.html"
    assert run_command_line(["report", *map(str, files), "--votes", str(log), "--output", str(target)]) == 2
    assert "is another picture than was voted on" in capsys.readouterr().err
    assert not target.exists()


def test_strengths_by_votes_stand_beside_those_of_scorers(files, log):
    hold(files, log, dict.fromkeys([f"r{i}" for i in range(6)], 0.0), each=40)
    group = of(files, log)
    found = group.votes[0].ranks
    assert group.methods == ["base", "draft", "refl"]
    assert found.strength[0] == 0
    assert found.strength[1] < found.strength[2]
    assert found.low[2] < found.strength[2] < found.high[2]


def test_strengths_by_votes_are_those_worked_by_hand():
    """Two methods, on three prompts: won, tied and won by two of three. The mean is (1 + ½ + ⅔) / 3 = 13/18 on three
    prompts; with half a win on either side, the strength is log((3 · 13/18 + ½) / (3 · 5/18 + ½)) = log 2."""
    placed = [SimpleNamespace(rows=range(1)), SimpleNamespace(rows=range(1, 2))]
    said = [("p0", 1.0), ("p1", 0.5), ("p2", 1.0), ("p2", 1.0), ("p2", 0.0)]
    entries = [Entry(1, 0, won, prompt, 0, f"r{i}") for i, (prompt, won) in enumerate(said)]
    skipped = Entry(1, 0, math.nan, "p3", 0, "r0")
    shares = vote_shares([*entries, skipped], placed)
    assert shares.rates[1, 0] == pytest.approx(13 / 18)
    assert shares.rates[0, 1] == pytest.approx(5 / 18)
    assert shares.by_prompt[:, 1, 0].tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert vote_ranks(entries, placed).strength.tolist() == pytest.approx([0.0, math.log(2)])


def test_one_vote_in_two_logs_is_refused(files, log, capsys):
    hold(files, log, {"anna": 0.0, "ben": 0.0}, each=6)
    copy = log.with_name("copy.jsonl")
    copy.write_bytes(log.read_bytes())
    for command in (["compare"], ["report", "--output", str(log.with_name("page.html"))]):
        assert run_command_line([*command, *map(str, files), "--votes", str(log), str(copy)]) == 2
        assert capsys.readouterr().err == f"alignbench: {log} and {copy} hold the same votes; leave one out.\n"


def test_a_log_without_a_vote_says_so(files, log):
    hold(files, log, {}, each=6)
    (group,) = compare(files, votes=[log]).groups
    assert f"{log}: nobody has voted yet." in group.notes


def test_where_every_pair_ties_no_number_of_votes_is_told(tmp_path, log):
    files = cells(tmp_path / "results", prompts=6)
    table = tmp_path / "votes.csv"
    table.write_text(
        "prompt,method_a,method_b,choice,rater\n" + "".join(f"p{i},base,refl,tie,anna\n" for i in range(6))
    )
    import_votes(table, files, log)
    (group,) = compare(files, votes=[log]).groups
    said = [line for line in vote_reading(group) if "±5 points" in line]
    assert said == ["votes: refl against base: every pair ties, so it is not to be told how many votes ±5 points take."]


def test_of_many_rates_each_number_is_of_those_that_it_is_told_of(tmp_path, log):
    """Of seven methods, refl ties with base on every pair, draft has one rater, and the others have six."""
    names = ("base", "refl", "draft", "ddpo", "dpok", "best_of_n", "sft", "d3po")
    files = cells(tmp_path / "results", names, prompts=6)
    table = tmp_path / "votes.csv"
    rows = [f"p{i},base,refl,tie,r{k}" for i in range(6) for k in range(6)]
    rows += [f"p{i},base,draft,{'ab'[i % 2]},r0" for i in range(6)]
    rows += [f"p{i},base,{name},{'ab'[(i * k) % 2]},r{k}" for name in names[3:] for i in range(6) for k in range(6)]
    table.write_text("prompt,method_a,method_b,choice,rater\n" + "\n".join(rows))
    import_votes(table, files, log)
    (line,) = [line for line in vote_reading(of(files, log)) if "±5 points" in line]
    assert line.startswith("votes: each of 6 of these 7 rates (1 of ties alone left out) within ±5 points takes about ")
    assert re.search(r"raters with as many votes on it each as now \(of 5 rates\), 5 raters at least, ", line)
    assert line.endswith("better twenty (of the 1 with fewer).")
