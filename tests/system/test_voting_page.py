"""The voting page in a real browser: keys, clicks, undo, two windows, a kill in between; nothing else is asked for."""

from __future__ import annotations

import re
import signal
from collections import Counter
from dataclasses import replace
from urllib.parse import urlsplit

import browsing
import pytest
from engines import until
from test_voting import PLAIN, session_of, started
from voted import cells

from alignbench.record import result as results
from alignbench.record.votes import read_log

HOSTILE = "<img src=x onerror=alert(1)></p><script>alert(2)</script> {{ 7*7 }} \u202eright to left"
PICTURES = "performance.getEntriesByType('resource').filter(e => /picture/.test(e.name)).length"


@pytest.fixture(scope="module")
def chromium():
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture
def window(chromium):
    """A function that opens a window; in the end nothing went wrong in any, and nothing was asked of anybody else."""
    opened, wrong, asked = [], [], []

    def open_window(url: str, width: int = 1280, height: int = 800, scheme: str = "light"):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "net::ERR" not in m.text else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        opened.append((context, url))
        return page

    yield open_window
    for context, _ in opened:
        context.close()
    wrong = [text for text in wrong if not re.search("status of 4(03|09|10)", text)]  # refused, and said on the page
    assert not wrong
    ours = {urlsplit(url).netloc for _, url in opened}
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} <= ours


def enter(page, name: str) -> None:
    page.wait_for_selector("html[data-ready=hello]")
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#ballot:not([hidden])")


def after(page, action) -> str:
    """The next pair, once an action has brought it."""
    before = page.get_attribute("html", "data-ready")
    action()
    page.wait_for_selector(f"html[data-ready]:not([data-ready='{before}']):not([data-ready=''])")
    return page.get_attribute("html", "data-ready")


@pytest.fixture
def files(tmp_path):
    return cells(tmp_path / "results", prompts=6)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "votes.jsonl"


def test_a_session_by_keys_with_a_tie_a_skip_and_an_undo(files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        page = window(url)
        enter(page, "anna")
        for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "s"):
            after(page, lambda key=key: page.keyboard.press(key))
        assert page.inner_text("#progress").startswith("4 of 6")
        after(page, lambda: page.keyboard.press("u"))
        assert page.inner_text("#progress").startswith("3 of 6")
        for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
            after(page, lambda key=key: page.keyboard.press(key))
        assert page.inner_text("#thanks h1") == "That is all. Thank you!"
        assert "6 votes" in page.inner_text("#counted")
    choices = [vote.choice for vote in read_log(log).votes.values()]
    assert choices == ["left", "right", "tie", "tie", "left", "left"]


