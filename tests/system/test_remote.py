"""Scorers over HTTP: what comes back is what they say at home, and whatever can go wrong is said in a sentence."""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import http.server
import importlib
import io
import json
import math
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from parity import recipe
from PIL import Image
from servers import running

from alignbench import Key, Prompt, RewardInfo, plugins
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError, RunError, Unsupported
from alignbench.judging.serving import alike, server_of
from alignbench.plugins import label, reward_of
from alignbench.record import result as results
from alignbench.remote import client, official_packages, server
from alignbench.remote.client import RemoteScorer
from alignbench.remote.server import ScorerServer
from alignbench.scoring.shared import SharedPictures

CAPTIONS = ["a red circle", "a blue star", "two green squares", "a small cyan ring", "a large red star"]
PROMPTS = [Prompt(f"p{i}", text) for i, text in enumerate(CAPTIONS)]
SCORER = {"id": "judge-1"}


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return (Key("remote", n).uniform(n, 3, height, width) * 255).round() / 255


@contextlib.contextmanager
def standing_in(made: ThreadingHTTPServer):
    """The URL of a server of the tests while it runs in a thread."""
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@contextlib.contextmanager
def scripted(*answers, wait: float = 0.0):
    """A server that gives these answers one after the other, the last one ever after: (status, content). Yields its URL
    and the requests it got."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append({"method": self.command, "body": json.loads(body) if body else None})
            status, content, *more = answers[min(len(asked), len(answers)) - 1]
            time.sleep(wait)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_) -> None:
            pass

    with standing_in(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, asked


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0, 0.0))


HELLO = (200, {"protocol": 1, "scorer": SCORER})


def scores(*values, scorer=SCORER):
    return 200, {"scorer": scorer, "scores": list(values)}


# What comes back


@pytest.mark.parametrize("name", ["shapes_preference", "shapes_truth", "jpeg_compressibility"])
def test_a_served_scorer_says_to_the_bit_what_it_says_at_home(name):
    reward, images = plugins.load("rewards", name)(), pictures(5)
    with running(server_of(name, reward, 0)) as url:
        remote = RemoteScorer(url)
        assert torch.equal(remote(images, PROMPTS), reward(images, PROMPTS))
        assert remote.info() == reward.info()
    assert not remote.differentiable


@pytest.mark.parametrize("name", ["hpsv2_1", "imagereward"])
def test_a_served_learned_scorer_says_what_it_says_at_home_and_names_its_weights(name, scorer_files):
    reward, images = recipe.scorer(name), pictures(3, 50, 70)
    with running(server_of(name, reward, 0)) as url:
        remote = RemoteScorer(url)
        assert torch.equal(remote(images, PROMPTS[:3]), reward(images, PROMPTS[:3]))
        assert remote.info() == reward.info()
        assert len(remote.info().files) >= 1


def test_of_pictures_that_are_served_a_network_gets_eight_bits_and_no_whole_picture_becomes_floats(
    scorer_files, monkeypatch
):
    def whole(_):
        raise AssertionError("a whole picture was made floats")

    monkeypatch.setattr(SharedPictures, "images", property(whole))
    with running(server_of("hpsv2_1", recipe.scorer("hpsv2_1"), 0)) as url:
        assert RemoteScorer(url)(pictures(2, 50, 70), PROMPTS[:2]).isfinite().all()


def test_many_pictures_go_in_several_requests_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(client, "IMAGES", 3)
    monkeypatch.setattr(client, "BYTES", 9_000)  # two pictures of noise
    with scripted(HELLO, scores(0, 1), scores(2, 3), scores(4)) as (url, asked):
        assert RemoteScorer(url)(pictures(5), PROMPTS).tolist() == [0, 1, 2, 3, 4]
    assert [len(request["body"]["images"]) for request in asked[1:]] == [2, 2, 1]
    assert [text for request in asked[1:] for text in request["body"]["prompts"]] == CAPTIONS
    first = base64.b64decode(asked[1]["body"]["images"][0])
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("PNG", (32, 32))


def test_pictures_of_two_sizes_and_a_row_that_fails_are_answered_in_order(tmp_path):
    class Width(plugins.load("rewards", "shapes_truth")):
        def __call__(self, images, prompts):
            if any(prompt.text == "a blue star" for prompt in prompts):
                raise ValueError("no stars")
            return torch.full((len(images),), float(images.shape[3]))

        def unsupported(self, prompts, image_shape):
            return None

    def png(width: int) -> str:
        buffer = io.BytesIO()
        Image.new("L", (width, 9)).save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    with running(server_of("width", Width(), 0)) as url:
        status, answer = post(url, {"images": [png(9), png(7), png(9), png(7)], "prompts": CAPTIONS[:4]})
    assert status == 200
    assert answer["scores"] == [9, None, 9, 7]


# When it goes wrong


def test_a_server_at_fault_is_asked_again_a_few_times():
    with scripted((503, b"busy"), HELLO, (500, {"error": "out of memory"}), scores(1.5)) as (url, asked):
        assert RemoteScorer(url)(pictures(1), PROMPTS[:1]).tolist() == [1.5]
    assert [request["method"] for request in asked] == ["GET", "GET", "POST", "POST"]
    expected = pytest.raises(RunError, match=r"answered 500 \(out of memory\), 4 times; start it")
    with scripted(HELLO, (500, {"error": "out\nof memory"})) as (url, asked), expected:
        RemoteScorer(url)(pictures(1), PROMPTS[:1])
    assert len(asked) == 1 + 4


@pytest.mark.parametrize("status", [400, 404, 413, 422, 302])
def test_a_request_that_is_refused_is_not_made_again(status):
    expected = pytest.raises(RunError, match=f"refuses with {status}: no such caption")
    with scripted(HELLO, (status, {"error": "no such caption"})) as (url, asked), expected:
        RemoteScorer(url)(pictures(1), PROMPTS[:1])
    assert len(asked) == 2


def test_where_nobody_listens_the_wait_grows_and_the_message_says_what_to_start(monkeypatch):
    waited = []
    monkeypatch.setattr(client, "WAITS", (0.5, 1.0, 2.0))
    monkeypatch.setattr(client.time, "sleep", waited.append)
    with pytest.raises(RunError, match=r"cannot be reached \(.*refused.*\), 4 times; start it \(alignbench serve"):
        RemoteScorer(f"http://127.0.0.1:{free_port()}").info()
    assert waited == [0.5, 1.0, 2.0]


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as unused:
        return unused.server_port


@pytest.mark.parametrize("slow", ["before", "within"])
def test_an_answer_that_takes_too_long_is_given_up_and_not_asked_for_again(monkeypatch, slow):
    monkeypatch.setattr(client, "SECONDS", 0.3)
    if slow == "before":
        with scripted(HELLO, wait=0.8) as (url, asked), pytest.raises(RunError, match=r"did not answer within 0\.3 s"):
            RemoteScorer(url).info()
        assert len(asked) == 1
        return
    with scripted(HELLO) as (url, _):

        class Dribbling(io.BytesIO):
            def read1(self, size):
                time.sleep(0.1)
                return super().read1(1)

        remote = RemoteScorer(url)
        remote._opener.open = lambda *_, **__: Dribbling(b" " * 100)
        with pytest.raises(RunError, match=r"did not answer within 0\.3 s"):
            remote.info()


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (b"<html>hello</html>", "answered '<html>hello</html>', which is not JSON"),
        (b"[" * 100_000, "which is not JSON"),
        (b" " * (2**20 + 1), "answered with more than 1048576 bytes"),
        ([], r'answered \[\]; expected an object with "protocol": 1'),
        ({"protocol": 2, "scorer": SCORER}, 'expected an object with "protocol": 1'),
        ({"protocol": 1}, "expected the scorer's identity"),
        ({"protocol": 1, "scorer": "judge"}, "expected the scorer's identity"),
        ({"protocol": 1, "scorer": {"range": "real"}}, "expected the scorer's identity"),
        ({"protocol": 1, "scorer": {"id": "judge", "files": {"a": 1}}}, "expected the scorer's identity"),
        ({"protocol": 1, "scorer": {"id": "judge", "tie_epsilon": "0"}}, "expected the scorer's identity"),
    ],
)
def test_what_is_no_scorer_is_said_to_be_none(hello, message):
    with scripted((200, hello)) as (url, _), pytest.raises(RunError, match=message):
        RemoteScorer(url).info()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (scores(1.0), 'expected 2 "scores"'),
        ((200, {"scorer": SCORER}), 'expected 2 "scores"'),
        ((200, {"scorer": SCORER, "scores": {"a": 1}}), 'expected 2 "scores"'),
        (scores(1.0, "2"), "expected numbers or null as \"scores\", not '2'"),
        (scores(1.0, "\u202e\x1b[2J"), r"not '\\u202e\\x1b\[2J'"),
        (scores(1.0, True), "expected numbers or null as \"scores\", not 'True'"),
        ((200, b'{"scorer": {"id": "judge-1"}, "scores": [1, NaN]}'), "which is not JSON"),
        ((200, b'{"scorer": {"id": "judge-1"}, "scores": [1, 1e999]}'), "which is not JSON"),
        ((200, b'{"scorer": {"id": "judge-1"}, "scores": [1, 1' + b"0" * 400 + b"]}"), "which is not JSON"),
        ((200, {"scores": [1.0, 2.0]}), "expected the scorer's identity"),
    ],
)
def test_an_answer_that_holds_no_scores_is_refused(answer, message):
    with scripted(HELLO, answer) as (url, _), pytest.raises(RunError, match=message):
        RemoteScorer(url)(pictures(2), PROMPTS[:2])


def test_null_is_a_row_without_a_score():
    with scripted(HELLO, scores(1, None)) as (url, _):
        values = RemoteScorer(url)(pictures(2), PROMPTS[:2])
    assert values[0] == 1
    assert values[1].isnan()


def test_a_server_that_becomes_another_scorer_is_refused():
    other = {"id": "judge-1", "files": {"weights": "f" * 64}}
    with scripted(HELLO, scores(1), scores(2, scorer=other)) as (url, _):
        remote = RemoteScorer(url)
        remote(pictures(1), PROMPTS[:1])
        with pytest.raises(RunError, match="was 'judge-1' and is now 'judge-1', weights ffffffffffff; start the first"):
            remote(pictures(1), PROMPTS[:1])


def test_there_is_no_gradient_and_points_are_no_pictures():
    remote = RemoteScorer("http://127.0.0.1:1")
    with pytest.raises(Unsupported, match="no gradient"):
        remote.with_grad(pictures(1), PROMPTS[:1])
    assert "(2,)" in remote.unsupported(PROMPTS, (2,))
    assert remote.unsupported(PROMPTS, (3, 32, 32)) is None


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1-8000"),
        ("https://example.org/judges/one/", "example.org-judges-one"),
        ("http://[::1]:8000", "1-8000"),
        ("judge=http://127.0.0.1:8000/a=b", "judge"),
        ("hpsv2=http://127.0.0.1:8000", "hpsv2"),
    ],
)
def test_a_served_scorer_is_called_by_its_place_or_by_a_name_of_ones_own(name, shown):
    assert label(name) == shown
    assert plugins.full_name("rewards", name) == name
    assert reward_of(name) == RemoteScorer(name.partition("=")[2] if "=http" in name else name)


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http://:8000", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http://me:secret@127.0.0.1",
        "http://127.0.0.1:8000/?a=1", "http://127.0.0.1:8000#a", "http://127.0.0.1:8000/a b\n",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_scorer_is_refused(url):
    with pytest.raises(InputError, match=r"expected a URL such as http://127\.0\.0\.1:8000"):
        reward_of(url)


def test_a_name_that_could_leave_the_folder_is_refused():
    with pytest.raises(InputError, match="expected a name of letters"):
        label("../judge=http://127.0.0.1:8000")


def test_only_a_server_of_this_machine_is_reached_past_the_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with scripted(HELLO) as (url, _):
        assert RemoteScorer(url).info() == RewardInfo("judge-1")
    with pytest.raises(RunError, match="cannot be reached"):
        RemoteScorer("http://example.invalid").info()


# The server


def post(url: str, content: object, path: str = "/", kind: str = "application/json") -> tuple[int, dict]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture
def truth():
    with running(server_of("truth", plugins.load("rewards", "shapes_truth")(), 0)) as url:
        yield url


BLACK = io.BytesIO()
Image.new("RGB", (32, 32)).save(BLACK, format="PNG")
PNG = base64.b64encode(BLACK.getvalue()).decode()


@pytest.mark.parametrize(
    ("content", "changes", "status", "message"),
    [
        ({}, {}, 400, "expected {"),
        (b"{", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "brackets"),
        (b"[" * 60_000, {}, 400, "not JSON"),
        ([1], {}, 400, "expected {"),
        ({"images": [PNG], "prompts": []}, {}, 400, "one per image"),
        ({"images": [PNG], "prompts": [1]}, {}, 400, "one per image"),
        ({"images": ["?"], "prompts": ["a red circle"]}, {}, 400, "not base64"),
        ({"images": ["AAAA"], "prompts": ["a red circle"]}, {}, 422, "no PNG"),
        ({"images": [PNG], "prompts": ["not of this world"]}, {}, 422, "not of this world"),
        ({"images": [PNG], "prompts": ["a red circle"]}, {"path": "/other"}, 404, "nothing at '/other'"),
        ({"images": [PNG], "prompts": ["a red circle"]}, {"kind": "text/plain"}, 415, "application/json"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(truth, content, changes, status, message):
    found, answer = post(truth, content, **changes)
    assert found == status
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("limit", "most", "images", "message"),
    [
        ("LARGEST", 100, 1, "bytes, expected at most 100"),
        ("IMAGES", 2, 3, "3 images, expected at most 2"),
        ("PIXELS", 1000, 1, "32 x 32 have 1024 pixels, expected at most 1000"),
        ("PIXELS", 4000, 4, "have 4096 pixels, expected at most 4000"),
    ],
)
def test_what_would_fill_the_memory_is_refused_before_it_does(truth, monkeypatch, limit, most, images, message):
    monkeypatch.setattr(server, limit, most)
    monkeypatch.setattr("alignbench.judging.serving.decoded", None)
    status, answer = post(truth, {"images": [PNG] * images, "prompts": ["a red circle"] * images})
    assert status == 413
    assert message in answer["error"]


def test_pictures_of_gigabytes_are_refused_by_their_headers():
    """Four black pictures of 8192 x 8192 are 0.3 MB as files and 800 MB each as numbers."""
    with pytest.raises(server.Refused, match="8192 x 8192 have 134217728 pixels") as refused:
        server.check_sizes([BIG] * 4)
    assert refused.value.status == 413


def black(width: int, height: int) -> bytes:
    """A PNG file, written row by row."""

    def part(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(width + 1)) if height < 64 else b""
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


BIG = black(8192, 8192)


def test_a_second_header_does_not_hide_a_size():
    """Pillow believes the last one."""
    small = black(8, 8)
    both = small[: 8 + 25] + BIG[8 : 8 + 25] + small[8 + 25 :]
    assert server.size_of(both) == (8192, 8192)


def test_a_request_of_nothing_but_brackets_is_refused_unparsed(monkeypatch):
    monkeypatch.setattr(server.json, "loads", None)
    with pytest.raises(server.Refused, match="more than 65536 brackets and commas"):
        server.asked(b"[" + b"[]," * 40_000 + b"[]]")


def test_pictures_are_decoded_a_few_at_a_time():
    assert [list(places) for places in alike([(2048, 2048)] * 6)] == [[0, 1, 2, 3], [4, 5]]
    assert list(alike([(8192, 8192)] * 2)) == [[0], [1]]
    assert list(alike([(9, 9), (7, 9), (9, 9)])) == [[0, 2], [1]]


def test_the_server_listens_on_this_machine_alone_and_a_taken_port_is_wrong_input():
    reward = plugins.load("rewards", "shapes_truth")()
    made = server_of("truth", reward, 0)
    with made.listening:
        assert made.listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match=r"--port \d+ cannot be used"):
            server_of("truth", reward, made.port)
    with pytest.raises(InputError, match="--port 70000 cannot be used"):
        server_of("truth", reward, 70_000)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        (server, {"starlette", "uvicorn", "PIL"}),
        (official_packages, {"torch", "PIL", "hpsv2", "ImageReward", "server"}),
    ],
)
def test_the_server_needs_nothing_of_alignbench(module, allowed):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8")) if module.__file__ else None
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) <= allowed


# The whole way


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return tmp_path


def command(*more: str) -> list[str]:
    return ["run", "--algo", "best_of_n", "--set", "n=2", "--prompts", "captions.txt", "--steps", "2", *more]


def test_a_run_with_a_served_reward_is_the_run_with_the_local_one(here):
    reward = plugins.load("rewards", "shapes_truth")()
    assert run_command_line(command("--reward", "shapes_truth", "--name", "own")) == 0
    with running(server_of("truth", reward, 0)) as url:
        served = command("--reward", f"shapes_truth={url}", "--scorers", "shapes_style", url, "--name", "served")
        assert run_command_line(served) == 0
    own, other = (results.read(next(Path("results").glob(f"*{name}.json"))) for name in ("own", "served"))
    assert own.scorers["shapes_truth"] == other.scorers["shapes_truth"]
    values = [[row.scores["shapes_truth"] for row in result.rows] for result in (own, other)]
    assert values[0] == values[1]
    assert set(other.scorers) == {"shapes_truth", "shapes_style", label(url)}


def test_rows_that_the_server_cannot_score_are_null_and_counted(here, capsys):
    with scripted(HELLO, scores(1, 2, None, 4, None)) as (url, _):
        assert run_command_line(command("--reward", "shapes_truth", "--scorers", f"judge={url}")) == 0
    result = results.read(next(Path("results").glob("*.json")))
    assert [row.scores["judge"] for row in result.rows] == [1, 2, None, 4, None]
    assert result.rows[2].failures == {"judge": "the scorer returned nan"}
    assert "failed      2 scores of judge" in capsys.readouterr().out


def test_a_dead_server_is_one_line_and_exit_code_1(here, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert run_command_line(command("--reward", url)) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignbench: ")]
    assert len(said) == 1
    assert f"the scorer at {url} cannot be reached" in said[0]


def test_a_run_does_not_go_on_with_another_scorer_behind_the_url(here, capsys):
    broken = scores(1, 2, 3)
    with scripted(HELLO, broken, HELLO, scores(1, 2, 3, 4, 5)) as (url, _):
        arguments = command("--reward", "shapes_truth", "--scorers", f"judge={url}")
        assert run_command_line(arguments) == 1
        path = next(Path("results").glob("*.json"))
        assert results.read(path).status == "failed"
        port = url.rpartition(":")[2]
    capsys.readouterr()
    changed = RewardInfo("judge-2")

    class Judge(plugins.load("rewards", "shapes_truth")):
        def info(self):
            return changed

    with running(server_of("judge", Judge(), int(port))):
        assert run_command_line(arguments) == 2
        assert "scorer 'judge' is not what it was" in capsys.readouterr().err
        changed = RewardInfo("judge-1")
    with running(server_of("judge", Judge(), int(port))):
        assert run_command_line(arguments) == 0


def test_a_gradient_method_on_a_served_reward_is_refused(here, capsys):
    with scripted(HELLO) as (url, _):
        assert run_command_line(["run", "--algo", "doodl", "--prompts", "captions.txt", "--reward", url]) == 2
    assert "gradient" in capsys.readouterr().err


def test_the_command_says_the_url_and_serves_until_it_is_interrupted(monkeypatch, capsys):
    infos: list[RewardInfo] = []
    serve = ScorerServer.serve

    def serve_one(self):
        def ask():
            infos.append(RemoteScorer(f"http://127.0.0.1:{self.port}").info())
            self.stop()

        thread = threading.Thread(target=ask)
        thread.start()
        serve(self)
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(ScorerServer, "serve", serve_one)
    assert run_command_line(["serve", "jpeg_compressibility", "--port", "0"]) == 0
    said, stopped = capsys.readouterr().out.splitlines()
    assert said.startswith("jpeg_compressibility at http://127.0.0.1:")
    assert said.endswith(said.split()[2].rstrip(";"))
    assert stopped == "stopped"
    assert infos == [plugins.load("rewards", "jpeg_compressibility")().info()]
    assert run_command_line(["serve", "jpeg_compresibility"]) == 2
    assert "Did you mean jpeg_compressibility" in capsys.readouterr().err
    assert run_command_line(["serve", "jpeg_compressibility", "--allowed-hosts", "*"]) == 2
    assert "'*' is no host name" in capsys.readouterr().err


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_one_word(sign, tmp_path):
    code = (
        "import sys, threading, os, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import server\n"
        "made = server.make_server({'id': 'judge'}, lambda images, prompts: [], 0)\n"
        "print(made.port, flush=True)\n"
        "try:\n"
        "    made.serve()\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(server.__file__).parent)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(process.stdout.readline())
        answer = ask(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.endswith(b'{"protocol": 1, "scorer": {"id": "judge"}}')
        process.send_signal(sign)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (out, err, process.returncode) == ("stopped\n", "", 0)


# What a server bears


def ask(port: int, *parts: bytes, wait: float = 0.0) -> bytes:
    """All that the server says to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            with contextlib.suppress(OSError):
                connection.sendall(part)
            time.sleep(wait)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(2**16):
                answer += part
        return answer


HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture
def plain_server(monkeypatch):
    """The port of a server whose scorer takes as long as `held` is set, and whose time limits are short."""
    monkeypatch.setattr(server, "SECONDS", 0.3)
    monkeypatch.setattr(server, "LINGER", 0.3)
    may_end = threading.Event()
    may_end.set()

    def score(images, prompts):
        assert may_end.wait(10)
        return [math.inf] + [1.0] * (len(prompts) - 1)

    made = server.make_server({"id": "judge"}, score, 0, ("127.0.0.1", "judge.example.org"))
    with running(made):
        yield made.port, may_end
        may_end.set()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"127.0.0.1", 200), (b"127.0.0.1:9", 200), (b"judge.example.org", 200), (b"evil.example", 400),
        (b"127.0.0.1.evil.example", 400), (b"", 400), (b"[::1]", 400),
    ],
)  # fmt: skip
def test_a_server_is_asked_under_its_own_names_alone(plain_server, host, status):
    answer = ask(plain_server[0], b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"POST / HT"],
        [b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", *[b"a"] * 12],
        [HEAD + b"Content-Length: 100\r\n\r\n"],
        [HEAD + b"Content-Length: 100\r\n\r\n", *[b"{"] * 12],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 12],
    ],
)
def test_a_request_that_does_not_arrive_in_time_is_given_up(plain_server, parts):
    assert ask(plain_server[0], *parts, wait=0.05).startswith(b"HTTP/1.1 408 ")


