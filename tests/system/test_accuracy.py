"""Agreement with preference labels: tables by hand, the implicit reward against the loss it comes from, the command."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import COLOURS

from alignbench import FullFineTune, InputError, Key, LoRA
from alignbench.analysis.statistics import win_rate
from alignbench.cli.app import run_command_line
from alignbench.diffusion import adapters
from alignbench.diffusion import registry as models
from alignbench.judging import accuracy, implicit
from alignbench.judging.accuracy import as_values, measure
from alignbench.judging.options import AccuracyOptions
from alignbench.meter import Meter
from alignbench.preferences.choosing import choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs
from alignbench.progress import Progress
from alignbench.shapes.render import render, sample_scene
from alignbench.shapes.scene import parse

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # several policies on one pipeline
RED, DARKNESS, HEIGHT = (f"{COLOURS}:{name}" for name in ("Red", "Darkness", "Height"))

# prompt, label, red of the first image and of the second
BY_HAND = [
    ("a", 1, 200, 100),  # right
    ("a", 0, 50, 60),  # right
    ("b", 1, 10, 10),  # a predicted tie
    ("b", 0, 90, 20),  # wrong
    ("c", 0.5, 30, 40),  # a tie that is not predicted
    ("c", 0.5, 70, 70),  # a tie that is
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def plain(red: int, size: tuple[int, int] = (8, 8), blue: int = 0) -> Image.Image:
    return Image.new("RGB", size, (red, 0, blue))


def write(folder: Path, rows) -> Path:
    """A folder of pairs from (prompt, label, image, image)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (text, label, *images) in enumerate(rows):
        for name, image in zip("ab", images, strict=True):
            (image if isinstance(image, Image.Image) else plain(image)).save(folder / f"{i}{name}.png")
        lines.append(json.dumps({"prompt": text, "label": label, "images": [f"{i}a.png", f"{i}b.png"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def by_hand(tmp_path) -> Path:
    return write(tmp_path / "by_hand", BY_HAND)


def rates(report, name=None):
    """The shares of a row, by definition."""
    (row,) = [row for row in report.rows if name in (None, row.name)]
    return {key: rate and rate.rate for key, rate in row.rates.items()}


# The definitions


@pytest.mark.parametrize(
    ("ties", "expected"),
    [
        ("keep", {"half": (1 + 1 + 0.5 + 0 + 0.5 + 1) / 6, "inversions": 5 / 6, "strict": 2 / 4}),
        ("drop", {"half": (1 + 1 + 0.5 + 0) / 4, "inversions": 3 / 4, "strict": 2 / 4}),
    ],
)
def test_three_definitions_by_hand(by_hand, ties, expected):
    report = measure(AccuracyOptions(pairs=by_hand, scorers=[RED], pair_ties=ties), quiet=True)
    assert rates(report) == pytest.approx(expected)
    assert report.rows[0].ties == (2 if ties == "keep" else 1)
    assert report.pairs["ties"] == (2 if ties == "keep" else 0)
    assert report.pairs["counts"]["ties_dropped"] == (0 if ties == "keep" else 2)


def test_intervals_are_those_of_the_statistics_clustered_by_prompt(by_hand):
    (row,) = measure(AccuracyOptions(pairs=by_hand, scorers=[RED], pair_ties="keep"), quiet=True).rows
    prompts = np.array([0, 0, 1, 1, 2, 2])
    assert row.rates["half"] == win_rate(np.array([1, 1, 0.5, 0, 0.5, 1]), prompts)
    assert row.rates["inversions"] == win_rate(np.array([1, 1, 1, 0, 1, 1.0]), prompts)
    assert row.rates["strict"] == win_rate(np.array([1, 1, 0, 0.0]), prompts[:4])
    assert row.rates["half"].prompts == 3


def test_strict_has_no_rate_where_every_label_is_a_tie(tmp_path):
    pairs = write(tmp_path / "tied", [("a", 0.5, 10, 20)])
    report = measure(AccuracyOptions(pairs=pairs, scorers=[RED], pair_ties="keep"), quiet=True)
    assert rates(report) == {"half": 0.5, "inversions": 1, "strict": None}
    json.dumps(as_values(report), allow_nan=False)
    assert "–" in accuracy.text(report)


def test_a_scorer_says_which_way_is_better_and_what_is_a_tie(by_hand):
    report = measure(AccuracyOptions(pairs=by_hand, scorers=[DARKNESS], pair_ties="keep"), quiet=True)
    # wrong; 50 and 60 tie; tie; right (lower is better); 30 and 40 tie; tie
    assert rates(report) == pytest.approx(
        {"half": (0 + 0.5 + 0.5 + 1 + 1 + 1) / 6, "inversions": 5 / 6, "strict": 1 / 4}
    )


# What cannot be judged


def test_a_score_that_is_no_number_is_counted_and_its_pair_left_out(tmp_path):
    pairs = write(tmp_path / "p", [("a", 1, 9, 1), ("b", 1, plain(9, blue=255), 1), ("c", 0, 1, plain(9, blue=255))])
    report = measure(AccuracyOptions(pairs=pairs, scorers=[RED, DARKNESS]), quiet=True)
    assert [(row.pairs, row.failed, row.reason) for row in report.rows] == [(1, 2, "the scorer returned nan")] * 2
    assert rates(report, "Red")["half"] == 1
    assert "Red fails on 2 pairs, first: the scorer returned nan" in accuracy.text(report)


def test_a_scorer_that_cannot_judge_is_a_row_with_the_reason(tmp_path):
    pairs = write(tmp_path / "p", [("a", 1, plain(0, (8, 20)), 1), ("forbidden", 1, plain(0, (8, 41)), 9)])
    report = measure(AccuracyOptions(pairs=pairs, scorers=[RED, HEIGHT]), quiet=True)
    red, height = report.rows
    assert (red.pairs, red.reason) == (0, "it may not see this.")
    assert set(red.rates.values()) == {None}
    assert (height.pairs, height.failed, height.reason) == (1, 1, "it is too high.")
    assert "Red judges none: it may not see this." in accuracy.text(report)
    json.dumps(as_values(report), allow_nan=False)


def test_a_pair_with_a_broken_image_is_skipped_and_named(by_hand, capsys):
    (by_hand / "0b.png").write_bytes(b"no picture")
    report = measure(AccuracyOptions(pairs=by_hand, scorers=[RED]))
    assert rates(report)["half"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert list(report.pairs["skipped"]) == ["pairs.jsonl, line 1"]
    assert "pair skipped: pairs.jsonl, line 1: 10 bytes" in capsys.readouterr().err
    assert "skipped: 1 with an image that cannot be read, first pairs.jsonl, line 1" in accuracy.text(report)


def test_images_keep_their_size_until_a_model_names_one(tmp_path):
    sizes = [(8, 30), (20, 12), (8, 8)]
    pairs = write(tmp_path / "p", [(f"a {i} red circle", 1, plain(1, size), plain(1)) for i, size in enumerate(sizes)])
    alone = measure(AccuracyOptions(pairs=pairs, scorers=[HEIGHT]), quiet=True)
    assert rates(alone)["half"] == pytest.approx((1 + 1 + 0.5) / 3)
    sized = measure(AccuracyOptions(pairs=pairs, scorers=[HEIGHT], model="tiny"), quiet=True)
    assert sized.rows[0].ties == 3
    assert sized.model["image_shape"] == [3, 32, 32]


# Implicit rewards


@pytest.fixture(scope="module")
def tiny():
    return models.load(models.named()["tiny"], Meter())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Seven pairs of rendered scenes; number 2 is a tie."""
    texts, labels = ["a red circle", "two small cyan rings"], [1, 0, 0.5, 1, 1, 0, 0]
    pictures = [Image.fromarray(render(sample_scene(Key("scene", i), parse(texts[i % 2])))) for i in range(14)]
    rows = [(texts[i % 2], label, *pictures[2 * i : 2 * i + 2]) for i, label in enumerate(labels)]
    return write(tmp_path_factory.mktemp("shapes"), rows)


def moved(policy):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * Key("move", i).normal(*parameter.shape))
    return policy


@pytest.fixture(scope="module")
def policy(tiny):
    return moved(tiny.adapt(LoRA(), Key("a")))


def encoded(tiny, shapes, ties="drop") -> EncodedPairs:
    chosen = choose(open_pairs(shapes), ties, None, ())
    return EncodedPairs(chosen, tiny, None, "centre", Key("pairs", "crop"), lambda _: None)


def keys_of(pairs, seed=0):
    return [Key("accuracy", seed)("pair", number) for number in pairs._chosen.numbers]


def measured(pipeline, pairs, batch=3, timesteps=3):
    return implicit.errors(pipeline, pairs, keys_of(pairs), batch, timesteps, Progress(quiet=True))


@pytest.mark.parametrize("beta", [2.0, 5000.0])
def test_the_margin_is_diffusion_dpos_z_of_the_same_draws(tiny, shapes, policy, beta):
    pairs, draws = encoded(tiny, shapes), 3
    own, reference = (measured(part, pairs, batch=6, timesteps=draws) for part in (policy, tiny))
    margins = torch.stack([implicit.implicit_margin(own[i], reference[i]) for i in range(6)])
    dpo = importlib.import_module("alignbench.algorithms.diffusion_dpo").DiffusionDPO(beta=beta, caption_dropout=0.0)
    batch = pairs.batch(range(6))
    with torch.no_grad():
        z = [dpo.loss(policy, batch, [key(k) for key in keys_of(pairs)])[1].z.double() for k in range(draws)]
    assert margins.abs().min() > 0
    torch.testing.assert_close(margins, torch.stack(z).mean(0) * 2 / beta, rtol=1e-6 if beta > 2 else 0, atol=0)


def test_both_images_of_a_pair_meet_the_same_draws(tiny, tmp_path, shapes, policy):
    """A pair of equal images has no margin, whatever the policy."""
    picture = Image.open(shapes / "0a.png")
    pairs = encoded(tiny, write(tmp_path / "p", [("a red circle", 1, picture, picture)]))
    own, reference = measured(policy, pairs)[0], measured(tiny, pairs)[0]
    assert (own != reference).any()
    torch.testing.assert_close(implicit.implicit_margin(own, reference), torch.zeros((), dtype=torch.float64))


def test_errors_do_not_depend_on_the_batch_or_on_which_pairs_are_chosen(tiny, shapes, policy):
    kept, dropped = encoded(tiny, shapes, "keep"), encoded(tiny, shapes)
    together, alone, fewer = measured(policy, kept, 7), measured(policy, kept, 1), measured(policy, dropped, 4)
    for i, error in together.items():
        torch.testing.assert_close(alone[i], error, rtol=0, atol=2e-6)
    for i, number in enumerate(dropped._chosen.numbers):
        torch.testing.assert_close(fewer[i], together[number], rtol=0, atol=2e-6)


@pytest.mark.parametrize("tuning", [LoRA(), FullFineTune()], ids=["lora", "full"])
def test_an_opened_adapter_measures_the_same_to_the_bit(tiny, shapes, tmp_path, tuning):
    policy, pairs = moved(tiny.adapt(tuning, Key("a"))), encoded(tiny, shapes)
    policy.save(tmp_path)
    before, after = measured(policy, pairs), measured(adapters.open_policy(tiny, tmp_path), pairs)
    assert all(torch.equal(before[i], after[i]) for i in range(6))


@pytest.mark.slow
def test_adapters_become_rows_whose_predictions_are_the_signs_of_their_margins(tiny, shapes, policy, tmp_path):
    policy.save(tmp_path / "moved" / "adapter")
    tiny.adapt(LoRA(), Key("b")).save(tmp_path / "fresh")
    folders = [tmp_path / "moved", tmp_path / "fresh"]
    spec = AccuracyOptions(pairs=shapes, model="tiny", adapter=folders, timesteps=3, batch_size=6)
    report = measure(spec, quiet=True)
    pairs = encoded(tiny, shapes)
    own, reference = measured(policy, pairs), measured(tiny, pairs)
    right = np.mean([float(implicit.implicit_margin(own[i], reference[i])) > 0 for i in range(6)])
    assert 0 < right < 1
    assert rates(report, "moved") == pytest.approx(dict.fromkeys(accuracy.DEFINITIONS, right))
    # A policy equal to its reference prefers nothing.
    assert rates(report, "fresh") == {"half": 0.5, "inversions": 1, "strict": 0}
    assert [row.ties for row in report.rows] == [0, 6]
    assert report.rows[0].identity == {
        "folder": str(tmp_path / "moved" / "adapter"),
        "sha256": adapters.digest(tmp_path / "moved" / "adapter"),
    }


def test_a_policy_that_computes_no_numbers_fails_pair_by_pair(tiny, shapes, tmp_path):
    policy = tiny.adapt(LoRA(), Key("a"))
    with torch.no_grad():
        policy.parameters()[1].fill_(3e38)  # a number, but nothing that is computed with it
    policy.save(tmp_path / "broken")
    spec = AccuracyOptions(pairs=shapes, model="tiny", adapter=[tmp_path / "broken"], timesteps=1, limit=2)
    (row,) = measure(spec, quiet=True).rows
    assert (row.pairs, row.failed, row.reason) == (0, 2, "its implicit reward is nan")


# The command


def test_the_command_prints_a_table_or_json_alone_and_writes_a_file(by_hand, tmp_path, capsys):
    output = tmp_path / "made" / "accuracy.json"
    arguments = ["accuracy", "--pairs", str(by_hand), "--scorers", RED, DARKNESS]
    assert run_command_line([*arguments, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert f"agreement with the labels of {by_hand}: 4 pairs, 2 prompts\n" in out
    assert "pairs: 4 of 6 pairs used (2 ties dropped)" in out
    assert f"written to {output}" in out
    (line,) = [line for line in out.splitlines() if line.startswith("Red ")]
    assert line.split()[:4] == ["Red", "4", "25.0", "62.5"]
    assert run_command_line([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err == ""
    assert values == json.loads(output.read_text())
    assert values["pairs"]["sha256"] == choose(open_pairs(by_hand), "drop", None, ()).sha256
    assert values["rows"][1]["identity"]["id"] == "darkness-1"
    assert values["environment"]["versions"]["alignbench"]
    assert values["options"]["seed"] == 0


def test_a_model_alone_brings_its_own_scorers_and_a_limit_the_first_pairs(shapes, capsys):
    assert run_command_line(["accuracy", "--pairs", str(shapes), "--model", "tiny", "--limit", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in values["rows"]] == ["shapes_preference", "shapes_truth", "shapes_style"]
    assert [row["pairs"] for row in values["rows"]] == [2, 2, 2]
    assert values["pairs"]["counts"]["used"] == 6
    assert values["pairs"]["used"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "none", "--scorers", RED], "there are no preference pairs at none"),
        (["--pairs", "p"], "nothing to measure: pass --scorers NAME, or --model NAME"),
        (["--pairs", "p", "--adapter", "x"], "--adapter x: name the model it was trained on with --model"),
        (["--pairs", "p", "--model", "tiny", "--adapter", "x"], "--adapter x: there is no such file or folder"),
        (
            ["--pairs", "p", "--model", "tiny", "--adapter", "p"],
            "p holds no weights; expected one of pytorch_lora_weights.safetensors",
        ),
        (["--pairs", "p", "--model", "tiny", "--adapter", "cell.json"], "there is no cell/adapter; only methods that"),
        (["--pairs", "p", "--model", "mixture", "--scorers", RED], "the model makes images of shape [2]"),
        (["--pairs", "p", "--scorers", "shapes_trut"], "no reward named 'shapes_trut'. Did you mean shapes_truth"),
        (["--pairs", "p", "--scorers", RED, "--timesteps", "0"], "--timesteps 0: expected at least 1"),
        (["--pairs", "p", "--scorers", RED, "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--pairs", "p", "--scorers", RED, "--seed", "-1"], "--seed -1: expected at least 0"),
        (["--pairs", "p", "--scorers", RED, "--pair-crop", "random"], "without --model images keep their own size"),
        (["--pairs", "p", "--scorers", RED, "--output", "table.csv"], "--output table.csv: expected a .json file"),
        (["--scorers", RED], 'Command "accuracy" parameter --pairs requires an argument.'),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write(Path("p"), [("a red circle", 1, 9, 1)])
    Path("cell.json").write_text("{}")
    assert run_command_line(["accuracy", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_an_adapter_is_found_by_its_cell_and_refused_on_another_model(tiny, shapes, tmp_path, make_result):
    tiny.adapt(LoRA(), Key("a")).save(tmp_path / "cell" / "adapter")
    path = make_result("cell", [1.0], seed=0, evaluation={"model": dict(tiny.info())})
    for given in (path, tmp_path / "cell", tmp_path / "cell" / "adapter"):
        assert accuracy.adapter_folder(given) == tmp_path / "cell" / "adapter"
    measure(AccuracyOptions(pairs=shapes, model="tiny", adapter=[path], timesteps=1, limit=1), quiet=True)
    make_result("cell", [1.0], seed=0, evaluation={"model": dict(tiny.info()) | {"sha256": "0" * 64}})
    with pytest.raises(InputError, match="was trained on model 'tiny' with sha256 0000"):
        measure(AccuracyOptions(pairs=shapes, model="tiny", adapter=[path]), quiet=True)


def test_two_scorers_of_one_short_name_are_refused(by_hand, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(COLOURS.read_text())
    with pytest.raises(InputError, match=r"share the column 'Red': .*colours\.py:Red' and .*other\.py:Red'"):
        measure(AccuracyOptions(pairs=by_hand, scorers=[RED, DARKNESS, f"{other}:Red"]), quiet=True)
