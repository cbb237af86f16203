"""Training a reward on preference pairs: the loss and the measurements by hand, the split, resuming, and its use."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from alignbench import Key, Prompt, plugins
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.images import fitted
from alignbench.judging import reward_training
from alignbench.judging.options import TrainRewardOptions
from alignbench.judging.reward_training import read_pairs, train_reward
from alignbench.plugins import label
from alignbench.preferences.choosing import choose
from alignbench.preferences.source import open_pairs
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.shapes import bradley_terry
from alignbench.shapes.bradley_terry import (
    Judged,
    agreement,
    bradley_terry_loss,
    brier_score,
    calibration_error,
    fresh,
    is_held_out,
    log_loss,
    margin,
    margins,
    reliability,
    train,
)
from alignbench.shapes.render import render_batch, sample_scene
from alignbench.shapes.scene import SIDE, sample_caption

KEY = Key("test", "train reward")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def captions(n: int) -> list[str]:
    return [sample_caption(KEY("caption", i), "train").text for i in range(n)]


def redness(picture: np.ndarray) -> float:
    """How much more red than blue and green a picture is."""
    return float(picture[..., 0].mean() - picture[..., 1:].mean())


@pytest.fixture(scope="module")
def red_pairs() -> Judged:
    """300 pairs of rendered pictures, whatever their captions say the redder one preferred."""
    scenes = [sample_scene(KEY("scene", i), sample_caption(KEY("drawn", i), "train", "single")) for i in range(600)]
    pictures = render_batch(scenes).reshape(300, 2, SIDE, SIDE, 3)
    label = np.array([float(redness(first) > redness(second)) for first, second in pictures])
    return Judged(pictures, captions(300), label)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, pairs: Judged, **changes: object) -> Path:
    """Pairs as a folder that `open_pairs` reads; `changes` of single rows are given as row_<i>={…}."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(len(pairs)):
        names = [f"images/{i}-{side}.png" for side in (0, 1)]
        for name, picture in zip(names, pairs.pictures[i], strict=True):
            (folder / name).write_bytes(png(picture))
        row = {"prompt": pairs.captions[i], "images": names, "label": float(pairs.label[i])}
        lines.append(json.dumps(row | changes.get(f"row_{i}", {})) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path, red_pairs) -> Path:
    """40 of the pairs on disk."""
    return write_pairs(tmp_path / "pairs", red_pairs[range(40)])


def command(folder: Path, output: Path, *more: str) -> list[str]:
    return ["train-reward", "--pairs", str(folder), "--output", str(output), "--held-out", "0.3", *more]


SHORT = ("--steps", "3", "--batch-size", "8")


