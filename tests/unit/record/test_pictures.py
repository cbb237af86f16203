"""A cell's pictures: what they show, what they say of themselves, and whether they are those of its result."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from pictured import pictured
from PIL import Image

from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.keys import Key
from alignbench.pictures import pixels_sha256
from alignbench.record.digests import by_pixels, changed, digest, digest_of, digests, picture_of
from alignbench.record.pictures import LONGEST_TEXT, ImageStore, PictureFacts, Slot, slots
from alignbench.record.result import read


@pytest.fixture
def images() -> torch.Tensor:
    return Key("pictures").uniform(2, 3, 5, 4)


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def opened(store: ImageStore, place: int = 0) -> Image.Image:
    image = Image.open(store.path(Slot(place, 0), picture=True))
    image.load()
    return image


def test_the_digest_is_of_height_width_and_pixels_and_nothing_else():
    """Two rows of one pixel each, red over green."""
    image = Image.new("RGB", (1, 2), (255, 0, 0))
    image.putpixel((0, 1), (0, 255, 0))
    assert pixels_sha256(image) == hashlib.sha256(b"RGB 2 1\n\xff\x00\x00\x00\xff\x00").hexdigest()
    assert pixels_sha256(image.transpose(Image.Transpose.ROTATE_90)) != pixels_sha256(image)


def test_what_is_kept_of_a_picture_is_that_of_its_file(store, images):
    store.write(slots(2, 1), images)
    for slot, image in zip(slots(2, 1), images, strict=True):
        path = store.path(slot, picture=True)
        assert PictureFacts.of(image).sha256 == digest(path, pixels=True) == digest(path.read_bytes(), pixels=True)
    assert store.are(slots(2, 1), [PictureFacts.of(image) for image in images])
    assert not store.are(slots(2, 1), [PictureFacts.of(image) for image in images.flip(0)])


def test_another_encoder_and_other_metadata_keep_the_digest_and_another_pixel_does_not(store, images):
    store.write([Slot(0, 0)], images[:1], [{"prompt": "one"}])
    path = store.path(Slot(0, 0), picture=True)
    before, file = digest(path, pixels=True), sha256_of(path)
    store.write([Slot(0, 0)], images[:1], [{"prompt": "another", "method": "refl"}])
    assert digest(path, pixels=True) == before
    assert sha256_of(path) != file
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    image.save(path, compress_level=0)
    assert digest(path, pixels=True) == before
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    image.save(path)
    assert digest(path, pixels=True) != before


def test_a_picture_says_what_it_is_of(store, images):
    store.write([Slot(0, 0)], images[:1], [{"prompt": "ein rotes Quadrat, 猫", "method": "refl", "sample": "0"}])
    assert opened(store).text == {"prompt": "ein rotes Quadrat, 猫", "method": "refl", "sample": "0"}


def test_hostile_text_is_escaped_and_cut(store, images):
    """A zero byte would end the entry, and a half of a surrogate pair has no UTF-8."""
    hostile = "a\0b\x1b[2J\ud800\u202e<img src=x>"
    store.write(slots(2, 1), images, [{"prompt": hostile}, {"prompt": "x" * 10**6}])
    assert opened(store).text["prompt"] == r"a\x00b\x1b[2J\ud800\u202e<img src=x>"
    assert opened(store, 1).text["prompt"] == "x" * LONGEST_TEXT


def test_the_same_picture_and_text_are_the_same_bytes(tmp_path, images):
    files = []
    for name in ("one", "other"):
        store = ImageStore(tmp_path / name)
        store.write([Slot(0, 0)], images[:1], [{"prompt": "a fox", "seed": "1"}])
        files.append(store.path(Slot(0, 0), picture=True).read_bytes())
    assert files[0] == files[1]


def test_without_text_a_picture_is_as_plain_as_before(store, images):
    store.write([Slot(0, 0)], images[:1])
    assert opened(store).text == {}


def test_points_are_kept_as_numbers(store):
    store.write(slots(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [{"prompt": "x"}] * 2)
    assert store.read(slots(2, 1)).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def cell(tmp_path):
    return pictured(tmp_path)("cell", [0.0] * 4, rows=True)


def test_the_digests_of_a_cell_are_those_of_its_rows(cell):
    result = read(cell)
    assert by_pixels(result)
    assert list(digests(cell, result).values()) == [row.sha256 for row in result.rows]
    assert digest_of(digests(cell, result)) == result.kept.pictures


def test_a_picture_that_was_changed_is_named(cell):
    result, file = read(cell), picture_of(cell, 2, 0)
    assert changed(cell, result.rows[2], file) == ""
    Image.new("RGB", (32, 32), "white").save(file)
    with pytest.raises(InputError, match=r"00002-0\.png was changed after .*cell\.json was written, and is not the"):
        digests(cell, result)
    file.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00002-0\.png cannot be read as a picture; bring it back"):
        digests(cell, result)
    file.unlink()
    with pytest.raises(InputError, match=r"has no picture .*00002-0\.png; keep its folder"):
        digests(cell, result)


def test_metadata_may_be_changed_after_the_run(cell):
    file = picture_of(cell, 2, 0)
    Image.open(file).save(file, compress_level=0)
    assert len(digests(cell, read(cell))) == 4


def test_pictures_of_older_results_are_known_by_their_files_as_a_whole(tmp_path):
    old = pictured(tmp_path)("old", [0.0] * 4)
    result, file = read(old), picture_of(old, 2, 0)
    assert not by_pixels(result)
    assert digests(old, result)[2, 0] == sha256_of(file)
    Image.fromarray(np.asarray(Image.open(file))).save(file, compress_level=0)
    assert changed(old, result.rows[2], file) == ""  # nobody can tell
    with pytest.raises(InputError, match="are not those that it is of"):
        digests(old, result)
