"""An HTTP server of one scorer for this machine alone. It needs Starlette, uvicorn and Pillow, and nothing of
alignbench: any environment can run it.

    GET  /  ->  {"protocol": 1, "scorer": SCORER}
    POST /  {"images": [PNG in base64, ...], "prompts": ["...", ...]}  ->  {"scorer": SCORER, "scores": [1.5, null]}

SCORER is what identifies the scores in a result file: `id` with its version, and, where they are not the defaults of
`alignbench.RewardInfo`, `range`, `preprocessing`, `files` (name -> SHA-256), `versions` (library -> version),
`tie_epsilon`, `higher_is_better`, and `source`, what code a plug-in is. It never changes while the server runs. A
picture that cannot be scored is null. Whatever goes wrong with a whole request has a status of 400 or more and says
{"error": "a sentence"}: 4xx where asking again is useless, 5xx where it may help; 503 names in Retry-After when. What
is no HTTP, and what is asked under another host name than the server's, is refused in plain text.

A request has one image per prompt, at most 64, of at most 2²⁶ pixels together, and at most 64 MiB. A few are taken at a
time, and one of them is scored.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import json
import math
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

PROTOCOL = 1
HOST = "127.0.0.1"  # of this machine and no other: whoever reaches the port may use the scorer
HOSTS = (HOST, "localhost")  # under which it is asked: a web page that points its own name here is refused
LARGEST = 64 * 2**20  # bytes of a request
MARKS = 2**16  # brackets and commas of a request: values of JSON take up to a hundred times their text
IMAGES = 64  # in a request
PIXELS = 2**26  # of all pictures of a request; known before any of them is decoded
TAKEN = 8  # requests at a time: read, waiting, or scored
CONNECTIONS = 64
BACKLOG = 16  # connections that the system holds before they are taken
SECONDS = 60.0  # for a request to arrive
WAIT = 240.0  # seconds for its turn
LINGER = 2.0  # seconds in which what is refused may still arrive, so that its sender reads the answer
GRACE = 5  # seconds for what is being scored when the server is told to stop

Score = Callable[[Sequence[bytes], Sequence[str]], Sequence[float | None]]  # of PNG files for texts
Returned = TypeVar("Returned")


class Refused(Exception):
    """The request cannot be answered; however often it is made, where the status is below 500."""

    def __init__(self, reason: str, status: int = 422) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class ScorerServer:
    """A server that is bound to its port, and runs once in `serve`."""

    listening: socket.socket
    running: uvicorn.Server
    stopped: bool = False  # from another thread

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def serve(self) -> None:
        """Answer until `stop`, or until SIGINT or SIGTERM: what is being scored is answered, then KeyboardInterrupt is
        raised."""
        here = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
        try:
            with self.listening:
                self.running.run(sockets=[self.listening])
            if not self.stopped:  # by a signal, which the event loop may have swallowed as it ended
                raise KeyboardInterrupt
        finally:
            if here:
                signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self.stopped = True
        self.running.should_exit = True


def make_server(scorer: Mapping[str, Any], score: Score, port: int, hosts: Sequence[str] = HOSTS) -> ScorerServer:
    """A server that is bound to the port (0: a free one). Raises OSError where the port is taken."""
    answers = _Answers(scorer, score)
    app = Starlette(
        routes=[Route("/", answers.hello, methods=["GET"]), Route("/", answers.scores, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: _nothing_there},
    )
    return ScorerServer(listen(HOST, port, BACKLOG), quiet(app, _Prompt, CONNECTIONS, BACKLOG))


def quiet(app: Starlette, http: Any, connections: int, backlog: int) -> uvicorn.Server:
    """A server that says nothing by itself, neither on the terminal nor of what it is, and ends within `GRACE`."""
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what goes wrong is said by whoever answers
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=15,
        backlog=backlog,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A socket at an address of this machine. Raises OSError where it cannot be had."""
    return socket.create_server((host, port), backlog=backlog)


