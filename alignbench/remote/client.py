"""A scorer that runs elsewhere: pictures go there over HTTP, numbers come back (see `server.py` for what is said).

The URL is the user's choice. Servers of alignbench listen on this machine alone; one on another machine is reached
through a tunnel (`ssh -L`) or an HTTPS proxy. Plain http:// to another machine works and is not encrypted.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import ipaddress
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from alignbench.errors import InputError, RunError, Unsupported
from alignbench.images import to_bytes
from alignbench.interface import Prompt, RewardInfo
from alignbench.printed import visible
from alignbench.remote.server import PROTOCOL
from alignbench.scoring.preprocessing import unsuitable_shape
from alignbench.sourced import SourcedInfo

IMAGES = 16  # in one request
PIXELS = 2**25  # of pictures in one request, unless one alone has more
BYTES = 32 * 2**20  # of pictures in one request, unless one alone has more
SECONDS = 300.0  # for one answer, from the first name that is looked up to its last byte
WAITS = (0.5, 1.0, 2.0)  # seconds before each further attempt
LARGEST = 2**20  # bytes of an answer
SHOWN = 200  # characters of what a server says


class _Unavailable(Exception):
    """No answer, or one that says that the server is at fault: it may be better the next time."""


class _Busy(_Unavailable):
    """The server says when to ask again; others are before us."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Pictures go where the user said and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class RemoteScorer:
    """The scorer at an http:// or https:// URL. Its identity is what the server says it is.

    Raises InputError for what is no such URL; RunError where there is no server, it refuses, it takes longer than
    five minutes, what it says is no answer, or it has become another scorer. A row that it could not score is NaN.
    """

    url: str

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:  # a port that is no number
            wrong = True
        if wrong or parts.query or parts.fragment or parts.username is not None or not self.url.isprintable():
            raise InputError(
                f"scorer {self.url!r}: expected a URL such as http://127.0.0.1:8000, without user, query or fragment."
            )

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        expected, values = self.info(), list[float]()
        for chunk, texts in _requests(images, prompts):
            body = json.dumps({"images": chunk, "prompts": texts}).encode()
            answer = self._ask(body)
            found = self._identity(answer)
            if found != expected:
                raise RunError(
                    f"the scorer at {self.url} was {_short(expected)} and is now {_short(found)}; start the first one "
                    "again and continue, or begin anew with this one."
                )
            values += self._scores(answer, len(texts))
        return torch.tensor(values, device=images.device)

    def with_grad(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        raise Unsupported(f"the scorer at {self.url} is in another process; it has no gradient.")

    def info(self) -> RewardInfo:
        return self._info

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return unsuitable_shape(tuple(image_shape))

    @functools.cached_property
    def _info(self) -> RewardInfo:
        """What the server said of its scorer when it was first asked."""
        answer = self._ask(None)
        if not isinstance(answer, dict) or answer.get("protocol") != PROTOCOL:
            raise RunError(self._strange(answer, f'an object with "protocol": {PROTOCOL}'))
        return self._identity(answer)

    def _identity(self, answer: Any) -> RewardInfo:
        try:
            said = answer["scorer"]
            kind = SourcedInfo if "source" in said else RewardInfo
            return TypeAdapter(kind).validate_json(json.dumps(said), strict=True)
        except (ValidationError, KeyError, TypeError):
            raise RunError(self._strange(answer, 'the scorer\'s identity as "scorer"')) from None

    def _scores(self, answer: dict[str, Any], count: int) -> list[float]:
        scores = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != count:
            raise RunError(self._strange(answer, f'{count} "scores"'))
        for value in scores:
            if value is not None and (not isinstance(value, float | int) or isinstance(value, bool)):
                raise RunError(self._strange(answer, f'numbers or null as "scores", not {str(value)[:40]!a}'))
        return [math.nan if value is None else float(value) for value in scores]

    def _strange(self, answer: Any, expected: str) -> str:
        return f"{self.url} answered {json.dumps(answer)[:120]}; expected {expected} (alignbench/remote/server.py)."

    def _ask(self, body: bytes | None) -> Any:
        """The answer to a request, a GET where it has no body. What may pass is tried again, after a while; a server
        that is busy with others, for as long as one answer may take."""
        waits, started = iter(WAITS), time.monotonic()
        while True:
            try:
                return _answer_of(self._within_time(body), self.url)
            except _Unavailable as error:
                busy = isinstance(error, _Busy) and time.monotonic() - started < SECONDS
                wait = error.seconds if isinstance(error, _Busy) and busy else next(waits, None)
                if wait is None:
                    raise RunError(
                        f"the scorer at {self.url} {error}, {len(WAITS) + 1} times; start it (alignbench serve NAME) "
                        "and type the same command again."
                    ) from None
                time.sleep(wait)

    def _within_time(self, body: bytes | None) -> bytes:
        """What the server answers. The limit is of all of it: a server that says a byte now and then, in its headers or
        its errors too, is left as well."""
        outcome: list[bytes | BaseException] = []

        def ask() -> None:
            try:
                outcome.append(self._answer(body))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=ask, daemon=True)  # the end of the program does not wait for it
        thread.start()
        thread.join(SECONDS)
        if not outcome:
            raise RunError(f"the scorer at {self.url} did not answer within {SECONDS:g} s.")
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _answer(self, body: bytes | None) -> bytes:
        request = urllib.request.Request(self.url, data=body, headers={"Content-Type": "application/json"})
        started = time.monotonic()
        content = b""
        try:
            with self._opener.open(request, timeout=SECONDS) as answer:
                while part := answer.read1(2**16):
                    content += part
                    if time.monotonic() - started > SECONDS:
                        raise TimeoutError
                    if len(content) > LARGEST:
                        raise RunError(f"{self.url} answered with more than {LARGEST} bytes; that is no scorer.")
        except urllib.error.HTTPError as error:
            with error:
                reason, again = _reason(error), error.headers.get("Retry-After", "")
            if error.code == 503 and again.isdecimal():
                raise _Busy(f"answered 503 ({reason})", min(float(again[:9]), max(WAITS))) from None
            if error.code >= 500:
                raise _Unavailable(f"answered {error.code} ({reason})") from None
            raise RunError(f"the scorer at {self.url} refuses with {error.code}: {reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                raise RunError(f"the scorer at {self.url} did not answer within {SECONDS:g} s.") from None
            raise _Unavailable(f"cannot be reached ({_shown(str(cause)) or type(cause).__name__})") from None
        return content

    @functools.cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        """No proxy knows the way to this machine itself."""
        proxies = [urllib.request.ProxyHandler({})] if _is_loopback(urlsplit(self.url).hostname or "") else []
        return urllib.request.build_opener(*proxies, _NoRedirect())


def _requests(images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Iterator[tuple[list[str], list[str]]]:
    """Pictures as PNG in base64 and their texts, as many as go into one request."""
    from PIL import Image

    most = max(1, min(IMAGES, PIXELS // (images.shape[2] * images.shape[3])))
    chunk, texts, size = list[str](), list[str](), 0
    for pixels, prompt in zip(to_bytes(images).numpy(), prompts, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        if chunk and (len(chunk) == most or size + len(encoded) > BYTES):
            yield chunk, texts
            chunk, texts, size = [], [], 0
        chunk.append(encoded)
        texts.append(prompt.text)
        size += len(encoded)
    if chunk:
        yield chunk, texts


def _short(info: RewardInfo) -> str:
    """An identity in a few words: all of it that is likely to differ."""
    files = "".join(f", {name} {sha256[:12]}" for name, sha256 in info.files.items())
    versions = "".join(f", {name} {version}" for name, version in info.versions.items())
    return _shown(f"{info.id!r}{files}{versions}")


def _answer_of(content: bytes, url: str) -> Any:
    """The values of an answer in JSON."""
    try:
        return json.loads(content, parse_constant=_refuse, parse_float=_finite, parse_int=_finite_int)
    except (ValueError, RecursionError):
        shown = ascii(content[:60].decode("utf-8", "replace"))
        raise RunError(f"{url} answered {shown}, which is not JSON; that is no scorer.") from None


def _reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says of itself: a sentence in JSON, or a few words of plain text."""
    text, content = "", None
    with contextlib.suppress(ValueError, RecursionError, OSError, http.client.HTTPException):
        text = error.read(2**12).decode("utf-8", "replace")
        content = json.loads(text)
    said = content.get("error") if isinstance(content, dict) else None
    if content is None and error.headers.get("Content-Type", "").startswith("text/plain"):
        said = text
    return _shown(str(said or error.reason))


def _shown(text: str) -> str:
    """What a server says, bounded and in one line in which nothing is hidden."""
    return " ".join(visible(text[:SHOWN]).split())


def _refuse(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _finite_int(text: str) -> int:
    _finite(text)
    return int(text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
