"""`alignbench audit`: agreement and sensitivity by hand and against scipy, the changes themselves, the command."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import COLOURS
from scipy import stats

from alignbench import InputError, Key, Prompt
from alignbench.analysis.agreement import agreement, matrix, sensitivity
from alignbench.analysis.statistics import win_rate
from alignbench.cli.app import run_command_line
from alignbench.judging import audit_report
from alignbench.judging.alterations import CHANGES, altered, jpeg, noise, shortened
from alignbench.judging.audit import audit
from alignbench.judging.options import AuditOptions

RED, DARKNESS, HEIGHT = (f"{COLOURS}:{name}" for name in ("Red", "Darkness", "Height"))
KEY = Key("test", "audit")


def picture(red: int, size: tuple[int, int] = (8, 8), blue: int = 0) -> Image.Image:
    return Image.new("RGB", size, (red, 0, blue))


def write(folder: Path, rows) -> Path:
    """A folder of pairs from (prompt, label, image, image)."""
    folder.mkdir(parents=True)
    lines = []
    for i, (text, label, *images) in enumerate(rows):
        for name, image in zip("ab", images, strict=True):
            image.save(folder / f"{i}{name}.png")
        lines.append(json.dumps({"prompt": text, "label": label, "images": [f"{i}a.png", f"{i}b.png"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Red says right, right, wrong; the second prompt has a picture Red cannot score."""
    rows = [("a b c", 1, picture(200), picture(100)), ("a b c", 0, picture(50), picture(60))]
    rows += [("d e", 1, picture(20), picture(90)), ("d e", 1, picture(0, blue=255), picture(9))]
    return write(tmp_path / "pairs", rows)


# Agreement


def judged(scores: np.ndarray) -> np.ndarray:
    """P(first preferred) of all pairs of pictures."""
    return np.array([0.5 + 0.5 * np.sign(a - b) for a, b in itertools.combinations(scores, 2)], np.float64)


@pytest.mark.parametrize("levels", [3, 1000])
def test_over_all_pairs_of_one_prompt_tau_is_scipys(levels):
    first = (KEY("first").uniform(40).numpy() * levels).round()
    second = first + (KEY("second").uniform(40).numpy() * levels).round()
    a, b = judged(first), judged(second)
    found = agreement(a, b, np.zeros(len(a), np.int64), KEY)
    assert found.tau == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-12)
    assert found.pairs == 40 * 39 / 2


def test_tau_by_hand_leaves_out_what_a_judge_does_not_know():
    a = np.array([1, 1, 0, 0.5, 1, math.nan])
    b = np.array([1, 0, 0, 1, 0.5, 1])
    prompts = np.array([0, 0, 1, 1, 2, 2])
    found = agreement(a, b, prompts, KEY)
    assert found.pairs == 5
    assert found.tau == pytest.approx((2 - 1) / math.sqrt(4 * 4))
    assert agreement(a, a, prompts, KEY).tau == 1
    tau, low, high, _ = agreement(a, 1 - a, prompts, KEY)
    assert (tau, low) == (-1, -1)
    assert high == pytest.approx(2 * 1.959964**2 / (3 + 1.959964**2) - 1)  # three prompts that say the same: Wilson

    tied = agreement(a, np.full(6, 0.5), prompts, KEY)
    assert np.isnan(tied[:3]).all()
    assert agreement(a, np.full(6, math.nan), prompts, KEY).pairs == 0


def test_on_one_prompt_tau_is_of_its_pairs_and_has_an_interval():
    judged = np.array([1, 1, 1, 0, 0, 1.0])
    tau, low, high, _ = agreement(judged, np.ones(6), np.zeros(6, int), KEY)
    assert tau == pytest.approx(1 / 3)
    assert low < tau < high


