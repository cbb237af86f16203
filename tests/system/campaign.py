"""Faults by the hundred: `python tests/system/campaign.py [PART ...] [--share 0.1] [--output results/campaign]`.

kills     commands killed at every point at which they write a file, and at random instants, then typed again
results   mutated result files under six commands
weights   mutated adapters and reward files, opened
pictures  hostile picture files, scored beside a sound one
requests  hostile requests to a scorer server, a sound one after each

Nothing may be lost: a killed command ends as one never killed, what is sound is scored as if it stood alone, and each
refusal is one line that calls nothing unexpected. Prints a line per part and writes the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import numpy as np  # noqa: E402
from places import TOY  # noqa: E402
from warm import Done, Kill, execute, preload_networks  # noqa: E402

from alignbench.keys import Key  # noqa: E402

KEY = Key("campaign")
BANNED = ("unexpected", "Traceback")


@dataclass
class Part:
    """What came of one kind of fault."""

    name: str
    tried: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # what must not be
    started: float = field(default_factory=time.monotonic)

    def count(self, ended: str, fault: str | None = None) -> None:
        self.tried += 1
        self.ended[ended] += 1
        if fault is not None:
            self.faults.append(fault)
            print(f"  {self.name}: {fault}", flush=True)

    def as_values(self) -> dict[str, Any]:
        return {"tried": self.tried, "ended": dict(sorted(self.ended.items())), "faults": self.faults}


def complaint(code: int, err: str) -> str | None:
    """What is wrong with how a command ended, if anything."""
    if code not in (0, 1, 2):
        return f"exit code {code}: {err.strip()[-300:]}"
    if any(word in err for word in BANNED):
        return err.strip()[-300:]
    if code and not err.strip():
        return f"exit code {code} without a word"
    return None


# kills: what a command leaves must be what it leaves when nobody kills it


@dataclass(frozen=True)
class Killed:
    """A command under test: its words for a folder of its own, and what it leaves there, without times."""

    name: str
    words: Callable[[Path], list[str]]
    left: Callable[[Path, str], Any]
    at_writes: int
    at_instants: int


def kills(folder: Path, share: float) -> Part:
    part = Part("kills")
    for command in commands(folder):
        whole = folder / command.name / "whole"
        whole.mkdir(parents=True)
        counted = folder / command.name / "writes"
        begun = time.monotonic()
        done = execute(command.words(whole), Kill(folder=str(whole), count_into=str(counted)))
        seconds = time.monotonic() - begun
        assert done.returncode == 0, done.stderr
        expected, writes = command.left(whole, done.stdout), int(counted.read_text())
        at = _spread(writes, math.ceil(command.at_writes * share))
        instants = [0.05 + u * seconds for u in _uniform(command.name, math.ceil(command.at_instants * share))]
        print(f"  {command.name}: {writes} writes in {seconds:.1f} s", flush=True)
        for kind, moments in (("write", at), ("instant", instants)):
            for moment in moments:
                own = folder / command.name / f"{kind}-{moment:.4g}"
                own.mkdir()
                kill = Kill(str(own), **({"write": moment} if kind == "write" else {"seconds": moment}))
                first = execute(command.words(own), kill)
                last = done = first if first.returncode == 0 else execute(command.words(own))
                fault = complaint(last.returncode, last.stderr) if last.returncode else None
                where = f"{command.name}, {kind} {moment:.4g}"
                if fault is None and (found := command.left(own, done.stdout)) != expected:
                    fault = f"{_difference(expected, found)}"
                if fault is None and (left := [str(p) for p in own.rglob(".*.tmp")]):
                    fault = f"left {left}"
                ended = "killed and continued" if first.returncode < 0 else "over before"
                part.count(f"{command.name}: {ended}", None if fault is None else f"{where}: {fault}")
                shutil.rmtree(own)
    return part


def commands(folder: Path) -> list[Killed]:
    (folder / "points.txt").write_text("".join(f"point {i}\n" for i in range(8)))
    (folder / "captions.txt").write_text("".join(f"picture {i}\n" for i in range(12)))
    (folder / "training.txt").write_text("".join(f"training point {i}\n" for i in range(8)))
    pictures, pairs = folder / "pictures", folder / "red-pairs"
    _write_pictures(pictures, 12)
    _write_pairs(pairs, 48)
    cell = ["--model", "mixture", "--steps", "4", "--prompts", str(folder / "points.txt"), "--batch-size", "4"]
    cell += ["--train-prompts", str(folder / "training.txt"), "--reward", f"{TOY}:FirstCoordinate"]
    few = {"rounds": 3, "samples_per_round": 8, "batch": 4, "updates_per_round": 2}
    ddpo = [*cell, "--algo", "ddpo", *(w for n, v in few.items() for w in ("--set", f"{n}={v}"))]
    suite = folder / "suite.yaml"
    suite.write_text(
        "defaults:\n  model: mixture\n  steps: 4\n"
        f"  prompts: {folder / 'points.txt'}\n  reward: '{TOY}:FirstCoordinate'\n"
        "cells:\n  - {algo: base}\n  - {algo: best_of_n, set: {n: [2, 3]}}\n"
    )
    made = ["pairs", "--model", "tiny", "--count", "6", "--steps", "2", "--batch-size", "4"]
    taught = ["train-reward", "--pairs", str(pairs), "--steps", "6", "--batch-size", "16"]
    score = ["--scorers", "jpeg_compressibility", "--prompts", str(folder / "captions.txt"), "--json"]
    return [
        Killed("run", lambda own: ["run", *ddpo, "--output", str(own / "results")], _results, 30, 12),
        Killed("suite", lambda own: ["suite", str(_rooted(suite, own))], _results, 20, 10),
        Killed("pairs", lambda own: [*made, "--output", str(own / "pairs")], _made_pairs, 12, 6),
        Killed("score", lambda own: ["score", str(_copied(pictures, own)), *score, *_kept(own)], _rows, 8, 8),
        Killed("train-reward", lambda own: [*taught, "--output", str(own / "reward.safetensors")], _weights, 8, 4),
    ]  # fmt: skip


def _results(own: Path, _: str) -> dict[str, Any]:
    """The results in a folder without what may differ: times, memory, attempts."""
    from alignbench.record import result as results

    found = {}
    for path in sorted((own / "results").glob("*.json")):
        content = results.read(path).model_dump(mode="json")
        for name in ("started", "finished", "attempts", "environment"):
            del content[name]
        content["cost"] = {k: v for k, v in content["cost"].items() if "seconds" not in k and "memory" not in k}
        content["curve"] = [{k: v for k, v in line.items() if k != "seconds"} for line in content["curve"]]
        found[path.name] = json.loads(json.dumps(content).replace(str(own), ""))
    return found


def _kept(own: Path) -> list[str]:
    return ["--output", str(own / "scores.json")]


def _rows(_: Path, out: str) -> list[Any]:
    return [row["scores"] for row in json.loads(out)["rows"]]


def _made_pairs(own: Path, _: str) -> dict[str, int]:
    folder = own / "pairs"
    kept = [folder / "pairs.jsonl", *sorted(folder.rglob("*.png"))]
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in kept}


def _weights(own: Path, _: str) -> str:
    from safetensors.numpy import load_file

    return json.dumps({n: float(np.abs(v).sum()) for n, v in sorted(load_file(own / "reward.safetensors").items())})


def _rooted(suite: Path, own: Path) -> Path:
    """The suite with its results in a folder of the command's own."""
    path = own / "suite.yaml"
    path.write_text(suite.read_text().replace("defaults:\n", f"defaults:\n  output: {own / 'results'}\n"))
    return path


