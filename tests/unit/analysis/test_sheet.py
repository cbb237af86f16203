"""Pictures of several methods side by side."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.font_manager
import numpy as np
import pytest
from PIL import Image

import alignbench
from alignbench.analysis.sheet import draw
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError, UnknownName
from alignbench.record import result as results


@pytest.fixture
def cell(tmp_path, make_result):
    """A function that writes a result and its pictures, each of one colour."""

    def write(name, algorithm, colour, missing=(), **changes):
        path = make_result(name, [1.0, 2.0, 3.0], algorithm, **changes)
        folder = path.with_suffix("") / "images"
        folder.mkdir(parents=True)
        for place in set(range(3)) - set(missing):
            Image.new("RGB", (32, 32), (colour, 50 * place, 0)).save(folder / f"{place:05d}-0.png")
        return path

    return write


def colours(sheet: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.array(sheet).reshape(-1, 3)}


def test_every_method_has_a_row_and_every_prompt_a_column(cell, tmp_path):
    cell("base", "base", 200)
    cell("best", "best_of_n", 100)
    sheet = draw([tmp_path], prompts=2)
    assert {(200, 0, 0), (200, 50, 0), (100, 0, 0), (100, 50, 0)} <= colours(sheet)
    assert (200, 100, 0) not in colours(sheet)  # the third prompt
    pixels = np.array(sheet)
    first, second = (np.argwhere((pixels == (colour, 0, 0)).all(-1)) for colour in (200, 100))
    assert len(first) == len(second) == 96 * 96
    assert first[:, 0].max() < second[:, 0].min()  # base stands above
    assert (first[:, 1] == second[:, 1]).all()  # in one column


def test_only_prompts_that_all_have_and_only_methods_that_were_named(cell, tmp_path):
    cell("base", "base", 200)
    cell("best", "best_of_n", 100, missing=[0])
    sheet = alignbench.sheet(tmp_path, prompts=3)
    assert (200, 0, 0) not in colours(sheet)
    assert (200, 100, 0) in colours(sheet)
    alone = alignbench.sheet(tmp_path, methods=["base"])
    assert (200, 0, 0) in colours(alone)
    assert (100, 50, 0) not in colours(alone)
    with pytest.raises(UnknownName, match="no method in these files named 'bset'"):
        draw([tmp_path], methods=["bset"])


@pytest.mark.parametrize(("one", "other"), [("é", "ü"), ("ж", "д"), ("ب", "ش")])
def test_letters_of_other_languages_are_told_apart(one, other, cell, tmp_path):
    """A letter that a font lacks is the box that every other is."""
    path = cell("base", "base", 200)

    def caption(letter: str) -> np.ndarray:
        result = results.read(path)
        prompts = [replace(prompt, text=letter) for prompt in result.prompts]
        results.write(path, result.model_copy(update={"prompts": prompts}))
        return np.array(draw([tmp_path], prompts=1))[:20]

    assert (caption(one) != caption(other)).any()


def test_without_a_font_on_the_machine_captions_are_in_one_that_comes_along(cell, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    test_letters_of_other_languages_are_told_apart("ж", "д", cell, tmp_path)


def test_names_of_methods_are_in_a_font_that_has_their_letters_and_fonts_are_read_once(cell, tmp_path, monkeypatch):
    def sheet_of(letter: str) -> np.ndarray:
        for path in tmp_path.glob("*.json"):
            path.unlink()
        for name, reward in (("a", letter), ("b", f"{letter}{letter}")):
            cell(f"{name}{ord(letter)}", "base", 200, configuration={"reward": reward})
        return np.array(draw([tmp_path], prompts=1))

    looked = []
    real = matplotlib.font_manager.findSystemFonts
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: looked.append(1) or real())
    one, other = sheet_of("ж"), sheet_of("д")
    width = min(one.shape[1], other.shape[1])
    assert (one[:, :width] != other[:, :width]).any()
    assert len(looked) == 2  # once a sheet


def test_the_command_writes_a_picture_and_refuses_what_it_cannot(cell, tmp_path, make_result, capsys):
    cell("base", "base", 200)
    target = tmp_path / "out.png"
    assert run_command_line(["sheet", str(tmp_path), "--prompts", "1", "--output", str(target)]) == 0
    with Image.open(target) as image:
        assert image.format == "PNG"
    for arguments, message in (
        (["--output", "x.jpg"], "--output x.jpg: expected a .png file."),
        (["--prompts", "0"], "--prompts 0: expected at least 1."),
        (["--sprite", "--output", "x.png"], "--output x.png: a sprite is written beside its result"),
        (["--sprite", "--method", "base"], "--method: a sprite is of one result"),
    ):
        assert run_command_line(["sheet", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err
    make_result("bare", [1.0, 2.0, 3.0], "demon")
    with pytest.raises(InputError, match=r"bare\.json has no pictures in"):
        draw([tmp_path])
    make_result("elsewhere", [1.0], "base", evaluation={"eval_seed": 7})
    with pytest.raises(InputError, match="a sheet is of one evaluation; these files hold 2"):
        draw([tmp_path])


@pytest.mark.parametrize("sprite", [False, True])
def test_a_cell_of_points_is_said_to_have_no_pictures(sprite, tmp_path, make_result, capsys):
    path = make_result("points", [1.0, 2.0], "base", evaluation={"model": {"name": "mixture", "image_shape": [2]}})
    assert run_command_line(["sheet", str(path), *(["--sprite"] if sprite else [])]) == 2
    told = "points.json: 'mixture' draws points, not pictures; a sheet is of models that draw pictures."
    assert told in capsys.readouterr().err
