"""The report's page in a real browser: what a reader clicks, sees and prints, and what a hostile result cannot do."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import READY, chromium, opened
from pictured import many_methods, pictured, report_of_some_methods

from alignbench.page.build import build
from alignbench.record import result as results

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return report_of_some_methods(tmp_path_factory.mktemp("report"))


@pytest.fixture
def page(browser, report):
    with opened(browser, report, viewport=WIDE) as found:
        yield found


def names(table) -> list[str]:
    return [re.sub(r"\W*(better|worse)?$", "", row) for row in table.locator("tbody tr:visible th").all_inner_texts()]


def cards(page) -> list[str]:
    return page.locator(".card .prompt").all_inner_texts()


def test_tables_sort_by_the_column_that_is_clicked(page):
    table = page.locator("table.numbers").first
    head = table.locator("th", has_text="win rate %").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert names(table)[-1] == "base"  # it has no win rate
    down = names(table)[:-1]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    rates = [
        float(re.match(r"[\d.]+", text)[0]) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()[:-1]
    ]
    assert rates == sorted(rates)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert names(table)[0] == "base"
    assert set(down) == {"best_of_n", "refl", "sft"}


def test_tables_are_filtered_by_name_and_by_mark(page):
    part = page.locator('[id$="-numbers"]')
    table = part.locator("table.numbers").first
    part.get_by_label("Method").fill("of_n")
    assert names(table) == ["best_of_n"]
    assert "1 of 4 rows" in part.inner_text()
    part.get_by_label("Method").fill("")
    part.get_by_label("Win rate").select_option("better")
    assert names(table) == ["best_of_n", "refl"]
    part.get_by_label("Scorer").select_option("truth")
    part.get_by_label("Win rate").select_option("worse")
    assert names(part.locator("table.numbers").nth(1)) == ["refl"]
    assert not table.is_visible()


def test_the_gallery_turns_pages(page):
    part = page.locator(".pictures")
    assert part.locator(".count").inner_text() == "1 to 12 of 30 prompts"
    first = cards(page)
    part.get_by_role("button", name="later").click()
    assert part.locator(".count").inner_text() == "13 to 24 of 30 prompts"
    assert not set(first) & set(cards(page))
    part.get_by_role("button", name="later").click()
    assert len(cards(page)) == 6
    assert part.get_by_role("button", name="later").is_disabled()
    assert page.evaluate("[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth === 32)")


def test_the_gallery_finds_gains_losses_and_scorers_that_disagree(page):
    part = page.locator(".pictures")
    part.get_by_label("Show").select_option("gain")
    part.get_by_label("Gain of").select_option(label="best_of_n")
    assert cards(page)[:2] == ["prompt number 29", "prompt number 28"]  # its gain is 1 + i / 100
    part.get_by_label("Show").select_option("loss")
    assert part.locator(".count").inner_text() == "no prompt is like that"
    part.get_by_label("Gain on").select_option(label="truth")
    part.get_by_label("Gain of").select_option(label="refl")
    assert len(cards(page)) == 12
    part.get_by_label("Show").select_option("disagree")
    assert "of 30 prompts" in part.locator(".count").inner_text()
    part.get_by_label("Gain of").select_option(label="best_of_n")
    assert part.locator(".count").inner_text() == "no prompt is like that"


def test_the_gallery_is_filtered_by_category_text_and_method_and_drawn_by_key(page):
    part = page.locator(".pictures")
    part.get_by_label("Category").select_option("count")
    assert part.locator(".count").inner_text() == "1 to 12 of 15 prompts"
    part.get_by_label("Prompt contains").fill("number 2")
    assert set(cards(page)) == {f"prompt number {i}" for i in (21, 23, 25, 27, 29)}
    part.get_by_label("Prompt contains").fill("")
    part.get_by_label("Category").select_option("")
    part.get_by_label("Show").select_option("random")
    drawn = cards(page)
    assert drawn != sorted(drawn, key=lambda text: int(re.sub(r"\D", "", text) or 0))
    page.reload()
    page.wait_for_selector(READY, state="attached")
    page.locator(".pictures").get_by_label("Show").select_option("random")
    assert cards(page) == drawn
    page.locator(".pictures").get_by_label("sft", exact=True).uncheck()
    assert page.locator(".card").first.locator("img").count() == 3


def test_a_picture_opens_in_full_and_keys_lead_on_and_back(page):
    page.locator(".card").nth(1).locator("button").first.focus()
    page.keyboard.press("Enter")
    box = page.locator("#large")
    assert box.locator(".caption").inner_text() == "base: prompt number 1"
    page.keyboard.press("ArrowRight")
    assert box.locator(".caption").inner_text() == "best_of_n: prompt number 1"
    page.keyboard.press("ArrowDown")
    assert box.locator(".caption").inner_text() == "best_of_n: prompt number 2"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert box.locator(".caption").inner_text() == "refl: prompt number 1"
    assert "truth -0.8 ▼" in box.locator(".scores").inner_text()
    assert box.locator(".full").get_attribute("href") == "refl1/images/00001-0.png"
    page.keyboard.press("Escape")
    assert not box.is_visible()
    assert page.evaluate("document.activeElement.querySelector('img')?.alt") == "base: prompt number 1"


def test_the_page_is_dark_where_the_system_is_and_where_it_is_asked_to_be(browser, report):
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, report, color_scheme="light") as page:
        light = page.evaluate(paper)
        page.click("#theme")
        dark = page.evaluate(paper)
        page.click("#theme")
        assert page.evaluate(paper) == light != dark
    with opened(browser, report, color_scheme="dark") as page:
        assert page.evaluate(paper) == dark


def checked(page) -> str:
    page.click("#check")
    page.wait_for_selector("html[data-checked]", state="attached")
    return page.locator("#checked").inner_text()


def test_the_button_takes_the_digests_again_and_counts_the_win_rates(page):
    said = checked(page)
    assert "✓ Digests that match: 5 of 5; win rates that their rows give: 6; pictures as they were put in: 120" in said


def tampered(report: Path, name: str, change) -> Path:
    """The page with its data changed."""
    text = report.read_text(encoding="utf-8")
    (found,) = re.findall(r'id="data">(.*?)</script>', text, re.S)
    data = json.loads(found)
    change(data)
    path = report.with_name(name)
    path.write_text(text.replace(found, json.dumps(data).replace("<", "\\u003c")), encoding="utf-8")
    return path


def test_the_button_catches_a_tampered_result(browser, report):
    def one_digit(data):
        file = data["files"][1]
        text = gzip.decompress(base64.b64decode(file["content"])).decode()
        changed = text.replace('"truth":1.0', '"truth":9.0', 1)
        assert changed != text
        file["content"] = base64.b64encode(gzip.compress(changed.encode())).decode()

    with opened(browser, tampered(report, "result.html", one_digit)) as page:
        said = checked(page)
        assert "✗ best.json: the digest does not match" in said
        assert "Digests that match: 4 of 5;" in said
        assert "✓" not in said


def test_the_button_catches_a_win_rate_and_a_picture_that_were_changed(browser, report):
    def other(data):
        data["sections"][0]["rates"][0][2] = 0.75
        shots = data["sections"][0]["cards"][20]["shots"]
        shots[0][1] = shots[1][1]

    with opened(browser, tampered(report, "picture.html", other)) as page:
        said = checked(page)
        assert "✗ the win rate of best_of_n on r is not what its rows say" in said
        assert "✗ the pictures are not those that were put in" in said


def test_a_script_of_which_a_byte_is_changed_does_not_run(browser, report):
    path = report.with_name("script.html")
    path.write_text(
        report.read_text(encoding="utf-8").replace("const PAGE = 12;", "const PAGE = 13;"), encoding="utf-8"
    )
    with browser.new_context() as inside:
        page = inside.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        assert any("Content Security Policy" in line for line in said)
        assert page.locator(READY).count() == 0


def test_no_request_leaves_the_page_and_no_markup_comes_from_strings(browser, report):
    asked = []

    class Counter(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET
        log_message = print

    # Threads: Chromium opens a connection for a frame before it asks the policy, and sends nothing on it.
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counter) as server, browser.new_context() as inside:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        page = inside.new_page()
        page.goto(report.as_uri())
        page.wait_for_selector(READY, state="attached")
        added = "document.body.append(Object.assign(document.createElement"
        for attempt in (
            f"fetch('{place}/fetch', {{mode: 'no-cors'}}).catch(() => 0)",
            f"navigator.sendBeacon('{place}/beacon')",
            f"new Image().src = '{place}/image'",
            f"{added}('iframe'), {{src: '{place}/frame'}}))",
            f"{added}('link'), {{rel: 'stylesheet', href: '{place}/css'}}))",
        ):
            page.evaluate(f"() => {{ {attempt} }}")
        for attempt in ("document.body.innerHTML = '<b>'", f"document.createElement('script').src = '{place}/js'"):
            with pytest.raises(Exception, match=r"TrustedHTML|TrustedScriptURL"):
                page.evaluate(f"() => {{ {attempt} }}")
        page.wait_for_timeout(300)
        server.shutdown()
    assert asked == []


def test_a_long_prompt_leaves_room_for_the_picture_and_the_buttons(browser, tmp_path):
    written = pictured(tmp_path)("base", [0.0])
    result = results.read(written)
    long = [replace(prompt, text="very " * 400) for prompt in result.prompts]
    results.write(written, result.model_copy(update={"prompts": long}))
    path = tmp_path / "report.html"
    path.write_text(build([tmp_path], path).text, encoding="utf-8")
    with opened(browser, path, viewport=WIDE) as page:
        page.locator(".card button").first.click()
        assert page.locator("#large .below").bounding_box()["y"] < WIDE["height"]


def test_a_hostile_prompt_is_text(page):
    assert cards(page)[0].startswith("<img src=x onerror=alert(1)> </script><script>alert(2)</script> {{ 7*7 }}")
    page.locator(".card").first.locator("button").first.click()
    assert "<img src=x onerror=alert(1)>" in page.locator("#large .caption").inner_text()


def test_verdict_table_and_first_pictures_read_without_javascript(browser, report):
    with opened(browser, report, java_script_enabled=False, viewport=WIDE) as page:
        assert page.get_by_text("2 of 3 win more often than base").is_visible()
        assert page.locator("table.numbers:visible").count() == 2
        assert page.locator(".card img:visible").count() == 12 * 4
        assert "12 of 30 prompts; the others need JavaScript" in page.locator(".count").inner_text()
        assert page.locator("button:visible").count() == 0


@pytest.mark.parametrize("width", [360, *(pytest.param(width, marks=pytest.mark.slow) for width in (768, 3840))])
def test_nothing_is_wider_than_the_screen(browser, report, width):
    with opened(browser, report, viewport={"width": width, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".card button").first.click()
        assert page.evaluate("document.querySelector('#large').getBoundingClientRect().right") <= width


def test_it_prints_every_table_on_few_pages(page):
    page.emulate_media(media="print")
    assert page.locator("table.numbers:visible").count() == 2
    assert page.locator(".controls:visible").count() == 0
    content = page.pdf(format="A4", margin=dict.fromkeys(("left", "right", "top", "bottom"), "15mm"))
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 10


def test_paper_is_white_and_no_phone_whatever_the_screen_is(page):
    """Within its margins a sheet of A4 is as narrow as a phone's rules take a screen to be."""
    page.click("#theme")
    page.set_viewport_size({"width": 680, "height": 900})
    ink, kind = "getComputedStyle(document.body).color", "getComputedStyle(document.querySelector('.forest')).display"
    assert (page.evaluate(ink), page.evaluate(kind)) == ("rgb(230, 233, 238)", "block")
    page.emulate_media(media="print")
    assert (page.evaluate(ink), page.evaluate(kind)) == ("rgb(27, 31, 36)", "table")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("viewport", [WIDE, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["wide", "phone"])
def test_axe_finds_no_fault(browser, report, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(browser, report, color_scheme=scheme, viewport=viewport) as page:
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found] == []


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "methods", "side", "largest"), [(60, 6, 512, 6e6), (1632, 10, 32, 20e6)])
def test_a_large_report_stays_within_its_budget_opens_and_scrolls(browser, tmp_path, prompts, methods, side, largest):
    many_methods(tmp_path, prompts, methods, side)
    path = tmp_path / "report.html"
    path.write_text(build([tmp_path], path).text, encoding="utf-8")
    assert path.stat().st_size < largest
    with opened(browser, path, viewport=WIDE) as page:
        part = page.locator(".pictures")
        part.get_by_role("button", name="later").click()
        assert "13 to 24 of" in part.locator(".count").inner_text()
        part.get_by_label("Show").select_option("gain")
        assert len(cards(page)) == 12
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert "✓" in checked(page)