def test_a_session_by_mouse_where_every_picture_was_there_before_its_time(files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        page = window(url, 400, 800)
        enter(page, "anna")
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/picture/" in request.url else None)
        for choice in ("#left", "#right", "#tie", "#skip"):
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 24)")
            after(page, lambda choice=choice: page.click(choice))
        after(page, lambda: page.click("#undo"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [vote.choice for vote in read_log(log).votes.values()] == ["left", "right", "tie"]


def test_what_another_window_voted_on_is_told_and_counted_here(files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        one, other = window(url), window(url)
        enter(one, "anna")
        enter(other, "anna")
        for _ in range(2):
            after(one, lambda: one.keyboard.press("ArrowLeft"))
        after(other, lambda: other.keyboard.press("ArrowLeft"))
        assert other.locator("#said").inner_text().startswith("This pair had your vote already.")
        assert other.inner_text("#progress").startswith("2 of 6")
        assert other.get_attribute("html", "data-ready") == one.get_attribute("html", "data-ready")


@pytest.mark.slow
def test_two_browsers_of_one_rater_vote_at_once_and_nothing_is_doubled(files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        one, other = window(url), window(url)
        enter(one, "anna")
        enter(other, "anna")
        while any(page.get_attribute("html", "data-ready") != "end" for page in (one, other)):
            for page, key in ((one, "ArrowLeft"), (other, "ArrowRight")):
                if page.get_attribute("html", "data-ready") != "end":
                    after(page, lambda page=page, key=key: page.keyboard.press(key))
    found = read_log(log)
    assert len(found.votes) == 6
    assert set(Counter(cast.pair.prompt for cast in found.cast).values()) == {1}


@pytest.mark.slow
def test_a_vote_that_met_a_killed_server_counts_once_it_is_back(files, log, window):
    process, url = started(files, log)
    page = window(url)
    enter(page, "anna")
    after(page, lambda: page.keyboard.press("ArrowLeft"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = page.get_attribute("html", "data-ready")
    page.keyboard.press("ArrowRight")
    page.locator("#wrong", has_text="sent again").wait_for()  # a picture that was on its way may be told before
    again, _ = started(files, log, int(url.rpartition(":")[2]))
    page.wait_for_selector(f"html[data-ready]:not([data-ready='{before}']):not([data-ready=''])")
    for _ in range(4):
        after(page, lambda: page.keyboard.press("ArrowDown"))
    assert page.get_attribute("html", "data-ready") == "end"
    again.send_signal(signal.SIGINT)
    again.wait()
    assert [vote.choice for vote in read_log(log).votes.values()] == ["left", "right", *["tie"] * 4]


@pytest.mark.parametrize("key", ["ArrowLeft", "Enter"])
def test_a_held_key_votes_once(key, files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        page = window(url)
        enter(page, "anna")
        page.focus("#left")
        after(page, lambda: page.keyboard.down(key))
        page.keyboard.down(key)  # as the keyboard repeats it
        page.wait_for_timeout(500)
        page.keyboard.up(key)
    assert len(read_log(log).votes) == 1


def test_a_picture_that_is_removed_while_people_vote_is_said_to_be(files, log, window):
    with session_of(files, log, PLAIN) as (_, url):
        page = window(url)
        enter(page, "anna")
        until(lambda: page.evaluate(PICTURES) >= 4, "the pair after this one")
        for picture in (files[0].parent / "refl" / "images").iterdir():
            picture.unlink()
        after(page, lambda: page.keyboard.press("ArrowLeft"))  # to the pair that was loaded before
        page.keyboard.press("ArrowLeft")
        page.locator("#wrong", has_text="can no longer be shown; tell who started the server").wait_for()
    assert len(read_log(log).votes) == 2


def test_a_pair_whose_picture_is_removed_is_passed_over_and_voting_goes_on(files, log, window):
    with session_of(files, log, PLAIN) as (session, url):
        page = window(url)
        enter(page, "anna")
        until(lambda: page.evaluate(PICTURES) >= 4, "the pair after this one")
        seen = {pair.left.place for pair in session.log.served.values()}
        place = min({0, 1, 2} - seen)
        (files[0].parent / "refl" / "images" / f"{place:05d}-0.png").unlink()
        while page.get_attribute("html", "data-ready") != "end":
            after(page, lambda: page.keyboard.press("ArrowLeft"))
        assert page.inner_text("#wrong").startswith("1 pair left out: pictures can no longer be shown")
    assert len(read_log(log).votes) == len(session.log.served) - 1


def test_a_hostile_prompt_is_text_and_no_method_is_named(tmp_path, log, window):
    files = cells(tmp_path / "results", prompts=2)
    for path in files:
        result = results.read(path)
        prompts = [replace(prompt, text=HOSTILE) for prompt in result.prompts]
        results.write(path, result.model_copy(update={"prompts": prompts}))
    with session_of(files, log, PLAIN) as (_, url):
        page = window(url)
        enter(page, "<b>anna</b>")
        assert page.inner_text("#prompt") == HOSTILE
        assert page.evaluate("document.querySelectorAll('#prompt *').length") == 0
        seen = page.content()
    assert "refl" not in seen
    assert not re.search(r"\bbase\b", seen)


def test_an_address_of_a_rater_needs_no_name_and_a_wrong_one_is_told(files, log, window):
    with session_of(files, log, PLAIN, raters=("anna b",)) as (session, url):
        page = window(f"{url}/#{session.key_of('anna b')}:anna%20b")
        page.wait_for_selector("#ballot:not([hidden])")
        other = window(f"{url}/#wrong:anna%20b")
        other.wait_for_selector("#wrong:not([hidden])")
        assert "whole address" in other.inner_text("#wrong")
        other.goto(f"{url}/#{session.key_of('anna b')}:anna%20b")
        other.wait_for_selector("#ballot:not([hidden])")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])  # places go by width, colours by scheme
def test_everything_is_on_the_screen_named_and_readable(scheme, width, tmp_path, log, window):
    files = cells(tmp_path / "results", prompts=3, size=64)
    with session_of(files, log, PLAIN, questions=("alignment",)) as (_, url):
        page = window(url, width, 800, scheme)
        enter(page, "anna")
        boxes = {name: page.locator(name).bounding_box() for name in ("#left", "#right", "#tie", "#skip", "#undo")}
        for box in boxes.values():
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 800
            assert box["height"] >= 40
        assert boxes["#left"]["y"] == boxes["#right"]["y"]
        assert page.get_by_role("button", name="Left is better").count() == 1
        assert page.get_by_role("img", name="The right picture").count() == 1
        assert page.locator("#said").inner_text().endswith(page.inner_text("#prompt"))
        contrast = page.evaluate(CONTRAST)
        assert min(contrast.values()) >= 4.5, contrast


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => {
    const [r, g, b] = c.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found[3] > 0) return found;
    }
    return [255, 255, 255, 255];
  };
  const found = {};
  for (const name of ["#question", "#prompt", "#progress", ".label", "#tie", "kbd"]) {
    const element = document.querySelector(name);
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    found[name] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), pytest.param(1280, "dark", marks=pytest.mark.slow)])
def test_axe_finds_no_fault_while_a_rater_votes(window, tmp_path, width, scheme):
    """At the door, on a pair, and at the end."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with session_of(cells(tmp_path / "results", prompts=2), tmp_path / "votes.jsonl") as (_, url):
        page = window(url, width=width, scheme=scheme)
        page.wait_for_selector("html[data-ready=hello]")

        def faults() -> list[tuple[str, str, str]]:
            found = axe.Axe().run(page).response["violations"]
            return [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found]

        assert faults() == []
        enter(page, "anna")
        assert faults() == []
        for _ in range(2):
            after(page, lambda: page.keyboard.press("ArrowDown"))
        page.wait_for_selector("#ballot", state="hidden")
        assert faults() == []
