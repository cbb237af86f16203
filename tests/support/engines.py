"""Firefox and WebKit, Safari's engine, for tests of pages: driven by the commands of W3C's WebDriver, which Firefox
takes at a port of its own and WebKit at its driver's. No package of Python is needed. Skips with the reason where a
browser is missing."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENGINES = ("firefox", "webkit")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name of an element's number, by the standard
SECONDS = 60.0
LEFT, UP, RIGHT, DOWN, ENTER, ESCAPE = "\ue012", "\ue013", "\ue014", "\ue015", "\ue007", "\ue00c"
BROWSERS = "/usr/lib/*/webkit2gtk-*/MiniBrowser"  # the one that WebKit's driver starts
HTTP = {
    "Navigate": ("POST", "url"),
    "ExecuteScript": ("POST", "execute/sync"),
    "FindElement": ("POST", "element"),
    "ElementClick": ("POST", "element/{id}/click"),
    "PerformActions": ("POST", "actions"),
    "SetWindowRect": ("POST", "window/rect"),
    "GetWindowHandle": ("GET", "window"),
    "NewWindow": ("POST", "window/new"),
    "SwitchToWindow": ("POST", "window"),
    "DeleteSession": ("DELETE", ""),
}
HEAR = """
window.faults = [];
const hear = (text) => window.faults.push(text);
addEventListener("error", (event) => hear(event.message));
addEventListener("unhandledrejection", (event) => hear(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => hear(event.violatedDirective + " " + event.blockedURI));
const heard = (reports) => reports.forEach((report) => hear(report.type));
if (window.ReportingObserver) new ReportingObserver(heard, { buffered: true }).observe();
"""


class Window:
    """What a test does in a browser."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self.ask = ask

    def open(self, url: str) -> None:
        """A page, once its script has run. From here on its errors are heard."""
        self.ask("Navigate", url=url)
        self.wait("document.documentElement.dataset.ready !== undefined")
        self.ask("ExecuteScript", script=HEAR, args=[])

    def value(self, expression: str) -> Any:
        return self.ask("ExecuteScript", script=f"return {expression}", args=[])

    def wait(self, expression: str) -> None:
        until(lambda: self.value(expression), expression)

    def text(self, css: str) -> str:
        return self.value(f"document.querySelector({json.dumps(css)}).innerText")

    def click(self, css: str) -> None:
        found = f"document.querySelector({json.dumps(css)})"
        self.value(f'{found}.scrollIntoView({{behavior: "instant", block: "center"}})')
        self.ask("ElementClick", id=self.ask("FindElement", using="css selector", value=css)[ELEMENT])

    def press(self, keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("PerformActions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def choose(self, label: str, option: str) -> None:
        """In the visible list of this label."""
        lists = (
            f'[...document.querySelectorAll("select")].find(s => s.ariaLabel === {json.dumps(label)} && s.offsetWidth)'
        )
        chosen = f"list.value = [...list.options].find(o => o.textContent === {json.dumps(option)}).value"
        self.value(f'((list) => {{ {chosen}; list.dispatchEvent(new Event("change")); }})({lists})')

    def another(self) -> str:
        """Open another window, and go on there; the one that was left."""
        before = self.ask("GetWindowHandle")
        self.ask("SwitchToWindow", handle=self.ask("NewWindow", type="tab")["handle"])
        return before

    def back(self, handle: str) -> None:
        self.ask("SwitchToWindow", handle=handle)


@contextlib.contextmanager
def window(engine: str) -> Iterator[Window]:
    with {"firefox": firefox, "webkit": webkit}[engine]() as ask:
        ask("SetWindowRect", width=1280, height=900)
        yield Window(ask)
        ask("DeleteSession")


@contextlib.contextmanager
def firefox() -> Iterator[Callable[..., Any]]:
    """A function that has Firefox do a command, in its own protocol: [kind, number, name, parameters] with the length
    before it."""
    found = next((place for name in ("firefox-esr", "firefox") if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Firefox on this machine: apt-get install firefox-esr")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        Path(profile, "user.js").write_text('user_pref("marionette.port", 0);\n', encoding="utf-8")
        with started(found, "-headless", "-no-remote", "-profile", profile, "-marionette") as process:
            port = Path(profile, "MarionetteActivePort")
            until(lambda: port.exists() and port.read_text(encoding="utf-8"), "Firefox", process)
            with socket.create_connection(("127.0.0.1", int(port.read_text(encoding="utf-8"))), SECONDS) as line:
                stream = line.makefile("rb")

                def read() -> Any:
                    length = b"".join(iter(lambda: stream.read(1), b":"))
                    return json.loads(stream.read(int(length)))

                def ask(name: str, **parameters: Any) -> Any:
                    command = json.dumps([0, 1, f"WebDriver:{name}", parameters]).encode()
                    line.sendall(b"%d:%s" % (len(command), command))
                    _, _, error, answer = read()
                    assert error is None, (name, error)
                    return answer["value"] if isinstance(answer, dict) and set(answer) == {"value"} else answer

                read()  # who it is
                ask("NewSession")
                yield ask


@contextlib.contextmanager
def webkit() -> Iterator[Callable[..., Any]]:
    """A function that has WebKit do a command."""
    browser = next(iter(sorted(glob.glob(BROWSERS), reverse=True)), None)
    if browser is None or not shutil.which("WebKitWebDriver") or not shutil.which("xvfb-run"):
        pytest.skip("no WebKit on this machine: apt-get install webkit2gtk-driver xvfb xauth")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(method: str, path: str, content: Any) -> Any:
        body = None if method == "GET" else json.dumps(content).encode()
        url = f"http://127.0.0.1:{port}/session{path}".rstrip("/")
        try:
            with opener.open(urllib.request.Request(url, body, method=method), timeout=SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError((path, error.read())) from None

    def reached() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    with started("xvfb-run", "-a", "-s", "-screen 0 1600x1200x24", "WebKitWebDriver", f"--port={port}") as process:
        until(reached, "WebKitWebDriver", process)
        options = {"webkitgtk:browserOptions": {"binary": browser, "args": ["--automation"]}}
        session = request("POST", "", {"capabilities": {"alwaysMatch": options}})["sessionId"]

        def ask(name: str, **parameters: Any) -> Any:
            method, path = HTTP[name]
            return request(method, f"/{session}/{path.format(**parameters)}", parameters)

        yield ask


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is ended with all that it started."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(SECONDS)


def until(true: Callable[[], Any], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for something, perhaps of a process: one that has ended will not bring it."""
    end = time.monotonic() + SECONDS
    while not true():
        assert process is None or process.poll() is None, f"{what} ended with {process and process.returncode}"
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.05)
