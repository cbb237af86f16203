"""The server of the voting page. It knows HTTP and nothing of what is voted on.

    GET  /                        the page; /vote.js and /vote.css beside it
    GET  /picture/NONCE/left      a picture of a pair that was shown, as PNG
    POST /enter /next /vote /undo {"rater": …, "key": …, …}  ->  JSON

A request is refused, with a sentence as {"error": …}, unless it is asked under the server's own name, and, where it
changes anything, comes from the page itself: `Origin` is the server's, the body is JSON of a few hundred bytes.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from alignbench.remote import server
from alignbench.remote.server import HOSTS, ScorerServer, body_of, quiet

LARGEST = 4096  # bytes of a request
SECONDS = 20.0  # for a request to arrive
CONNECTIONS = 1000
BACKLOG = 128
MOST = 16  # pairs that a page says it has
SLOWEST = 2**31

PAGE = {"": "text/html", "vote.js": "text/javascript", "vote.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(server.Refused):
    """What a rater asked for is not done, and why; `code` is for the page."""

    def __init__(self, reason: str, status: int = 422, code: str = "") -> None:
        super().__init__(reason, status)
        self.code = code


class Polls(Protocol):
    """What is voted on; see `alignbench.judging.voting.Session`."""

    def enter(self, rater: str, key: str) -> dict[str, Any]: ...

    def next(self, rater: str, key: str, have: Sequence[str]) -> dict[str, Any]: ...

    def vote(self, rater: str, key: str, nonce: str, choice: str, milliseconds: int) -> dict[str, Any]: ...

    def undo(self, rater: str, key: str) -> dict[str, Any]: ...

    def picture(self, nonce: str, side: str) -> bytes: ...


def make_vote_server(polls: Polls, listening: socket.socket) -> ScorerServer:
    """A server at a socket that is bound to its address."""
    answers = _Answers(polls)
    host = listening.getsockname()[0]
    hosts = HOSTS if host == HOSTS[0] else (host,)
    app = Starlette(
        routes=[
            *(Route(f"/{name}", answers.page, methods=["GET"]) for name in PAGE),
            Route("/picture/{nonce}/{side}", answers.picture, methods=["GET"]),
            *(Route(f"/{name}", answers.asked, methods=["POST"]) for name in ("enter", "next", "vote", "undo")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: _nothing_there},
    )
    return ScorerServer(listening, quiet(app, "h11", CONNECTIONS, BACKLOG))


@dataclass
class _Answers:
    polls: Polls

    async def page(self, request: Request) -> Response:
        name = request.url.path.strip("/")
        content = resources.files("alignbench.remote").joinpath("voting_page", name or "index.html").read_bytes()
        return Response(content, headers=HEADERS, media_type=PAGE[name])

    async def picture(self, request: Request) -> Response:
        nonce, side = request.path_params["nonce"], request.path_params["side"]
        return await _answered(
            lambda: Response(self.polls.picture(nonce, side), headers=HEADERS, media_type="image/png")
        )

    async def asked(self, request: Request) -> Response:
        try:
            _check_origin(request)
            body = _object(await body_of(request, LARGEST, SECONDS))
        except server.Refused as refusal:
            return _refusal(refusal)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        name = request.url.path.strip("/")
        return await _answered(lambda: _said(200, self._of(name, body)))

    def _of(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        rater, key = _text(body, "rater"), _text(body, "key")
        if name == "enter":
            return self.polls.enter(rater, key)
        if name == "undo":
            return self.polls.undo(rater, key)
        if name == "next":
            have = body.get("have", [])
            if not isinstance(have, list) or len(have) > MOST or not all(isinstance(item, str) for item in have):
                raise Refused("have: expected a short list of numbers of pairs.")
            return self.polls.next(rater, key, have)
        taken = body.get("milliseconds", 0)
        if not isinstance(taken, int) or isinstance(taken, bool) or not 0 <= taken <= SLOWEST:
            raise Refused("milliseconds: expected a whole number.")
        return self.polls.vote(rater, key, _text(body, "nonce"), _text(body, "choice"), taken)


def _check_origin(request: Request) -> None:
    """Refuse what another web page sends, or what no page does."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin != f"http://{host}":
        raise Refused("votes are taken from the voting page alone (another Origin, or none).", 403, "origin")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("expected Content-Type: application/json.", 415)


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON.", 400) from None
    if not isinstance(found, dict):
        raise Refused("expected an object in JSON.", 400)
    return found


async def _answered(work: Callable[[], Response]) -> Response:
    """What is worked out beside the event loop, or why it is not."""
    try:
        return await run_in_threadpool(work)
    except Refused as refusal:
        return _refusal(refusal)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(ascii(reason)[1:-1], file=sys.stderr, flush=True)
        return _said(500, {"error": "the server failed; tell who started it, then try again.", "code": ""})


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise Refused(f"{name}: expected text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{name}: holds half of a character.") from None
    return value


async def _nothing_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _said(error.status_code, {"error": "there is nothing here; the page is at /.", "code": ""})


def _refusal(refusal: server.Refused) -> Response:
    code = refusal.code if isinstance(refusal, Refused) else ""
    return _said(refusal.status, {"error": str(refusal), "code": code})


def _said(status: int, content: dict[str, Any]) -> Response:
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status, HEADERS, media_type="application/json")
