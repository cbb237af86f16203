"""A picture is read as a viewer shows it, whatever its kind, or refused with a reason before it costs anything."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from alignbench import pictures
from alignbench.images import fitted, read_image
from alignbench.pictures import Notes, PictureError, read

PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3  # 4 wide, 6 high, no two pixels alike
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> list:
    return np.asarray(image).tolist()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_an_ordinary_picture_is_what_pillow_makes_of_it(kind, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    content = encoded(image.convert("L") if (kind, mode) == ("JPEG", "P") else image, kind)
    found = read(content)
    assert found.notes == ()
    assert found.image.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_turned_as_its_exif_data_say(kind, orientation):
    """2 mirrors, 3 turns by half, 4 flips, 5 transposes, 6 turns right, 7 transposes the other way, 8 turns left."""
    turned = {
        2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.swapaxes(0, 1),
        6: PIXELS[::-1].swapaxes(0, 1), 7: PIXELS[::-1, ::-1].swapaxes(0, 1), 8: PIXELS[:, ::-1].swapaxes(0, 1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = read(encoded(Image.fromarray(PIXELS), kind, exif=exif, **options))
    assert found.notes == (pictures.TURNED,)
    assert found.image.size == (turned.shape[1], turned.shape[0])
    if kind not in ("JPEG", "AVIF"):
        assert pixels(found.image) == turned.tolist()


def test_an_orientation_that_means_nothing_and_damaged_exif_data_change_nothing():
    for value in (0, 1, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = value
        assert read(encoded(Image.fromarray(PIXELS), exif=exif)).notes == ()
    assert read(encoded(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).notes == ()


def test_sixteen_bits_are_scaled_and_not_cut_off():
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # of 65535: 0, 1/255, 128/255, 1
    for kind in ("PNG", "TIFF"):
        found = read(encoded(Image.fromarray(deep), kind))
        assert found.notes == (pictures.DEEP,)
        assert pixels(found.image) == [[[v] * 3 for v in (0, 1, 128, 255)]]


def test_numbers_are_scaled_from_one_and_others_are_refused():
    shown = read(encoded(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
    assert pixels(shown.image) == [[[v] * 3 for v in (0, 128, 255)]]
    for values, kind in (
        ([0, 2.5], np.float32),
        ([0, np.nan], np.float32),
        ([-1, 5], np.int32),
        ([0, 70_000], np.int32),
    ):
        with pytest.raises(PictureError, match="of which nobody says what is white"):
            read(encoded(Image.fromarray(np.array([values], dtype=kind)), "TIFF"))


def sixteen_bit_png(*colours: tuple[int, int, int]) -> bytes:
    """Which Pillow cannot write: a row of RGB pixels of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + b"".join(struct.pack(">3H", *colour) for colour in colours)
    header = struct.pack(">IIBBBBB", len(colours), 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_are_scaled_and_said():
    found = read(sixteen_bit_png((65535, 0, 32896)))
    assert (found.notes, pixels(found.image)) == ((pictures.DEEP,), [[[255, 0, 128]]])


def test_what_is_transparent_is_shown_on_white():
    clear = Image.new("RGBA", (2, 1), (*RED, 0))
    clear.putpixel((1, 0), (*RED, 255))
    half = Image.new("LA", (1, 1), (0, 51))  # black, a fifth opaque: 255 * 4 / 5
    keyed = encoded(Image.fromarray(np.array([[RED, (0, 0, 9)]], dtype=np.uint8)), transparency=RED)
    named = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    named.putpalette([*RED, 0, 0, 9])
    palette = encoded(named, transparency=0)
    for content, expected in (
        (encoded(clear), [WHITE, RED]),
        (encoded(clear, "WEBP", lossless=True, exact=True), [WHITE, RED]),
        (encoded(half), [(204, 204, 204)]),
        (keyed, [WHITE, (0, 0, 9)]),
        (palette, [WHITE, (0, 0, 9)]),
    ):
        found = read(content)
        assert (found.notes, pixels(found.image)) == ((pictures.TRANSPARENT,), [[list(c) for c in expected]])


def test_an_alpha_channel_that_hides_nothing_is_nothing_to_say():
    found = read(encoded(Image.fromarray(PIXELS).convert("RGBA")))
    assert (found.notes, pixels(found.image)) == ((), PIXELS.tolist())


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB's profile with its red and its blue primary exchanged."""
    return srgb().replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")


def test_a_colour_profile_is_followed_and_srgb_is_no_change():
    image = Image.fromarray(np.array([[RED, WHITE]], dtype=np.uint8))
    same = read(encoded(image, icc_profile=srgb()))
    assert (same.notes, pixels(same.image)) == ((), [[list(RED), list(WHITE)]])
    other = read(encoded(image, icc_profile=swapped()))
    assert other.notes == (pictures.PROFILE,)
    red, white = np.asarray(other.image)[0].astype(int)
    assert abs(red - [0, 0, 255]).max() <= 2
    assert abs(white - WHITE).max() <= 2


def test_a_profile_that_cannot_be_used_is_said_and_the_picture_read():
    for profile in (b"junk", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        found = read(encoded(Image.fromarray(PIXELS), icc_profile=profile))
        assert (found.notes, pixels(found.image)) == ((pictures.NO_PROFILE,), PIXELS.tolist())


def test_inks_and_frames_are_said():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    for kind, note in (("GIF", pictures.MOVING), ("PNG", pictures.MOVING), ("TIFF", pictures.PAGES)):
        found = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert (found.notes, found.image.getpixel((0, 0))) == ((note,), RED)
    found = read(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert found.notes == (pictures.INKS,)
    assert found.image.getpixel((0, 0))[0] > 200 > 60 > found.image.getpixel((0, 0))[1]


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has this size."""
    content = bytearray(encoded(Image.fromarray(PIXELS)))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
BAD = {
    "nothing": (b"", "no bytes"),
    "a text": (b"hello" * 9, "45 bytes that are no JPEG, PNG, WEBP, AVIF, BMP, GIF, TIFF"),
    "a script": (EPS, "bytes that are no JPEG"),
    "cut off": (encoded(Image.fromarray(PIXELS.repeat(20, 0)))[:-40], "Error"),
    "a cut JPEG": (encoded(Image.fromarray(PIXELS.repeat(40, 0).repeat(40, 1)), "JPEG")[:-200], "truncated"),
    "large": (png_of(9000, 9000), "9000 x 9000 pixels; at most"),
    "a bomb": (png_of(60_000, 60_000), "exceeds limit|at most"),
    "a thread": (png_of(1, 60_000), "1 x 60000 pixels; a side is at most 100 times the other"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_says_so_in_a_line_and_decodes_nothing(kind, tmp_path, recwarn):
    content, message = BAD[kind]
    (tmp_path / "0.png").write_bytes(content)
    for source in (content, tmp_path / "0.png"):
        with pytest.raises(PictureError, match=message) as caught:
            read(source)
        assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_pipes_folders_and_what_is_not_there_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, message in (("pipe", "not a file"), ("folder", "not a file"), ("zero", "not a file"), ("no", "No such")):
        with pytest.raises(PictureError, match=message):
            read(tmp_path / f"{name}.png")


def test_every_reader_sees_the_same_picture(tmp_path):
    """Score reads a file, pairs and edits fit the bytes: the tensors are equal."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(PIXELS), exif=exif)
    (tmp_path / "0.png").write_bytes(content)
    whole = read_image(tmp_path / "0.png")
    assert whole.shape == (3, 4, 6)
    assert fitted(content, (4, 6), None).equal(whole)


def test_notes_are_said_once_a_kind_and_counted_once_a_place():
    said: list[str] = []
    notes = Notes(said.append)
    for place in ("a", "b", "b"):
        notes.add((pictures.TURNED,), place)
    notes.add((), "c")
    assert notes.counts == {pictures.TURNED: 2}
    assert said == [f"pictures {pictures.TURNED}; the first is a"]