def test_more_pairs_of_the_same_prompts_narrow_nothing():
    """Copies of a prompt's pairs say nothing new, so that neither τ nor its interval moves."""
    draws = KEY("clustered").uniform(2, 30, 4).numpy()
    a, b = ((draw > 0.5).astype(float).ravel() for draw in (draws[0], 0.5 * draws[0] + 0.5 * draws[1]))
    prompts = np.repeat(np.arange(30), 4)
    once = agreement(a, b, prompts, KEY)
    copies = agreement(np.tile(a, 5), np.tile(b, 5), np.tile(prompts, 5), KEY)
    assert copies[:3] == pytest.approx(once[:3])
    assert copies.pairs == 5 * once.pairs
    alone = agreement(a, b, np.arange(120), KEY)
    assert alone.tau == pytest.approx(once.tau)
    assert 0.1 < alone.high - alone.low < 0.6


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Judges that agree with probability 0.7 on independent pairs: τ = 0.4; 100 experiments of 60 prompts."""
    held = 0
    for i in range(100):
        draws = KEY("coverage", i).uniform(2, 120).numpy()
        a = (draws[0] > 0.5).astype(float)
        b = np.where(draws[1] < 0.7, a, 1 - a)
        found = agreement(a, b, np.arange(120) // 2, KEY("resamples", i))
        held += found.low <= 0.4 <= found.high
    assert 88 <= held <= 99


def test_the_matrix_is_symmetric_with_ones():
    found = {("x", "y"): agreement(np.array([1.0, 0]), np.array([1.0, 1]), np.array([0, 1]), KEY)}
    assert matrix(["x", "y"], found).tolist() == [[1, 0], [0, 1]]


# Sensitivity


def test_shift_and_flips_by_hand():
    before = np.array([[0.0, 2], [4, 6], [math.nan, 1]])
    after = np.array([[1.0, 1], [4, 3], [1, 2]])
    decided = np.array([0, 0, math.nan]), np.array([0.5, 1, 0])
    prompts = np.array([0, 1, 1])
    found = sensitivity("jpeg", before, after, decided, prompts)
    spread = np.std([0, 2, 4, 6, 1], ddof=1)
    assert found.shift == pytest.approx((1 + 1 + 0 + 3 + 1) / 5 / spread)
    assert found.images == 5
    assert found.flipped == win_rate(np.array([0.5, 1]), prompts[:2])
    assert sensitivity("jpeg", before, np.full((3, 2), math.nan), decided, prompts) is None


def test_noise_moves_every_value_by_one_step_as_its_key_says():
    pixels = (KEY("pixels").uniform(20, 30, 3).numpy() * 255).round().astype(np.uint8)
    pixels[0], pixels[1] = 0, 255
    moved = noise(pixels, KEY("a")).astype(int) - pixels
    inside = moved[2:][(pixels[2:] > 0) & (pixels[2:] < 255)]
    assert set(inside.tolist()) == {-1, 1}
    assert abs(inside.mean()) < 0.1
    assert set(moved[0].ravel().tolist()) == {0, 1}
    assert set(moved[1].ravel().tolist()) == {-1, 0}
    assert (noise(pixels, KEY("a")) == noise(pixels, KEY("a"))).all()
    assert (noise(pixels, KEY("a")) != noise(pixels, KEY("b"))).any()


def test_a_picture_saved_as_jpeg_is_near_and_not_the_same():
    pixels = (KEY("pixels").uniform(20, 30, 3).numpy() * 255).round().astype(np.uint8)
    again = jpeg(pixels, KEY)
    assert again.shape == pixels.shape
    assert 0 < np.abs(again.astype(int) - pixels).mean() < 60  # half the colours' resolution is kept


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_keeps_size_range_and_bits(change):
    images = tuple((KEY("image", i).uniform(3, 20, 30) * 255).round() / 255 for i in range(2))
    for image, new in zip(images, altered(change, images, KEY), strict=True):
        assert new.shape == image.shape
        assert torch.equal((new * 255).round() / 255, new)
        assert torch.equal(new, image) == (change == "half the prompt")


def test_kernels_of_resizing_differ_and_leave_constant_pictures_alone():
    images = tuple((KEY("image", i).uniform(3, 20, 30) * 255).round() / 255 for i in range(2))
    distance = {c: float((altered(c, images, KEY)[0] - images[0]).abs().mean()) for c in ("bilinear", "bicubic")}
    assert distance["bilinear"] > 1.2 * distance["bicubic"] > 0
    flat = torch.full((3, 20, 30), 100 / 255)
    assert torch.equal(altered("bilinear", (flat, flat), KEY)[1], flat)


def test_half_the_prompt_is_the_first_half_of_its_words():
    assert shortened(Prompt("x", "one two  three"), "half the prompt") == Prompt("x", "one two")
    assert shortened(Prompt("x", "one"), "half the prompt").text == "one"
    assert shortened(Prompt("x", "one two"), "jpeg").text == "one two"


# The whole


def test_an_audit_by_hand(pairs):
    report = audit(AuditOptions(pairs=pairs, scorers=[RED, DARKNESS, HEIGHT]), quiet=True)
    red, height = report.scorers["Red"], report.scorers["Height"]
    assert red.accuracy.pairs == 3
    assert red.accuracy.failed == 1
    assert red.accuracy.rates["half"].rate == pytest.approx(2 / 3)
    assert height.accuracy.rates["half"].rate == 0.5
    assert report.agreement["labels", "Red"].tau == pytest.approx((2 - 1) / 3)
    assert report.agreement["Red", "Darkness"].tau == pytest.approx(-2 / math.sqrt(3 * 2))  # 50 and 60 tie in the dark
    assert math.isnan(report.agreement["Red", "Height"].tau)
    for change in ("bilinear", "bicubic", "half the prompt"):
        assert red.sensitivity[change].shift == 0
        assert red.sensitivity[change].flipped.rate == 0
    assert red.sensitivity["noise"].shift < 0.05  # a mean of steps up and down
    assert height.sensitivity["jpeg"].shift == 0
    assert red.reasons["bicubic"].startswith("the scorer returned nan")
    assert "Red fails on 1 pairs, first: the scorer returned nan" in audit_report.text(report)


def test_decisions_that_turn_are_counted(tmp_path):
    """The red channel of a fine pattern survives bicubic resampling better than bilinear; a rival of nearly its mean
    is overtaken."""
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::4, 0] = 255  # mean 63.75; cut off at 0 and 255, resampling changes the mean
    flat = [picture(64), picture(65), picture(66), picture(68)]
    pairs = write(tmp_path / "turning", [(f"p{i}", 0, Image.fromarray(stripes), other) for i, other in enumerate(flat)])
    report = audit(AuditOptions(pairs=pairs, scorers=[RED]), quiet=True)
    found = report.scorers["Red"].sensitivity["bicubic"]
    image = Image.fromarray(stripes)
    again = image.resize((16, 16), Image.Resampling.BICUBIC).resize((8, 8), Image.Resampling.BICUBIC)
    mean = np.asarray(again)[..., 0].mean().round()
    decided = np.array([[0.5 + 0.5 * np.sign(x - y) for y in (64, 65, 66, 68)] for x in (64, mean)])
    assert found.flipped.rate == pytest.approx(np.abs(decided[0] - decided[1]).mean())


def test_texts_a_scorer_does_not_read_are_said_and_the_rest_is_scored(tmp_path):
    rows = [("a b c d", 1, picture(9), picture(8)), ("a forbidden c d", 1, picture(9), picture(8))]
    report = audit(AuditOptions(pairs=write(tmp_path / "some", rows), scorers=[RED]), quiet=True)
    red = report.scorers["Red"]
    assert red.accuracy.pairs == 1
    assert red.reasons[""] == "it may not see this."
    assert "Red did not score some of the pairs: it may not see this." in audit_report.text(report)
    late = [("a b c forbidden", 1, picture(9), picture(8))]
    assert (
        audit(AuditOptions(pairs=write(tmp_path / "late", late), scorers=[RED]), quiet=True)
        .scorers["Red"]
        .sensitivity["half the prompt"]
        is None
    )  # there is nothing to compare it with


def test_the_command_prints_writes_and_draws(pairs, tmp_path, capsys):
    output, figure = tmp_path / "out" / "audit.json", tmp_path / "out" / "audit.png"
    asked = ["audit", "--pairs", str(pairs), "--scorers", RED, DARKNESS]
    assert run_command_line([*asked, "--output", str(output), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "66.7" in out
    assert "labels – Red" in out
    assert out.splitlines()[-2:] == [f"written to {output}", f"written to {figure}"]
    with Image.open(figure) as drawn:
        assert drawn.format == "PNG"
    values = json.loads(output.read_text())
    assert values["schema"] == 1
    assert values["scorers"]["Red"]["accuracy"]["rate"] == pytest.approx(2 / 3)
    assert values["agreement"][0]["judges"] == ["labels", "Red"]
    assert run_command_line([*asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {k: v for k, v in printed.items() if k != "environment"} == {
        k: v for k, v in values.items() if k != "environment"
    }


def test_a_limit_is_said_beside_the_pairs_that_there_are(pairs):
    said = audit_report.text(audit(AuditOptions(pairs=pairs, scorers=[RED], limit=1), quiet=True))
    assert "pairs used" in said
    assert ", the first 1 of them (--limit)" in said


def test_the_figure_shows_the_numbers(pairs):
    report = audit(AuditOptions(pairs=pairs, scorers=[RED, DARKNESS]), quiet=True)
    first, second, third = audit_report.figure(report).axes
    assert first.lines[0].get_xdata()[0] == pytest.approx(100 * 2 / 3)
    assert [t.get_text() for t in second.get_xticklabels()] == ["labels", "Red", "Darkness"]
    assert "0.33" in {t.get_text() for t in second.texts}
    turned = [s.flipped.rate for c in CHANGES for f in report.scorers.values() if (s := f.sensitivity[c])]
    assert sorted(bar.get_width() for bar in third.patches) == pytest.approx(sorted(100 * x for x in turned))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorers", "hpsv3"], "no reward named 'hpsv3'"),
        (["--scorers", RED, "--limit", "0"], "--limit 0: expected at least 1"),
        (["--scorers", RED, "--output", "audit.txt"], "expected a .json file"),
        (["--scorers", RED, "--figure", "audit.gif"], "expected a .png, .pdf or .svg file"),
        (["--scorers", RED, "--seed", "-1"], "--seed -1: expected at least 0"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_scored(pairs, capsys, arguments, message):
    assert run_command_line(["audit", "--pairs", str(pairs), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_audit_is_wrong_input(pairs):
    with pytest.raises(InputError, match="nothing to audit"):
        AuditOptions.parse({"pairs": pairs, "scorers": ()})
