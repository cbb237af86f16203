"""Pictures as files: read as a viewer shows them, or refused with a reason. No torch.

What is read is somebody else's file. Its format is one of a list (Pillow would also start Ghostscript for an EPS,
whatever its name ends in), its size is known before it is decoded, and whatever a decoder raises is a `PictureError`.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.errors import described

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".jxl", ".jp2")  # which viewers show, and which are not read here
LARGEST = 2**26  # pixels of a picture; more is a decompression bomb
THINNEST = 100  # times as long as wide: a scorer that makes the short side 224 would make a thread of a picture huge
BYTES = 2**28  # of a file
READING = 2  # what caches of anything read from pictures carry: raised when a picture is read otherwise than before

TURNED = "turned as their EXIF orientation says"
DEEP = "of more than 8 bits, scaled to 8"
TRANSPARENT = "transparent, shown on white"
PROFILE = "with a colour profile, converted to sRGB"
NO_PROFILE = "with a colour profile that cannot be used, left as they are"
GAMMA = "with a gamma of their own, which is not applied"
INKS = "in CMYK, converted to RGB"
MOVING = "animated, of which the first frame is taken"
PAGES = "of several pages, of which the first is taken"

ALIKE = 2  # steps of 255 by which a colour profile may move a colour and still count as sRGB
SRGB_GAMMA = 0.02  # how far a gamma may be from 1 / 2.2 and still count as sRGB's


class PictureError(ValueError):
    """What is no picture, or none that is read. Says why."""


@dataclass(frozen=True)
class Picture:
    """A picture in RGB of 8 bits, and what was done that is more than reading it."""

    image: Image.Image
    notes: tuple[str, ...] = ()


@dataclass
class Notes:
    """What was done to pictures more than reading them, by place; the first of a kind is said. A place that is read
    again counts once."""

    say: Callable[[str], None] = field(default=lambda line: None)
    _places: dict[str, set[str]] = field(default_factory=dict)

    def add(self, notes: Sequence[str], place: str) -> None:
        for note in notes:
            if note not in self._places:
                self.say(f"pictures {note}; the first is {place}")
            self._places.setdefault(note, set()).add(place)

    @property
    def counts(self) -> dict[str, int]:
        return {note: len(places) for note, places in self._places.items()}


def counted(counts: Mapping[str, int]) -> list[str]:
    """Each kind of note with its number, in a phrase."""
    return [f"{count} {note}" for note, count in counts.items()]


def read(source: bytes | Path, formats: Sequence[str] = FORMATS) -> Picture:
    """A picture as a viewer shows it: turned as its EXIF data say, 16 bits scaled to 8, on white where it is
    transparent, in sRGB, its first frame. An ordinary picture is what Pillow makes of it. Raises PictureError."""
    from PIL import Image, UnidentifiedImageError

    content = content_of(source) if isinstance(source, Path) else source
    if not content:
        raise PictureError("no bytes; an image that is only named by its path is not looked for")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, which is higher, and of odd metadata
            with Image.open(io.BytesIO(content), formats=tuple(formats)) as image:
                _check_size(*image.size)
                deep, before = _is_deep(image), _orientation(image)  # a PNG is loaded to find its EXIF
                image.load()
                return _as_shown(image, turned=before != 1, deep=deep)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{len(content)} bytes that are no {', '.join(formats)}") from None
    except Exception as error:  # decoders raise all kinds for broken files, from SyntaxError to struct.error
        raise PictureError(described(error, 200)) from None


def pixels_sha256(image: Image.Image) -> str:
    """Hexadecimal SHA-256 of what a picture shows: its height, width and RGB pixels of 8 bits. It survives another
    encoder, other metadata and a move, and two files that show the same have the same."""
    shown = image.convert("RGB")
    found = hashlib.sha256(f"RGB {shown.height} {shown.width}\n".encode())
    found.update(shown.tobytes())
    return found.hexdigest()


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture's file, undecoded and as it lies. Raises PictureError."""
    from PIL import Image

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content_of(path)), formats=FORMATS) as image,
        ):
            return image.height, image.width
    except PictureError:
        raise
    except Exception as error:  # as in `read`
        raise PictureError(described(error, 200)) from None


