"""AI feedback on the embedded model: what is labelled, what is kept, what a killed call leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from said import one_line

from alignbench import plugins
from alignbench.cli.app import run_command_line
from alignbench.diffusion import registry as models
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError
from alignbench.experiment import pairs as making
from alignbench.experiment.pairs import Feedback, Made, make_pairs
from alignbench.images import fitted, to_bytes
from alignbench.interface import Prompt, RewardInfo, Sampling
from alignbench.keys import Key
from alignbench.locks import exclusive
from alignbench.meter import Cost, Meter
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import choose, preference
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs
from alignbench.progress import Progress
from alignbench.reading import complete_lines

COUNT = 6
SAMPLING = Sampling(steps=3, guidance=3.0, eta=1.0)
TEXTS = ("a red circle", "a blue square", "two green rings", "a ring")
PROMPTS = [Prompt(f"p{i}", text) for i, text in enumerate(TEXTS)]
METER = Meter()


@dataclasses.dataclass(frozen=True)
class Redness:
    """The mean of the red channel, or not a number."""

    tie_epsilon: float = 0.0
    higher_is_better: bool = True
    wrong: bool = False
    differentiable = False

    def __call__(self, images, prompts):
        red = images[:, 0].mean((1, 2))
        return torch.full_like(red, math.nan) if self.wrong else red

    def with_grad(self, images, prompts):
        raise AssertionError("pairs are labelled by the reporting path")

    def info(self):
        return RewardInfo("redness", tie_epsilon=self.tie_epsilon, higher_is_better=self.higher_is_better)

    def unsupported(self, prompts, image_shape):
        return None


@pytest.fixture(scope="module")
def tiny():
    return models.load(models.find("tiny"), METER)


@pytest.fixture
def make(tiny):
    def call(folder: Path, **changes) -> Made:
        METER.total = Cost()
        batch = changes.pop("batch", 4)
        options = {
            "pipeline": tiny, "reward": Redness(), "reward_name": "redness", "model": "tiny", "prompts": PROMPTS,
            "count": COUNT, "key": Key("pairs", 0), "sampling": SAMPLING,
        }  # fmt: skip
        return make_pairs(Feedback(**(options | changes)), folder, batch, METER, Progress(quiet=True))

    return call


def content(folder: Path) -> dict[str, bytes]:
    """Every file without what is measured: seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found["making.json"]  # counts the attempts
    record = json.loads(found["made.json"])
    del record["seconds"]
    lines = [json.loads(line) for line in complete_lines(folder / "made.jsonl")]
    for line in lines:
        del line["seconds"]
    return found | {"made.json": json.dumps(record).encode(), "made.jsonl": json.dumps(lines).encode()}


def test_labels_agree_with_the_scores_of_the_stored_images(tmp_path, make, tiny):
    reward = plugins.load("rewards", "shapes_preference")()
    made = make(tmp_path, reward=reward, reward_name="shapes_preference")
    source = open_pairs(tmp_path)
    assert len(source) == made.pairs == COUNT
    asked = Key("pairs", 0)("prompts").sample(PROMPTS, COUNT)
    rows = {row[0]: row for line in complete_lines(tmp_path / "made.jsonl") for row in json.loads(line)["pairs"]}
    for i, contents in source.images(range(COUNT)):
        pair = source.pair(i)
        assert (pair.prompt.id, pair.prompt.text, pair.models) == (asked[i].id, asked[i].text, ("tiny", "tiny"))
        images = torch.stack([fitted(image, (32, 32), None) for image in contents])
        first, second = reward(images, [pair.prompt] * 2).tolist()
        assert pair.label == float(first > second)
        assert rows[i][1:] == pytest.approx([pair.label, first, second, 0, 1], abs=1e-4)
        drawn = PipelineSampler(tiny, SAMPLING)([pair.prompt] * 2, [Key("pairs", 0, "image", i, k) for k in (0, 1)])
        off = to_bytes(drawn.images).int() - to_bytes(images).int()
        assert off.abs().max() <= 1  # another batch rounds otherwise


@pytest.mark.slow
def test_of_more_candidates_the_best_and_the_worst_are_the_pair(tmp_path, make, tiny):
    made = make(tmp_path / "four", candidates=4)
    assert made.cost.reward_forward == 4 * COUNT
    source, redness = open_pairs(tmp_path / "four"), Redness()
    wide = []
    for i, contents in source.images(range(COUNT)):
        pair = source.pair(i)
        keys = [Key("pairs", 0, "image", i, k) for k in range(4)]
        all_four = redness(PipelineSampler(tiny, SAMPLING)([pair.prompt] * 4, keys).images, [pair.prompt] * 4)
        images = torch.stack([fitted(image, (32, 32), None) for image in contents])
        first, second = redness(images, [pair.prompt] * 2).tolist()
        assert sorted((first, second)) == pytest.approx([float(all_four.min()), float(all_four.max())], abs=3e-3)
        assert pair.label == float(first > second)
        wide.append(abs(first - second))
    two = [abs(row[2] - row[3]) for row in rows_of(make(tmp_path / "two").folder)]
    assert sum(wide) > sum(two)
    assert rows_of(make(tmp_path / "four", candidates=4).folder)  # found again
    with pytest.raises(InputError, match="differs in candidates"):
        make(tmp_path / "four")


