"""What a run keeps of its pictures: digests, statistics, diversity and metadata, killed and continued or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.experiment import evaluate
from alignbench.experiment.run import run_cell
from alignbench.files import sha256_of
from alignbench.record import result as results
from alignbench.record.digests import digest_of, digests, picture_of
from alignbench.record.picture_statistics import diversity, of_picture

TINY = {"algo": "base", "limit": 3, "steps": 2, "images_per_prompt": 2, "scorers": ("shapes_truth",)}


def run(folder, **options):
    return run_cell(resolve(RunOptions.parse(TINY | {"output": folder} | options)), quiet=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The result of a cell that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return run(tmp_path_factory.mktemp("whole")).path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def files(path: Path) -> dict[str, str]:
    """Digest of each picture's file by its name."""
    return {file.name: sha256_of(file) for file in (path.with_suffix("") / "images").iterdir()}


def test_every_row_has_the_digest_and_the_statistics_of_its_picture(whole):
    result = results.read(whole)
    assert result.schema_ == 2
    found = digests(whole, result)
    assert len(found) == 6
    assert result.kept.pictures == digest_of(found)
    for row, (place, sample) in zip(result.rows, found, strict=True):
        assert row.sha256 == found[place, sample]
        assert row.picture == of_picture(pixels(picture_of(whole, place, sample)))


def test_every_prompt_has_the_diversity_of_its_pictures_and_latents(whole):
    result = results.read(whole)
    assert [own.prompt for own in result.diversity] == [prompt.id for prompt in result.prompts]
    for place, own in enumerate(result.diversity):
        two = [pixels(picture_of(whole, place, sample)) / 255 for sample in (0, 1)]
        assert own.pictures == pytest.approx(diversity(two), abs=1e-6)
        assert 0.1 < own.latents < 10
    assert not (whole.with_suffix("") / "latents").exists()


def test_one_picture_a_prompt_has_no_diversity(tmp_path):
    result = run(tmp_path, images_per_prompt=1, limit=1).result
    assert result.diversity == []
    assert result.rows[0].sha256


def test_points_have_nothing_of_all_this(tmp_path):
    options = {"model": "mixture", "prompts": "grid", "scorers": ("quadratic",), "reward": "quadratic"}
    result = run(tmp_path, **options).result
    assert result.diversity == []
    assert all(row.sha256 is None and row.picture == {} for row in result.rows)


def test_pictures_say_what_they_are_of(whole):
    result = results.read(whole)
    image = Image.open(picture_of(whole, 1, 1))
    assert image.text == {"prompt": result.prompts[1].text, "method": "base", "noise seed": "0", "sample": "1"}


def test_the_batch_size_changes_nothing_but_rounding(whole, tmp_path):
    """A pixel may round to the other side; a statistic moves by no more than a few of 1024 pixels."""
    one, other = results.read(whole), run(tmp_path, batch_size=1).result
    for mine, theirs in zip(one.rows, other.rows, strict=True):
        assert mine.picture == pytest.approx(theirs.picture, abs=5e-3)
    for mine, theirs in zip(one.diversity, other.diversity, strict=True):
        assert mine.latents == pytest.approx(theirs.latents, abs=1e-4)


class Stopped(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """The folder of a cell that died after two of three chunks of pictures."""
    real, lines = evaluate.append_line, []

    def dying(path, line):
        if len(lines) == 2:
            raise Stopped
        lines.append(line)
        real(path, line)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "append_line", dying)
        with pytest.raises(Stopped):
            run(tmp_path, batch_size=2)
    (folder,) = (path for path in tmp_path.iterdir() if (path / "generated.jsonl").exists())
    assert len((folder / "generated.jsonl").read_text().splitlines()) == 2
    return folder


def same_as_whole(found: results.Result, path: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "whole", batch_size=2)
    assert found.rows == again.result.rows
    assert found.diversity == again.result.diversity
    assert found.kept == again.result.kept
    assert files(path) == files(again.path)


def test_rows_made_before_and_after_a_kill_are_those_of_an_uninterrupted_run(interrupted, tmp_path):
    assert (interrupted / "latents").is_dir()
    found = run(tmp_path, batch_size=2)
    assert found.result.attempts == 2
    same_as_whole(found.result, found.path, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: Image.new("RGB", (32, 32), "white").save(folder / "images" / "00000-0.png"),
        lambda folder: (folder / "images" / "00001-0.png").write_bytes(b"torn"),
        lambda folder: (folder / "latents" / "00001-0.npy").write_bytes(b"torn"),
        lambda folder: (folder / "latents" / "00002-0.npy").unlink(),
    ],
    ids=["another picture", "a torn picture", "torn latents", "no latents"],
)
def test_what_changed_between_two_attempts_is_made_again(damage, interrupted, tmp_path):
    damage(interrupted)
    found = run(tmp_path, batch_size=2)
    same_as_whole(found.result, found.path, tmp_path)


def test_pictures_that_an_older_version_logged_are_made_again(interrupted, tmp_path):
    log = interrupted / "generated.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "pictures"}) + "\n" for line in lines))
    found = run(tmp_path, batch_size=2)
    same_as_whole(found.result, found.path, tmp_path)
