"""Whose prompt each picture of a folder is: recognised and said, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench.errors import InputError
from alignbench.judging.picture_folders import coverage, find


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of (empty) files and a file of so many prompts, and finds out what belongs to
    what: [(file, prompt's number from 1, image)], and what is said."""

    def found(names: list[str], prompts: str | int | None, first: int | None = None):
        root = tmp_path / "pictures"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        given = prompts
        if isinstance(prompts, int):
            given = str(tmp_path / "p.txt")
            Path(given).write_text("".join(f"prompt {i + 1}\n" for i in range(prompts)))
        result = find(root, given, "test", first)
        rows = [(str(i.path.relative_to(root)), int(i.prompt.text.split()[-1]), i.sample) for i in result.items]
        return rows, list(result.about)

    return found


def names(pattern: str, numbers) -> list[str]:
    return [pattern.format(i) for i in numbers]


@pytest.mark.parametrize(
    ("pattern", "first", "said"),
    [
        ("{}.png", 0, "numbered from 0"),
        ("{}.png", 1, "numbered from 1"),
        ("{:05d}.jpg", 0, "numbered from 0"),
        ("image_{}.png", 1, "numbered from 1 behind 'image_'"),
        ("image_{:02d}.webp", 0, "numbered from 0 behind 'image_'"),
        ("sd15-step20-{}.png", 1, "numbered from 1 behind 'sd15-step20-'"),
        ("ComfyUI_{:05d}_.png", 1, "numbered from 1 behind 'ComfyUI_'"),
        ("{:05d}-0.png", 0, "numbered from 0"),
        ("p{}_s0.png", 1, "numbered from 1 behind 'p'"),
        ("{}_what it is of, and more.PNG", 0, "numbered from 0"),
    ],
)
def test_a_number_is_a_prompts_place_whatever_is_around_it(folder, pattern, first, said):
    """Twelve pictures: as texts, 10 to 12 would come before 2."""
    rows, about = folder(names(pattern, range(first, first + 12)), 12)
    assert [(name, prompt) for name, prompt, _ in rows] == [(pattern.format(first + i), i + 1) for i in range(12)]
    assert about == [f"12 pictures of prompts 1 to 12 of 12; {said}"]


@pytest.mark.parametrize(
    "pattern", ["{:05d}-{}.png", "{}_{}.png", "p{}_s{}.png", "prompt {} (image {}).png", "{}-{}x.png"]
)
def test_several_pictures_of_a_prompt_have_numbers_of_their_own(folder, pattern):
    made = [pattern.format(prompt, image) for prompt in range(11) for image in range(2)]
    rows, about = folder(made, 11)
    assert rows == [(pattern.format(p, i), p + 1, i) for p in range(11) for i in range(2)]
    assert about[0].startswith("22 pictures, 2 each, of prompts 1 to 11 of 11; numbered from 0")


def test_a_gap_is_said_and_nothing_moves_up(folder):
    rows, about = folder(names("{}.png", (0, 1, 3, 11)), 12)
    assert [prompt for _, prompt, _ in rows] == [1, 2, 4, 12]
    assert about == ["4 pictures of prompts 1 to 12 of 12, without 8 between (3, 5, 6, …); numbered from 0"]


def test_what_may_count_from_0_or_from_1_is_asked_for(folder):
    made = names("{}.png", range(1, 12))
    with pytest.raises(InputError, match=r"numbered 1 to 11 and there are 12 prompts .* --first-number 0, or"):
        folder(made, 12)
    assert [prompt for _, prompt, _ in folder(made, 12, first=0)[0]] == list(range(2, 13))
    assert [prompt for _, prompt, _ in folder(made, 12, first=1)[0]] == list(range(1, 12))