def _copied(pictures: Path, own: Path) -> Path:
    if not (own / "pictures").exists():
        shutil.copytree(pictures, own / "pictures")
    return own / "pictures"


def _difference(expected: Any, found: Any, where: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and expected.keys() == found.keys():
        for name in expected:
            if expected[name] != found[name]:
                return _difference(expected[name], found[name], f"{where}/{name}")
    return f"{where or 'what it left'} is {str(found)[:120]}, and was {str(expected)[:120]}"


def _spread(count: int, wanted: int) -> list[int]:
    """Numbers from 1 to count, all of them or evenly chosen."""
    return sorted({1 + round(i * (count - 1) / max(1, wanted - 1)) for i in range(min(wanted, count))})


def _uniform(name: str, count: int) -> list[float]:
    return [float(u) for u in KEY(name).generator().random(count)]


def _write_pictures(folder: Path, count: int) -> None:
    from PIL import Image

    folder.mkdir()
    for i in range(count):
        Image.fromarray(KEY("picture", i).generator().integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )


def _write_pairs(folder: Path, count: int) -> None:
    """Pairs of noise in the embedded world's size, the redder one preferred."""
    from PIL import Image

    from alignbench.shapes.scene import SIDE, sample_caption

    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(count):
        drawn = [KEY("pair", i, s).generator().integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for s in "ab"]
        names = [f"images/{i}{side}.png" for side in "ab"]
        for name, picture in zip(names, drawn, strict=True):
            Image.fromarray(picture).save(folder / name)
        redder = float(drawn[0][..., 0].mean() > drawn[1][..., 0].mean())
        caption = sample_caption(KEY("caption", i), "train").text
        lines.append({"prompt": caption, "images": names, "label": redder})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# results: whatever stands in a file, a command says in a line what is wrong with it


def mutated_results(folder: Path, share: float) -> Part:
    part = Part("results")
    sound = [_sound_result(folder, algorithm) for algorithm in ("base", "best_of_n")]
    text, other = sound[0].read_text(), str(sound[1])
    places = folder / "mutated"
    places.mkdir()
    for i in range(math.ceil(200 * share)):
        path = places / f"mutated{i}.json"
        path.write_bytes(mutate_json(text, KEY("result", i)))
        name = str(path)
        for words in (
            ["compare", other, name],
            ["compare", other, name, "--skip-bad", "--format", "csv"],
            ["plan", other, name],
            ["report", other, name, "--output", str(folder / "report.html")],
            ["show", name],
            ["ls", str(places)],
            ["plot", name, "--output", str(folder / "plot.png")],
            ["sheet", name, "--output", str(folder / "sheet.png")],
        ):
            done = inside(words)
            fault = complaint(done.returncode, done.stderr)
            part.count(f"{words[0]}: exit code {done.returncode}", fault and f"{' '.join(words)}: {fault}")
        path.unlink()
    return part


def _sound_result(folder: Path, algorithm: str) -> Path:
    (folder / "few.txt").write_text("".join(f"point {i}\n" for i in range(6)))
    words = ["run", "--model", "mixture", "--algo", algorithm, "--steps", "4", "--prompts", str(folder / "few.txt")]
    words += ["--reward", f"{TOY}:FirstCoordinate", "--output", str(folder / "sound"), "--name", algorithm]
    done = execute(words)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "sound").glob(f"*-{algorithm}*.json")
    return path


