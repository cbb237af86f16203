"""Pictures of several methods side by side: rows are methods, columns prompts, all from the same noise."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.analysis.load import Method, Run, load, methods_of
from alignbench.errors import InputError, UnknownName
from alignbench.files import replace_file
from alignbench.printed import one_line
from alignbench.record.digests import AGAIN
from alignbench.record.first_pictures import FirstPictures, first_pictures, packed, sprite_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

CELL = 96  # pixels of a picture's longer side, at least
GAP, LINE, FONT = 6, 15, 11


def draw(paths: Sequence[Path], prompts: int = 6, methods: Sequence[str] = ()) -> Image:
    """A sheet of the first prompts that all methods have pictures of, first seed and first image of each.

    Raises InputError where results of several evaluations are given, or no folder of pictures lies beside one.
    """
    groups = load(paths).groups
    if len(groups) != 1:
        raise InputError(f"a sheet is of one evaluation; these files hold {len(groups)}: choose some of them.")
    (runs,) = groups.values()
    found = methods_of(runs)
    known = [method.label for method in found]
    for name in methods:
        if name not in known:
            raise UnknownName("method in these files", name, known)
    chosen = [found[known.index(name)] for name in methods] if methods else found
    pictures = {method.label: _pictures(method) for method in chosen}
    shared = [prompt for prompt in _order(runs[0]) if all(prompt in own.prompts for own in pictures.values())][:prompts]
    if not shared:
        raise InputError("these methods have no picture of the same prompt; give results of the same prompts.")
    texts = {prompt.id: one_line(prompt.text) for run in runs for prompt in run.result.prompts}
    return _sheet(
        {one_line(label): [_picture(own, p) for p in shared] for label, own in pictures.items()},
        [texts[p] for p in shared],
    )


def write_sprites(paths: Sequence[Path], prompts: int | None) -> list[Path]:
    """Keep the first pictures of each result, of so many prompts or of all, as one small file beside it; the files.
    Raises InputError where a picture is not the result's, and nothing is written then."""
    runs = [run for group in load(paths).groups.values() for run in group]
    made = {}
    for run in runs:
        found = first_pictures(run.path, run.result)
        if found is None or not found.files:
            raise InputError(_lacking(run.path))
        made[sprite_of(run.path)] = packed(found, prompts)
    for file, content in made.items():
        with replace_file(file) as temporary:
            temporary.write_bytes(content)
    return list(made)


def _order(run: Run) -> list[str]:
    return list(dict.fromkeys(row.prompt for row in run.result.rows))


def _pictures(method: Method) -> FirstPictures:
    """Each prompt's first picture. Raises InputError where there is none, or where they are not the result's."""
    run = method.runs[0]
    found = first_pictures(run.path, run.result)
    if found is None:
        raise InputError(_lacking(run.path))
    if found.wrong:
        raise InputError(f"{run.path}: {found.wrong}; {AGAIN}.")
    return found


def _lacking(path: Path) -> str:
    folder = path.with_suffix("") / "images"
    return f"{path} has no pictures in {folder}; keep the folder beside the result, or run the cell again."


def _picture(found: FirstPictures, prompt: str) -> Image:
    """A prompt's picture, checked. Raises InputError for one that is not the result's."""
    if wrong := found.changed(prompt):
        raise InputError(wrong)
    return found.picture(prompt)


def _sheet(rows: dict[str, list[Image]], texts: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=FONT)
    fonts = [_font(text, font) for text in texts]
    first = next(iter(rows.values()))[0]
    scale = max(1, -(-CELL // max(first.size)))
    width, height = first.width * scale, first.height * scale
    left = 2 * GAP + max(int(font.getlength(label)) for label in rows)
    captions = [_wrapped(text, width, own) for text, own in zip(texts, fonts, strict=True)]
    top = 2 * GAP + LINE * max(len(lines) for lines in captions)
    size = (left + len(texts) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, (lines, own) in enumerate(zip(captions, fonts, strict=True)):
        for line, words in enumerate(lines):
            pen.text((left + column * (width + GAP), GAP + line * LINE), words, fill="black", font=own)
    for row, (label, pictures) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        pen.text((GAP, y + height // 2 - LINE // 2), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (width + GAP), y))
    return sheet


def _font(text: str, usual: FreeTypeFont | ImageFont) -> FreeTypeFont | ImageFont:
    """The usual font, which has English letters alone, or, where it lacks some of a text, the one on this machine that
    has the most of them."""
    from PIL import ImageFont

    none = bytes(usual.getmask("\uffff"))
    if not any(bytes(usual.getmask(letter)) == none for letter in set(text)):
        return usual
    from matplotlib.font_manager import findfont, findSystemFonts
    from matplotlib.ft2font import FT2Font

    letters = set(map(ord, text))

    def having(file: str) -> tuple[int, bool]:
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):  # a damaged file, or one of another kind
            return 0, False
        if not font.scalable or "LastResort" in font.family_name.replace(" ", ""):  # emoji of one size; boxes of macOS
            return 0, False
        return len(font.get_charmap().keys() & letters), font.style_name in ("Regular", "Book")

    return ImageFont.truetype(max(findfont("DejaVu Sans"), *sorted(findSystemFonts()), key=having), FONT)


def _wrapped(text: str, width: int, font: FreeTypeFont | ImageFont) -> list[str]:
    """At most four lines that fit the width."""
    broad = max(font.getlength("n"), font.getlength(text) / max(1, len(text)))  # as of Chinese
    letters = max(4, int(width / max(1.0, broad)))
    return textwrap.wrap(text, letters, max_lines=4, placeholder=" …") or [""]