@pytest.mark.parametrize(
    ("made", "first", "message"),
    [
        (names("{}.png", range(13)), None, "a picture has number 12, but there are 12 .* from 0 on, the last is 11"),
        (names("{}.png", range(1, 14)), None, "number 13, but there are 12 .* from 1 on, the last is 12"),
        (["0.png"], 1, "number 0, but there are 12"),
        (["0.png", "1.png", "z.png"], None, r"2 of 3 pictures have .*0\.png, 1\.png, and 1 have not, such as z\.png"),
        (["image.png", "image_2.png"], None, r"1 of 2 pictures have .* such as image_2\.png"),
        (["cat_1.png", "dog_2.png"], None, "are not numbered alike"),
        (["0.png", "0.jpg"], None, r"0\.jpg and 0\.png are both image 0 of one prompt"),
        (["0.png", "01.png", "1.png"], None, r"01\.png and 1\.png are both"),
        (["0_a.png", "0_b.png", "1_a.png"], None, r"0_a\.png and 0_b\.png are both"),
        (["0.png", "0 (1).png"], None, r"are both image 0"),
        (["a.png", "b.png"], None, "2 pictures without a number in their names, and there are 12 prompts"),
        (["a.png"] * 12, 0, "--first-number 0: the pictures in .* are not named by number; leave it out"),
        (["a.txt"], None, r"holds no pictures; expected files ending in \.png, \.jpg"),
        (["0.png", "1.HEIC"], None, r"1\.HEIC is a picture that is not read; expected .*\. Convert it, such as to PNG"),
        (["x/a.png", "y/a.png"], None, "holds no pictures but folders such as x, y"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, made, first, message):
    with pytest.raises(InputError, match=message):
        folder(made, 12, first)


def test_names_without_numbers_are_the_prompts_in_order(folder):
    rows, about = folder(["b.png", "A.png", "c.png"], 3)
    assert [(name, prompt) for name, prompt, _ in rows] == [("A.png", 1), ("b.png", 2), ("c.png", 3)]
    assert about == ["3 pictures of prompts 1 to 3 of 3; in the natural order of their names"]


def test_what_is_skipped_is_counted_and_named(folder):
    _, about = folder(["0.png", "1.png", ".DS_Store", "._0.png", "notes.txt", "2.svg", "old/0.png"], 2)
    assert about[1].endswith("2 hidden (._0.png, .DS_Store); 1 folders (old); 2 no pictures (2.svg, notes.txt)")


def test_ids_come_before_numbers(folder, tmp_path):
    """The ids of ImageReward's benchmark have two numbers, and its pictures a third."""
    rows = [{"id": "005695-0057", "prompt": "prompt 1"}, {"id": "005784-0093", "prompt": "prompt 2"}]
    (tmp_path / "ir.json").write_text(json.dumps(rows))
    made = [f"{row['id']}_{k}.png" for row in reversed(rows) for k in range(11)]
    found, about = folder(made, str(tmp_path / "ir.json"))
    assert found == [(f"{rows[p]['id']}_{k}.png", p + 1, k) for p in range(2) for k in range(11)]
    assert about == ["22 pictures, 11 each, of prompts 1 to 2 of 2; named by the prompts' ids"]
    (tmp_path / "turned.csv").write_text("id,prompt\n2,prompt 1\n1,prompt 2\n")
    found, _ = find_in(tmp_path, ["01.png", "2.png"], tmp_path / "turned.csv")
    assert found == [("2.png", "prompt 1"), ("01.png", "prompt 2")]
    with pytest.raises(InputError, match=r"1 of 2 pictures have a prompt's id .*1\.png, and 1 have not, .* 0\.png"):
        find_in(tmp_path, ["0.png", "1.png"], tmp_path / "turned.csv")


def find_in(place: Path, made: list[str], prompts: Path):
    root = place / f"of-{'-'.join(made)}"
    root.mkdir()
    for name in made:
        (root / name).touch()
    found = find(root, str(prompts), "test", None)
    return [(item.path.name, item.prompt.text) for item in found.items], found.about


def test_words_come_before_numbers_and_before_the_order_of_names(tmp_path):
    (tmp_path / "p.txt").write_text("a red fox, at night\n2 hens\na cat\n")
    made = ["2_hens.png", "a cat.png", "A red fox - at night.png"]
    found, about = find_in(tmp_path, made, tmp_path / "p.txt")
    assert found == [(made[2], "a red fox, at night"), (made[0], "2 hens"), (made[1], "a cat")]
    assert about == ["3 pictures of prompts 1 to 3 of 3; named by the prompts' words"]
    found, _ = find_in(tmp_path, ["a cat_1.png", "a cat_0.png"], tmp_path / "p.txt")
    assert found == [("a cat_0.png", "a cat"), ("a cat_1.png", "a cat")]
    with pytest.raises(
        InputError, match=r"2 of 3 pictures have a prompt's words .*, and 1 have not, such as a dog\.png"
    ):
        find_in(tmp_path, ["a cat.png", "2 hens.png", "a dog.png"], tmp_path / "p.txt")


@pytest.fixture
def styles(tmp_path):
    """Prompts of two categories, one after the other."""
    rows = [f'{{"prompt": "prompt {i + 1}", "category": "{"anime" if i < 3 else "photo"}"}}\n' for i in range(6)]
    (tmp_path / "styles.jsonl").write_text("".join(rows))
    return str(tmp_path / "styles.jsonl")


def test_hpsv2s_folders_are_the_prompts_of_their_style(folder, styles, tmp_path):
    made = [f"{style}/{i:05d}.jpg" for style in ("photo", "anime") for i in range(3)]
    rows, about = folder([*made, "photo/result.csv"], styles)
    assert rows == [(name, i + 1, 0) for i, name in enumerate([*made[3:], *made[:3]])]
    assert about[0] == "6 pictures of prompts 1 to 6 of 6; in folders of the prompts' categories, numbered from 0"
    assert about[1].endswith("1 no pictures (result.csv)")
    alone = find(tmp_path / "pictures" / "photo", styles, "test", None)  # one style's folder: not the first prompts
    assert [item.prompt.text for item in alone.items] == ["prompt 4", "prompt 5", "prompt 6"]


def test_a_folder_that_is_no_style_is_refused(folder, styles):
    with pytest.raises(InputError, match="other is none of the prompts' categories: anime, photo"):
        folder(["anime/00000.jpg", "other/00000.jpg"], styles)


def geneval(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name / "samples").mkdir(parents=True)
        (root / name / "metadata.jsonl").write_text(json.dumps({"tag": "counting", "prompt": text}))
        (root / name / "grid.png").touch()
        for k in range(4):
            (root / name / "samples" / f"{k:05d}.png").touch()


def test_genevals_folders_have_their_prompts_with_them(tmp_path):
    geneval(tmp_path / "g", {f"{i:05d}": f"prompt {i + 1}" for i in range(11)})
    (tmp_path / "p.txt").write_text("".join(f"prompt {i + 1}\n" for i in range(11)))
    for prompts in (None, str(tmp_path / "p.txt")):
        found = find(tmp_path / "g", prompts, "test", None)
        assert [item.prompt.text for item in found.items[::4]] == [f"prompt {i + 1}" for i in range(11)]
        assert [item.sample for item in found.items[:5]] == [0, 1, 2, 3, 0]
        assert found.about[0].startswith("44 pictures, 4 each, of prompts 1 to 11 of 11; a folder for each prompt")
        assert "(grid.png, grid.png, grid.png, …)" in found.about[1]
    (tmp_path / "p.txt").write_text("".join(f"prompt {i + 2}\n" for i in range(11)))
    with pytest.raises(
        InputError, match=r"00000/metadata\.jsonl: the prompt is 'prompt 1', but number 0 .* is 'prompt 2'"
    ):
        find(tmp_path / "g", str(tmp_path / "p.txt"), "test", None)


def test_a_folder_for_each_prompt_needs_no_samples_folder(folder):
    made = [f"{i}/{k}.png" for i in (1, 2, 10) for k in (0, 1)]
    rows, about = folder(made, 10)
    assert rows == [(f"{i}/{k}.png", i, k) for i in (1, 2, 10) for k in (0, 1)]
    assert about[0].endswith("without 7 between (3, 4, 5, …); a folder for each prompt, numbered from 1")
    with pytest.raises(InputError, match=r"has no metadata\.jsonl with its prompt; name the prompts with --prompts"):
        folder([], None)


def test_the_folder_of_a_cell_has_its_pictures_in_images(folder):
    rows, _ = folder(["images/00000-0.png", "images/00001-0.png", "log.jsonl", "adapter/x.json"], 2)
    assert [prompt for _, prompt, _ in rows] == [1, 2]


def test_the_coverage_is_a_sentence():
    assert coverage([0], 5) == "1 picture of prompt 1 of 5"
    assert coverage([0, 0, 1], 5) == "3 pictures, 1 to 2 each, of prompts 1 to 2 of 5"
