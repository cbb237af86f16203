"""The report's page: what stands in it, that nothing in it runs, and its size."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from pictured import HOSTILE, pictured, some_methods
from places import ROOT

from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.page.build import Wanted, build


class Reader(HTMLParser):
    """The elements of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)

    def handle_endtag(self, tag):
        self.inside = ""

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    some_methods(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return build([folder], folder / "report.html").text


def data_of(page: str):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def test_the_verdict_says_who_wins_who_loses_and_what_looks_hacked(page):
    words = Reader(page).words
    assert (
        "2 of 3 win more often than base. Most often: best_of_n, 100.0 % of pairs (88.6 to 100.0), +1.14 in the mean."
        in words
    )
    assert "refl wins on r, its reward, and loses on truth: it may exploit errors of its reward." in words
    assert "Undecided: sft." in words


def test_of_one_thing_it_speaks_in_the_singular(tmp_path):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 8)
    assert "1 method, 1 run, 8 prompts, 8 images" in Reader(build([tmp_path], tmp_path / "report.html").text).words
    draw("best", [1.0] * 8, "best_of_n")
    words = Reader(build([tmp_path], tmp_path / "report.html").text).words
    assert "1 of 1 wins more often than base: best_of_n, 100.0 % of pairs" in words


def test_every_method_stands_in_the_chart_and_in_every_table(page):
    elements = Reader(page).elements
    assert sum(tag == "circle" and "cx" in a and "%" in (a["cx"] or "") for tag, a in elements) == 3 * 2
    assert page.count('<th scope="row">best_<wbr>of_<wbr>n') == 1 + 2 + 1  # the chart, a table per scorer, the costs
    assert page.count('class="mark better" aria-hidden="true">▲</span><span class="unseen"> better</span>') > 4


def test_a_hostile_prompt_is_text_and_nothing_else(page):
    reader = Reader(page)
    assert not [a for tag, a in reader.elements if tag == "img" and not str(a["src"]).startswith("data:image/webp")]
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert not [name for _, a in reader.elements for name in a if name.startswith("on") or name == "style"]
    assert "<img src=x onerror=alert(1)>" in reader.words
    assert "{{ 7*7 }}" in reader.words
    assert "\u202e" not in page
    assert "\u2028" not in page
    (card,) = [c for c in data_of(page)["sections"][0]["cards"] if c["id"] == "p0"]
    assert card["text"] == HOSTILE.replace("\u202e", "\\u202e").replace("\u2028", "\\u2028")


