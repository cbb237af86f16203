"""`alignbench score`: pictures that are there already, with their prompts, scored once."""

from __future__ import annotations

import json

import pytest
from parity import recipe
from pictured import pictured
from PIL import Image

from alignbench import RewardInfo, images, plugins
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.images import as_tensor
from alignbench.judging.score import items_of, score_items, summary
from alignbench.pictures import read
from alignbench.progress import Progress

MODES = ("RGB", "RGBA", "L", "P")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four pictures of three sizes and four kinds, and their prompts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "pictures"
    place.mkdir()
    for i, mode in enumerate(MODES):
        Image.fromarray(recipe.pictures()[i % 3][:50, : 40 + i // 2]).convert(mode).save(place / f"{i:05d}.png")
    (tmp_path / "prompts.txt").write_text("a star\na circle\n" + "star " * 90 + "\na square\n")
    return place


def arguments(folder, *more: str) -> list[str]:
    return ["score", str(folder), "--prompts", str(folder.parent / "prompts.txt"), *more]


def scored(items, reward, tmp_path, batch=2):
    return score_items(items, {"it": reward}, batch, "cpu", tmp_path / "kept", Progress(quiet=True))


def test_every_picture_of_a_folder_gets_its_score(folder, capsys):
    assert run_command_line(arguments(folder, "--scorers", "jpeg_compressibility", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    reward = plugins.load("rewards", "jpeg_compressibility")()
    for i, row in enumerate(report["rows"]):
        with Image.open(folder / f"{i:05d}.png") as image:
            expected = reward(as_tensor(image)[None], []).item()
        assert row["scores"] == {"jpeg_compressibility": pytest.approx(expected)}
        assert row["image"] == str(folder / f"{i:05d}.png")
    assert [row["text"] for row in report["rows"]][:2] == ["a star", "a circle"]
    values = [row["scores"]["jpeg_compressibility"] for row in report["rows"]]
    assert report["summary"]["jpeg_compressibility"]["mean"] == pytest.approx(sum(values) / 4)
    assert report["scorers"]["jpeg_compressibility"]["id"] == "jpeg_compressibility"


def test_a_summary_names_the_scorer_and_counts_what_was_cut_off(folder, scorer_files, tmp_path, capsys):
    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    report = scored(items, recipe.scorer("clip_l14"), tmp_path)
    assert summary(report)["it"] | {"mean": 0, "deviation": 0, "min": 0, "max": 0} == {
        "images": 4, "failed": 0, "truncated": 1, "mean": 0, "deviation": 0, "min": 0, "max": 0,
    }  # fmt: skip
    assert run_command_line(arguments(folder, "--scorers", "jpeg_compressibility")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "4 pictures of prompts 1 to 4 of 4; numbered from 0"
    assert out.splitlines()[3].split()[:4] == ["jpeg_compressibility", "4", "0", "-"]


def test_a_picture_is_decoded_once_for_all_scorers_whose_scores_are_those_of_each_alone(
    folder, scorer_files, tmp_path, monkeypatch
):
    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    scorers = {name: recipe.scorer(name) for name in ("pickscore", "hpsv2_1", "aesthetic_v2", "imagereward")}
    scorers["jpeg_compressibility"] = plugins.load("rewards", "jpeg_compressibility")()
    alone = [scored(items, reward, tmp_path / name).rows for name, reward in scorers.items()]
    decoded = []
    monkeypatch.setattr(images, "read", lambda *given: decoded.append(given) or read(*given))
    together = score_items(items, scorers, 2, "cpu", tmp_path / "kept", Progress(quiet=True)).rows
    assert len(decoded) == len(items)
    for name, rows in zip(scorers, alone, strict=True):
        assert [row.scores[name] for row in together] == [row.scores["it"] for row in rows]


class Counting:
    """A scorer that counts what it scores, and stops where it is told to."""

    differentiable = False

    def __init__(self, stop: int = 100, weights: str = "a" * 64) -> None:
        self.seen, self.stop, self.weights = 0, stop, weights

    def __call__(self, images, prompts):
        if self.seen >= self.stop:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mean((1, 2, 3))

    with_grad = __call__

    def info(self):
        return RewardInfo(id="counting-1", files={"counting.safetensors": self.weights} if self.weights else {})

    def unsupported(self, prompts, image_shape):
        return None


def test_an_interrupted_run_goes_on_where_it_stopped_and_a_finished_one_scores_nothing(folder, tmp_path):
    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    with pytest.raises(KeyboardInterrupt):
        scored(items, Counting(stop=2), tmp_path)
    rest = Counting()
    report = scored(items, rest, tmp_path)
    assert rest.seen == 2
    again = Counting()
    assert [row.scores for row in scored(items, again, tmp_path).rows] == [row.scores for row in report.rows]
    assert again.seen == 0
    Image.new("RGB", (9, 9)).save(folder / "00001.png")  # another picture under the name
    scored(items, again, tmp_path)
    assert again.seen == 1


@pytest.mark.parametrize("weights", ["", "v2 of my weights"])
def test_scores_of_a_scorer_that_names_no_weights_by_their_hash_are_not_kept(weights, folder, tmp_path):
    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    counting = Counting(weights=weights)
    scored(items, counting, tmp_path)
    scored(items, counting, tmp_path)
    assert counting.seen == 8
    assert not (tmp_path / "kept").exists()


def test_scores_of_another_precision_are_not_taken_for_these(folder, scorer_files, tmp_path):
    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    full = scored(items, recipe.scorer("clip_l14"), tmp_path)
    half = scored(items, recipe.scorer("clip_l14", dtype="bfloat16"), tmp_path)
    assert [row.scores for row in full.rows] != [row.scores for row in half.rows]


def test_a_failed_picture_is_a_row_with_a_reason_and_is_tried_again(folder, tmp_path):
    class Failing(Counting):
        def __call__(self, images, prompts):
            if any(prompt.text == "a circle" for prompt in prompts):
                raise ValueError("no circles")
            return super().__call__(images, prompts)

    items = items_of(folder, str(folder.parent / "prompts.txt")).items
    report = scored(items, Failing(), tmp_path)
    assert [row.scores["it"] is None for row in report.rows] == [False, True, False, False]
    assert report.rows[1].failures == {"it": "ValueError: no circles"}
    assert summary(report)["it"]["failed"] == 1
    assert scored(items, Counting(), tmp_path).rows[1].scores["it"] is not None


def test_the_images_of_a_result_are_scored_with_its_prompts(make_result, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_result("cell", [1.0, 2.0, 3.0, 4.0], samples=2)
    (tmp_path / "cell" / "images").mkdir(parents=True)
    for i in range(2):
        for sample in range(2):
            image = Image.fromarray(recipe.pictures()[i + sample])
            image.save(tmp_path / "cell" / "images" / f"{i:05d}-{sample}.png")
    assert run_command_line(["score", str(path), "--scorers", "jpeg_compressibility", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["prompt"], row["sample"], row["text"]) for row in rows] == [
        ("p0", 0, "prompt p0"), ("p0", 1, "prompt p0"), ("p1", 0, "prompt p1"), ("p1", 1, "prompt p1"),
    ]  # fmt: skip
    (tmp_path / "cell" / "images" / "00001-0.png").unlink()
    with pytest.raises(InputError, match=r"has no picture .*00001-0\.png"):
        items_of(path, None)
    with pytest.raises(InputError, match="has its own prompts"):
        items_of(path, "parti")


def test_a_picture_that_was_changed_after_its_run_is_refused_by_name(tmp_path):
    path = pictured(tmp_path)("cell", [0.0] * 4, rows=True)
    assert len(items_of(path, None).items) == 4
    Image.new("RGB", (32, 32), "white").save(tmp_path / "cell" / "images" / "00002-0.png")
    with pytest.raises(InputError, match=r"00002-0\.png was changed after .*cell\.json was written"):
        items_of(path, None)


def test_pictures_and_prompts_that_do_not_fit_are_refused(folder, tmp_path):
    prompts = str(folder.parent / "prompts.txt")
    with pytest.raises(InputError, match="say what the pictures"):
        items_of(folder, None)
    with pytest.raises(InputError, match="neither a folder of pictures nor a result file"):
        items_of(tmp_path / "nothing", prompts)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        items_of(tmp_path / "empty", prompts)
    (folder / "00003.png").rename(folder / "00007-1.png")
    with pytest.raises(InputError, match=r"has number 7, but there are 4 prompts of .* from 0 on, the last is 3"):
        items_of(folder, prompts)
    (folder / "00007-1.png").unlink()
    assert [item.prompt.text for item in items_of(folder, prompts).items][1] == "a circle"  # numbered: some suffice


def test_a_broken_picture_is_a_failed_row_and_not_the_end(folder, tmp_path, capsys):
    (folder / "00001.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (folder / "00002.png").write_bytes((folder / "00002.png").read_bytes()[:-100])
    assert run_command_line(arguments(folder, "--scorers", "jpeg_compressibility", "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["scores"]["jpeg_compressibility"] is None for row in rows] == [False, True, True, False]
    assert "it cannot be read: " in rows[1]["failures"]["jpeg_compressibility"]
    assert "are no JPEG" in rows[1]["failures"]["jpeg_compressibility"]
    assert run_command_line(arguments(folder, "--scorers", "jpeg_compressibility")) == 0
    said = "".join(capsys.readouterr().out.split())  # folded where the screen is narrow
    assert f"withoutascore:2,thefirst{folder}/00001.png:itcannotberead" in said
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    assert run_command_line(arguments(folder, "--scorers", "jpeg_compressibility")) == 2
    assert f"not one of 4 pictures can be read; the first, {folder}/00000.png: 10 bytes" in capsys.readouterr().err


def test_what_was_done_to_pictures_is_counted_the_second_time_too(folder, capsys):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(folder / "00001.png")
    clear.save(folder / "00003.png")
    (folder.parent / "prompts.csv").write_text("prompt,seed\na,1\nb,2\nc,3\nd,4\n")
    for _ in range(2):
        typed = [
            "score",
            str(folder),
            "--prompts",
            str(folder.parent / "prompts.csv"),
            "--scorers",
            "jpeg_compressibility",
        ]
        assert run_command_line([*typed, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["pictures"] == {"transparent, shown on white": 2}
        assert report["about"][1].endswith("prompts.csv: columns that are not used: seed")
    assert run_command_line(typed) == 0
    assert "pictures: 2 transparent, shown on white" in capsys.readouterr().out


def test_a_picture_is_scored_as_it_is_shown(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(recipe.pictures()[0][:20, :50])
    wide.save(folder / "00000.png", exif=exif)
    shapes = []

    class Looking(Counting):
        def __call__(self, images, prompts):
            shapes.append(tuple(images.shape[1:]))
            return super().__call__(images, prompts)

    scored(items_of(folder, str(folder.parent / "prompts.txt")).items[:1], Looking(), tmp_path)
    assert shapes == [(3, 50, 20)]


def test_where_pictures_may_count_from_0_or_1_an_option_says_which(folder, capsys):
    (folder / "00000.png").unlink()
    (folder / "00003.png").unlink()
    typed = arguments(folder, "--scorers", "jpeg_compressibility")
    assert run_command_line(typed) == 2
    assert "say which: --first-number 0, or --first-number 1" in capsys.readouterr().err
    for first, prompts in ((0, "2 to 3"), (1, "1 to 2")):
        assert run_command_line([*typed, "--first-number", str(first)]) == 0
        assert f"2 pictures of prompts {prompts} of 4; numbered from {first}" in capsys.readouterr().out
