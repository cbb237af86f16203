"""Preference pairs from files: three layouts, the choice among them, the cache, and what a loss is handed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignbench.errors import InputError
from alignbench.images import fitted
from alignbench.interface import Pairs
from alignbench.keys import Key
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.parquet import ROWS, ParquetPairs
from alignbench.preferences.source import open_pairs
from alignbench.quantities import Condition

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIDE = 8


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG") -> bytes:
    """An encoded image of this width and height: red runs with the column, green with the row, blue is the number."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width) * 4 % 256
    pixels[..., 1] = np.arange(height)[:, None] * 4 % 256
    pixels[..., 2] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def blue(image: torch.Tensor) -> int:
    """The number of a picture that stands in its pixels or latents."""
    return round(float(image[2].mean()) * 255)


class FakePipeline:
    """Latents are the images, averaged over 4 x 4 pixels; a text is embedded as its hash."""

    train_timesteps, latent_shape = 10, (3, 2, 2)

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.encoded: list[int] = []  # images of each call
        self.conditioned: list[list[str]] = []

    def info(self):
        return {"name": self.name, "image_shape": [3, SIDE, SIDE]}

    def condition(self, prompts):
        self.conditioned.append([prompt.text for prompt in prompts])
        rows = torch.stack([self.embedded(prompt.text) for prompt in prompts])
        return Condition({"text": rows}, {"text": self.embedded("").expand_as(rows)})

    def embedded(self, text: str) -> torch.Tensor:
        return torch.tensor(list(hashlib.sha256(text.encode()).digest()[:4])).float()[None]

    def encode(self, images):
        self.encoded.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 4)

    def unused(self, *_, **__):
        raise AssertionError("pairs need no sampling")

    initial_noise = timesteps = add_noise = predict = decode = adapt = unused


def write_parquet(path: Path, rows: list[dict], group: int = 2, drop: tuple[str, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        "jpg_0": picture(0), "jpg_1": picture(1), "label_0": 1.0, "caption": "a fox", "model_0": "dreamlike-1",
        "model_1": "sdxl", "has_label": True, "are_different": True,
    }  # fmt: skip
    full = [plain | row for row in rows]
    columns = {name: [row[name] for row in full] for name in plain if name not in drop}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.fixture
def labelled(tmp_path) -> ParquetPairs:
    """Pairs 0 to 4 with images numbered 10 i and 10 i + 1: won, lost, tied, won, lost."""
    rows = [
        {"jpg_0": picture(10 * i), "jpg_1": picture(10 * i + 1), "label_0": label, "caption": f"prompt {i}"}
        for i, label in enumerate([1.0, 0.0, 0.5, 1.0, 0.0])
    ]
    return open_pairs(write_parquet(tmp_path / "labelled.parquet", rows))


def encoded(source, cache=None, crop="centre", pipeline=None, ties="keep", said=None, seed=0) -> EncodedPairs:
    say: Callable[[str], None] = (lambda _: None) if said is None else said.append
    chosen = choose(source, ties, None, ())
    return EncodedPairs(chosen, pipeline or FakePipeline(), cache, crop, Key("crop", seed), say)


# Pick-a-Pic's files


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path):
    write_parquet(tmp_path / "b.parquet", [{"caption": "third", "label_0": 0, "model_0": None}])
    rows = [{"caption": "first"}, {"has_label": False, "label_0": None}, {"caption": "second", "label_0": 0.5}]
    write_parquet(tmp_path / "a.parquet", rows)
    source = open_pairs(tmp_path)
    found = [source.pair(i) for i in range(len(source))]
    assert [pair.prompt.text for pair in found] == ["first", "second", "third"]
    assert [pair.label for pair in found] == [1.0, 0.5, 0.0]
    assert [pair.place for pair in found] == ["a.parquet, row 0", "a.parquet, row 2", "b.parquet, row 0"]
    assert [pair.models for pair in found] == [("dreamlike-1", "sdxl"), ("dreamlike-1", "sdxl"), None]
    assert source.unlabelled == 1


def test_equal_captions_are_one_prompt_and_others_have_other_ids(labelled, tmp_path):
    source = open_pairs(write_parquet(tmp_path / "two.parquet", [{}, {}, {"caption": "a cat"}]))
    assert source.pair(0).prompt is source.pair(1).prompt
    assert len({source.pair(i).prompt.id for i in range(3)}) == 2


def test_model_and_judgement_columns_may_be_missing(tmp_path):
    columns = ("model_0", "model_1", "has_label", "are_different")
    source = open_pairs(write_parquet(tmp_path / "bare.parquet", [{}, {"label_0": None}], drop=columns))
    assert len(source) == 1
    assert source.unlabelled == 1
    assert source.pair(0).models is None


def test_each_row_group_is_read_once_a_few_rows_at_a_time(tmp_path, monkeypatch):
    number = 0
    for name in ("a", "b"):
        rows = [{"jpg_0": picture(number + k), "jpg_1": picture(200)} for k in range(6 * ROWS)]
        write_parquet(tmp_path / f"{name}.parquet", rows, group=3 * ROWS)
        number += 10
    read, longest, real = [], 0, pq.ParquetFile.iter_batches

    def watched(self, size, row_groups, **named):
        nonlocal longest
        read.append(row_groups)
        for part in real(self, size, row_groups=row_groups, **named):
            longest = max(longest, len(part))
            yield part

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    source = open_pairs(tmp_path)
    read.clear()
    wanted = [11 * ROWS, 1, 4 * ROWS, 0, 9 * ROWS, 1, 2]
    found = dict(source.images(wanted))
    assert read == [[0], [1], [1]]  # two of the first file, the second of the second
    assert longest <= ROWS
    assert list(found) == [0, 1, 2, 4 * ROWS, 9 * ROWS, 11 * ROWS]
    for i, (first, second) in found.items():
        row = i % (6 * ROWS)
        start = 0 if i < 6 * ROWS else 10
        assert (first, second) == (picture(start + row), picture(200))