def test_the_policy_lets_its_own_script_and_style_through_alone(page):
    (policy,) = [a["content"] for tag, a in Reader(page).elements if a.get("http-equiv") == "Content-Security-Policy"]
    for tag, kind in (("script", "script"), ("style", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'; img-src data:;" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched_from_anywhere(page):
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href"):
            place = attributes.get(name)
            assert place is None or place.startswith(("data:", "#")), (tag, place)


def test_the_results_are_carried_as_the_text_that_their_digests_are_of(page, folder):
    files = data_of(page)["files"]
    assert [file["file"] for file in files] == ["base.json", "best.json", "refl1.json", "refl2.json", "same.json"]
    for file in files:
        text = gzip.decompress(base64.b64decode(file["content"]))
        assert hashlib.sha256(text).hexdigest() == file["digest"]
        assert json.loads((folder / file["file"]).read_text())["digest"] == file["digest"]


def test_the_same_files_give_the_same_bytes(page, folder):
    assert build([folder], folder / "report.html").text == page


def test_scorers_and_the_baseline_can_be_chosen(folder):
    page = build([folder], folder / "report.html", Wanted(baseline="sft", scorers=["truth"])).text
    assert "truth: against sft" in page
    assert "r: against" not in page


def test_margin_and_control_are_those_of_compare(folder):
    page = build([folder], folder / "report.html", Wanted(margin=["r=0.5"], control="truth")).text
    assert "margin 0.5" in page
    assert "at equal truth" in page


def test_each_evaluation_has_its_own_part(tmp_path, make_result):
    make_result("base", [0.0] * 8)
    make_result("one", [1.0] * 8, "best_of_n")
    make_result("other", [1.0] * 8, evaluation={"eval_seed": 5})
    page = build([tmp_path], tmp_path / "report.html").text
    assert page.count('<article id="e') == 2
    assert "and 1 more" in page
    assert len(set(re.findall(r'<h2 class="title">(.*?)</h2>', page))) == 2
    ids = [a["id"] for _, a in Reader(page).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_without_pictures_the_page_does_without_and_says_so(tmp_path, make_result):
    make_result("base", [0.0] * 8)
    make_result("one", [1.0] * 8, "best_of_n")
    page = build([tmp_path], tmp_path / "report.html")
    assert "No folder of pictures lies beside these results" in page.text
    assert "<img" not in page.text
    assert any("No folder of pictures" in line for line in page.said)


def test_one_result_without_a_baseline_still_makes_a_page(tmp_path, make_result):
    make_result("one", [1.0] * 8, "best_of_n", cost=None)
    words = Reader(build([tmp_path], tmp_path / "report.html").text).words
    assert "There are no win rates: no one baseline among these results." in words
    assert "no complete result of 'base' with this evaluation: no win rates against it." in words
    assert "Mean scores" in words


def test_failed_and_endless_scores_make_a_page(tmp_path, make_result):
    make_result("base", {"r": [0.0, None, 1.0, 2.0], "s": [1e300, -1e300, 0.0, 1.0]})
    make_result("one", {"r": [None] * 4, "s": [1e308, -1e308, 5.0, 1.0]}, "best_of_n", cost={"alignment_seconds": 3.0})
    assert "<h2" in build([tmp_path], tmp_path / "report.html").text


def test_what_is_left_out_is_named(tmp_path, make_result):
    make_result("base", [0.0] * 8)
    make_result("gone", [0.0] * 8, "ddpo", seed=1, status="diverged", reason="loss is not finite")
    (tmp_path / "bad.json").write_text("{}")
    words = Reader(build([tmp_path], tmp_path / "report.html", Wanted(skip_bad=True)).text).words
    assert "gone.json: diverged (loss is not finite)" in words
    assert "bad.json: unreadable" in words


def test_the_command_writes_the_page_and_refuses_what_it_cannot(folder, tmp_path, capsys, monkeypatch):
    target = tmp_path / "out.html"
    assert run_command_line(["report", str(folder), "--output", str(target)]) == 0
    assert f"written to {target}" in capsys.readouterr().out
    assert target.read_text().lstrip().startswith("<!doctype html>")
    for arguments, message in (
        (["--output", "x.pdf"], "--output x.pdf: expected a .html or .htm file."),
        (["--images", "-1"], "--images -1: expected 0 or more prompts."),
        (["--scorer", "rr"], "no scorer in these files named 'rr'"),
        (["--baseline", "bas"], "no method in these files to use as baseline named 'bas'"),
        (["--output", str(target / "x.html")], f"cannot write {target / 'x.html'}"),
    ):
        output = [] if "--output" in arguments else ["--output", str(target)]
        code = run_command_line(["report", str(folder), *output, *arguments])
        error = capsys.readouterr().err
        assert code == 2, error
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_with_open_the_browser_is_asked(folder, tmp_path, capsys, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda place: asked.append(place) or False)
    target = tmp_path / "out.html"
    assert run_command_line(["report", str(folder), "--output", str(target), "--open"]) == 0
    assert asked == [target.as_uri()]
    assert "no browser could be started" in capsys.readouterr().err


def test_nothing_complete_is_an_error_that_says_so(tmp_path, make_result):
    make_result("gone", [0.0] * 8, status="diverged", reason="x")
    with pytest.raises(InputError, match=r"no complete results to report: .*gone\.json \(diverged\)"):
        build([tmp_path], tmp_path / "report.html")


def test_the_template_has_no_style_and_no_handler_of_its_own():
    text = (ROOT / "alignbench" / "page" / "template" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|\|\s*safe", text)


def test_a_reward_that_is_a_path_is_known_by_its_name(tmp_path):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 8)
    draw("one", [1.0] * 8, "best_of_n", configuration={"reward": "plug/r.py:r"})
    assert "the reward of 1 of 1" in build([tmp_path], tmp_path / "report.html").text


def test_results_that_are_too_large_are_named_by_their_digests_alone(folder, monkeypatch):
    monkeypatch.setattr("alignbench.page.embedded.LARGEST", 3000)
    page = build([folder], folder / "report.html").text
    carried = [file["content"] is not None for file in data_of(page)["files"]]
    assert any(carried)
    assert not all(carried)
    assert "too large to be carried here" in page


def test_what_pictures_are_like_and_who_looks_hacked_stand_on_the_page(tmp_path):
    draw = pictured(tmp_path)
    colours = [0.1 * (i % 5) for i in range(30)]
    draw("base", [0.0] * 30, rows=True, pictures={"saturation": colours})
    draw("refl", [1.0] * 30, "refl", rows=True, pictures={"saturation": [x + 0.4 for x in colours]})
    words = Reader(build([tmp_path], tmp_path / "report.html").text).words
    assert "What looks hacked" in words
    assert "refl gains on r, its reward, and its pictures leave base's range: saturation 0.6 instead of 0.2" in words
    assert "What pictures are like, without a scorer" in words
    assert "A method looks hacked where its own reward is better" in words


def test_older_results_have_no_table_of_what_pictures_are_like(page):
    assert "What pictures are like" not in page


def test_an_evaluation_without_the_scorers_that_were_asked_for_says_so(tmp_path):
    draw = pictured(tmp_path)
    here = [draw("base", {"r": [1.0, 2.0]}), draw("best", {"r": [2.0, 3.0]}, "best_of_n", red=9)]
    there = draw("other", {"s": [1.0, 2.0]}, evaluation={"eval_seed": 7})
    page = build([*here, there], tmp_path / "page.html", Wanted(scorers=["s"])).text
    assert page.count("None of the scorers that were asked for has scores here.") == 1