def message(capsys) -> str:
    """The error, which is the last line."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1].removeprefix("alignbench: ")


# The loss


def test_the_loss_by_hand():
    """Two pairs: scores 2 and 0.5 with the first preferred, scores −1 and 3 with the first preferred."""
    first = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss(first - second, torch.ones(2, dtype=torch.float64))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(4))) / 2)
    loss.backward()
    by_hand = [-(1 - sigmoid(1.5)) / 2, -(1 - sigmoid(-4)) / 2]
    assert first.grad.tolist() == pytest.approx(by_hand)
    assert second.grad.tolist() == pytest.approx([-g for g in by_hand])


def test_the_loss_of_a_pair_is_that_of_the_pair_swapped():
    m, y = KEY("m").normal(5), torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0])
    torch.testing.assert_close(bradley_terry_loss(m, y), bradley_terry_loss(-m, 1 - y))


def test_a_tie_counts_half_to_either_side_and_pulls_the_margin_to_zero():
    m = torch.tensor([1.2], requires_grad=True)
    both = [bradley_terry_loss(m, torch.tensor([y])) for y in (1.0, 0.0)]
    tie = bradley_terry_loss(m, torch.tensor([0.5]))
    torch.testing.assert_close(tie, (both[0] + both[1]) / 2)
    assert torch.autograd.grad(tie, m)[0].item() == pytest.approx(sigmoid(1.2) - 0.5)
    still = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(bradley_terry_loss(still, torch.tensor([0.5])), still)[0].item() == 0


def test_the_loss_stays_finite_where_the_network_is_surely_wrong():
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.ones(1)).item() == pytest.approx(1e4)


def test_swapping_a_pair_negates_its_margin_and_no_other(red_pairs):
    pairs = red_pairs[range(6)]
    swapped = Judged(pairs.pictures.copy(), pairs.captions, pairs.label)
    swapped.pictures[2] = swapped.pictures[2, ::-1]
    one, other = (margin(fresh(KEY("network")), p) for p in (pairs, swapped))
    sign = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(other, one * sign, atol=1e-5, rtol=0)
    assert one.abs().min() > 1e-4


# What is measured


def test_agreement_counts_ties_of_either_kind_half():
    m = np.array([2.0, -1.0, 0.5, -0.5, 0.0, 0.0, 3.0, -3.0])
    y = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    assert agreement(m, y).tolist() == [1, 1, 0, 0, 0.5, 0.5, 0.5, 0.5]


def test_log_loss_and_brier_score_by_hand():
    """Margins of odds 3, 3 and 1: σ = ¾, ¾, ½."""
    m, y = np.log([3.0, 3.0, 1.0]), np.array([1.0, 0.0, 0.5])
    assert log_loss(m, y) == pytest.approx(-(math.log(0.75) + math.log(0.25) + math.log(0.5)) / 3)
    assert brier_score(m, y) == pytest.approx((0.25**2 + 0.75**2 + 0.5**2) / 3)


def test_the_reliability_curve_and_its_error_by_hand():
    """Ten pairs in five confidence bins of two: odds 1, 1.5, 4, 9 and 19, right 1, 1, 2, 2 and 1 of 2 times."""
    odds = np.repeat([1.1, 1.5, 4.0, 9.0, 19.0], 2)
    right = np.array([1, 0, 1, 0, 1, 1, 1, 1, 1, 0], float)
    side = np.array([1, -1] * 5)  # every second pair is seen from the side of the picture that the network dislikes
    curve = reliability(side * np.log(odds), np.where(side > 0, right, 1 - right))
    p, seen = odds[::2] / (1 + odds[::2]), np.array([0.5, 0.5, 1, 1, 0.5])
    assert [b.predicted for b in curve] == pytest.approx([*(1 - p)[::-1], *p])
    assert [b.observed for b in curve] == pytest.approx([*(1 - seen)[::-1], *seen])
    assert [b.predictions for b in curve] == [2] * 10
    assert calibration_error(curve) == pytest.approx(np.abs(p - seen).mean())


def test_the_curve_is_what_ten_bins_of_both_sides_of_each_pair_are():
    m = KEY("margins").normal(60).double().numpy()
    y = (KEY("labels").uniform(60).numpy() < 0.6).astype(float)
    chance = 1 / (1 + np.exp(-m))
    both, came = np.concatenate([chance, 1 - chance]), np.concatenate([y, 1 - y])
    parts = np.array_split(np.argsort(both), 10)
    curve = reliability(m, y)
    assert [b.predicted for b in curve] == pytest.approx([both[part].mean() for part in parts])
    assert [b.observed for b in curve] == pytest.approx([came[part].mean() for part in parts])
    assert calibration_error(curve) == pytest.approx(np.mean([abs(both[p].mean() - came[p].mean()) for p in parts]))


def test_labels_drawn_from_the_predictions_are_calibrated_and_overconfident_predictions_are_not():
    """A bin of 4000 pairs has a standard error of at most 0.008, and five of them a mean distance of 0.006 or so."""
    m = 2 * KEY("many").normal(20_000).double().numpy()
    y = (KEY("drawn").uniform(20_000).numpy() < 1 / (1 + np.exp(-m))).astype(float)
    assert calibration_error(reliability(m, y)) < 0.02
    assert calibration_error(reliability(3 * m, y)) > 0.08


def test_fewer_pairs_than_bins_leave_bins_out():
    curve = reliability(np.array([1.0, -2.0]), np.array([1.0, 1.0]))
    assert [b.predictions for b in curve] == [1, 1, 1, 1]
    assert sum(b.observed for b in curve) == 2


def test_predictions_of_a_network_are_the_same_in_parts(red_pairs, monkeypatch):
    network, pairs = fresh(KEY("network")), red_pairs[range(7)]
    whole = margins(network, pairs)
    monkeypatch.setattr(bradley_terry, "MEASURED_AT_ONCE", 3)
    np.testing.assert_allclose(margins(network, pairs), whole, atol=1e-5)


# The split


def test_no_prompt_is_on_both_sides_whatever_its_case_spacing_and_number_of_pairs(red_pairs):
    texts = captions(60)
    written = [w for text in texts for w in (text, f"  {text.upper()}. ", text.replace(" ", "  "))]
    rows = [i % 300 for i in range(len(written))]
    pairs = Judged(red_pairs.pictures[rows], written, red_pairs.label[rows])
    training, held_out = reward_training._split(pairs, 0.3)
    assert len(training) + len(held_out) == 180
    plain = [{" ".join(t.lower().strip(" .").split()) for t in side.captions} for side in (training, held_out)]
    assert not plain[0] & plain[1]
    assert plain[0] | plain[1] == set(texts)
    assert all(plain)


def test_a_side_of_the_split_depends_on_the_text_alone_and_grows_with_the_share():
    texts = list(dict.fromkeys(captions(900)))
    sides = {share: {text for text in texts if is_held_out(text, share)} for share in (0.1, 0.3, 0.6)}
    assert sides[0.1] < sides[0.3] < sides[0.6]
    for share, side in sides.items():
        assert abs(len(side) / len(texts) - share) < 4 * math.sqrt(share * (1 - share) / len(texts))
    assert [is_held_out(text, 0.3) for text in reversed(texts)] == [text in sides[0.3] for text in reversed(texts)]


def test_the_seed_does_not_move_prompts_from_one_side_to_the_other(folder, tmp_path, capsys):
    kept = []
    for seed in ("0", "1"):
        output = tmp_path / f"{seed}.safetensors"
        assert run_command_line(command(folder, output, *SHORT, "--seed", seed, "--json")) == 0
        kept.append(json.loads(capsys.readouterr().out))
    assert kept[0]["start"] == kept[1]["start"]  # measured on the same pairs
    assert kept[0]["trained"] != kept[1]["trained"]


# Reading pairs


def test_pictures_are_resized_cropped_and_kept_as_bytes(tmp_path, red_pairs):
    folder = write_pairs(tmp_path / "pairs", red_pairs[range(3)])
    wide = (KEY("wide").uniform(40, 70, 3).numpy() * 255).astype(np.uint8)
    (folder / "images" / "1-0.png").write_bytes(png(wide))
    chosen = choose(open_pairs(folder), "drop", None, ())
    pairs, counts = read_pairs(chosen, Progress(quiet=True))
    assert counts["used"] == 3
    assert np.array_equal(pairs.pictures[[0, 2]], red_pairs.pictures[[0, 2]])
    expected = fitted(png(wide), (SIDE, SIDE), None).permute(1, 2, 0).numpy()
    assert np.array_equal(pairs.pictures[1, 0], (expected * 255).round())
    assert pairs.captions == red_pairs.captions[:3]
    assert pairs.label.tolist() == red_pairs.label[:3].tolist()


def test_pairs_that_cannot_be_used_are_left_out_counted_and_named(tmp_path, red_pairs, capsys):
    changes = {
        "row_2": {"prompt": "an oil painting of Paris at night"},
        "row_4": {"label": 0.5},
        "row_5": {"prompt": "猫"},
    }
    folder = write_pairs(tmp_path / "pairs", red_pairs[range(8)], **changes)
    (folder / "images" / "7-1.png").write_bytes(b"not an image")
    pairs, counts = read_pairs(choose(open_pairs(folder), "keep", None, ()), Progress())
    assert {name: counts[name] for name in ("total", "used", "unknown_words", "unreadable", "ties_kept")} == {
        "total": 8, "used": 5, "unknown_words": 2, "unreadable": 1, "ties_kept": 1,
    }  # fmt: skip
    assert pairs.captions == [red_pairs.captions[i] for i in (0, 1, 3, 4, 6)]
    assert np.array_equal(pairs.pictures, red_pairs.pictures[[0, 1, 3, 4, 6]])
    assert pairs.label[3] == 0.5
    assert "pair skipped: pairs.jsonl, line 8: 12 bytes that are no JPEG, PNG, WEBP" in capsys.readouterr().err


def test_prompts_of_another_world_are_refused_with_the_share_of_unknown_words(tmp_path, red_pairs, capsys):
    strange = {f"row_{i}": {"prompt": "a photo of a cat wearing sunglasses"} for i in range(3)}
    folder = write_pairs(tmp_path / "pairs", red_pairs[range(3)], **strange)
    assert run_command_line(command(folder, tmp_path / "r.safetensors")) == 2
    error = message(capsys)
    assert "57.1 % of the words of the prompts are unknown to the network, such as 'photo', 'cat'" in error
    assert not list(tmp_path.glob("r.*"))


# Training


@pytest.mark.slow
def test_training_from_nothing_learns_what_is_visible(red_pairs, tmp_path, capsys):
    """Of 75 held-out pairs a network that guesses gets 54 right in one of 10,000 cases."""
    training, held_out = red_pairs[range(225)], red_pairs[range(225, 300)]
    start = fresh(KEY("start"))
    before = [p.clone() for p in start.parameters()]
    network = train(start, training, 40, 16, 2e-3, KEY("train"), tmp_path)
    assert agreement(margins(network, held_out), held_out.label).sum() >= 54
    assert (
        log_loss(margins(network, training), training.label)
        < 0.6
        < 0.68
        < log_loss(margins(start, training), training.label)
    )
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in network.parameters())


def test_kept_ties_alone_shrink_the_margins(red_pairs, tmp_path):
    ties = Judged(red_pairs.pictures[:40], red_pairs.captions[:40], np.full(40, 0.5))
    start = plugins.load("rewards", "shapes_preference")().network
    network = train(start, ties, 12, 16, 3e-4, KEY("train"), tmp_path)
    assert np.abs(margins(network, ties)).mean() < 0.7 * np.abs(margins(start, ties)).mean()


def test_a_new_network_is_the_seeds(red_pairs):
    pairs = red_pairs[range(4)]
    one, same, other = (margins(fresh(Key("train-reward", seed)("init")), pairs) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


class Stopped(Exception):
    """Stands for a kill."""


def test_a_training_that_was_killed_and_continued_writes_the_same_file(folder, tmp_path, monkeypatch, capsys):
    options = {"pairs": folder, "steps": 6, "batch_size": 8, "held_out": 0.3}
    train_reward(TrainRewardOptions(output=tmp_path / "whole.safetensors", **options), quiet=True)

    steps, real = [], bradley_terry.bradley_terry_loss

    def loss(margin, label):
        if len(steps) == 4 and margin.requires_grad:
            raise Stopped
        steps.append(label)
        return real(margin, label)

    output = tmp_path / "parts.safetensors"
    monkeypatch.setattr(bradley_terry, "bradley_terry_loss", loss)
    with pytest.raises(Stopped):
        train_reward(TrainRewardOptions(output=output, **options), quiet=True)
    assert not output.exists()
    assert (tmp_path / "parts.training").is_dir()
    monkeypatch.setattr(bradley_terry, "bradley_terry_loss", real)
    capsys.readouterr()
    train_reward(TrainRewardOptions(output=output, **options))
    assert "continued at step 4 of 6" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "parts.safetensors", "whole.safetensors"]


def test_a_checkpoint_of_another_configuration_needs_force(folder, tmp_path, monkeypatch):
    output = tmp_path / "r.safetensors"
    asked = {"pairs": folder, "output": output, "steps": 3, "batch_size": 8, "held_out": 0.3}

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(bradley_terry, "save", stop)
        with pytest.raises(Stopped):
            train_reward(TrainRewardOptions(**asked), quiet=True)
    other = TrainRewardOptions(**asked | {"learning_rate": 1e-3})
    with pytest.raises(
        InputError, match=r"r\.training holds another configuration; it differs in learning_rate\. .*--force"
    ):
        train_reward(other, quiet=True)
    forced = train_reward(other, force=True, quiet=True)
    straight = train_reward(other.model_copy(update={"output": tmp_path / "s.safetensors"}), quiet=True)
    assert forced.path.read_bytes() == straight.path.read_bytes()


def test_files_of_somebody_else_where_the_checkpoint_goes_are_left_alone(folder, tmp_path):
    (tmp_path / "r.training").mkdir()
    (tmp_path / "r.training" / "thesis.txt").write_text("mine")
    asked = TrainRewardOptions(pairs=folder, output=tmp_path / "r.safetensors", steps=1, held_out=0.3)
    for force in (False, True):
        with pytest.raises(InputError, match=r"holds other files \(thesis\.txt\); choose another --output"):
            train_reward(asked, force=force, quiet=True)
    assert (tmp_path / "r.training" / "thesis.txt").read_text() == "mine"


# The command


def test_the_report_says_what_was_used_and_how_well_start_and_trained_network_predict(folder, tmp_path, capsys):
    output = tmp_path / "mine.safetensors"
    assert run_command_line(command(folder, output, *SHORT)) == 0
    out = capsys.readouterr().out
    assert out.startswith("pairs: 3 steps of 8 pairs from shapes_preference-1, seed 0\n")
    assert out.splitlines()[-1] == f"use it with: alignbench run --algo NAME --model tiny --reward {output}"

    assert run_command_line(command(folder, output, *SHORT)) == 0
    assert capsys.readouterr().out == f"already complete; --force trains it again\n{out}"

    assert run_command_line(command(folder, output, *SHORT, "--json")) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err == ""
    assert values["was_complete"] is True
    assert values["sha256"] == sha256_of(output)
    pairs, _ = read_pairs(choose(open_pairs(folder), "drop", None, ()), Progress(quiet=True))
    training, held_out = reward_training._split(pairs, 0.3)
    assert values["pairs"]["training"] == len(training)
    assert values["pairs"]["held_out"] == len(held_out)
    for name, reward in (("start", "shapes_preference"), ("trained", str(output))):
        network, found = plugins.load("rewards", reward)().network, values[name]
        m, y = margins(network, held_out), held_out.label
        assert found["accuracy"]["value"] == pytest.approx(agreement(m, y).mean())
        assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
        assert found["log_loss"] == pytest.approx(log_loss(m, y), rel=1e-5)
        assert found["brier_score"] == pytest.approx(brier_score(m, y), rel=1e-5)
        assert found["calibration_error"] == pytest.approx(calibration_error(reliability(m, y)), abs=1e-5)
        assert len(found["reliability"]) == 10
        assert found["training_loss"] == pytest.approx(log_loss(margins(network, training), training.label), rel=1e-5)
        assert f"{100 * found['accuracy']['value']:.1f} (" in out


def test_pairs_of_one_prompt_widen_the_interval(red_pairs):
    """Ten prompts of ten pairs each, decided alike within a prompt, tell less than a hundred prompts do."""
    network = plugins.load("rewards", "shapes_preference")().network
    picture = red_pairs.pictures[:10].repeat(10, 0)
    y = (margins(network, red_pairs[range(10)]) > 0).astype(float)
    y[:4] = 1 - y[:4]
    few = Judged(picture, np.array(red_pairs.captions[:10]).repeat(10).tolist(), y.repeat(10))
    found = reward_training.measured(network, few, few)["accuracy"]
    assert found["value"] == pytest.approx(0.6)
    assert found["low"] < 0.35
    assert found["high"] > 0.8


def test_without_steps_the_pairs_are_seen_three_times(folder, tmp_path):
    trained = train_reward(
        TrainRewardOptions(pairs=folder, output=tmp_path / "r.safetensors", held_out=0.3), quiet=True
    )
    assert trained.report["steps"] == math.ceil(3 * trained.report["pairs"]["training"] / 64)


def test_an_output_of_another_configuration_needs_force_and_a_foreign_file_too(folder, tmp_path, capsys):
    output = tmp_path / "r.safetensors"
    assert run_command_line(command(folder, output, *SHORT)) == 0
    before = sha256_of(output)
    capsys.readouterr()
    assert run_command_line(command(folder, output, *SHORT, "--seed", "5", "--pair-ties", "keep")) == 2
    assert message(capsys).endswith(
        "r.safetensors holds another configuration; it differs in pair_ties, seed. "
        "Choose another --output, or use --force to replace it."
    )
    assert sha256_of(output) == before
    assert run_command_line(command(folder, output, *SHORT, "--seed", "5", "--force")) == 0
    assert sha256_of(output) != before
    capsys.readouterr()

    save_file({"x": torch.zeros(1)}, output)
    assert run_command_line(command(folder, output, *SHORT)) == 2
    assert "is not what `alignbench train-reward` writes; choose another --output, or --force" in message(capsys)


def test_a_trained_reward_can_be_trained_on(folder, tmp_path, capsys):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert run_command_line(command(folder, one, *SHORT, "--start", "none")) == 0
    capsys.readouterr()
    assert run_command_line(command(folder, two, *SHORT, "--start", str(one), "--json")) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["configuration"]["start"] == f"shapes_preference-1 {sha256_of(one)[:12]}"
    assert values["configuration"]["start_sha256"] == sha256_of(one)
    with safe_open(one, framework="pt") as handle:
        first = json.loads(handle.metadata()["alignbench.training"])
    assert values["start"] == first["report"]["trained"]
    assert first["configuration"]["start"] is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--output", "r.pt"), "--output r.pt: expected a file name that ends in .safetensors."),
        (("--steps", "0"), "--steps 0: expected at least 1."),
        (("--batch-size", "-2"), "--batch-size -2: expected at least 1."),
        (("--learning-rate", "0"), "--learning-rate 0.0: expected more than 0."),
        (("--held-out", "1"), "--held-out 1.0: expected less than 1."),
        (("--held-out", "1e-9"), "of 40 prompts none is held out; give pairs of more prompts, or a larger share."),
        (("--start", "shapes_style"), "--start shapes_style: this reward has no network to train; expected shapes_p"),
        (("--start", "shapes_prefer"), "no reward named 'shapes_prefer'. Did you mean shapes_preference"),
        (("--start", "none.safetensors"), "reward 'none.safetensors': there is no such file."),
        (("--pairs", "nowhere"), "there are no preference pairs at nowhere."),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(folder, tmp_path, monkeypatch, capsys, more, reason):
    monkeypatch.chdir(tmp_path)
    given = {"--pairs": str(folder), "--output": "r.safetensors", "--held-out": "0.3"} | {more[0]: more[1]}
    assert run_command_line(["train-reward", *(part for option in given.items() for part in option)]) == 2
    assert reason in message(capsys)
    assert not list(tmp_path.glob("r.*"))


# Using it


def weights(path: Path, metadata: dict[str, str] | None = None, **changes: torch.Tensor) -> Path:
    save_file(
        fresh(KEY("weights")).state_dict() | changes, path, metadata or {"alignbench.reward": "shapes_preference"}
    )
    return path


def test_a_file_of_weights_is_a_reward_with_an_identity_of_its_own(tmp_path, red_pairs):
    path = weights(tmp_path / "mine.v2.safetensors")
    reward, shipped = (plugins.load("rewards", name)() for name in (str(path), "shapes_preference"))
    info = reward.info()
    assert info.files == {"mine.v2.safetensors": sha256_of(path)}
    assert info.id == f"shapes_preference-1 {sha256_of(path)[:12]}"
    assert shipped.info().id == "shapes_preference-1"
    assert label(str(path)) == "mine.v2"
    assert label("shapes_preference") == "shapes_preference"
    images = torch.from_numpy(red_pairs.pictures[:5]).permute(0, 1, 4, 2, 3).float() / 255
    prompts = [Prompt(text, text) for text in red_pairs.captions[:5]]
    scores = [reward(images[:, side], prompts).double().numpy() for side in (0, 1)]
    np.testing.assert_allclose(scores[0] - scores[1], margins(fresh(KEY("weights")), red_pairs[range(5)]), atol=1e-5)
    assert not np.allclose(scores[0], shipped(images[:, 0], prompts).numpy())


def test_new_weights_in_an_old_place_are_another_reward(tmp_path):
    path = weights(tmp_path / "r.safetensors")
    first = plugins.load("rewards", str(path))()
    weights(path, places=torch.ones(16, 96))
    second = plugins.load("rewards", str(path))()
    assert first.info() != second.info()
    assert torch.equal(second.network.places, torch.ones(16, 96))
    assert not torch.equal(first.network.places, second.network.places)


def test_files_that_are_no_reward_are_refused_with_what_was_expected(tmp_path):
    path = tmp_path / "r.safetensors"
    expected = r"expected weights with 'alignbench\.reward' in their metadata, as `alignbench train-reward` writes them"

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            plugins.load("rewards", str(path))()

    refused(r"r\.safetensors': there is no such file\.")
    path.write_bytes(b"PK\x03\x04 not weights")
    refused(r"r\.safetensors' cannot be read as safetensors \(.*\); make or copy it again\.")
    weights(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(r"cannot be read as safetensors")
    save_file({"x": torch.zeros(2)}, path)
    refused(f"does not say which reward reads it; {expected}")
    weights(path, {"alignbench.reward": "jpeg_compressibility"})
    refused(f"is for 'jpeg_compressibility', which reads no weights; {expected}")
    weights(path, places=torch.zeros(3, 96))
    refused(
        r"holds other tensors than the network of shapes_preference has \(size mismatch for places: .*`alignbench tr"
    )
    save_file({"x": torch.zeros(2)}, path, {"alignbench.reward": "shapes_preference"})
    refused(r"holds other tensors than .*\(Missing key.*expected weights that `alignbench train-reward` wrote")


def test_a_file_of_weights_cannot_choose_code_to_run(tmp_path):
    """Weights are passed around as data; a path or module in their metadata would be executed on loading."""
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nclass Evil:\n    def __init__(self, p): pass\n"
    )
    for reader in (f"{tmp_path / 'evil.py'}:Evil", "os:system", str(tmp_path / "r.safetensors")):
        path = weights(tmp_path / "r.safetensors", {"alignbench.reward": reader})
        with pytest.raises(InputError, match="which is no installed reward"):
            plugins.load("rewards", str(path))
    assert not ran.exists()


def test_a_run_optimises_and_names_the_trained_reward(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command_line(command(folder, Path("mine.safetensors"), *SHORT)) == 0
    run = ["run", "--algo", "best_of_n", "--reward", "mine.safetensors", "--limit", "2", "--steps", "2"]
    assert run_command_line([*run, "--scorers", "shapes_preference", "--name", "x"]) == 0
    (path,) = Path("results").glob("*.json")
    assert path.name == "tiny-shapes-best_of_n-mine-x.json"
    result = results.read(path)
    assert result.status == "complete"
    assert list(result.scorers) == ["mine", "shapes_preference"]
    assert result.scorers["mine"].files == {"mine.safetensors": sha256_of(Path("mine.safetensors"))}
    assert result.scorers["mine"].id != result.scorers["shapes_preference"].id
    assert all(math.isfinite(row.scores["mine"]) for row in result.rows)


def test_two_rewards_of_one_name_are_refused_instead_of_one_hiding_the_other(tmp_path, capsys):
    path = weights(tmp_path / "shapes_preference.safetensors")
    run = ["run", "--algo", "base", "--reward", str(path), "--scorers", "shapes_preference", "--output", str(tmp_path)]
    assert run_command_line(run) == 2
    assert message(capsys) == (
        f"two scorers would share the column 'shapes_preference': {str(path)!r} and 'shapes_preference'; "
        "leave one out, or rename one."
    )


def test_the_file_holds_the_networks_tensors_and_nothing_else(folder, tmp_path):
    trained = train_reward(
        TrainRewardOptions(pairs=folder, output=tmp_path / "r.safetensors", steps=1, held_out=0.3), quiet=True
    )
    tensors = load_file(trained.path)
    assert tensors.keys() == bradley_terry.PreferenceNet().state_dict().keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert nn.utils.parameters_to_vector(tensors.values()).isfinite().all()