class _Prompt(H11Protocol):
    """A connection whose request begins in time: uvicorn has limits behind a first request alone. One connection is
    one request, so that there is no second one to wait for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(SECONDS, self._give_up)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.transport.close()

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()


@dataclass
class _Answers:
    scorer: Mapping[str, Any]
    score: Score
    taken: int = 0
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def hello(self, request: Request) -> Response:
        return _said(200, {"protocol": PROTOCOL, "scorer": self.scorer})

    async def scores(self, request: Request) -> Response:
        try:
            return _said(200, {"scorer": self.scorer, "scores": await self._scored(request)})
        except Refused as refusal:
            if refusal.status != 408:
                await _drain(request)
            return _said(refusal.status, {"error": str(refusal)})
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(ascii(reason)[1:-1], file=sys.stderr, flush=True)
            return _said(500, {"error": reason})

    async def _scored(self, request: Request) -> list[float | None]:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused("expected Content-Type: application/json.", 415)  # which no web page may send here unasked
        if self.taken >= TAKEN:
            raise Refused(f"{TAKEN} requests are here already; ask again.", 503)
        self.taken += 1
        try:
            body = await body_of(request, LARGEST, SECONDS)
            try:
                async with asyncio.timeout(WAIT):
                    await self.one_at_a_time.acquire()
            except TimeoutError:
                raise Refused(f"the requests before this one took more than {WAIT:g} s; ask again.", 503) from None
            try:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await _aside(lambda: self._of(body))
            finally:
                self.one_at_a_time.release()
        finally:
            self.taken -= 1

    def _of(self, body: bytes) -> list[float | None]:
        """The scores that a request asks for."""
        images, prompts = asked(body)
        check_sizes(images)
        scores = list(self.score(images, prompts))
        if len(scores) != len(prompts):
            raise ValueError(f"the scorer returned {len(scores)} scores of {len(prompts)} pictures")
        return [None if score is None or not math.isfinite(score) else float(score) for score in scores]


def asked(body: bytes) -> tuple[list[bytes], list[str]]:
    """Pictures and prompts of a request."""
    if sum(map(body.count, (b"[", b"{", b","))) > MARKS:
        raise Refused(f"the request has more than {MARKS} brackets and commas; expected pictures and prompts.", 400)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON.", 400) from None
    if not isinstance(content, dict):
        content = {}
    images, prompts = _texts(content.get("images")), _texts(content.get("prompts"))
    if not images or len(images) != len(prompts):
        raise Refused('expected {"images": [PNG in base64, ...], "prompts": [text, ...]}, one per image.', 400)
    if len(images) > IMAGES:
        raise Refused(f"the request has {len(images)} images, expected at most {IMAGES}; send fewer.", 413)
    try:
        return [base64.b64decode(image, validate=True) for image in images], prompts
    except (binascii.Error, ValueError):
        raise Refused("an image is not base64.", 400) from None


def check_sizes(images: Sequence[bytes]) -> None:
    """Refuse pictures that are no PNG, and those that would fill the memory, by their headers alone."""
    pixels = 0
    for image in images:
        width, height = size_of(image)
        pixels += width * height
        if pixels > PIXELS:
            raise Refused(
                f"the images up to one of {width} x {height} have {pixels} pixels, expected at most {PIXELS} in a "
                "request; send fewer or smaller ones.",
                413,
            )


def size_of(image: bytes) -> tuple[int, int]:
    """Width and height of a PNG file, undecoded."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(image), formats=("PNG",)) as opened:
            return opened.size
    except Image.DecompressionBombError:
        raise Refused(f"an image has more than {PIXELS} pixels.", 413) from None
    except Exception as error:  # Pillow raises all kinds for broken files
        raise Refused(f"an image is no PNG that can be read ({type(error).__name__}).") from None


def _texts(value: object) -> list[str]:
    """A list of texts; of anything else, none."""
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


async def body_of(request: Request, largest: int, seconds: float) -> bytes:
    """The body of a request that is small enough and arrives in time."""
    length = request.headers.get("content-length", "0")
    if int(length) > largest:  # h11 has checked that it is a number
        raise Refused(f"the request has {length} bytes, expected at most {largest}; send less.", 413)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > largest:
                    raise Refused(f"the request has more than {largest} bytes; send less.", 413)
    except TimeoutError:
        raise Refused(f"the request did not arrive within {seconds:g} s.", 408) from None
    return bytes(body)


async def _drain(request: Request) -> None:
    """Let the rest of a request pass by, if there is one."""
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(LINGER):
            async for _ in request.stream():
                pass


async def _aside(work: Callable[[], Returned]) -> Returned:
    """What is computed in a thread for which the end of the program does not wait."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Returned] = loop.create_future()

    def settle(set_: Callable[[Any], None], value: Any) -> None:
        if not done.cancelled():
            set_(value)

    def compute() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = done.set_result, work()
        except Exception as error:
            outcome = done.set_exception, error
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=compute, daemon=True).start()
    return await done


async def _nothing_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _said(405, {"error": f"{request.method!r} is nothing that is answered; GET and POST are."})
    return _said(error.status_code, {"error": f"there is nothing at {request.url.path!r}; the scorer is at /."})


def _said(status: int, content: Mapping[str, Any]) -> Response:
    """An answer, after which the connection ends."""
    again = {"Retry-After": "1"} if status == 503 else {}
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status, {"Connection": "close", **again}, media_type="application/json")