def rows_of(folder: Path) -> list[list[float]]:
    return [row for line in complete_lines(folder / "made.jsonl") for row in json.loads(line)["pairs"]]


def test_the_cost_is_what_was_sampled_and_scored(tmp_path, make):
    """6 pairs x 2 images, 3 steps, guidance counting twice."""
    made = make(tmp_path)
    assert made.cost == METER.total == Cost(denoiser_forward=12 * 3 * 2, decode_forward=12, reward_forward=12)
    assert made.seconds > 0
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["cost"] == made.cost.as_dict()
    assert record["configuration"]["count"] == COUNT
    assert record["configuration"]["sampling"] == {"steps": 3, "guidance": 3.0, "eta": 1.0}
    assert record["configuration"]["reward"]["id"] == "redness"
    assert record["configuration"]["key"] == ["pairs", 0]


@pytest.mark.parametrize(
    ("first", "second", "higher", "label"),
    [(2.0, 1.0, True, 1.0), (1.0, 2.0, True, 0.0), (2.0, 1.0, False, 0.0), (1.0, 2.0, False, 1.0),
     (1.0, 1.25, True, 0.5), (1.25, 1.0, False, 0.5), (1.0, 1.26, True, 0.0)],
)  # fmt: skip
def test_the_preference_is_by_the_rewards_own_direction_and_ties(first, second, higher, label):
    assert preference(first, second, RewardInfo("r", tie_epsilon=0.25, higher_is_better=higher)) == label


def test_a_lower_is_better_reward_turns_every_label(tmp_path, make):
    make(tmp_path / "up")
    make(tmp_path / "down", reward=Redness(higher_is_better=False))
    up, down = (open_pairs(tmp_path / name) for name in ("up", "down"))
    assert [up.pair(i).label for i in range(COUNT)] == [1 - down.pair(i).label for i in range(COUNT)]
    assert make(tmp_path / "ties", reward=Redness(tie_epsilon=10.0)).ties == COUNT


def test_a_killed_call_made_again_ends_with_the_same_files(tmp_path, make, monkeypatch):
    whole = make(tmp_path / "whole")
    real, calls = making._Maker.make, []

    def deadly(self, numbers):
        calls.append(numbers)
        rows = list(real(self, numbers))  # the images are stored
        if len(calls) == 2:
            raise KeyboardInterrupt
        return iter(rows)

    monkeypatch.setattr(making._Maker, "make", deadly)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    assert not (tmp_path / "killed" / "pairs.jsonl").exists()
    with open(tmp_path / "killed" / "made.jsonl", "a") as journal:
        journal.write('{"pairs": [[2, 1.0')  # torn by the kill
    (tmp_path / "killed" / "images" / ".00002-0.png.1.tmp").write_bytes(b"half")
    continued = make(tmp_path / "killed")
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 5]]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert dataclasses.replace(continued, folder=whole.folder, seconds=whole.seconds) == whole


def test_what_several_processes_had_logged_is_taken_over_once(tmp_path, make):
    """Their logs are merged; a kill may have come between that and their removal."""
    make(tmp_path)
    before = content(tmp_path)
    first, second, third = (line.decode() for line in complete_lines(tmp_path / "made.jsonl"))
    (tmp_path / "made.jsonl").write_text(f"{first}\n{second}\n")
    (tmp_path / "made-1.jsonl").write_text(f"{second}\n")
    (tmp_path / "made-2.jsonl").write_text(f"{third}\n")
    for name in ("pairs.jsonl", "made.json"):
        (tmp_path / name).unlink()
    assert make(tmp_path).cost.decode_forward == 2 * COUNT
    assert METER.total == Cost()  # nothing was made
    assert content(tmp_path) == before


def test_an_image_that_is_gone_is_made_again_and_counted_once(tmp_path, make):
    make(tmp_path)
    before = content(tmp_path)
    for name in ("images/00003-1.png", "pairs.jsonl", "made.json"):
        (tmp_path / name).unlink()
    made = make(tmp_path)
    assert METER.total.decode_forward == 4  # its chunk of two pairs
    assert made.cost.decode_forward == 2 * COUNT
    after = content(tmp_path)
    assert {name: value for name, value in after.items() if name != "made.jsonl"} == {
        name: value for name, value in before.items() if name != "made.jsonl"
    }