def is_whole(path: Path) -> bool:
    """Whether a PNG file can be read to its end and its sums are right; nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except Exception:  # as in `read`
        return False
    return True


def content_of(path: Path) -> bytes:
    """The bytes of a picture's file. Raises PictureError for what is none, such as a pipe, and for one too large."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise PictureError("not a file")
        if found.st_size > BYTES:
            raise PictureError(f"{found.st_size} bytes; at most {BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(os.strerror(error.errno) if error.errno else str(error)) from None


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST:
        raise PictureError(f"{width} x {height} pixels; at most {LARGEST} are decoded")
    if max(width, height) > THINNEST * max(1, min(width, height)):
        raise PictureError(f"{width} x {height} pixels; a side is at most {THINNEST} times the other")


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture that is not loaded yet has colours of 16 bits, of which Pillow takes the upper 8."""
    return image.format in ("PNG", "TIFF") and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _as_shown(image: Image.Image, turned: bool, deep: bool) -> Picture:
    """A loaded picture in RGB, and what that took."""
    notes = []
    if getattr(image, "is_animated", False):
        moving = image.format in ("GIF", "PNG", "WEBP", "AVIF")  # a phone's JPEG has previews
        notes += [MOVING] if moving else [PAGES] if image.format == "TIFF" else []
    one_channel = image.mode.startswith("I") or image.mode == "F"
    notes += [DEEP] if one_channel or deep else []
    shown, made = (_eight_bits(image), []) if one_channel else _in_rgb(image)
    if (turn := _turns().get(_orientation(image))) is not None:  # in loading, Pillow turned a TIFF itself
        shown = shown.transpose(turn)
    return Picture(shown, (*notes, *made, *([TURNED] if turned else [])))


def _turns() -> Mapping[int, Image.Transpose]:
    """What to do with each value of EXIF's orientation but 1. Pillow's own function writes the EXIF data anew as well,
    and fails where they are odd."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 2 to 8; 1, which is upright, where there is none that can be read."""
    from PIL import ExifTags

    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data raise all kinds, and no viewer minds them
        return 1
    return found if isinstance(found, int) and found in range(2, 9) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """One channel of 16 bits, of 32, or of numbers, where it is known what white is."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        white, kind = 1.0, "numbers outside of 0 to 1"
    else:
        white, kind = 65535.0, "whole numbers outside of 0 to 65535"
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise PictureError(f"{kind}, of which nobody says what is white; save it with 8 or 16 bits")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8)).convert("RGB")


def _in_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Colours in sRGB, on white where they are transparent."""
    from PIL import Image

    notes: list[str] = []
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = _through_profile(image, notes)
    if converted is None:
        converted = image.convert("RGB")  # of a transparent one the colours, whatever its alpha
        notes += [INKS] if image.mode == "CMYK" else []
    if alpha is not None and alpha.getextrema()[0] != 255:
        white = Image.new("RGB", image.size, "white")
        white.paste(converted, mask=alpha)
        converted = white
        notes.append(TRANSPARENT)
    return converted, notes


def _through_profile(image: Image.Image, notes: list[str]) -> Image.Image | None:
    """The picture by its colour profile, or None where it has none, or one that is as good as sRGB."""
    profile = image.info.get("icc_profile")
    if not profile:
        gamma = image.info.get("gamma")
        if gamma and "srgb" not in image.info and abs(gamma - 1 / 2.2) > SRGB_GAMMA:
            notes.append(GAMMA)
        return None
    from PIL import ImageCms

    plain = image if image.mode in ("RGB", "L", "CMYK") else image.convert("L" if image.mode == "LA" else "RGB")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), plain.mode, "RGB"
        )
        if plain.mode in ("RGB", "L"):
            probe = _probe(plain.mode)
            before, after = probe.convert("RGB").tobytes(), transform.apply(probe).tobytes()
            if max(abs(a - b) for a, b in zip(before, after, strict=True)) <= ALIKE:
                return None
        converted = transform.apply(plain)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append(NO_PROFILE)
        return None
    notes.append(PROFILE)
    return converted


def _probe(mode: str) -> Image.Image:
    """Greys and, in RGB, all mixtures of five levels."""
    from PIL import Image

    levels = (0, 64, 128, 192, 255)
    if mode == "L":
        return Image.frombytes("L", (len(levels), 1), bytes(levels))
    colours = bytes(value for r in levels for g in levels for b in levels for value in (r, g, b))
    return Image.frombytes("RGB", (len(levels) ** 3, 1), colours)
