"""Sprites: the first pictures of a cell in one small file beside its result, and that they are those of the result."""

from __future__ import annotations

import io

import pytest
from pictured import pictured, some_methods
from PIL import Image

from alignbench.analysis.sheet import draw, write_sprites
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.page.build import build
from alignbench.record.first_pictures import first_pictures, grid, packed, sprite_of
from alignbench.record.result import read


def colours(found):
    return {prompt: found.picture(prompt).getpixel((3, 3)) for prompt in found.prompts}


@pytest.fixture
def cell(tmp_path):
    """A result of 25 prompts; picture i is of colour (80, 7 i, 90)."""
    return pictured(tmp_path)("best", [1.0] * 25, "best_of_n", red=80, rows=True)


def without_folder(path):
    for file in (path.with_suffix("") / "images").iterdir():
        file.unlink()


def test_a_sprite_gives_back_every_picture_and_is_checked_by_its_rows(cell):
    before = colours(first_pictures(cell, read(cell)))
    assert write_sprites([cell], None) == [cell.with_suffix(".webp")]
    without_folder(cell)
    found = first_pictures(cell, read(cell))
    assert found.checked
    assert colours(found) == before == {f"p{i}": (80, 7 * i % 256, 90) for i in range(25)}
    assert not any(found.changed(prompt) for prompt in found.prompts)


def test_a_sprite_of_some_prompts_has_the_first_ones_and_whole_rows(cell):
    found = first_pictures(cell, read(cell))
    sprite_of(cell).write_bytes(packed(found, 12))
    without_folder(cell)
    assert list(first_pictures(cell, read(cell)).prompts) == [f"p{i}" for i in range(20)]


def test_the_folder_counts_where_it_is_there(cell):
    sprite_of(cell).write_bytes(packed(first_pictures(cell, read(cell))))
    assert not first_pictures(cell, read(cell)).tiles


def test_another_picture_in_a_sprite_is_found_by_the_digest_of_its_row(cell, tmp_path):
    found = first_pictures(cell, read(cell))
    pictures = [found.picture(prompt) for prompt in found.prompts]
    pictures[7] = Image.new("RGB", (32, 32), "white")
    sprite_of(cell).write_bytes(grid(pictures, "test"))
    without_folder(cell)
    again = first_pictures(cell, read(cell))
    assert [prompt for prompt in again.prompts if again.changed(prompt)] == ["p7"]
    assert "best.webp holds another picture of prompt p7" in again.changed("p7")
    page = build([tmp_path], tmp_path / "report.html")
    assert any(f"left out: {sprite_of(cell)}." in line for line in page.said)
    with pytest.raises(InputError, match="holds another picture of prompt p7"):
        draw([cell], prompts=8)


def test_a_sprite_is_made_of_the_results_own_pictures_alone(cell):
    Image.new("RGB", (32, 32), "white").save(cell.with_suffix("") / "images" / "00004-0.png")
    with pytest.raises(InputError, match=r"00004-0\.png was changed after"):
        write_sprites([cell], None)
    assert not sprite_of(cell).exists()


def test_large_pictures_and_what_is_no_sprite_are_refused(tmp_path, cell):
    large = pictured(tmp_path / "large")
    (tmp_path / "large").mkdir()
    with pytest.raises(InputError, match="up to 64 pixels, found sides of 300"):
        write_sprites([large("base", [0.0] * 3, side=300, rows=True)], None)
    without_folder(cell)
    for content, said in ((b"no picture", "cannot be read as a picture"), (webp(33, 32), "33 x 32 pixels")):
        sprite_of(cell).write_bytes(content)
        with pytest.raises(InputError, match=said):
            first_pictures(cell, read(cell))


def webp(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_report_and_sheet_are_the_same_from_sprites(tmp_path, capsys):
    paths = some_methods(tmp_path, prompts=20)
    before = draw([tmp_path], prompts=6).tobytes()
    with_folders = build([tmp_path], tmp_path / "elsewhere" / "report.html").text
    assert run_command_line(["sheet", str(tmp_path), "--sprite"]) == 0
    assert capsys.readouterr().out.count("written to") == len(paths)
    for path in paths:
        without_folder(path)
    assert draw([tmp_path], prompts=6).tobytes() == before
    page = build([tmp_path], tmp_path / "elsewhere" / "report.html")
    assert any("Not checked against results" in line for line in page.said)  # whose digest is of the PNG files
    assert page.text.count("data:image/webp") == with_folders.count("data:image/webp") > 20


def test_the_report_says_how_many_prompts_have_pictures(cell, tmp_path):
    sprite_of(cell).write_bytes(packed(first_pictures(cell, read(cell)), 10))
    without_folder(cell)
    said = build([tmp_path], tmp_path / "report.html").said
    assert any("Of 25 prompts, 10 have pictures beside these results." in line for line in said)
