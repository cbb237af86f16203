"""The report's page and the voting page in Firefox and in WebKit, Safari's engine: what readers and raters do there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from engines import DOWN, ENGINES, ENTER, ESCAPE, LEFT, RIGHT, UP, Window, window
from pictured import report_of_some_methods
from test_report_in_a_browser import tampered
from test_voting import PLAIN, session_of, started
from voted import cells

from alignbench.record.votes import read_log

pytestmark = pytest.mark.slow
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module", params=ENGINES)
def browser(request):
    with window(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return report_of_some_methods(tmp_path_factory.mktemp("report"))


@pytest.fixture
def page(browser: Window, report: Path):
    """The report. In the end nothing went wrong in it."""
    browser.open(report.as_uri())
    yield browser
    assert browser.value("window.faults") == []


def checked(page: Window) -> str:
    page.click("#check")
    page.wait("document.documentElement.dataset.checked")
    return page.text("#checked")


def test_tables_sort_and_are_filtered(page):
    rates = (
        '[...document.querySelector("table.numbers").tBodies[0].rows].map(row => parseFloat(row.cells[1].innerText))'
    )
    found = [rate for rate in page.value(rates) if rate is not None]
    head = "table.numbers th:nth-child(2)"
    page.click(f"{head} button")
    assert [rate for rate in page.value(rates) if rate is not None] == sorted(found, reverse=True)
    page.press(ENTER)  # the button that was clicked
    assert [rate for rate in page.value(rates) if rate is not None] == sorted(found)
    page.choose("Win rate", "better ▲")
    assert "2 of 4 rows" in page.text('[id$="-numbers"]')
    page.click('[id$="-numbers"] input')
    page.press("of_n")
    assert "1 of 4 rows" in page.text('[id$="-numbers"]')


def test_the_gallery_turns_pages_finds_gains_and_opens_pictures_by_keys(page):
    part = ".pictures"
    assert page.value("[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth === 32)")
    page.click(f"{part} .pages button:last-child")
    assert page.text(f"{part} .count") == "13 to 24 of 30 prompts"
    page.choose("Show", "biggest gain")
    assert page.text(".card .prompt") == "prompt number 29"
    page.choose("Show", "all, in order")
    page.click(".card:nth-child(2) button")
    assert page.text("#large .caption") == "base: prompt number 1"
    page.click("#large .view img")
    page.press(RIGHT + DOWN)
    assert page.text("#large .caption") == "best_of_n: prompt number 2"
    page.press(UP + LEFT + ESCAPE)
    assert page.value("[document.querySelector('#large').open, document.activeElement.querySelector('img')?.alt]") == [
        False,
        "base: prompt number 1",
    ]


def test_a_hostile_prompt_is_text_and_the_page_is_dark_where_it_is_asked_to_be(page):
    assert page.text(".card .prompt").startswith("<img src=x onerror=alert(1)> </script><script>alert(2)</script>")
    light = page.value(PAPER)
    page.click("#theme")
    assert page.value(PAPER) != light
    page.click("#theme")
    assert page.value(PAPER) == light


def test_the_button_takes_the_digests_and_catches_what_was_changed(page, report):
    assert "✓ Digests that match: 5 of 5; win rates that their rows give: 6; " in checked(page)

    def other(data):
        data["files"][1]["content"] = data["files"][0]["content"]
        shots = data["sections"][0]["cards"][20]["shots"]
        shots[0][1] = shots[1][1]

    page.open(tampered(report, "other.html", other).as_uri())
    said = checked(page)
    assert "✗ best.json: the digest does not match" in said
    assert "✗ the pictures are not those that were put in" in said
    text = report.read_text(encoding="utf-8").replace("const PAGE = 12;", "const PAGE = 13;")
    report.with_name("script.html").write_text(text, encoding="utf-8")
    page.ask("Navigate", url=report.with_name("script.html").as_uri())
    assert page.value("[document.readyState, document.documentElement.dataset.ready ?? 'not run']") == [
        "complete",
        "not run",
    ]
    page.open(report.as_uri())


def after(page: Window, act) -> None:
    """Act, and wait for the next pair."""
    before = page.value("document.documentElement.dataset.ready")
    act()
    page.wait(f"![{before!r}, '', undefined].includes(document.documentElement.dataset.ready)")


def enter(page: Window, url: str) -> None:
    page.open(url)
    after(page, lambda: page.press(f"anna{ENTER}"))


def test_a_session_by_keys_and_clicks_in_two_windows(browser, tmp_path):
    files, log = cells(tmp_path / "results", prompts=8), tmp_path / "votes.jsonl"
    with session_of(files, log, PLAIN) as (_, url):
        enter(browser, url)
        for key in (LEFT, RIGHT, DOWN, "s", "u"):
            after(browser, lambda key=key: browser.press(key))
        for name in ("left", "undo", "tie"):
            after(browser, lambda name=name: browser.click(f"#{name}"))
        assert browser.text("#progress").startswith("4 of 8")
        first = browser.another()
        enter(browser, url)
        after(browser, lambda: browser.press(LEFT))
        assert browser.value("window.faults") == []
        browser.back(first)
        after(browser, lambda: browser.press(RIGHT))
        assert browser.text("#progress").startswith("5 of 8")
        while browser.value("document.documentElement.dataset.ready") != "end":
            after(browser, lambda: browser.press(RIGHT))
        assert "8 votes" in browser.text("#thanks")
        assert browser.value("window.faults") == []
    assert [vote.choice for vote in read_log(log).votes.values()] == ["left", "right", "tie", "tie", "left"] + [
        "right"
    ] * 3


def test_a_vote_that_met_a_killed_server_counts_once_it_is_back(browser, tmp_path):
    files, log = cells(tmp_path / "results", prompts=6), tmp_path / "votes.jsonl"
    process, url = started(files, log)
    enter(browser, url)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = browser.value("document.documentElement.dataset.ready")
    browser.press(RIGHT)
    browser.wait("document.querySelector('#wrong').innerText.includes('sent again')")
    again, _ = started(files, log, int(url.rpartition(":")[2]))
    browser.wait(f"![{before!r}, ''].includes(document.documentElement.dataset.ready)")
    assert browser.value("document.querySelector('#wrong').hidden")
    again.send_signal(signal.SIGINT)
    again.wait()
    assert [vote.choice for vote in read_log(log).votes.values()] == ["right"]
