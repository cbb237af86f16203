"""Votes of people in the report's page, in a real browser."""

from __future__ import annotations

import pytest
from browsing import chromium, opened
from electorate import hold
from voted import cells

from alignbench.judging import voting_log
from alignbench.page.build import Wanted, build


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    files = cells(folder / "results", ("base", "refl", "draft"), prompts=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting_log.os, "fsync", lambda descriptor: None)
        hold(files, folder / "votes.jsonl", dict.fromkeys([f"r{i}" for i in range(6)], 0.0), each=20)
    path = folder / "report.html"
    page = build([folder / "results"], path, Wanted(votes=[folder / "votes.jsonl"]))
    path.write_text(page.text, encoding="utf-8")
    return path


def test_votes_stand_in_the_verdict_the_chart_the_tables_and_under_pictures(browser, report):
    with opened(browser, report, viewport={"width": 1280, "height": 900}) as page:
        assert page.locator(".verdict dt", has_text="votes").inner_text().startswith("votes")
        assert page.locator(".verdict").inner_text().count(" raters") >= 2
        assert page.locator(".forest thead th").all_inner_texts()[2].startswith("votes")
        page.get_by_role("link", name="Votes").click()
        assert "votes: against base" in page.locator('[id$="-votes"]').inner_text()
        part = page.locator(".pictures")
        part.get_by_label("Show").select_option("voted")
        counts = [
            sum(map(int, text.split("–")))
            for text in part.locator(".shot dl div:last-child dd").all_inner_texts()
            if text != "–"
        ]
        assert sum(counts[:3]) >= sum(counts[-3:]) > 0
        part.get_by_label("Show").select_option("people")
        part.get_by_label("Gain of").select_option(label="draft")  # its scores are higher, and people like it less
        first = part.locator(".card").first
        won, _, lost = map(int, first.locator(".shot").nth(1).locator("dl div:last-child dd").inner_text().split("–"))
        assert lost > won
        first.locator("button").nth(1).click()
        assert f"votes {won}–" in page.locator("#large .scores").inner_text()
        page.keyboard.press("Escape")
        page.click("#check")
        page.wait_for_selector("html[data-checked='good']", state="attached")


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_a_page_with_votes_fits_the_screen_and_axe_finds_no_fault(browser, report, width):
    with opened(browser, report, viewport={"width": width, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
        )
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found] == []
