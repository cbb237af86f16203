"""The first picture of each prompt of a cell: from its folder or, where that is gone, its sprite. Imports no torch.

A sprite is one small file beside the result, `STEM.webp`: the first pictures of the first prompts, lossless, ten in a
row. So results that are sent or committed without their folders still have something to look at, and each picture is
checked by the digest of its row as a file is.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.errors import InputError
from alignbench.files import sha256_of_files
from alignbench.pictures import PictureError, pixels_sha256, read
from alignbench.record.digests import AGAIN, by_pixels, changed
from alignbench.record.result import Result, Row

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 10  # pictures in a row of a sprite
LARGEST_SIDE = 64  # pixels of a picture that a sprite keeps; larger ones are no longer small


@dataclass
class FirstPictures:
    """Where they are. Prompts without a picture are absent."""

    path: Path  # of the result
    rows: dict[str, Row]
    files: dict[str, Path]  # from the folder
    tiles: dict[str, Image] = field(default_factory=dict)  # from the sprite
    checked: bool = False  # the result keeps what they can be checked by
    wrong: str = ""  # why none of them is the result's

    @property
    def prompts(self) -> Collection[str]:
        """Ids of prompts that have one, in the result's order."""
        return (self.files or self.tiles).keys()

    def place(self, prompt: str) -> Path:
        """The file that a prompt's picture is in."""
        return self.files.get(prompt, sprite_of(self.path))

    def changed(self, prompt: str) -> str:
        """What is wrong with a prompt's picture, in a sentence; "" where it is the row's, or nobody can tell."""
        row = self.rows[prompt]
        if prompt in self.files:
            return changed(self.path, row, self.files[prompt])
        if row.sha256 is None or row.sha256 == pixels_sha256(self.tiles[prompt]):
            return ""
        return (
            f"{sprite_of(self.path)} holds another picture of prompt {prompt} than {self.path} is of; make it again "
            f"from the folder of pictures: alignbench sheet {self.path} --sprite."
        )

    def picture(self, prompt: str) -> Image:
        """A prompt's picture. Raises InputError for one that cannot be read."""
        if prompt in self.tiles:
            return self.tiles[prompt]
        try:
            return read(self.files[prompt], formats=("PNG",)).image
        except PictureError as error:
            raise InputError(
                f"{self.files[prompt]} cannot be read as a picture ({error}); run the cell again."
            ) from None


def first_pictures(path: Path, result: Result) -> FirstPictures | None:
    """Those of a result at a path; None where neither folder nor sprite has one. Raises InputError for a sprite that
    cannot be read."""
    folder = path.with_suffix("") / "images"
    place = {prompt.id: i for i, prompt in enumerate(result.prompts)}
    first = {row.prompt: row for row in result.rows if not row.sample}
    rows = {prompt.id: first[prompt.id] for prompt in result.prompts if prompt.id in first}
    files = {prompt: file for prompt in rows if (file := folder / f"{place[prompt]:05d}-0.png").is_file()}
    if not files:
        tiles = _tiles(path, list(rows))
        return FirstPictures(path, rows, {}, tiles, checked=by_pixels(result)) if tiles else None
    found = FirstPictures(path, rows, files, checked=True)
    if by_pixels(result):  # each is checked when it is shown
        return found
    every = sorted((row.sample, place[row.prompt]) for row in result.rows)
    try:
        digest = sha256_of_files(folder / f"{i:05d}-{sample}.png" for sample, i in every)
    except OSError:
        digest = None
    if result.kept is None or digest is None:
        found.checked = False
    elif digest != result.kept.pictures:
        found.wrong = f"the pictures in {folder} are not those its scores are of"
    return found


def sprite_of(path: Path) -> Path:
    """The file that the sprite of a result at a path has."""
    return path.with_suffix(".webp")


def packed(found: FirstPictures, prompts: int | None = None) -> bytes:
    """The sprite of a cell's first prompts, or of all, as a file; a row that is begun is filled. Raises InputError
    where one of these pictures is missing, is another than the result's, is not square or is not small."""
    names = list(found.rows)
    names = names if prompts is None else names[: -(-prompts // COLUMNS) * COLUMNS]
    if found.wrong:
        raise InputError(f"{found.path}: {found.wrong}; {AGAIN}.")
    pictures = []
    for name in names:
        if name not in found.files:
            raise InputError(f"{found.path} has no picture of prompt {name} in its folder; run the cell again.")
        if wrong := found.changed(name):
            raise InputError(wrong)
        pictures.append(found.picture(name))
    return grid(pictures, str(found.path))


def grid(pictures: Sequence[Image], of: str) -> bytes:
    """Square pictures of one size as a lossless WebP, ten in a row."""
    from PIL import Image

    sides = {side for picture in pictures for side in picture.size}
    if len(sides) != 1 or max(sides) > LARGEST_SIDE:
        raise InputError(
            f"{of}: a sprite holds square pictures of one size up to {LARGEST_SIDE} pixels, found sides of "
            f"{', '.join(map(str, sorted(sides)))}; keep the folder of pictures beside the result."
        )
    (side,) = sides
    sprite = Image.new("RGB", (COLUMNS * side, -(-len(pictures) // COLUMNS) * side))
    for place, picture in enumerate(pictures):
        sprite.paste(picture, (place % COLUMNS * side, place // COLUMNS * side))
    buffer = io.BytesIO()
    sprite.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def _tiles(path: Path, prompts: Sequence[str]) -> dict[str, Image]:
    """The pictures of a sprite by prompt; none where there is no sprite."""
    file = sprite_of(path)
    if not file.is_file():
        return {}
    try:
        sprite = read(file, formats=("WEBP",)).image
    except PictureError as error:
        raise InputError(f"{file} cannot be read as a picture ({error}); remove it, or bring it back.") from None
    side = sprite.width // COLUMNS
    if not side or sprite.width % COLUMNS or sprite.height % side:
        raise InputError(f"{file}: {sprite.width} x {sprite.height} pixels are no sprite of ten square pictures a row.")
    count = min(len(prompts), COLUMNS * (sprite.height // side))
    corners = [(place % COLUMNS * side, place // COLUMNS * side) for place in range(count)]
    return {
        prompt: sprite.crop((x, y, x + side, y + side)) for prompt, (x, y) in zip(prompts[:count], corners, strict=True)
    }
