"""Pictures of several methods side by side: rows are methods, columns prompts, all from the same noise."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
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

    Font = FreeTypeFont | ImageFont

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
            raise InputError(_lacking(run))
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
        raise InputError(_lacking(run))
    if found.wrong:
        raise InputError(f"{run.path}: {found.wrong}; {AGAIN}.")
    return found


def _lacking(run: Run) -> str:
    path, model = run.path, run.result.evaluation.model
    if 0 < len(model.get("image_shape", [])) < 3:
        return f"{path}: {model['name']!r} draws points, not pictures; a sheet is of models that draw pictures."
    folder = path.with_suffix("") / "images"
    return f"{path} has no pictures in {folder}; keep the folder beside the result, or run the cell again."


def _picture(found: FirstPictures, prompt: str) -> Image:
    """A prompt's picture, checked. Raises InputError for one that is not the result's."""
    if wrong := found.changed(prompt):
        raise InputError(wrong)
    return found.picture(prompt)


def _sheet(rows: dict[str, list[Image]], texts: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw

    fonts = _fonts([*rows, *texts])
    first = next(iter(rows.values()))[0]
    scale = max(1, -(-CELL // max(first.size)))
    width, height = first.width * scale, first.height * scale
    left = 2 * GAP + max(int(fonts[label].getlength(label)) for label in rows)
    captions = [_wrapped(text, width, fonts[text]) for text in texts]
    top = 2 * GAP + LINE * max(len(lines) for lines in captions)
    size = (left + len(texts) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, (text, lines) in enumerate(zip(texts, captions, strict=True)):
        for line, words in enumerate(lines):
            pen.text((left + column * (width + GAP), GAP + line * LINE), words, fill="black", font=fonts[text])
    for row, (label, pictures) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        pen.text((GAP, y + height // 2 - LINE // 2), label, fill="black", font=fonts[label])
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (width + GAP), y))
    return sheet


def _fonts(texts: Iterable[str]) -> dict[str, Font]:
    """For each text the usual font, which has English letters alone, or, where it lacks some of them, the one on this
    machine that has the most."""
    from PIL import ImageFont

    usual: Font = ImageFont.load_default(size=FONT)
    none = bytes(usual.getmask(chr(0xFFFF)))
    found: dict[str, Font] = dict.fromkeys(texts, usual)
    lacking = [text for text in found if any(bytes(usual.getmask(letter)) == none for letter in set(text))]
    installed = _installed({ord(letter) for text in lacking for letter in text}) if lacking else {}
    for text in lacking:
        letters = set(map(ord, text))
        ranks = {file: (len(has & letters), regular) for file, (has, regular) in installed.items()}
        found[text] = ImageFont.truetype(max(ranks, key=lambda file: ranks[file]), FONT)
    return found


def _installed(letters: set[int]) -> dict[str, tuple[set[int], bool]]:
    """Which of these letters each font file of this machine has, and whether it is upright and of the usual weight.
    The first one, which comes with a package, is there on every machine."""
    from matplotlib.font_manager import findfont, findSystemFonts
    from matplotlib.ft2font import FT2Font

    found: dict[str, tuple[set[int], bool]] = {}
    for file in (findfont("DejaVu Sans"), *sorted(findSystemFonts())):
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):  # a damaged file, or one of another kind
            continue
        if font.scalable and "LastResort" not in font.family_name.replace(" ", ""):  # emoji of one size; boxes of macOS
            found[file] = letters & font.get_charmap().keys(), font.style_name in ("Regular", "Book")
    return found


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """At most four lines that fit the width."""
    broad = max(font.getlength("n"), font.getlength(text) / max(1, len(text)))  # as of Chinese
    letters = max(4, int(width / max(1.0, broad)))
    return textwrap.wrap(text, letters, max_lines=4, placeholder=" …") or [""]