def test_a_body_without_a_length_is_counted_as_it_comes(plain_server, monkeypatch):
    monkeypatch.setattr(server, "LARGEST", 1000)
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = ask(plain_server[0], HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"more than 1000 bytes" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /\x1b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /%0d%0a\xe2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1e9\r\n\r\n", HEAD + b"Content-Length: 2\r\n\r\n[]",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n{}",
    ],
)  # fmt: skip
def test_no_request_ends_in_a_traceback(plain_server, request_, capfd):
    assert ask(plain_server[0], request_).startswith(b"HTTP/1.1 4")
    assert capfd.readouterr().err == ""
    assert ask(plain_server[0], b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_an_infinite_score_is_none_and_a_wrong_number_of_them_is_the_servers_fault(plain_server, capfd):
    url = f"http://127.0.0.1:{plain_server[0]}"
    assert post(url, {"images": [PNG] * 2, "prompts": ["a", "b"]})[1]["scores"] == [None, 1.0]
    with running(server.make_server({"id": "judge"}, lambda images, prompts: [1.0], 0)) as other:
        status, answer = post(other, {"images": [PNG] * 2, "prompts": ["a", "b"]})
    assert (status, answer["error"]) == (500, "ValueError: the scorer returned 1 scores of 2 pictures")
    assert capfd.readouterr().err == "ValueError: the scorer returned 1 scores of 2 pictures\n"


def test_a_few_requests_wait_and_more_are_told_when_to_come_again(plain_server, monkeypatch):
    monkeypatch.setattr(server, "TAKEN", 2)
    monkeypatch.setattr(server, "SECONDS", 10.0)
    port, may_end = plain_server
    may_end.clear()
    body = json.dumps({"images": [PNG], "prompts": ["a red circle"]}).encode()
    message = HEAD + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    answers: list[bytes] = []
    waiting = [threading.Thread(target=lambda: answers.append(ask(port, message))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    refused = ask(port, message)
    may_end.set()
    for thread in waiting:
        thread.join()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused.lower()
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 2


def test_a_busy_server_is_asked_for_as_long_as_an_answer_may_take(monkeypatch):
    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    busy = (503, {"error": "2 requests are here already"}, {"Retry-After": "1"})
    with scripted(*[busy] * 7, HELLO) as (url, _):
        assert RemoteScorer(url).info() == RewardInfo("judge-1")
    assert slept[-7:].count(0.0) == 7, "at most the longest of the waits, which these tests have set to none"
    monkeypatch.setattr(client, "SECONDS", 0.3)
    expected = pytest.raises(RunError, match=r"answered 503 \(2 requests are here already\)")
    with scripted(busy) as (url, _), expected:
        RemoteScorer(url).info()


def test_what_is_said_before_a_request_is_read_is_plain_text_and_shown_as_well(plain_server):
    port = plain_server[0]
    with pytest.raises(RunError, match="refuses with 400: Invalid host header"):
        RemoteScorer(f"http://localhost:{port}").info()


@pytest.mark.parametrize("part", ["headers", "an error", "continues"])
def test_a_server_that_says_a_byte_now_and_then_is_left(monkeypatch, part):
    monkeypatch.setattr(client, "SECONDS", 0.4)
    begin, again = {
        "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        "an error": (b"HTTP/1.1 400 Bad\r\nContent-Length: 1000\r\n\r\n", b"a"),
        "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    }[part]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(begin)
                for _ in range(30):
                    self.request.sendall(again)
                    time.sleep(0.05)

    with standing_in(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        started = time.monotonic()
        with pytest.raises(RunError, match=r"did not answer within 0\.4 s"):
            RemoteScorer(url).info()
        assert time.monotonic() - started < 1.2


def test_what_a_server_says_is_shown_without_what_would_move_the_cursor():
    hidden = "\x1b[2J\u202eok\x9b"
    with scripted((400, {"error": hidden * 100})) as (url, _), pytest.raises(RunError) as refused:
        RemoteScorer(url).info()
    assert r"\x1b[2J\u202eok\x9b" in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_a_request_holds_no_more_pixels_than_a_server_takes(monkeypatch):
    monkeypatch.setattr(client, "PIXELS", 3000)
    chunks = list(client._requests(pictures(5), PROMPTS))
    assert [len(texts) for _, texts in chunks] == [2, 2, 1]
    assert client.PIXELS * 2**11 <= server.PIXELS


# The official packages


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hpsv2_1", "imagereward"])
def test_the_official_packages_are_served_in_their_own_environment(name, scorer_files, tmp_path, monkeypatch):
    python = os.environ.get("ALIGNBENCH_TEST_ORACLE")
    if not python:
        pytest.skip(
            "ALIGNBENCH_TEST_ORACLE is not set; it names the Python of the environment of tests/support/parity/live.py"
        )
    monkeypatch.syspath_prepend(Path(recipe.__file__).parent)
    live = importlib.import_module("live")
    jobs = live.plan(tmp_path, {name: recipe.ARCHITECTURES[name]}, recipe.pictures())
    (tmp_path / "plan.json").write_text(json.dumps(jobs))
    process = subprocess.Popen(
        [python, Path(live.HERE) / "official.py", tmp_path, name], stdout=subprocess.PIPE, text=True
    )
    try:
        url = next(line for line in process.stdout if "127.0.0.1" in line).split()[-1]
        remote, images = RemoteScorer(url), pictures(3, 50, 70)
        expected = recipe.scorer(name)(images, PROMPTS[:3])
        torch.testing.assert_close(remote(images, PROMPTS[:3]), expected, atol=1e-5, rtol=0)
        assert remote.info().id.startswith("official ")
        assert next(iter(recipe.scorer(name).info().files.values())) in remote.info().files.values()
    finally:
        process.kill()
        process.wait()