def test_one_row_group_is_in_memory_at_a_time(tmp_path):
    """Reading eight row groups of 2 MiB takes no more memory than reading one."""
    noise = [Key("noise", k).generator().bytes(2**17) for k in range(128)]
    rows = [{"jpg_0": noise[2 * k], "jpg_1": noise[2 * k + 1]} for k in range(64)]
    source = open_pairs(write_parquet(tmp_path / "large.parquet", rows, group=8))

    def peak(indices) -> int:
        most, seen = 0, []
        for i, images in source.images(indices):
            assert images == (noise[2 * i], noise[2 * i + 1])
            most = max(most, pa.total_allocated_bytes())
            seen.append(i)
        assert seen == list(indices)
        return most

    one = peak(range(8))
    assert one > 2**21
    assert peak(range(64)) < one + 2**20
    assert pa.total_allocated_bytes() < one - 2**21


def test_the_hash_is_of_content_and_not_of_place(tmp_path):
    rows = [{"caption": "one"}, {"caption": "two", "label_0": 0.0}]
    one = open_pairs(write_parquet(tmp_path / "x" / "a.parquet", rows)).sha256
    assert open_pairs(write_parquet(tmp_path / "y" / "a.parquet", rows)).sha256 == one
    rows[1]["label_0"] = 1.0
    assert open_pairs(write_parquet(tmp_path / "z" / "a.parquet", rows)).sha256 != one


def test_splits_in_one_folder_are_not_mixed(tmp_path):
    for split in ("train", "validation_unique"):
        write_parquet(tmp_path / f"{split}-00000-of-00001-ab12.parquet", [{"caption": split}])
    with pytest.raises(InputError, match=r"several splits \(train, validation_unique\).* name one of them"):
        open_pairs(tmp_path)
    assert open_pairs(tmp_path / "train").pair(0).prompt.text == "train"


@pytest.mark.parametrize(
    ("rows", "drop", "message"),
    [
        ([{}], ("jpg_1", "caption"), r"has no column jpg_1 and no caption; a file of Pick-a-Pic has jpg_0, jpg_1"),
        ([{}, {"label_0": 0.7}], (), r"p\.parquet, row 1: the label is 0\.7; expected 1, 0 or 0\.5"),
        ([{"label_0": float("nan")}], (), r"row 0: the label is nan"),
        ([{"label_0": None}], (), r"row 0: the label is None"),
        ([{"caption": None}], (), r"row 0: the prompt is None; expected text"),
        ([{"has_label": False}], (), r"p\.parquet holds no pairs with a label \(1 without\)"),
        ([{"jpg_0": "text"}], (), r"column jpg_0 holds string; expected the bytes of encoded images"),
    ],
)
def test_a_wrong_parquet_file_is_refused_by_name(tmp_path, rows, drop, message):
    with pytest.raises(InputError, match=message):
        open_pairs(write_parquet(tmp_path / "p.parquet", rows, drop=drop))


