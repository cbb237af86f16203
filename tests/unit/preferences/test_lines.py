"""A folder of pairs of our own: what is held of it, and what is said of a line that is wrong."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from alignbench.errors import InputError
from alignbench.preferences.choosing import choose
from alignbench.preferences.columns import digest_of
from alignbench.preferences.source import open_pairs


def folder_of(place: Path, lines: list[bytes], pictures: int = 3) -> Path:
    place.mkdir(exist_ok=True)
    for i in range(pictures):
        (place / f"{i}.png").write_bytes(bytes(i + 1))
    (place / "pairs.jsonl").write_bytes(b"".join(lines))
    return place


def line(i: int, **more: object) -> bytes:
    row = {"prompt": f"prompt {i}", "images": [f"{i % 3}.png", f"{(i + 1) % 3}.png"], "label": (1, 0, 0.5)[i % 3]}
    return json.dumps(row | more, ensure_ascii=False).encode() + b"\n"


def test_lines_are_read_again_wherever_they_begin(tmp_path):
    lines = [b"\xef\xbb\xbf" + line(0, prompt="“café” 猫"), b"\n", line(1, id="own"), b" \r\n", line(2).rstrip(b"\n")]
    source = open_pairs(folder_of(tmp_path, lines))
    assert [source.pair(i).prompt.text for i in range(3)] == ["“café” 猫", "prompt 1", "prompt 2"]
    assert [source.pair(i).place for i in range(3)] == [f"pairs.jsonl, line {k}" for k in (1, 3, 5)]
    assert source.pair(1).prompt.id == "own"
    assert list(source.rows()) == [("“café” 猫", 1.0, None), ("prompt 1", 0.0, None), ("prompt 2", 0.5, None)]
    assert dict(source.images([2, 0, 2])) == {2: (bytes(3), bytes(1)), 0: (bytes(1), bytes(2))}


def test_the_digest_is_of_names_and_sizes_once_and_of_all_rows(tmp_path):
    source = open_pairs(folder_of(tmp_path, [line(i) for i in range(5000)]))
    names = [(f"{i % 3}.png", f"{(i + 1) % 3}.png") for i in range(5000)]
    rows = [(f"prompt {i}", (1.0, 0.0, 0.5)[i % 3], None) for i in range(5000)]
    assert source.sha256 == digest_of([("0.png", 1), ("1.png", 2), ("2.png", 3)], rows, names)


def test_a_pictures_file_is_looked_at_again_where_too_many_are_remembered(tmp_path, monkeypatch):
    whole = open_pairs(folder_of(tmp_path, [line(i) for i in range(9)]))
    monkeypatch.setattr("alignbench.preferences.lines.REMEMBERED", 1)
    fewer = open_pairs(tmp_path)
    assert (fewer.sha256, fewer.stamp) == (whole.sha256, whole.stamp)


def test_memory_does_not_grow_with_what_lines_say(tmp_path):
    lines = [line(i, prompt=f"{i} " + "very long " * 100) for i in range(4000)]
    folder = folder_of(tmp_path, lines)
    tracemalloc.start()
    source = open_pairs(folder)
    chosen = choose(source, "drop", None, ["prompt"])
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chosen) == 2667
    assert held < 1_500_000  # of 4 MB


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"prompt": "caf\xe9"}\n', r"line 3: not UTF-8 \(as Windows-1252 it would be 'é'\); save the file as UTF-8"),
        (b'{"prompt": "\0"}\n', "line 3: a null character"),
        (b"{\n", r"line 3: not JSON"),
        (line(0, label=2), r"line 3: the label is 2; expected 1, 0 or 0\.5"),
        (line(0, images=["9.png", "0.png"]), r"line 3: the image '9\.png' is not in"),
        (b'{"prompt": "\\ud800"}\n', "line 3: not JSON"),
    ],
)
def test_a_wrong_line_among_right_ones_is_named_by_its_number(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        open_pairs(folder_of(tmp_path, [line(0), line(1), bad, line(2)]))


def test_a_file_of_another_encoding_and_an_endless_line_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"pairs\.jsonl is UTF-16; save the file as UTF-8"):
        open_pairs(folder_of(tmp_path, [line(0).decode().encode("utf-16")]))
    monkeypatch.setattr("alignbench.texts.LONGEST", 200)
    with pytest.raises(InputError, match="line 2: has more than 200 bytes, which is no line of this kind"):
        open_pairs(folder_of(tmp_path, [line(0), line(1, prompt="x" * 300)]))


def test_a_file_that_changes_while_it_is_read_is_said(tmp_path):
    source = open_pairs(folder_of(tmp_path, [line(0), line(1)]))
    (tmp_path / "pairs.jsonl").write_bytes(b"x" * 300)
    with pytest.raises(InputError, match="line 2: was changed while it was read; begin anew"):
        source.pair(1)
