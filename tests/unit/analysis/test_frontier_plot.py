"""The frontier figure: what is drawn, where names stand, and that none covers another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib.text import Text

from alignbench.analysis.frontier import Panel, Pooled, Standing, Target
from alignbench.analysis.frontier_plot import drawn, frontier_figure
from alignbench.analysis.labels import ROOM, Box, place

# The frontier of a Gaussian whose reward is linear: R = λ, KL = λ²/2; at β = 1 a reward of 1 for half a nat.
GAUSSIAN = Target(1.0, 1.0, 0.5, [(rate, rate, rate**2 / 2) for rate in np.linspace(0, 4, 41)])


def stands(method: str, kl: float | None, reward: float, trains: bool = False) -> Standing:
    found = {"reward": reward} | ({} if kl is None else {"kl": kl})
    metrics = {name: Pooled(x, x - 0.02, x + 0.02, None, "estimate", [x]) for name, x in found.items()}
    return Standing(method, method.split()[0], "r", metrics, {}, 100.0 * trains, 10.0)


def panel(*standings: Standing, problem: str = "gauss", fingerprint: str = "a", other: str | None = None) -> Panel:
    """A panel in which all methods but `other` optimised the reward."""
    aimed = frozenset(standing.method for standing in standings if standing.method != other)
    return Panel(problem, fingerprint, "r", GAUSSIAN, list(standings), aimed)


BASE = stands("base", 0.0, 0.0)


def names(axis) -> set[str]:
    return {text.get_text() for text in axis.texts}


def test_only_methods_that_optimised_the_panels_reward_are_drawn_and_base():
    (shown,) = drawn([panel(BASE, stands("best_of_n", 0.2, 0.5), stands("ddpo", 0.4, 0.3), other="ddpo")])
    assert [s.method for s in shown.standings] == ["base", "best_of_n"]


def test_a_method_without_a_divergence_is_not_drawn():
    (shown,) = drawn([panel(BASE, stands("svdd", None, 0.5))])
    assert [s.method for s in shown.standings] == ["base"]


def test_of_evaluations_that_differ_in_their_noise_the_fullest_is_drawn():
    full = panel(BASE, stands("svdd", 0.2, 0.5), stands("demon", 0.2, 0.4), fingerprint="full")
    few = panel(BASE, stands("svdd", 0.3, 0.5), fingerprint="few")
    assert [p.fingerprint for p in drawn([few, full, few])] == ["full"]


def test_a_reward_that_nobody_optimised_has_no_panel_unless_there_is_no_other():
    aimed, missed = panel(BASE, stands("svdd", 0.2, 0.5)), panel(BASE, problem="other")
    assert drawn([missed, aimed]) == [aimed]
    assert drawn([missed]) == [missed]


def test_an_algorithm_has_one_name_at_its_setting_of_least_regret():
    """Regrets at β = 1 are ½ − (r − KL): 0.1 for n = 2 and 0.05 for n = 4."""
    (axis,) = frontier_figure([panel(BASE, stands("best_of_n n=2", 0.1, 0.5), stands("best_of_n n=4", 0.3, 0.75))]).axes
    assert names(axis) == {"base", "best_of_n n=4"}


def test_what_is_far_out_is_named_with_its_divergence_and_not_drawn():
    far = stands("ddpo rounds=60", 849.4, 54.0, trains=True)
    (axis,) = frontier_figure([panel(BASE, stands("ddpo rounds=20", 0.6, 0.9, trains=True), far)]).axes
    assert names(axis) == {"base", "ddpo rounds=20", "further out: ddpo rounds=60 at 849"}
    assert axis.get_ylim()[1] < 3
    (axis,) = frontier_figure([panel(BASE, far)]).axes
    assert names(axis) == {"base", "further out: ddpo at 849"}


def test_a_long_list_of_what_is_far_out_stays_in_its_panel_and_breaks_between_methods():
    far = [stands(f"diffusion_dpo rounds={n}", 849.0 + n, 54.0, trains=True) for n in range(10, 16)]
    figure = frontier_figure([panel(BASE, *far)])
    (axis,) = figure.axes
    (said,) = [text for text in axis.texts if text.get_text().startswith("further out")]
    lines = said.get_text().split("\n")
    assert ", ".join(line.removesuffix(",") for line in lines).count(" at ") == 6
    assert len(lines) > 1
    assert all(line.endswith(",") for line in lines[:-1])
    assert said.get_window_extent().x1 < axis.get_window_extent().x1


def test_the_legend_says_what_trains_and_what_pays_at_test_time():
    (axis,) = frontier_figure([panel(stands("svdd", 0.2, 0.5), stands("ddpo", 0.3, 0.5, trains=True))]).axes
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["the best there is", "the best at β = 1", "trains", "at test time"]


def test_the_vertical_axis_has_round_numbers_with_room_between_them():
    (axis,) = frontier_figure([panel(BASE, stands("svdd", 0.4, 0.88), stands("demon", 0.4, 0.8))]).axes
    low, high = axis.get_ylim()
    ticks = axis.get_yticks()
    assert len(ticks) >= 4
    assert all(low <= tick <= high for tick in ticks)
    places = axis.transAxes.inverted().transform(axis.transData.transform([(0, tick) for tick in ticks]))[:, 1]
    assert np.diff(places).min() >= 0.07 - 1e-9


def crowd(n: int) -> list[Standing]:
    """Many methods within a hair of the optimum."""
    turns = [2 * math.pi * k / n for k in range(n)]
    return [stands(f"method_{k}", 0.5 + 0.03 * math.cos(a), 0.97 + 0.03 * math.sin(a)) for k, a in enumerate(turns)]


def test_no_two_names_of_a_crowd_overlap_and_all_are_in_the_panel():
    figure = frontier_figure([panel(BASE, *crowd(16))])
    figure.draw_without_rendering()
    (axis,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # an annotation's own holds its arrow
    assert len(boxes) == 17
    frame = axis.get_window_extent()
    assert all(frame.x0 < b.x0 and b.x1 < frame.x1 and frame.y0 < b.y0 and b.y1 < frame.y1 for b in boxes)
    shapes = [Box(*map(float, b.extents)) for b in boxes]
    assert not [1 for one, other in itertools.combinations(shapes, 2) if one.overlaps(other)]


def test_the_figure_is_the_same_each_time():
    found = [panel(BASE, *crowd(9))]
    places = [[text.get_position() for text in frontier_figure(found).axes[0].texts] for _ in range(2)]
    assert places[0] == places[1]


def test_a_label_alone_stands_to_the_right_of_its_point():
    (box,) = place(np.array([[50.0, 50.0]]), [(20, 8)], Box(0, 0, 100, 100), np.array([[50.0, 50.0]]))
    assert box == Box(56, 46, 76, 54)


def test_labels_keep_clear_of_the_frame_of_points_and_of_each_other():
    rng = np.random.Generator(np.random.Philox(3))
    points = 100 + 40 * rng.random((12, 2))
    boxes = place(points, [(40, 9)] * 12, Box(0, 0, 260, 260), points)
    assert all(box.inside(Box(0, 0, 260, 260)) for box in boxes)
    assert all(box.holds(points) == 0 for box in boxes)
    assert not any(one.wider(ROOM).overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_label_that_has_no_room_is_placed_all_the_same():
    boxes = place(np.array([[5.0, 5.0], [6.0, 5.0]]), [(30, 9)] * 2, Box(0, 0, 10, 10), np.array([[5.0, 5.0]]))
    assert len(boxes) == 2


@pytest.mark.parametrize("other", [Box(0, 0, 1, 1), Box(2, 0, 3, 1), Box(0, 2, 3, 3)])
def test_boxes_that_only_touch_do_not_overlap(other):
    assert not Box(1, 1, 2, 2).overlaps(other)
    assert Box(1, 1, 2, 2).overlaps(other.wider(0.01))