AS_DATASETS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "kind", [AS_DATASETS, pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]), pa.large_binary()]
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_images_and_texts_are_read_in_every_kind_that_datasets_writes(tmp_path, kind, text):
    nested = pa.types.is_struct(kind)
    images = [
        [{"bytes": p, "path": None} if nested else p for p in map(picture, numbers)] for numbers in ((1, 3), (2, 4))
    ]
    columns = {f"jpg_{i}": pa.array(column, kind) for i, column in enumerate(images)}
    columns |= {"caption": pa.array(["a fox", "a fox"], text), "label_0": pa.array([1, 0], pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=1)
    source = open_pairs(tmp_path / "p.parquet")
    assert [(p.prompt.text, p.label) for p in map(source.pair, range(2))] == [("a fox", 1.0), ("a fox", 0.0)]
    assert dict(source.images([0, 1])) == {0: (picture(1), picture(2)), 1: (picture(3), picture(4))}


def test_an_image_that_is_only_named_is_a_pair_skipped(tmp_path):
    rows = [{"bytes": picture(1), "path": "1.png"}, {"bytes": None, "path": "2.png"}]
    columns = {"jpg_0": pa.array(rows, AS_DATASETS), "jpg_1": pa.array(rows[:1] * 2, AS_DATASETS)}
    pq.write_table(pa.table(columns | {"caption": ["a", "b"], "label_0": [1.0, 1.0]}), tmp_path / "p.parquet")
    said: list[str] = []
    assert list(encoded(open_pairs(tmp_path / "p.parquet"), said=said).batch([0, 1]).rows) == [0]
    assert said[0].startswith("pair skipped: p.parquet, row 1: no bytes; an image that is only named")


CONTRADICTIONS = [
    ({"label_0": 1.0, "label_1": 1.0}, "label is 1.0 and label_1 is 1.0, which contradict each other"),
    ({"label_0": 0.0, "label_1": 0.0}, "label is 0.0 and label_1 is 0.0"),
    ({"label_0": 0.5, "label_1": 1.0}, "label is 0.5 and label_1 is 1.0"),
    ({"label_0": 1.0, "label_1": float("nan")}, "label is 1.0 and label_1 is nan"),
    ({"label_0": 1.0, "best_image_uid": "b"}, "label is 1.0 and best_image_uid is 'b'.*images are 'a' and 'b'"),
    ({"label_0": 0.0, "best_image_uid": "a"}, "label is 0.0 and best_image_uid is 'a'"),
    ({"label_0": 1.0, "best_image_uid": "c"}, "label is 1.0 and best_image_uid is 'c'"),
    ({"label_0": 0.5, "best_image_uid": "a"}, "label is 0.5 and best_image_uid is 'a'"),
]


@pytest.mark.parametrize(("row", "message"), CONTRADICTIONS)
def test_labels_that_contradict_each_other_are_refused_by_row(tmp_path, row, message):
    rows = [
        plain | {"image_0_uid": "a", "image_1_uid": "b", "jpg_0": picture(0), "jpg_1": picture(1), "caption": "a fox"}
        for plain in ({"label_0": 1.0, "label_1": 0.0, "best_image_uid": "a"}, {"label_1": None} | row)
    ]
    pq.write_table(pa.Table.from_pylist([{"best_image_uid": None} | r for r in rows]), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=rf"p\.parquet, row 1: the {message}"):
        open_pairs(tmp_path / "p.parquet")
    own = {("label" if name == "label_0" else name): value for name, value in rows[1].items() if "jpg" not in name}
    in_json = "not JSON" if "nan" in message else f"the {message}"
    with pytest.raises(InputError, match=rf"pairs\.jsonl, line 1: {in_json}"):
        open_pairs(write_folder(tmp_path / "own", own | {"prompt": "a fox", "images": LINE["images"]}))


@pytest.mark.parametrize(
    "row",
    [
        {"label_0": 1.0, "label_1": 0.0, "best_image_uid": "a"},
        {"label_0": 0.5, "label_1": 0.5, "best_image_uid": "none"},
        {"label_0": 0.5, "label_1": None, "best_image_uid": None},
        {"label_0": 1.0, "label_1": 1.0, "best_image_uid": "c", "has_label": False},
    ],
)
def test_labels_that_agree_and_rows_that_nobody_judged_are_no_contradiction(tmp_path, row):
    plain = {"jpg_0": picture(0), "jpg_1": picture(1), "caption": "a fox", "image_0_uid": "a", "image_1_uid": "b"}
    judged = plain | {"label_0": 0.0, "label_1": 1.0, "best_image_uid": "b", "has_label": True}
    pq.write_table(pa.Table.from_pylist([judged, judged | row]), tmp_path / "p.parquet")
    source = open_pairs(tmp_path / "p.parquet")
    assert len(source) + source.unlabelled == 2


def test_damaged_parquet_is_refused_by_name_and_pyarrow_asked_for(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "p.parquet", [{}])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"p\.parquet cannot be read as parquet"):
        open_pairs(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'alignbench\[parquet\]'"):
        open_pairs(path)


def test_a_text_that_is_not_utf8_is_refused_by_name(tmp_path):
    columns = {"caption": pa.array([b"caf\xe9"], pa.binary()).view(pa.string()), "label_0": [1.0]}
    pq.write_table(pa.table(columns | {"jpg_0": [picture(0)], "jpg_1": [picture(1)]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"p\.parquet cannot be read as parquet: it holds a text that is not UTF-8"):
        open_pairs(tmp_path / "p.parquet")


def test_damage_inside_a_row_group_is_refused_by_name(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", [{"jpg_0": picture(k)} for k in range(4)])
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the first page of the images
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.parquet cannot be read as parquet"):
        list(open_pairs(path).images([0]))


# HPDv2 and our own folders


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, kind="JPEG" if name.endswith("jpg") else "PNG"))


def test_hpdv2s_training_file_is_read(tmp_path):
    write_pictures(tmp_path / "train", "0.jpg", "1.jpg", "2.jpg")
    entries = [
        {"prompt": "a fox", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "x"},
        {"prompt": "a cat", "image_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    source = open_pairs(tmp_path / "train.json")
    assert [(p.prompt.text, p.label, p.place) for p in map(source.pair, range(2))] == [
        ("a fox", 0.0, "train.json, entry 0"),
        ("a cat", 1.0, "train.json, entry 1"),
    ]
    assert dict(source.images([1])) == {1: (picture(1, kind="JPEG"), picture(2, kind="JPEG"))}


def test_hpdv2s_test_file_gives_all_pairs_of_its_ranks(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png", "c.png")
    entry = {"prompt": "a fox", "image_path": ["a.png", "b.png", "c.png"], "rank": [2, 1, 2], "raw_annotations": []}
    (tmp_path / "test.json").write_text(json.dumps([entry]))
    source = open_pairs(tmp_path / "test.json")
    found = [(p.label, p.place) for p in map(source.pair, range(len(source)))]
    assert found == [
        (0.0, "test.json, entry 0, images 0 and 1"),
        (0.5, "test.json, entry 0, images 0 and 2"),
        (1.0, "test.json, entry 0, images 1 and 2"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"t\.json: not JSON"),
        ("{}", r"t\.json: expected a list of objects"),
        ("[]", r"t\.json holds no pairs"),
        ('[{"image_path": ["a.png", "b.png"]}]', r"entry 0: expected an object with prompt"),
        (
            '[{"prompt": "x", "image_path": ["a.png"]}]',
            r"entry 0: image_path is \['a\.png'\]; expected the paths of two",
        ),
        ('[{"prompt": "x", "image_path": ["a.png", "b.png"]}]', r"entry 0: rank is None; expected 2 numbers"),
        (
            '[{"prompt": "x", "image_path": ["a.png", "b.png"], "human_preference": [1, 1]}]',
            r"entry 0: human_preference is \[1, 1\]; expected \[1, 0\] or \[0, 1\]",
        ),
        ('[{"prompt": "x", "image_path": ["a.png", "b.png"], "rank": [1, NaN]}]', r"not JSON \(holds NaN"),
        (
            '[{"prompt": "x", "image_path": ["a.png", "b.png"], "human_preference": [1, 0], "rank": [2, 1]}]',
            r"entry 0: human_preference is \[1, 0\] and rank is \[2, 1\], which contradict each other\. Correct",
        ),
        (
            '[{"prompt": "x", "image_path": ["a.png", "b.png"], "human_preference": [true, false]}]',
            r"entry 0: human_preference is \[True, False\]",
        ),
        ('[{"prompt": "x", "prompt": "y"}]', r"not JSON \(names 'prompt' twice in one object"),
        (
            '[{"prompt": "x", "image_path": ["a.png", "z.png"], "rank": [1, 2]}]',
            r"a\.png and z\.png, are not beside it",
        ),
        ('[{"prompt": "x", "image_path": ["a.png", "../a.png"], "rank": [1, 2]}]', r"'\.\./a\.png' leaves"),
    ],
)
def test_a_wrong_hpdv2_file_is_refused_by_entry(tmp_path, content, message):
    write_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_pairs(tmp_path / "t.json")


def write_folder(folder: Path, *lines: object) -> Path:
    write_pictures(folder, "images/0.png", "images/1.png")
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "pairs.jsonl").write_text(text)
    return folder


LINE = {"prompt": "a fox", "images": ["images/0.png", "images/1.png"], "label": 1}


def test_a_folder_of_our_own_is_read(tmp_path):
    lines = (LINE | {"models": ["A", "B"], "id": "fox", "scores": [2, 1]}, "", LINE | {"label": 0.5})
    write_folder(tmp_path, *lines)
    for path in (tmp_path, tmp_path / "pairs.jsonl"):
        source = open_pairs(path)
        first, second = source.pair(0), source.pair(1)
        assert (first.prompt.id, first.models, first.label) == ("fox", ("A", "B"), 1.0)
        assert first.place == "pairs.jsonl, line 1"
        assert (second.models, second.label, second.place) == (None, 0.5, "pairs.jsonl, line 3")
        assert list(source.images([1, 0, 1])) == [(i, (picture(0), picture(1))) for i in (1, 0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[" * 100_000, r"line 2: not JSON"),
        ('{"label": 1, "label": 0}', r"line 2: not JSON \(names 'label' twice in one object"),
        ("[1]", r"line 2: expected an object"),
        ({"prompt": "x", "label": 1}, r"line 2: no images; expected prompt, images and label"),
        (LINE | {"label": 2}, r"line 2: the label is 2; expected 1, 0 or 0\.5"),
        (LINE | {"label": True}, r"line 2: the label is True"),
        (LINE | {"label": "1"}, r"line 2: the label is '1'"),
        (LINE | {"prompt": 3}, r"line 2: the prompt is 3; expected text"),
        (LINE | {"prompt": "\ud800"}, r"line 2: not JSON \(holds '\\ud800', half of a character"),
        (LINE | {"id": 3}, r"line 2: the id is 3; expected text"),
        (LINE | {"models": ["A"]}, r"line 2: models is \['A'\]; expected two names"),
        (LINE | {"images": ["images/0.png"]}, r"line 2: images is \['images/0\.png'\]; expected two paths"),
        (LINE | {"images": ["images/0.png", 7]}, r"line 2: an image is 7; expected a path relative to"),
        (LINE | {"images": ["images/0.png", "none.png"]}, r"line 2: the image 'none\.png' is not in .* \(No such file"),
        (LINE | {"images": ["images/0.png", "a\0b"]}, r"line 2: the image 'a\\x00b' is not in"),
        (LINE | {"images": ["images/0.png", "images"]}, r"line 2: the image 'images' in .* is not a file"),
        (LINE | {"images": ["../0.png", "images/0.png"]}, r"line 2: the image path '\.\./0\.png' leaves"),
        (LINE | {"images": ["/etc/passwd", "images/0.png"]}, r"line 2: the image path '/etc/passwd' leaves"),
        (LINE | {"images": ["link.png", "images/0.png"]}, r"line 2: the image 'link\.png' is a link out of"),
        (LINE | {"images": ["linked/0.png", "images/0.png"]}, r"line 2: the image 'linked/0\.png' is a link out of"),
    ],
)
def test_a_wrong_line_is_refused_by_number(tmp_path, line, message):
    folder = tmp_path / "inside"
    write_pictures(tmp_path / "outside", "0.png")
    write_folder(folder, LINE, line)
    (folder / "link.png").symlink_to(tmp_path / "outside" / "0.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=message) as caught:
        open_pairs(folder)
    assert "pairs.jsonl, line 2" in str(caught.value)


def test_a_link_that_stays_inside_is_followed(tmp_path):
    write_folder(tmp_path, LINE | {"images": ["link.png", "images/1.png"]})
    (tmp_path / "link.png").symlink_to("images/0.png")
    assert dict(open_pairs(tmp_path).images([0])) == {0: (picture(0), picture(1))}


def test_what_is_not_there_is_answered_with_the_three_layouts(tmp_path):
    with pytest.raises(InputError, match=r"no preference pairs at .*none\. The copies of Pick-a-Pic .* gone") as one:
        open_pairs(tmp_path / "none")
    with pytest.raises(InputError, match="holds no preference pairs") as other:
        open_pairs(tmp_path)
    for caught in (one, other):
        for layout in (".parquet", "train.json or test.json", "pairs.jsonl"):
            assert layout in str(caught.value)


# Choosing


def test_ties_are_dropped_or_kept_and_counted(labelled):
    dropped, kept = (choose(labelled, ties, None, ()) for ties in ("drop", "keep"))
    assert [dropped.pair(i).label for i in range(len(dropped))] == [1, 0, 1, 0]
    assert [kept.pair(i).label for i in range(len(kept))] == [1, 0, 0.5, 1, 0]
    assert dropped.counts["ties_dropped"] == kept.counts["ties_kept"] == 1
    assert dropped.counts["ties_kept"] == kept.counts["ties_dropped"] == 0
    assert dropped.summary() == "4 of 5 pairs used (1 ties dropped)"
    assert dropped.sha256 != kept.sha256
    assert dropped.sha256 == choose(labelled, "drop", None, ()).sha256


def test_numbers_of_chosen_pairs_lead_to_their_own_images(labelled):
    chosen = choose(labelled, "drop", None, ())
    assert dict(chosen.images([3, 2])) == {3: (picture(40), picture(41)), 2: (picture(30), picture(31))}


def test_both_models_must_match_whatever_their_case(tmp_path):
    names = [("Dreamlike-2", "the DREAM"), ("dreamlike", "sdxl"), ("sdxl", "sdxl"), (None, "dream")]
    rows = [{"model_0": first, "model_1": second} for first, second in names]
    chosen = choose(open_pairs(write_parquet(tmp_path / "p.parquet", rows)), "drop", "Dream", ())
    assert chosen.numbers.tolist() == [0]
    assert chosen.counts["other_models"] == 3
    bare = open_pairs(write_parquet(tmp_path / "q.parquet", rows, drop=("model_0", "model_1")))
    with pytest.raises(InputError, match="pairs of models 'Dream' were asked for, but the file does not say"):
        choose(bare, "drop", "Dream", ())


def test_prompts_that_are_evaluated_are_left_out(labelled):
    chosen = choose(labelled, "keep", None, {"prompt 0", " Prompt  3\n", "prompt 44"})
    assert [chosen.pair(i).prompt.text for i in range(len(chosen))] == ["prompt 1", "prompt 2", "prompt 4"]
    assert chosen.counts["evaluated"] == 2


def test_counts_add_up_and_nothing_left_is_an_error_with_them(tmp_path):
    rows = [
        {"has_label": False}, {"label_0": 0.5}, {"caption": "tested"}, {"model_0": "x"}, {"caption": "tested",
        "label_0": 0.5, "model_1": "dream"}, {"model_1": "dream"},
    ]  # fmt: skip
    source = open_pairs(write_parquet(tmp_path / "p.parquet", rows))
    chosen = choose(source, "drop", "dream", {"tested"})
    counts = dict(chosen.counts)
    parts = ("used", "ties_dropped", "other_models", "evaluated", "unlabelled")
    assert counts["total"] == 6 == sum(counts[name] for name in parts)
    assert chosen.summary() == "1 of 6 pairs used (3 of other models, 1 of evaluated prompts, 1 without a label)"
    with pytest.raises(InputError, match=r"is left of 6 \(5 of evaluated prompts, 1 without a label\)\."):
        choose(source, "drop", None, {"tested", "a fox"})
    tie = open_pairs(write_parquet(tmp_path / "q.parquet", [{"label_0": 0.5}]))
    with pytest.raises(InputError, match=r"no preference pair is left of 1 \(1 ties dropped\)\."):
        choose(tie, "drop", None, ())


# The cache


def entry(number: int, kilobytes: int = 16) -> dict[bytes, dict[str, torch.Tensor]]:
    return {hashlib.sha256(b"%d" % number).digest(): {"latents": torch.full((kilobytes, 256), float(number))}}


def key_of(number: int) -> bytes:
    return next(iter(entry(number)))


@pytest.fixture
def cache(tmp_path):
    made = TensorCache(tmp_path / "cache" / "t.sqlite", say=lambda line: pytest.fail(line))
    yield made
    made.close()


def test_what_is_kept_comes_back_to_the_bit(cache):
    values = {
        b"a": {"x": Key("x").normal(3, 4), "half": Key("y").normal(5).bfloat16()},
        b"b": {"x": torch.arange(6).reshape(2, 3).T},
    }
    cache.put_many(values)
    found = cache.get_many([b"b", b"none", b"a", b"a"])
    assert found.keys() == values.keys()
    for key, tensors in values.items():
        for name, tensor in tensors.items():
            assert found[key][name].dtype == tensor.dtype
            assert torch.equal(found[key][name], tensor)
    assert cache.get_many([]) == {}


def test_the_file_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path):
    path, limit = tmp_path / "t.sqlite", 2**20
    cache = TensorCache(path, limit)
    for number in range(200):  # 3 MiB
        cache.put_many(entry(number))
        cache.get_many([key_of(0)])
        assert path.stat().st_size <= limit
    kept = [number for number in range(200) if cache.get_many([key_of(number)])]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 200))
    assert len(kept) > 40
    cache.close()
    assert path.stat().st_size > 0.8 * limit


def test_a_smaller_limit_shrinks_the_file(tmp_path):
    path = tmp_path / "t.sqlite"
    for limit in (2**21, 2**18):
        cache = TensorCache(path, limit)
        cache.put_many({k: v for number in range(60) for k, v in entry(number).items()})
        cache.close()
        assert 0.6 * min(limit, 60 * 2**14) < path.stat().st_size <= limit


def test_what_cannot_fit_is_not_kept(tmp_path):
    cache = TensorCache(tmp_path / "t.sqlite", 2**18)
    cache.put_many(entry(1) | entry(2, kilobytes=1024))
    assert cache.get_many([key_of(1), key_of(2)]).keys() == {key_of(1)}
    cache.close()


def test_several_writers_at_once_lose_nothing(tmp_path):
    """Each has a connection of its own, as processes have."""
    failed = []

    def work(first: int) -> None:
        cache = TensorCache(tmp_path / "t.sqlite")
        try:
            for number in range(first, first + 25):
                cache.put_many(entry(number, 1) | entry(1000, 1))
                assert cache.get_many([key_of(number), key_of(1000)]).keys() == {key_of(number), key_of(1000)}
        except Exception as error:
            failed.append(error)
        finally:
            cache.close()

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    cache = TensorCache(tmp_path / "t.sqlite")
    assert len(cache.get_many([key_of(100 * k + i) for k in range(4) for i in range(25)])) == 100
    cache.close()


def overwrite(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)


def flip_a_value(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(np.full(64, 1.0, np.float32).tobytes()) + 3] ^= 1
    path.write_bytes(content)


def spoil_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2 * 4096 : 6 * 4096] = b"\xff" * (4 * 4096)
    path.write_bytes(content)


def other_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("damage", [overwrite, flip_a_value, spoil_a_page, other_version])
def test_a_damaged_file_is_moved_aside_and_a_new_one_started(tmp_path, damage):
    path, said = tmp_path / "t.sqlite", []
    before = TensorCache(path)
    before.put_many(entry(1) | entry(2))
    before.close()
    damage(path)
    cache = TensorCache(path, say=said.append)
    cache.get_many([key_of(1), key_of(2)])
    cache.put_many(entry(1) | entry(3))
    assert cache.get_many([key_of(1), key_of(2), key_of(3)]).keys() == {key_of(1), key_of(3)}
    assert len(said) == 1
    assert "t.sqlite is damaged" in said[0]
    assert (tmp_path / "t.sqlite.damaged").is_file()
    cache.close()


def test_damage_found_by_two_is_moved_aside_once(tmp_path):
    path, said = tmp_path / "t.sqlite", []
    one, other = (TensorCache(path, say=said.append) for _ in range(2))
    one.put_many(entry(1))
    one.close()
    flip_a_value(path)
    for cache in (one, other):
        cache._connect(None)
    assert one.get_many([key_of(1)]) == {}
    one.put_many(entry(2))
    assert other.get_many([key_of(1)]) == {}  # it still sees the old file, and finds the new one in its place
    assert other.get_many([key_of(2)]).keys() == {key_of(2)}
    assert len(said) == 1
    for cache in (one, other):
        cache.close()


def test_on_a_full_disk_a_cache_is_left_in_one_word_and_keeps_what_it_had(tmp_path):
    said = []
    cache = TensorCache(tmp_path / "t.sqlite", say=said.append)
    cache.put_many(entry(1))
    cache._connection.execute("PRAGMA max_page_count = 20")
    for number in (2, 3):
        cache.put_many(entry(number, kilobytes=256))
        assert cache.get_many([key_of(1)]) == {}
    assert said == [f"cannot write the cache {tmp_path}/t.sqlite: the disk is full; going on without it"]
    cache.close()
    again = TensorCache(tmp_path / "t.sqlite", say=said.append)
    assert again.get_many([key_of(1), key_of(2)]).keys() == {key_of(1)}
    again.close()


def test_a_place_that_cannot_hold_a_cache_is_named_once_and_nothing_is_kept(tmp_path):
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.sqlite", tmp_path / "file" / "t.sqlite", Path("/proc/none/t.sqlite")):
        said = []
        cache = TensorCache(path, say=said.append)
        for _ in range(2):
            cache.put_many(entry(1))
            assert cache.get_many([key_of(1)]) == {}
        assert len(said) == 1
        assert str(path.parent) in said[0]
        assert said[0].endswith("; going on without it")


# What a loss is handed


def test_the_label_says_which_image_is_the_winner(labelled):
    pairs = encoded(labelled)
    assert isinstance(pairs, Pairs)
    batch = pairs.batch([0, 1, 2, 4])
    assert [blue(x) for x in batch.winner] == [0, 11, 20, 41]
    assert [blue(x) for x in batch.loser] == [1, 10, 21, 40]
    assert batch.label.tolist() == [1, 1, 0.5, 1]
    assert list(batch.rows) == [0, 1, 2, 3]
    assert batch.winner.dtype == batch.label.dtype == torch.float32


def test_a_batch_has_the_order_and_repetitions_that_were_asked_for(labelled):
    pipeline = FakePipeline()
    batch = encoded(labelled, pipeline=pipeline).batch([4, 0, 4])
    assert [blue(x) for x in batch.winner] == [41, 0, 41]
    assert list(batch.rows) == [0, 1, 2]
    assert pipeline.encoded == [4]


def test_the_condition_is_the_prompts_and_the_empty_one_expanded(labelled):
    pipeline = FakePipeline()
    pairs = encoded(labelled, pipeline=pipeline)
    batch = pairs.batch([3, 0, 3])
    prompts = [pairs._chosen.pair(i).prompt for i in (3, 0, 3)]
    expected = FakePipeline().condition(prompts)
    assert torch.equal(batch.condition.tensors["text"], expected.tensors["text"])
    assert torch.equal(batch.condition.null_tensors["text"], expected.null_tensors["text"])
    assert torch.equal(batch.condition.repeat(2)[[0, 5]].tensors["text"], expected[[0, 2]].tensors["text"])
    pairs.batch([1])
    assert pipeline.conditioned.count([""]) == 1


def test_numbers_outside_are_refused(labelled):
    pairs = encoded(labelled)
    for wrong in (-1, 5):
        for ask in (pairs.batch, pairs.images):
            with pytest.raises(IndexError, match=rf"pair {wrong} is outside of \[0, 5\)"):
                ask([0, wrong])


def test_images_cover_the_native_size_and_lose_their_sides():
    """16 x 8: the middle eight columns, 4 to 11. 16 x 32: halved, then the middle eight of sixteen rows."""
    wide = fitted(picture(7, (16, 8)), (8, 8), None)
    assert (wide[0] * 255).round()[0].tolist() == [4.0 * column for column in range(4, 12)]
    assert blue(wide) == 7
    tall = fitted(picture(7, (16, 32)), (8, 8), None)
    whole = np.array(Image.open(io.BytesIO(picture(7, (16, 32)))).resize((8, 16), Image.Resampling.BILINEAR))
    assert torch.equal(tall, torch.from_numpy(whole[4:12]).permute(2, 0, 1).float() / 255)
    assert fitted(picture(7, (9, 5)), (4, 8), None).shape == (3, 4, 8)
    assert fitted(picture(7, (5, 9)), (4, 8), (0.99, 0.99)).shape == (3, 4, 8)


def test_a_random_crop_takes_every_place_and_depends_on_its_share_alone():
    def first_column(share: float, width: int) -> int:
        return round(float(fitted(picture(0, (width, 8)), (8, 8), (0.0, share))[0, 0, 0]) * 255) // 4

    assert [first_column(share, 10) for share in (0, 0.34, 0.67, 0.999999)] == [0, 1, 2, 2]
    assert [first_column(0.5, width) for width in (8, 12, 16)] == [0, 2, 4]


def test_both_images_of_a_pair_are_cropped_alike_and_each_pair_anew(tmp_path):
    rows = [{"jpg_0": picture(1, (64, 8)), "jpg_1": picture(2, (64, 8))} for _ in range(8)]
    source = open_pairs(write_parquet(tmp_path / "p.parquet", rows))

    def columns(**options) -> list[int]:
        pairs = encoded(source, crop="random", **options)
        found = []
        for _, images in pairs.images(range(len(pairs))):
            first, second = (round(float(image[0, 0, 0]) * 255) // 4 for image in images)
            assert first == second
            found.append(first)
        return found

    drawn = columns()
    assert len(set(drawn)) > 4
    assert columns() == drawn
    assert columns(seed=1) != drawn
    batch = encoded(source, crop="random").batch(range(8))
    assert torch.equal(batch.winner[:, :2], batch.loser[:, :2])


def test_a_pairs_crop_does_not_depend_on_which_others_are_chosen(tmp_path):
    rows = [{"jpg_0": picture(1, (64, 8)), "label_0": label} for label in (0.5, 1.0, 0.5, 0.0)]
    source = open_pairs(write_parquet(tmp_path / "p.parquet", rows))
    kept, dropped = (encoded(source, crop="random", ties=ties) for ties in ("keep", "drop"))
    assert torch.equal(kept.images([3])[0][1][0], dropped.images([1])[0][1][0])
    assert torch.equal(kept.images([1])[0][1][0], dropped.images([0])[0][1][0])


def test_the_second_pass_reads_and_encodes_nothing_and_is_the_same(labelled, cache, monkeypatch):
    live = encoded(labelled).batch([0, 1, 2])
    first = encoded(labelled, cache).batch([0, 1, 2])
    pipeline = FakePipeline()
    again = encoded(open_pairs(labelled.paths[0]), cache, pipeline=pipeline)
    monkeypatch.setattr(ParquetPairs, "images", lambda *_: pytest.fail("an image was read"))
    for batch in (first, again.batch([0, 1, 2])):
        assert torch.equal(batch.winner, live.winner)
        assert torch.equal(batch.loser, live.loser)
        assert torch.equal(batch.condition.tensors["text"], live.condition.tensors["text"])
        assert torch.equal(batch.label, live.label)
    assert pipeline.encoded == []
    assert pipeline.conditioned == [[""]]


def test_only_what_is_missing_is_encoded_in_one_call(labelled, cache):
    pipeline = FakePipeline()
    pairs = encoded(labelled, cache, pipeline=pipeline)
    pairs.batch([0, 1])
    batch = pairs.batch([1, 2, 0, 3])
    assert pipeline.encoded == [4, 4]
    assert pipeline.conditioned == [[""], ["prompt 0", "prompt 1"], ["prompt 2", "prompt 3"]]
    assert [blue(x) for x in batch.winner] == [11, 20, 0, 30]


def test_an_image_of_several_pairs_is_encoded_once(tmp_path, cache):
    rows = [{"jpg_0": picture(5), "jpg_1": picture(k)} for k in (5, 6, 7)]
    pipeline = FakePipeline()
    pairs = encoded(open_pairs(write_parquet(tmp_path / "p.parquet", rows)), cache, pipeline=pipeline)
    pairs.batch([0, 1])
    pairs.batch([2])
    assert pipeline.encoded == [2, 1]


def test_another_model_or_crop_does_not_share_what_is_cached(tmp_path, cache):
    source = open_pairs(write_parquet(tmp_path / "p.parquet", [{"jpg_0": picture(5, (64, 8)), "jpg_1": picture(6)}]))
    encoded(source, cache).batch([0])
    for options in ({"pipeline": FakePipeline("other")}, {"crop": "random", "pipeline": FakePipeline()}):
        encoded(source, cache, **options).batch([0])
        assert options["pipeline"].encoded[0] > 0


def test_a_file_that_changed_is_read_again(tmp_path, cache):
    """Same name, same size, same texts; only the bytes of the images, and so the file's time, are others."""
    folder = write_folder(tmp_path / "f", LINE)
    old = encoded(open_pairs(folder), cache).batch([0])
    assert len(picture(9)) == len(picture(1))
    (folder / "images/1.png").write_bytes(picture(9))
    os.utime(folder / "images/1.png", ns=(1, 1))
    new = encoded(open_pairs(folder), cache).batch([0])
    assert (blue(old.loser[0]), blue(new.loser[0])) == (1, 9)


def test_evicted_latents_are_made_again(labelled, tmp_path):
    cache = TensorCache(tmp_path / "small.sqlite", 60_000)
    pairs, live = encoded(labelled, cache), encoded(labelled)
    for i in [0, 1, 2, 3, 4] * 3:
        cache.put_many(entry(i))
        assert torch.equal(pairs.batch([i]).winner, live.batch([i]).winner)
    cache.close()


def bomb() -> bytes:
    """A PNG that says it is 30000 x 30000."""
    content = bytearray(picture(1))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


BROKEN = {
    "nothing": b"",
    "no image": b"hello" * 50,
    "cut off": picture(3, (64, 64), "JPEG")[:-200],
    "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "a bomb": bomb(),
    "a thread": picture(1, (1, 60_000)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_pair_with_an_image_that_cannot_be_read_is_skipped_and_named_once(tmp_path, cache, kind):
    rows = [{"jpg_0": picture(10)}, {"jpg_1": BROKEN[kind]}, {"jpg_0": picture(30)}]
    source, said = open_pairs(write_parquet(tmp_path / "p.parquet", rows)), []
    pipeline = FakePipeline()
    if kind == "a thread":
        pipeline.info = lambda: {"name": "large", "image_shape": [3, 1024, 1024]}
        pipeline.encode = lambda images: images[:, :, ::512, ::512]
    pairs = encoded(source, cache, said=said, pipeline=pipeline)
    for _ in range(2):
        batch = pairs.batch([2, 1, 0, 1])
        assert list(batch.rows) == [0, 2]
        assert [blue(x) for x in batch.winner] == [30, 10]
        assert len(batch.condition) == len(batch) == 2
        assert [(i, images is None) for i, images in pairs.images([0, 1])] == [(0, False), (1, True)]
    assert len(said) == 1
    assert said[0].startswith("pair skipped: p.parquet, row 1: ")
    assert ("are no JPEG, PNG, WEBP" in said[0]) == (kind in ("no image", "a script"))
    assert said[0].endswith("(1 of 3 skipped so far)")
    assert pairs.skipped.keys() == {1}


def test_a_pair_is_shown_as_a_viewer_shows_it_and_that_is_said_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # by half a turn
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(7))).save(buffer, "PNG", exif=exif)
    source = open_pairs(
        write_parquet(tmp_path / "p.parquet", [{}, {"jpg_0": buffer.getvalue()}, {"jpg_1": buffer.getvalue()}])
    )
    said: list[str] = []
    pairs = encoded(source, said=said)
    (_, (first, _)), (_, (_, second)) = pairs.images([1, 2])
    assert torch.equal(first, fitted(picture(7), (SIDE, SIDE), None).flip(1, 2))
    assert torch.equal(first, second)
    assert said == ["pictures turned as their EXIF orientation says; the first is p.parquet, row 1"]
    assert list(pairs.notes.counts.values()) == [2]


def test_a_batch_of_broken_pairs_alone_has_no_rows(tmp_path):
    rows = [{"jpg_0": b"x"}, {"jpg_1": b"y"}]
    said: list[str] = []
    pairs = encoded(open_pairs(write_parquet(tmp_path / "p.parquet", rows)), said=said)
    batch = pairs.batch([0, 1])
    assert len(batch) == len(batch.condition) == len(batch.rows) == 0
    assert batch.winner.shape == batch.loser.shape == (0, 3, 2, 2)
    assert len(said) == 2


def test_images_come_whole_for_scorers_in_the_order_of_the_file(labelled):
    found = encoded(labelled).images([1, 0, 1])
    assert [(i, *map(blue, images)) for i, images in found] == [(1, 10, 11), (0, 0, 1), (1, 10, 11)]
    assert all(image.shape == (3, SIDE, SIDE) and 0 <= image.min() <= image.max() <= 1 for _, p in found for image in p)


def test_a_model_of_points_is_refused(labelled, mixture):
    with pytest.raises(InputError, match=r"pairs of images were given, but the model makes images of shape \[2\]"):
        encoded(labelled, pipeline=mixture)


@pytest.mark.gpu
def test_a_batch_is_on_the_models_device_wherever_its_parts_come_from(labelled, cache):
    class OnDevice(FakePipeline):
        def embedded(self, text):
            return super().embedded(text).cuda()

        def encode(self, images):
            return super().encode(images.cuda())

    pairs, live = encoded(labelled, cache, pipeline=OnDevice()), encoded(labelled).batch([0, 1, 2])
    pairs.batch([0, 1])
    batch = pairs.batch([0, 1, 2])
    tensors = (batch.winner, batch.loser, batch.label, *batch.condition.tensors.values())
    assert all(tensor.is_cuda for tensor in tensors)
    assert torch.equal(batch.winner.cpu(), live.winner)
    assert encoded(labelled, pipeline=OnDevice()).batch([]).winner.is_cuda
