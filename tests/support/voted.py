"""Cells with pictures to vote on, and raters who do: through the server, or straight into a log."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from result_files import writer

from alignbench.record.digests import digest, digest_of, picture_of

COLOURS = {
    "base": (200, 60, 60), "best_of_n": (60, 160, 60), "refl": (60, 60, 200), "draft": (180, 160, 40),
    "ddpo": (90, 90, 90), "dpok": (30, 160, 160),
    "sft": (120, 30, 160), "d3po": (20, 20, 20),
}  # fmt: skip


def cells(
    folder: Path,
    methods: Sequence[str] = ("base", "refl"),
    prompts: int = 12,
    size: int = 24,
    same: Sequence[int] = (),
    rows: bool = True,
) -> list[Path]:
    """Result files with pictures of their own; on the prompts `same`, all methods have one picture. Their digests are
    of what each picture shows, or, as in older results, of its file. Each file says of which method it is."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, method in enumerate(methods):
        path = folder / f"{method}.json"
        (folder / method / "images").mkdir(parents=True)
        own = {}
        for place in range(prompts):
            file = picture_of(path, place, 0)
            colour = COLOURS[methods[0] if place in same else method]
            picture = Image.new("RGB", (size, size), colour)
            picture.putpixel((place % size, place // size), (255, 255, 255 if place in same else number))
            about = PngInfo()
            about.add_itxt("method", method)
            picture.save(file, pnginfo=about if rows else None)
            own[place, 0] = digest(file, pixels=rows)
        kept = {"pictures": digest_of(own)}
        digests = list(own.values()) if rows else None
        found.append(writer(folder)(method, [0.1 * number] * prompts, algorithm=method, kept=kept, digests=digests))
    return found


class Browser:
    """What the page does, without a page."""

    def __init__(self, url: str, rater: str, key: str = "") -> None:
        self.url, self.rater, self.key = url, rater, key

    def ask(self, path: str, **content: object) -> dict:
        body = json.dumps({"rater": self.rater, "key": self.key, **content}).encode()
        return json.loads(post(f"{self.url}/{path}", body, origin=self.url)[1])

    def next(self, *have: str) -> dict | None:
        return self.ask("next", have=list(have)).get("pair")

    def vote(self, pair: dict, choice: str) -> dict:
        return self.ask("vote", nonce=pair["nonce"], choice=choice, milliseconds=900)

    def picture(self, pair: dict, side: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/{pair['pictures'][side]}") as answer:
            return answer.read()


def post(url: str, body: bytes, origin: str | None, kind: str = "application/json", host: str | None = None):
    """Status and content of what is answered."""
    headers = {"Content-Type": kind}
    headers |= {} if origin is None else {"Origin": origin}
    headers |= {} if host is None else {"Host": host}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