HOSTILE: list[Any] = [
    None, True, -1, 0, 1e308, 10**40, "", "x", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "<script>alert(1)</script>",
    "=cmd()", [], {}, [[]], {"a": {"b": None}}, "../../etc/passwd", "NaN", "9" * 400,
]  # fmt: skip


def mutate_json(text: str, key: Key) -> bytes:
    """The text of a JSON file with one thing changed: bytes, or a value somewhere in it."""
    drawn = key.generator()
    kind = int(drawn.integers(6))
    raw = text.encode()
    if kind == 0:
        return raw[: int(drawn.integers(len(raw)))]
    if kind == 1:
        flipped = bytearray(raw)
        for place in drawn.integers(len(raw), size=3):
            flipped[place] ^= 1 << int(drawn.integers(8))
        return bytes(flipped)
    if kind == 2:
        return (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"NaN", b"", b"9" * 10_000)[int(drawn.integers(6))]
    content = json.loads(text)
    where = list(_places(content))
    holder, name = where[int(drawn.integers(len(where)))]
    if kind == 3:
        del holder[name]
    elif kind == 4:
        holder[name] = HOSTILE[int(drawn.integers(len(HOSTILE)))]
    else:
        other_holder, other_name = where[int(drawn.integers(len(where)))]
        with contextlib.suppress(KeyError, IndexError):
            holder[name] = json.loads(json.dumps(other_holder[other_name]))
    if isinstance(content, dict) and drawn.integers(2):  # half of them with a digest that is right
        from alignbench.record.contents import digest_of

        with contextlib.suppress(ValueError):
            content["digest"] = digest_of(content)
    return json.dumps(content).encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as its holder and its name or number."""
    for name in content if isinstance(content, dict) else range(len(content)):
        yield content, name
        if isinstance(content[name], dict | list):
            yield from _places(content[name])


def inside(words: Sequence[str]) -> Done:
    """One command in this process."""
    from alignbench.cli.app import run_command_line

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command_line(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


# weights


def mutated_weights(folder: Path, share: float) -> Part:
    from alignbench.diffusion import registry
    from alignbench.errors import AlignbenchError
    from alignbench.interface import BiasFineTune, FullFineTune, LoRA, Tuning
    from alignbench.meter import Meter

    part, model = Part("weights"), registry.find("tiny")
    pipeline, family = registry.load(model, Meter()), registry.family_of(model)
    kinds: dict[str, Tuning] = {"lora": LoRA(2), "full": FullFineTune(), "bias": BiasFineTune()}
    for name, tuning in kinds.items():
        pipeline.adapt(tuning, KEY(name)).save(folder / name)
    for i in range(math.ceil(60 * share)):
        name = list(kinds)[i % len(kinds)]
        own = folder / f"mutated{i}"
        shutil.copytree(folder / name, own)
        files = sorted(path for path in own.rglob("*") if path.suffix in (".safetensors", ".json"))
        chosen = files[int(KEY("file", i).generator().integers(len(files)))]
        chosen.write_bytes(mutate_bytes(chosen.read_bytes(), KEY("weights", i)))
        try:
            family.open_policy(pipeline, own)
        except AlignbenchError as error:
            said = str(error)
            wrong = "\n" in said or any(word in said for word in BANNED)
            part.count(f"{name}: refused", f"{chosen.name}: {said}" if wrong else None)
        except Exception as error:
            part.count(f"{name}: {type(error).__name__}", f"{i} {chosen.name}: {type(error).__name__}: {error}")
        else:
            part.count(f"{name}: opened")
        shutil.rmtree(own)
    return part


def mutate_bytes(raw: bytes, key: Key) -> bytes:
    """A file cut short, with bits flipped at its start or anywhere, emptied, doubled, or with a header that lies."""
    drawn = key.generator()
    kind = int(drawn.integers(6))
    if kind == 0:
        return raw[: int(drawn.integers(len(raw)))]
    if kind in (1, 2):
        flipped = bytearray(raw)
        for place in drawn.integers(min(len(raw), 400 if kind == 1 else len(raw)), size=4):
            flipped[place] ^= 1 << int(drawn.integers(8))
        return bytes(flipped)
    if kind == 3:
        return raw * 2
    if kind == 4:
        return struct.pack("<Q", 1 << int(drawn.integers(64))) + raw[8:]
    return bytes(drawn.integers(0, 256, int(drawn.integers(200)), dtype=np.uint8))


# pictures


def hostile_pictures(folder: Path, share: float) -> Part:
    part = Part("pictures")
    sound = folder / "sound.png"
    _write_picture(sound, "PNG", (48, 32))
    alone = _scored(folder / "alone", {"0.png": sound.read_bytes()})
    assert alone.returncode == 0, alone.stderr
    (expected,) = json.loads(alone.stdout)["rows"]
    for i in range(math.ceil(60 * share)):
        name, content = hostile_picture(folder, i)
        done = _scored(folder / f"hostile{i}", {"0.png": sound.read_bytes(), f"1{Path(name).suffix}": content})
        fault = complaint(done.returncode, done.stderr)
        if fault is None and done.returncode == 0:
            rows = json.loads(done.stdout)["rows"]
            fault = None if rows[0]["scores"] == expected["scores"] else f"the sound picture's row is {rows[0]}"
        part.count(f"exit code {done.returncode}", fault and f"{i} {name}: {fault}")
    return part


def _scored(own: Path, files: Mapping[str, bytes]) -> Done:
    own.mkdir()
    for name, content in files.items():
        (own / name).write_bytes(content)
    captions = own.with_suffix(".txt")
    captions.write_text("".join(f"picture {i}\n" for i in range(len(files))))
    return inside(["score", str(own), "--scorers", "jpeg_compressibility", "--prompts", str(captions), "--json"])


def _write_picture(path: Path, kind: str, size: tuple[int, int], mode: str = "RGB") -> None:
    from PIL import Image

    pixels = KEY("pixels", kind, *size).generator().integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, kind)


KINDS = (("PNG", ".png", "RGB"), ("JPEG", ".jpg", "CMYK"), ("WEBP", ".webp", "RGBA"), ("PNG", ".png", "P"),
         ("BMP", ".bmp", "L"), ("TIFF", ".tif", "I;16"))  # fmt: skip


def hostile_picture(folder: Path, i: int) -> tuple[str, bytes]:
    """A file that calls itself a picture: a mutated one, or one that is made to hurt."""
    made: dict[str, bytes] = {
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n",
        "bomb.png": _png(60_000, 60_000, zlib.compress(bytes(1_000_000))),
        "lies.png": _png(16, 16, zlib.compress(bytes(100_000_000))),
        "zero.png": _png(0, 16, zlib.compress(b"")),
        "text.png": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))) + _chunk(b"IDAT", zlib.compress(bytes(200)))
        + _chunk(b"IEND", b""),
        "empty.png": b"",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "pickle.png": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "gif.gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + bytes(64),
        "pcx.png": b"\x0a\x05\x01\x08" + bytes(128),
    }  # fmt: skip
    if i < len(made):
        return list(made.items())[i]
    kind, ending, mode = KINDS[i % len(KINDS)]
    path = folder / f"drawn{ending}"
    if mode == "I;16":
        from PIL import Image

        Image.fromarray(KEY("deep").generator().integers(0, 65536, (32, 48)).astype(np.uint16)).save(path, kind)
    else:
        _write_picture(path, kind, (48, 32), mode)
    return path.name, mutate_bytes(path.read_bytes(), KEY("mutated", i))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, content: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


# requests


def hostile_requests(folder: Path, share: float) -> Part:
    part = Part("requests")
    log = folder / "server.txt"
    with open(log, "w") as handle:
        server = subprocess.Popen(
            [sys.executable, "-m", "alignbench", "serve", "jpeg_compressibility", "--port", "0"],
            stdout=handle, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        port = _port(log, server)
        expected = _sound_answer(port)
        for i in range(math.ceil(60 * share)):
            name, status = _send(port, i)
            fault = None if _sound_answer(port) == expected else "a sound request is answered otherwise after it"
            if status.startswith("5") and status != "503":
                fault = f"answered {status}"
            part.count(status, fault and f"{i} {name}: {fault}")
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(timeout=30)
    said = log.read_text()
    if code not in (0, 130) or any(word in said for word in BANNED):
        part.faults.append(f"the server ended with {code}: {said[-300:]}")
    return part


def _port(log: Path, server: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        if "http://127.0.0.1:" in (said := log.read_text()):
            return int(said.split("http://127.0.0.1:")[1].split(";")[0].split("/")[0].split()[0])
        assert server.poll() is None, said
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def _body() -> bytes:
    import base64

    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(KEY("asked").generator().integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return json.dumps({"prompts": ["a"], "images": [base64.b64encode(buffer.getvalue()).decode()]}).encode()


def _sound_answer(port: int) -> Any:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/", _body(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.loads(answer.read())


def _send(port: int, i: int) -> tuple[str, str]:
    """A hostile request by number: its name, and the status of the answer or how the connection ended."""
    body, drawn = _body(), KEY("request", i).generator()
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    sized = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    bomb = json.dumps({"prompts": ["a"], "images": [_encoded(_png(30_000, 30_000, zlib.compress(bytes(9))))]}).encode()
    made: dict[str, bytes] = {
        "another host": sized.replace(b"127.0.0.1", b"evil.example") + body,
        "a body of terabytes": f"{head}Content-Length: 9999999999999\r\n\r\n".encode(),
        "a negative length": f"{head}Content-Length: -5\r\n\r\n".encode() + body,
        "no length": f"{head}\r\n".encode() + body,
        "brackets": f"{head}Content-Length: 100000\r\n\r\n".encode() + b"[" * 100_000,
        "a bomb": f"{head}Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb,
        "no HTTP": b"\x16\x03\x01" + bytes(drawn.integers(0, 256, 100, dtype=np.uint8)),
        "a long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        "many headers": head.encode() + b"".join(b"X-%d: y\r\n" % k for k in range(3000)) + b"\r\n",
        "a path upwards": f"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode(),
        "another method": sized.replace(b"POST", b"DELETE") + body,
        "lists that differ": _posted(head, {"prompts": ["a", "b"], "images": []}),
        "numbers for prompts": _posted(head, {"prompts": [1], "images": ["x"]}),
        "no picture": _posted(head, {"prompts": ["a"], "images": ["bm8gcGljdHVyZQ=="]}),
        "nothing": _posted(head, {}),
        "two lengths": f"{head}Content-Length: 3\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
    }
    if i < len(made):
        name, raw = list(made.items())[i]
    else:
        name, raw = "mutated", mutate_bytes(sized + body, KEY("raw", i))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except (ConnectionError, TimeoutError) as error:
            return name, type(error).__name__
    return name, answer.split(b" ")[1].decode("ascii", "replace") if answer.startswith(b"HTTP/") else "closed"


def _encoded(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()


def _posted(head: str, content: Any) -> bytes:
    body = json.dumps(content).encode()
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


PARTS: dict[str, Callable[[Path, float], Part]] = {
    "kills": kills,
    "results": mutated_results,
    "weights": mutated_weights,
    "pictures": hostile_pictures,
    "requests": hostile_requests,
}


def campaign(names: Sequence[str], share: float) -> dict[str, Part]:
    """The parts, each in a folder and with a cache of its own."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
            found[name] = part = PARTS[name](Path(folder), share)
        seconds = time.monotonic() - part.started
        print(f"{name}: {part.tried} tried, {len(part.faults)} faults, {seconds:.0f} s; {dict(part.ended)}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the faults; 1 is all of them")
    parser.add_argument("--output", type=Path, help="a folder for faults.json, whose other parts are kept")
    chosen = parser.parse_args()
    preload_networks()
    found = campaign(chosen.parts or list(PARTS), chosen.share)
    if chosen.output is not None:
        path = chosen.output / "faults.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        chosen.output.mkdir(parents=True, exist_ok=True)
        kept |= {name: part.as_values() for name, part in found.items()}
        path.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if any(part.faults for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
