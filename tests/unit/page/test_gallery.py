"""The gallery: which pictures, how large, and whether they are those of the results."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from pictured import pictured, some_methods
from PIL import Image

from alignbench.analysis.compare import compare
from alignbench.analysis.load import load, methods_of
from alignbench.errors import InputError
from alignbench.keys import Key
from alignbench.page.gallery import BUDGET, Gallery, gallery, short_names


@pytest.fixture
def of(tmp_path):
    """The gallery of the results in the folder."""

    def make(images=None, output=None, room=BUDGET) -> Gallery:
        (group,) = compare([tmp_path]).groups
        (runs,) = load([tmp_path]).groups.values()
        return gallery(group, methods_of(runs), output or tmp_path / "report.html", images, room)

    return make


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_small_pictures_stay_as_they_are(tmp_path, of):
    some_methods(tmp_path, prompts=8)
    found = of()
    (shot,) = [s for s in found.cards[3].shots if found.methods[s.method] == "best_of_n"]
    image = decoded(shot.source)
    assert (image.format, image.size) == ("WEBP", (32, 32))
    assert (np.array(image.convert("RGB")) == (80, 21, 90)).all()
    assert shot.scores == [pytest.approx(0.3 + 1.03), pytest.approx(1.6)]
    assert found.pixelled
    assert not found.lossy


def test_large_pictures_are_made_smaller_and_that_is_said(tmp_path, of):
    some_methods(tmp_path, prompts=8, side=300)
    found = of()
    assert decoded(found.cards[0].shots[0].source).size == (256, 256)
    assert any("lossy" in note for note in found.notes)


def test_pictures_that_are_not_those_of_the_result_are_left_out(tmp_path, of):
    some_methods(tmp_path, prompts=8)
    Image.new("RGB", (32, 32), "white").save(tmp_path / "best" / "images" / "00002-0.png")
    found = of()
    assert any("best_of_n: the pictures in" in note for note in found.notes)
    assert found.methods.index("best_of_n") not in {shot.method for card in found.cards for shot in card.shots}


def test_a_picture_that_was_changed_after_the_run_is_named_and_not_shown(tmp_path, of):
    """The others of its cell stay."""
    draw = pictured(tmp_path)
    draw("base", [0.0] * 8, rows=True)
    draw("best", [1.0] * 8, "best_of_n", red=80, rows=True)
    assert not of().notes
    Image.new("RGB", (32, 32), "white").save(tmp_path / "best" / "images" / "00002-0.png")
    (tmp_path / "best" / "images" / "00005-0.png").write_bytes(b"no picture")
    found = of()
    (note,) = found.notes
    folder = tmp_path / "best" / "images"
    assert note == (
        "best_of_n: changed after the run, so not the pictures its scores are of, and left out: "
        f"{folder / '00002-0.png'}, {folder / '00005-0.png'}."
    )
    best = found.methods.index("best_of_n")
    assert [best in {shot.method for shot in card.shots} for card in found.cards] == [i not in (2, 5) for i in range(8)]


def test_many_changed_pictures_are_counted(tmp_path, of):
    pictured(tmp_path)("base", [0.0] * 8, rows=True)
    for path in (tmp_path / "base" / "images").iterdir():
        Image.new("RGB", (32, 32), "white").save(path)
    (note,) = [note for note in of().notes if "changed after the run" in note]
    assert note.endswith("and 5 more.")


def test_pictures_without_a_digest_are_shown_and_said_to_be_unchecked(tmp_path, of):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 6, kept=False)
    draw("one", [1.0] * 6, "best_of_n")
    assert of().notes == ["Not checked against results, which keep no digest of pictures or lack some: base."]


def test_images_says_how_many_prompts_and_they_are_drawn_by_key(tmp_path, of):
    some_methods(tmp_path)
    found = of(images=4)
    assert [card.prompt for card in found.cards] == [
        f"p{i}" for i in sorted(Key("report", "gallery").permutation(30)[:4])
    ]
    assert any("4 of 30 prompts, drawn at random" in note for note in found.notes)
    assert (of(images=0).cards, of(images=0).notes) == ([], ["No pictures were asked for (--images 0)."])
    assert len(of(images=99).cards) == 30


def test_without_a_number_as_many_prompts_as_fit_are_taken(tmp_path, of):
    some_methods(tmp_path)
    size = of(images=1).bytes
    found = of(room=5 * size)
    assert 3 <= len(found.cards) <= 7
    assert 3 * size <= found.bytes <= 5 * size


def test_full_pictures_are_linked_where_they_lie_below_the_page(tmp_path, of):
    some_methods(tmp_path, prompts=8)
    assert of().folders[0] == "base/images"
    assert of(output=tmp_path / "elsewhere" / "report.html").folders == [None] * 4


def test_a_damaged_picture_is_one_line(tmp_path, of):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 6, kept=False)
    (tmp_path / "base" / "images" / "00001-0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00001-0\.png cannot be read as a picture"):
        of()


def test_the_baseline_and_the_best_of_each_algorithm_are_shown_first(tmp_path, of):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 8)
    for n in range(1, 9):
        draw(f"best{n}", [float(n)] * 8, "best_of_n", fields={"n": n})
    draw("sft", [-1.0] * 8, "sft")
    found = of()
    assert [found.methods[place] for place in found.shown] == ["base", "best_of_n n=1", "sft"]


def test_names_lose_what_all_of_them_begin_with():
    assert short_names(["shapes_truth", "shapes_style"]) == ["truth", "style"]
    assert short_names(["hpsv2", "shapes_style"]) == ["hpsv2", "shapes_style"]
    assert short_names(["shapes_truth"]) == ["shapes_truth"]


def test_whose_pictures_are_missing_is_said(tmp_path, of):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 6, rows=True)
    draw("one", [1.0] * 6, "best_of_n", rows=True)
    draw("none", [1.0] * 6, "sft", rows=True)
    (tmp_path / "one" / "images" / "00001-0.png").unlink()
    for file in (tmp_path / "none" / "images").iterdir():
        file.unlink()
    found = of()
    assert found.notes == [
        "Without pictures beside the result: sft.",
        "Pictures of fewer prompts than others have: best_of_n (5).",
    ]
    assert len(found.cards[1].shots) == 1


def test_of_an_algorithm_the_best_that_has_pictures_is_shown_first(tmp_path, of):
    draw = pictured(tmp_path)
    draw("base", [0.0] * 8)
    for n in (1, 2, 3):
        draw(f"best{n}", [float(n)] * 8, "best_of_n", fields={"n": n})
    for file in (tmp_path / "best1" / "images").iterdir():
        file.unlink()
    found = of()
    assert [found.methods[place] for place in found.shown] == ["base", "best_of_n n=2"]
