"""An HTTP server of one scorer for this machine alone. It needs nothing but Python, so that any environment can run it.

    GET  /  ->  {"protocol": 1, "scorer": SCORER}
    POST /  {"images": [PNG in base64, ...], "prompts": ["...", ...]}  ->  {"scorer": SCORER, "scores": [1.5, null]}

SCORER is what identifies the scores in a result file: `id` with its version, and, where they are not the defaults of
`alignbench.RewardInfo`, `range`, `preprocessing`, `files` (name -> SHA-256), `versions` (library -> version),
`tie_epsilon`, `higher_is_better`, and `source`, what code a plug-in is. It never changes while the server runs. A
picture that cannot be scored is null. Whatever goes wrong with a whole request has a status of 400 or more and says
{"error": "a sentence"}: 4xx where asking again is useless, 5xx where it may help. A request has one image per prompt
and at most 64 MiB.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROTOCOL = 1
HOST = "127.0.0.1"  # of this machine and no other: whoever reaches the port may use the scorer
LARGEST = 64 * 2**20  # bytes of a request
SECONDS = 60.0  # without a byte before a client is given up

Score = Callable[[Sequence[bytes], Sequence[str]], Sequence[float | None]]  # of PNG files for texts


class Refused(Exception):
    """The request cannot be answered, however often it is made."""

    def __init__(self, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.status = status


def make_server(scorer: Mapping[str, Any], score: Score, port: int) -> ThreadingHTTPServer:
    """A server that is bound to the port (0: a free one) and runs with `serve_forever`. One request is scored at a
    time. Raises OSError where the port is taken."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS

        def do_GET(self) -> None:
            if self.path != "/":
                self._say(404, {"error": f"there is nothing at {self.path!r}; the scorer is at /."})
            else:
                self._say(200, {"protocol": PROTOCOL, "scorer": scorer})

        def do_POST(self) -> None:
            try:
                images, prompts = self._asked()
                with one_at_a_time:
                    scores = score(images, prompts)
            except Refused as refusal:
                self._say(refusal.status, {"error": str(refusal)})
            except Exception as error:
                self.log_error("%s: %s", type(error).__name__, error)
                self._say(500, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
            else:
                self._say(200, {"scorer": scorer, "scores": list(scores)})

        def _asked(self) -> tuple[list[bytes], list[str]]:
            """Pictures and prompts of a request."""
            if self.path != "/":
                raise Refused(f"there is nothing at {self.path!r}; the scorer is at /.", 404)
            if self.headers.get_content_type() != "application/json":  # which no web page may send here unasked
                raise Refused("expected Content-Type: application/json.", 415)
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                raise Refused("expected a Content-Length.", 411)
            if int(length) > LARGEST:
                raise Refused(f"the request has {length} bytes, expected at most {LARGEST}; send fewer images.", 413)
            try:
                content = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                raise Refused("the request is not JSON.", 400) from None
            if not isinstance(content, dict):
                content = {}
            images, prompts = _texts(content.get("images")), _texts(content.get("prompts"))
            if not images or len(images) != len(prompts):
                raise Refused('expected {"images": [PNG in base64, ...], "prompts": [text, ...]}, one per image.', 400)
            try:
                return [base64.b64decode(image, validate=True) for image in images], prompts
            except (binascii.Error, ValueError):
                raise Refused("an image is not base64.", 400) from None

        def _say(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Only what goes wrong is worth a line."""

    return ThreadingHTTPServer((HOST, port), Handler)


def _texts(value: object) -> list[str]:
    """A list of texts; of anything else, none."""
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
