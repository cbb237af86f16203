"""Reward curves: means and bands over seeds by hand, and a picture with one line per method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from PIL import Image

from alignbench.analysis.plots import curves, reward_curves
from alignbench.errors import InputError, UnknownName


def line(number, scores=None, forward=0, backward=0, seconds=0.0):
    """A line of the training curve; with scores, one at which held-out prompts were scored."""
    held_out = {} if scores is None else {"held_out": scores}
    spent = {"denoiser_forward": forward, "denoiser_backward": backward, "seconds": seconds}
    return {"round": number, "reward": 99.0, **held_out, **spent}


@pytest.fixture
def trained(make_result):
    """A function that writes a trained result with held-out scores in rounds 1, 3, 5 ... of the scorer `r`."""

    def write(name, scores, algorithm="ddpo", seed=0, **changes) -> Path:
        columns = scores if isinstance(scores, dict) else {"r": scores}
        length = len(next(iter(columns.values())))
        curve = []
        for i in range(length):
            curve.append(line(2 * i + 1, {key: values[i] for key, values in columns.items()}))
            curve.append(line(2 * i + 2))
        found = {"curve": curve} | changes
        return make_result(name, {key: [0.0] for key in columns}, algorithm, seed=seed, **found)

    return write


def test_the_mean_and_the_band_over_seeds_by_hand(trained):
    paths = [trained(f"s{seed}", own, seed=seed) for seed, own in enumerate([[1.0, 4.0], [2.0, 2.0], [6.0, 3.0]])]
    (curve,) = curves(paths)
    assert (curve.method, curve.scorer, curve.seeds) == ("ddpo", "r", 3)
    assert curve.x.tolist() == [1, 3]
    assert curve.mean.tolist() == [3, 3]
    assert curve.low.tolist() == [1, 2]
    assert curve.high.tolist() == [6, 4]


def test_one_seed_has_a_band_of_no_width(trained):
    (curve,) = curves([trained("one", [1.0, 2.0, 4.0])])
    assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == [1, 2, 4]
    assert curve.seeds == 1


@pytest.mark.parametrize(
    ("against", "expected"),
    [("rounds", [10, 20]), ("denoiser", [150, 450]), ("seconds", [3, 7])],
)
def test_the_three_axes_by_hand(trained, against, expected):
    """Denoiser evaluations are forward and backward ones; seconds are the mean over the seeds (2 and 4, 6 and 8)."""
    paths = [
        trained(
            f"s{seed}",
            [0.0],
            seed=seed,
            curve=[
                line(10, {"r": 0.1}, forward=100, backward=50, seconds=2.0 + 2 * seed),
                line(15, forward=200, backward=100, seconds=5.0),
                line(20, {"r": 0.2}, forward=300, backward=150, seconds=6.0 + 2 * seed),
            ],
        )
        for seed in (0, 1)
    ]
    (curve,) = curves(paths, against)
    assert curve.x.tolist() == expected
    assert curve.mean.tolist() == [0.1, 0.2]


def test_seeds_of_unequal_length_are_drawn_as_far_as_all_go(trained):
    paths = [trained("long", [1.0, 2.0, 3.0], seed=0), trained("short", [3.0, 4.0], seed=1)]
    (curve,) = curves(paths)
    assert curve.x.tolist() == [1, 3]
    assert curve.mean.tolist() == [2, 3]


def test_there_is_a_curve_for_every_method_and_scorer(trained):
    paths = [
        trained("one", {"r": [1.0, 2.0], "s": [3.0, 4.0]}, "ddpo"),
        trained("two", {"r": [5.0, 6.0], "s": [7.0, 8.0]}, "dpo"),
    ]
    found = {(curve.method, curve.scorer): curve.mean.tolist() for curve in curves(paths)}
    assert found == {("ddpo", "r"): [1, 2], ("ddpo", "s"): [3, 4], ("dpo", "r"): [5, 6], ("dpo", "s"): [7, 8]}


def test_a_scorer_without_held_out_scores_has_no_curve(trained):
    path = trained("one", {"r": [1.0, 2.0], "s": [3.0, 4.0]}, curve=[line(k, {"r": 1.0}) for k in (1, 2)])
    assert [curve.scorer for curve in curves([path])] == ["r"]


def test_one_point_is_no_curve(trained):
    assert curves([trained("one", [1.0])]) == []


def test_methods_that_share_a_name_in_two_evaluations_are_told_apart(trained):
    paths = [trained("one", [1.0, 2.0]), trained("two", [3.0, 4.0], evaluation={"eval_seed": 7})]
    names = [curve.method for curve in curves(paths)]
    assert len(set(names)) == 2
    assert all(name.startswith("ddpo, evaluation ") for name in names)


def test_files_without_curves_are_refused(make_result, trained):
    base = make_result("base", [0.0])
    partial = trained("partial", [1.0, 2.0], status="partial")
    with pytest.raises(InputError, match="none of these files holds a training curve with held-out scores"):
        reward_curves([base, partial])


def test_a_scorer_nobody_has_is_refused_with_the_near_name(trained):
    path = trained("one", {"truth": [1.0, 2.0], "style": [1.0, 2.0]})
    with pytest.raises(UnknownName, match=r"no scorer in these curves named 'trut'\. Did you mean truth\?"):
        reward_curves([path], scorers=["trut"])


def test_chosen_scorers_are_the_only_panels(trained):
    path = trained("one", {"r": [1.0, 2.0], "s": [3.0, 4.0]})
    assert [axes.get_title() for axes in reward_curves([path]).axes] == ["r", "s"]
    (panel,) = reward_curves([path], scorers=["s"]).axes
    assert panel.get_title() == "s"
    assert panel.lines[0].get_ydata().tolist() == [3, 4]


@pytest.mark.parametrize(
    ("against", "label"),
    [
        ("rounds", "training rounds"),
        ("denoiser", "denoiser evaluations, forward and backward"),
        ("seconds", "seconds of training"),
    ],
)
def test_the_horizontal_axis_is_named(trained, against, label):
    (panel,) = reward_curves([trained("one", [1.0, 2.0])], against).axes
    assert panel.get_xlabel() == label
    assert panel.get_ylabel() == "mean on held-out prompts"


def test_a_panel_holds_the_mean_as_a_line_and_the_seeds_as_a_band(trained):
    paths = [trained(f"s{seed}", own, seed=seed) for seed, own in enumerate([[1.0, 4.0], [3.0, 2.0]])]
    figure = reward_curves(paths)
    (panel,) = figure.axes
    (drawn,) = panel.lines
    assert drawn.get_xdata().tolist() == [1, 3]
    assert drawn.get_ydata().tolist() == [2, 3]
    (band,) = panel.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 1), (1, 3), (3, 2), (3, 4)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ddpo (2 seeds and their range)"]


def test_a_method_has_its_colour_in_every_panel_and_one_entry_in_the_legend(trained):
    """Method b lacks the first scorer and a the second."""
    paths = [
        trained("one", {"r": [1.0, 1.0]}, "a"),
        trained("two", {"s": [2.0, 2.0]}, "b"),
        trained("three", {"r": [3.0, 3.0], "s": [3.0, 3.0]}, "c"),
    ]
    figure = reward_curves(paths)
    first, second = figure.axes
    (a, c_first), (b, c_second) = first.lines, second.lines
    assert c_first.get_color() == c_second.get_color()
    assert len({a.get_color(), b.get_color(), c_first.get_color()}) == 3
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [f"{name} (one run)" for name in "acb"]
    shown = [handle.get_color() for handle in legend.get_lines()]
    assert shown == [a.get_color(), c_first.get_color(), b.get_color()]


def test_no_two_of_twelve_methods_look_alike(trained):
    paths = [trained(f"m{k}", [float(k), 0.0], f"method{k}") for k in range(12)]
    (panel,) = reward_curves(paths).axes
    assert len({(to_rgba(drawn.get_color()), drawn.get_linestyle()) for drawn in panel.lines}) == 12


def test_the_picture_is_saved_as_png(trained, tmp_path):
    path = tmp_path / "curves.png"
    reward_curves([trained("one", {"r": [1.0, 2.0], "s": [2.0, 1.0]})]).savefig(path, format="png", dpi=100)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (840, 340)
        pixels = np.asarray(picture.convert("RGB"))
    blue = np.abs(pixels.astype(int) - [31, 119, 180]).max(-1) < 8
    assert blue[:, :420].sum() > 100
    assert blue[:, 420:].sum() > 100


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(trained, tmp_path):
    """matplotlib reads text between dollars as a formula, and `$a_$` is a broken one."""
    figure = reward_curves([trained("one", {"cost $a_$": [1.0, 2.0]}, "$b^$")])
    figure.savefig(tmp_path / "odd.png", format="png")  # where a broken formula fails
    written = {text.get_text() for text in figure.findobj(Text)}
    assert {r"cost \$a_\$", r"\$b^\$"} <= {words.split(" (")[0] for words in written}
