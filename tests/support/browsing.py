"""The system's Chromium, driven by Playwright, for tests of pages. Skips with the reason where either is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = "html[data-ready]"  # what a page of ours sets once its script has run: polling needs eval, which it refuses


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    names = (os.environ.get("ALIGNBENCH_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((place for name in names if name and (place := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or set ALIGNBENCH_CHROMIUM")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, chromium_sandbox=os.geteuid() != 0, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, page: Path, **context: Any) -> Iterator[Any]:
    """A page from disk, once its script has run. On leaving: it raised no error, complained of nothing, opened no
    dialog and asked for nothing but itself."""
    with browser.new_context(**context) as inside:
        shown = inside.new_page()
        shown.set_default_timeout(5000)
        faults: list[str] = []
        shown.on("pageerror", lambda error: faults.append(f"error: {error}"))
        shown.on("console", lambda message: faults.append(f"console: {message.text}"))
        shown.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        shown.on("request", lambda r: r.url.startswith(("data:", page.as_uri())) or faults.append(f"asks for {r.url}"))
        shown.goto(page.as_uri())
        if context.get("java_script_enabled", True):
            shown.wait_for_selector(READY, state="attached")
        yield shown
        assert not faults
