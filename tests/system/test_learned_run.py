"""`alignbench run` with learned scorers from end to end, on small random weights of the official layouts."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from parity import recipe
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alignbench import Prompt, Unsupported, plugins
from alignbench.cli.app import run_command_line
from alignbench.experiment.evaluate import score
from alignbench.images import as_tensor, read_image
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.pictures import PictureFacts, Slot
from alignbench.remote.client import RemoteScorer
from alignbench.scoring.score_cache import ScoreCache

CAPTIONS = ["a red circle", "a blue star on a white background", "two " + "very " * 90 + "green squares"]


@pytest.fixture
def small(checkpoints, tmp_path, monkeypatch):
    """Scorers of the small architectures, with caches of their own, in an empty folder with a list of captions."""
    load = plugins.load

    def load_small(group, name):
        found = load(group, name)
        known = recipe.ARCHITECTURES.get(name) if group == "rewards" else None
        return functools.partial(found, architecture=known) if known else found

    monkeypatch.setattr(plugins, "load", load_small)
    monkeypatch.setenv("ALIGNBENCH_DATA", str(checkpoints))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return {name: checkpoints / load("rewards", name).files[0].place for name in recipe.ARCHITECTURES}


def command(small, *more: str) -> list[str]:
    scorers = [f"hpsv2={small['hpsv2_1']}", "aesthetic", "clip", "imagereward"]
    asked = ["run", "--algo", "best_of_n", "--set", "n=2", "--model", "tiny", "--prompts", "captions.txt"]
    asked += ["--reward", f"pickscore={small['pickscore']}", "--scorers", *scorers, "--steps", "2"]
    return [*asked, "--allow-unverified", *more]


def test_a_run_with_learned_scorers_from_end_to_end(small, capsys):
    assert run_command_line(command(small)) == 0
    (path,) = Path("results").glob("*.json")
    result = results.read(path)
    out = capsys.readouterr().out
    pick, hps = f"pickscore-{small['pickscore'].stem}", f"hpsv2_1-{small['hpsv2_1'].stem}"
    assert list(result.scorers) == [pick, hps, "aesthetic_v2", "clip_l14", "imagereward"]
    for name, scorer in result.scorers.items():
        assert scorer.id.startswith(f"{ {pick: 'pickscore', hps: 'hpsv2.1'}.get(name, name) } unverified ")
        assert scorer.files
    assert result.truncated == {pick: 1, hps: 1, "clip_l14": 1, "imagereward": 1}
    assert f"cut off     {pick} reads 1 of 3 prompts" in out
    assert result.cost.per_image["reward_forward"] == 2
    for row, text in zip(result.rows, CAPTIONS, strict=True):  # every column is the scorer on the picture that is kept
        place = int(row.prompt) if row.prompt.isdigit() else CAPTIONS.index(text)
        with Image.open(path.with_suffix("") / "images" / f"{place:05d}-0.png") as image:
            pixels = as_tensor(image)[None]
        for name, column in (("pickscore", pick), ("hpsv2_1", hps), ("imagereward", "imagereward")):
            own = recipe.scorer(name)(pixels, [Prompt("x", text)]).item()
            assert row.scores[column] == pytest.approx(own, abs=1e-5)


def test_the_kept_image_is_the_one_the_learned_reward_prefers(small):
    for n in (6, 1):
        asked = command(small, "--name", f"of-{n}")
        asked[asked.index("n=2")] = f"n={n}"
        assert run_command_line(asked) == 0
    best, first = (results.read(next(Path("results").glob(f"*of-{n}*.json"))) for n in (6, 1))
    column = next(iter(best.scorers))
    values = [[row.scores[column] for row in result.rows] for result in (best, first)]
    gains = [a - b for a, b in zip(*values, strict=True)]
    assert min(gains) >= -1e-6  # of the six, the first is one
    assert max(gains) > 1e-3  # and for some prompt another is better


def test_what_was_scored_before_is_not_scored_again(small, monkeypatch):
    assert run_command_line(command(small)) == 0
    encoder = recipe.scorer("hpsv2_1").features.encoder
    seen = []
    encode = type(encoder).encode_images
    monkeypatch.setattr(type(encoder), "encode_images", lambda self, x: seen.append(len(x)) or encode(self, x))
    for name in ("hpsv2_1", "clip_l14"):
        kept = recipe.scorer(name).features
        kept.__init__(kept.encoder)  # nothing is left in the process's own memory
    assert run_command_line(command(small, "--name", "again")) == 0
    assert seen == []
    one, two = (results.read(path) for path in sorted(Path("results").glob("*.json")))
    assert [row.scores for row in one.rows] == [row.scores for row in two.rows]
    assert run_command_line(["score", "results/" + next(Path("results").glob("*again.json")).name, "--scorers", "clip",
                             "--allow-unverified"]) == 0  # fmt: skip
    assert seen == []


class Counting:
    """A scorer with or without files, that counts what it scores."""

    differentiable = False

    def __init__(self, files):
        self.files, self.seen = files, 0

    def __call__(self, images, prompts):
        self.seen += len(images)
        return images.mean((1, 2, 3))

    def with_grad(self, images, prompts):
        raise Unsupported("no gradient.")

    def info(self):
        from alignbench import RewardInfo

        return RewardInfo("counting", files=self.files)

    def unsupported(self, prompts, image_shape):
        return None


@pytest.mark.parametrize(("files", "again"), [({"weights": "f" * 64}, 0), ({}, 2)])
def test_only_scorers_with_files_are_trusted_to_be_what_they_were(tmp_path, files, again):
    """The code of a scorer that is being written changes without its name."""
    prompts, wanted = [Prompt("a", "a"), Prompt("b", "b")], [Slot(0, 0), Slot(1, 0)]
    counts = []
    for cell in ("one", "two"):
        (tmp_path / cell / "images").mkdir(parents=True)
        for place in range(2):
            Image.new("RGB", (4, 4), (place, 0, 0)).save(tmp_path / cell / "images" / f"{place:05d}-0.png")
        reward = Counting(files)
        values = score(
            {"it": reward}, prompts, wanted, 2, tmp_path / cell, Progress(True), kept=tmp_path / "kept"
        ).values
        assert values["it"][Slot(1, 0)] == pytest.approx(1 / 255 / 3)
        counts.append(reward.seen)
    assert counts == [2, again]


def test_a_score_does_not_depend_on_which_of_its_batch_were_scored_before(tmp_path):
    """Half of the batch is known; the other half is not scored by itself, which rounds differently."""
    prompts, wanted = [Prompt("a", "a"), Prompt("b", "b")], [Slot(0, 0), Slot(1, 0)]
    (tmp_path / "images").mkdir()
    for place in range(2):
        Image.new("RGB", (4, 4), (place, 0, 0)).save(tmp_path / "images" / f"{place:05d}-0.png")
    reward = Counting({"weights": "f" * 64})
    for asked, seen in ((wanted[:1], 1), (wanted, 3)):
        (log := tmp_path / "scored.jsonl").unlink(missing_ok=True)
        score({"it": reward}, prompts, asked, 2, tmp_path, Progress(True), kept=tmp_path / "kept")
        assert log.exists()
        assert reward.seen == seen


def test_a_picture_that_was_made_again_is_scored_again(tmp_path):
    """A log of before, which does not say of which picture a score is, is not believed either."""
    prompts, slot = [Prompt("a", "a")], Slot(0, 0)
    (tmp_path / "images").mkdir()
    file, reward = tmp_path / "images" / "00000-0.png", Counting({})
    for red, seen in ((3, 1), (3, 1), (6, 2)):
        Image.new("RGB", (4, 4), (red, 0, 0)).save(file)
        facts = {slot: PictureFacts.of(read_image(file))}
        found = score({"it": reward}, prompts, [slot], 2, tmp_path, Progress(True), pictures=facts)
        assert found.values["it"][slot] == pytest.approx(red / 255 / 3)
        assert reward.seen == seen
    (tmp_path / "scored.jsonl").write_text('{"scorer": "it", "scores": [[0, 0, 0.5, null]]}\n')
    assert score({"it": reward}, prompts, [slot], 2, tmp_path, Progress(True)).values["it"][slot] == 0.5
    found = score({"it": reward}, prompts, [slot], 2, tmp_path, Progress(True), pictures=facts)
    assert found.values["it"][slot] == pytest.approx(6 / 255 / 3)


def test_a_score_is_known_by_what_a_picture_shows_whatever_else_its_file_says(tmp_path):
    prompts, slot = [Prompt("a", "a")], Slot(0, 0)
    reward = Counting({"weights": "f" * 64})
    for cell, text in (("one", "refl"), ("two", "base")):
        (tmp_path / cell / "images").mkdir(parents=True)
        about = PngInfo()
        about.add_itxt("method", text)
        Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / cell / "images" / "00000-0.png", pnginfo=about)
        score({"it": reward}, prompts, [slot], 2, tmp_path / cell, Progress(True), kept=tmp_path / "kept")
    assert reward.seen == 1


def test_what_a_server_says_of_itself_is_not_taken_for_the_scorer(tmp_path, monkeypatch):
    reward = Counting({"weights": "f" * 64})
    ScoreCache(tmp_path, reward).put([("image", "text", 1.0)])
    assert ScoreCache(tmp_path, Counting({"weights": "f" * 64})).get("image", "text") == 1.0
    monkeypatch.setattr(RemoteScorer, "info", lambda self: reward.info())
    assert ScoreCache(tmp_path, RemoteScorer("http://127.0.0.1:8000")).get("image", "text") is None


def test_a_result_of_before_these_counts_is_still_read(make_result):
    path = make_result("old", [1.0, 2.0])
    assert results.read(path).truncated == {}


def test_a_cell_killed_while_it_is_scored_goes_on_where_it_was(small, monkeypatch):
    calls = []
    scorer = plugins.load("rewards", "hpsv2_1").func
    whole = scorer.of_pictures

    def dying(self, pictures, prompts):
        calls.append(len(pictures))
        if calls == [2, 1]:
            raise KeyboardInterrupt
        return whole(self, pictures, prompts)

    monkeypatch.setattr(scorer, "of_pictures", dying)
    asked = command(small, "--batch-size", "2")
    assert run_command_line(asked) == 130
    assert run_command_line(asked) == 0
    assert calls == [2, 1, 1]
    result = results.read(next(Path("results").glob("*.json")))
    assert result.attempts == 2
    assert all(value is not None for row in result.rows for value in row.scores.values())