def test_a_finished_folder_is_returned_at_once(tmp_path, make):
    first = make(tmp_path)
    before = content(tmp_path)
    assert make(tmp_path, batch=32) == first
    assert METER.total == Cost()
    assert content(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused_by_field(tmp_path, make, finished):
    make(tmp_path)
    if not finished:
        (tmp_path / "made.json").unlink()
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*.*"))
    changes = {"count": 7, "sampling": Sampling(steps=4, guidance=3.0, eta=1.0)}
    with pytest.raises(InputError, match=r"in count, reward\.higher_is_better, sampling\.steps\. Choose an empty"):
        make(tmp_path, reward=Redness(higher_is_better=False), **changes)
    with pytest.raises(InputError, match=r"differs in key, prompts_sha256\."):
        make(tmp_path, key=Key("pairs", 1), prompts=PROMPTS[:3])
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*.*")) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, make):
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match=r"holds other files \(pairs\.jsonl\); choose an empty or a new folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_reward_that_is_not_a_number_ends_the_call(tmp_path, make):
    with pytest.raises(RunError, match="reward 'redness' returned nan for prompt"):
        make(tmp_path, reward=Redness(wrong=True))
    assert make(tmp_path / "other").pairs == COUNT


def test_a_second_call_waits_for_the_first_and_makes_nothing_again(tmp_path, make, monkeypatch, capfd):
    first = make(tmp_path / "first")
    folder = tmp_path / "pairs"
    with contextlib.ExitStack() as other:
        other.enter_context(exclusive(folder))

        def finish() -> None:
            shutil.copytree(tmp_path / "first", folder, dirs_exist_ok=True, ignore=lambda *_: [".lock"])
            other.close()

        threading.Timer(0.3, finish).start()
        monkeypatch.setattr(making._Maker, "made", None)  # it makes nothing
        made = make(folder)
    assert (made.pairs, made.cost, made.seconds) == (first.pairs, first.cost, first.seconds)
    assert f"{folder} is in use by process {os.getpid()} on " in capfd.readouterr().err


def test_a_model_of_points_is_refused(tmp_path, make, mixture):
    with pytest.raises(InputError, match="makes points; pairs in a folder are of pictures"):
        make(tmp_path, pipeline=mixture)


def test_made_pairs_are_what_a_loss_is_handed(tmp_path, make, tiny):
    make(tmp_path / "made")
    chosen = choose(open_pairs(tmp_path / "made"), "keep", None, ())
    cache = TensorCache(tmp_path / "t.sqlite")
    live, first, again = (
        EncodedPairs(chosen, tiny, kept, "centre", Key("crop"), print).batch(range(COUNT))
        for kept in (None, cache, cache)
    )
    cache.close()
    for batch in (first, again):
        assert torch.equal(batch.winner, live.winner)
        assert torch.equal(batch.loser, live.loser)
        assert torch.equal(batch.condition.tensors["text"], live.condition.tensors["text"])
    assert live.winner.shape == (COUNT, *tiny.latent_shape)
    for i, (_, contents) in enumerate(chosen.images(range(COUNT))):
        better = contents[0] if chosen.pair(i).label == 1 else contents[1]
        assert torch.allclose(tiny.encode(fitted(better, (32, 32), None)[None])[0], live.winner[i], atol=1e-4)
    expected = tiny.condition([chosen.pair(i).prompt for i in range(COUNT)])
    assert torch.allclose(live.condition.tensors["text"], expected.tensors["text"], atol=1e-4)
    assert torch.equal(live.condition.null_tensors["text"], expected.null_tensors["text"])


# The command


def test_the_command_says_what_it_made_and_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["pairs", "--count", "4", "--steps", "2", "--batch-size", "8", "--output", "made"]
    assert run_command_line(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 pairs of tiny on shapes/train, labelled by shapes_preference, in made"
    assert out[1] == "  ties  0"
    assert out[2].startswith("  cost  32 denoiser evaluations, 8 reward evaluations, ")
    assert out[3] == "learn from them with: alignbench run --algo NAME --model tiny --pairs made"
    training = {prompt.text for prompt in plugins.load("benchmarks", "shapes")().prompts("train")}
    source = open_pairs(Path("made"))
    assert all(source.pair(i).prompt.text in training for i in range(4))
    assert run_command_line([*arguments, "--seed", "1"]) == 2
    assert "it differs in key." in one_line(capsys)


def test_prompts_may_come_from_a_file_and_the_reward_by_name(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("a red circle\na blue square\n")
    arguments = ["--prompts", str(tmp_path / "mine.txt"), "--reward", "shapes_truth", "--count", "3", "--steps", "1"]
    assert run_command_line(["pairs", *arguments, "--output", str(tmp_path / "made")]) == 0
    assert "mine.txt/test, labelled by shapes_truth" in capsys.readouterr().out
    source = open_pairs(tmp_path / "made")
    assert {source.pair(i).prompt.text for i in range(3)} == {"a red circle", "a blue square"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mixture"], "model 'mixture' makes its pairs in memory"),
        (["--prompts", "odd.txt", "--reward", "shapes_preference"], "'shapes_preference' cannot score these prompts"),
        (["--prompts", "odd.txt"], "reward 'shapes_preference' cannot score these prompts: "),
        (["--split", "none"], "prompt set 'shapes' has no split 'none'"),
        (["--reward", "nothing"], "no reward named 'nothing'"),
        (["--count", "0"], "--count 0: expected at least 1"),
        (["--seed", "-1"], "--seed -1: expected at least 0."),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("odd.txt").write_text("an oil painting of a fox\n")
    assert run_command_line(["pairs", *arguments]) == 2
    assert message in one_line(capsys)
    assert not Path("pairs").exists()
