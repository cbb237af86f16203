"""The shapes world: captions, layouts, pictures, the judge against renders and a person, and the simulated human."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from places import TESTS
from scipy import ndimage

from alignbench.errors import InputError
from alignbench.keys import Key
from alignbench.shapes import judge
from alignbench.shapes.judge import OTHER, SMALL_BELOW, SPECK, Reading, Seen, grade, read
from alignbench.shapes.render import GAP, coverage, render, render_batch, sample_scene
from alignbench.shapes.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    INK,
    KINDS,
    PLURALS,
    RADII,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Caption,
    Described,
    Scene,
    Thing,
    first_foreign,
    holds,
    one_wrong,
    parse,
    sample_caption,
    split_of,
    tint,
)
from alignbench.shapes.style import contrast, prefers_first, style, tidiness, utility

SPLITS = ("train", "dev", "test")
KEY = Key("test", "shapes world")
HAND_CHECKED = TESTS / "support" / "hand_checked"


def as_read(picture: np.ndarray) -> np.ndarray:
    """A rendered picture the way the judge reads one: (3, h, w), 0 to 1."""
    return picture.transpose(2, 0, 1) / 255


@pytest.fixture(scope="module")
def captions() -> list[Caption]:
    """200 captions of each split, the splits taking turns."""
    return [sample_caption(KEY("caption", i), SPLITS[i % 3]) for i in range(600)]


def test_every_sampled_caption_survives_its_text(captions):
    assert [parse(caption.text) for caption in captions] == captions
    assert len({caption.text for caption in captions}) == len(set(captions)) > 400


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a green ring", Caption((Described("ring", "green"),))),
        ("an orange cross on a gray background", Caption((Described("cross", "orange"),), background="gray")),
        (
            "a small cyan star and a large red square",
            Caption((Described("star", "cyan", "small"), Described("square", "red", "large"))),
        ),
        (
            "a large red circle left of a blue star on a white background",
            Caption(
                (Described("circle", "red", "large"), Described("star", "blue")),
                relation="left of",
                background="white",
            ),
        ),
        ("two purple triangles", Caption((Described("triangle", "purple"),), number=2)),
        (
            "three small yellow crosses on a black background",
            Caption((Described("cross", "yellow", "small"),), number=3, background="black"),
        ),
    ],
)
def test_a_text_states_its_caption(text, caption):
    assert parse(text) == caption
    assert caption.text == text
    assert parse(f"  {text.title()}. ") == caption


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a cat",
        "a pink circle",
        "a red small circle",
        "a red circle and",
        "a red circle near a blue star",
        "a red circle left of a blue star and a green ring",
        "two red circle",
        "one red circle",
        "four red circles",
        "two red circles and a blue star",
        "a red circle on a pink background",
        "a red circle on a white background, oil painting",
    ],
)
def test_a_foreign_text_is_refused_with_an_example(text):
    with pytest.raises(
        InputError, match="is not a caption of the shapes world; expected for example 'a large"
    ) as caught:
        parse(text)
    assert str(caught.value).startswith(repr(text))
    assert first_foreign(["a red circle", text, "a hat"]) == str(caught.value)


def test_captions_alone_are_not_foreign(captions):
    assert first_foreign(caption.text for caption in captions) is None
    assert first_foreign([]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_of_a_kind_can_be_asked_for(kind):
    for i in range(40):
        caption = sample_caption(KEY("kind", i), "train", kind)
        assert caption.kind == kind
        assert len(caption.wanted) == {"single": 1, "pair": 2, "relation": 2, "count": caption.number}[kind]
        assert (caption.relation is not None) is (kind == "relation")


def test_captions_state_what_the_docstring_says_how_often():
    """A size for 60 % of things (three are never large), a background in 75 %, kinds 30, 15, 30 and 25 %."""
    captions = [sample_caption(KEY("share", i), "train") for i in range(2000)]
    sized = [thing.size is not None for caption in captions for thing in caption.things]
    assert np.mean(sized) == pytest.approx(0.6, abs=0.04)
    assert np.mean([caption.background is not None for caption in captions]) == pytest.approx(0.75, abs=0.04)
    kinds = Counter(caption.kind for caption in captions)
    assert [kinds[kind] / 2000 for kind in KINDS] == pytest.approx([0.3, 0.15, 0.3, 0.25], abs=0.04)
    assert {thing.size for c in captions if c.number == 3 for thing in c.things} == {None, "small"}
    named = [[(thing.shape, thing.colour) for thing in caption.things] for caption in captions]
    assert all(len(set(things)) == len(things) for things in named)  # never "a red star and a red star"


def test_no_composition_is_in_two_splits(captions):
    compositions = {split: {caption.composition for caption in captions[i::3]} for i, split in enumerate(SPLITS)}
    assert all(len(found) > 50 for found in compositions.values())
    for one, other in combinations(SPLITS, 2):
        assert not compositions[one] & compositions[other]


def test_a_composition_is_colours_with_shapes_and_how_many_whatever_size_order_or_place():
    same = [
        "a red circle and a blue star",
        "a large blue star and a small red circle",
        "a blue star below a red circle on a black background",
    ]
    other = ["a blue circle and a red star", "a red circle", "two red circles", "three red circles", "a red star"]
    assert len({parse(text).composition for text in same}) == 1
    assert len({parse(text).composition for text in [same[0], *other]}) == 6


def test_the_splits_share_all_compositions_as_70_to_15_to_15():
    named = [Described(shape, colour) for shape in SHAPES for colour in COLOURS]
    captions = [Caption((thing,), number) for thing in named for number in (1, 2, 3)]
    captions += [Caption(pair) for pair in combinations(named, 2)]
    assert len({caption.composition for caption in captions}) == len(captions) == 987
    shares = Counter(split_of(caption.composition) for caption in captions)
    assert [shares[split] / 987 for split in SPLITS] == pytest.approx([0.70, 0.15, 0.15], abs=0.03)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_one_wrong_changes_that_attribute_alone(attribute, captions):
    changed = 0
    for caption in captions[:200]:
        wrong = one_wrong(caption, attribute, KEY("wrong", caption.text))
        if wrong is None:
            continue
        changed += 1
        assert parse(wrong.text) == wrong != caption
        assert wrong == one_wrong(caption, attribute, KEY("wrong", caption.text))
        differing = {name for name in ("relation", "background") if getattr(wrong, name) != getattr(caption, name)}
        if len(wrong.wanted) != len(caption.wanted):
            differing.add("number")
            assert wrong.things[0] == caption.things[0]
        else:
            for one, other in zip(caption.things, wrong.things, strict=True):
                differing |= {n for n in ("shape", "colour", "size") if getattr(one, n) != getattr(other, n)}
        # A caption of one thing has no place for the relation of two.
        assert differing - ({"relation"} if attribute == "number" else set()) == {attribute}
    assert changed > 40


def test_what_a_caption_does_not_state_cannot_be_wrong():
    caption = parse("a red circle and a blue star")
    for i in range(10):
        assert [a for a in ATTRIBUTES if one_wrong(caption, a, KEY(i)) is None] == ["size", "relation", "background"]


def test_a_scene_holds_what_its_caption_asks_for(captions):
    for i, caption in enumerate(captions[:100]):
        scene = sample_scene(KEY("layout", i), caption)
        assert [(t.shape, t.colour) for t in scene.things] == [(w.shape, w.colour) for w in caption.wanted]
        for thing, wanted in zip(scene.things, caption.wanted, strict=True):
            assert wanted.size in (None, thing.size)
            assert RADII[thing.size][0] <= thing.radius <= RADII[thing.size][1]
            assert INK[0] <= thing.ink <= INK[1]
        if caption.number > 1:
            assert len({thing.size for thing in scene.things}) == 1
        if caption.relation:
            first, second = scene.things
            assert holds(caption.relation, first.x - second.x, first.y - second.y)
        assert caption.background in (None, scene.background)
        assert abs(scene.shade) <= 8


def test_things_are_whole_and_two_pixels_stay_free_between_them(captions):
    for i, caption in enumerate([caption for caption in captions if len(caption.wanted) > 1][:50]):
        things = sample_scene(KEY("gap", i), caption).things
        alphas = [coverage(thing.shape, thing.x, thing.y, thing.radius) for thing in things]
        for thing, alpha in zip(things, alphas, strict=True):
            on_a_wider_canvas = coverage(
                thing.shape, thing.x / 2 + 0.25, thing.y / 2 + 0.25, thing.radius / 2, 2 * SIDE
            )
            assert alpha.sum() == pytest.approx(on_a_wider_canvas.sum(), abs=0.1)
        for one, other in combinations(alphas, 2):
            steps = ndimage.distance_transform_cdt(other == 0, metric="chessboard")  # 1 is a neighbour
            assert steps[one > 0].min() > GAP == 2


def test_the_same_key_gives_the_same_picture_and_another_key_another(captions):
    for i, caption in enumerate(captions[:10]):
        assert sample_scene(KEY("again", i), caption) == sample_scene(KEY("again", i), caption)
        assert sample_scene(KEY("again", i), caption) != sample_scene(KEY("other", i), caption)
        assert sample_caption(KEY("again", i), "dev") == sample_caption(KEY("again", i), "dev")


@pytest.mark.parametrize(
    ("dx", "dy", "true"),
    [
        (-0.3, 0.1, "left of"),
        (0.3, -0.1, "right of"),
        (0.1, -0.3, "above"),  # y points downwards
        (-0.1, 0.3, "below"),
        (0.3, 0.3, None),  # on the diagonal nothing holds
        (0.0, 0.0, None),
    ],
)
def test_at_most_one_relation_holds_at_a_time(dx, dy, true):
    assert [relation for relation in RELATIONS if holds(relation, dx, dy)] == ([true] if true else [])


def test_a_steeper_slope_asks_for_a_clearer_relation():
    assert holds("left of", -0.3, 0.25)
    assert not holds("left of", -0.3, 0.25, slope=1.5)
    assert holds("left of", -0.3, 0.19, slope=1.5)


# Areas of shapes of radius 1: triangle of base 2 and height 1.85; ten triangles with sides 1.15 and 0.5 at 36° make the
# star; a hole of half the radius; two bars of 2 by 0.68 that share a square.
AREAS = {
    "circle": math.pi,
    "square": 1.72**2,
    "triangle": 1.85,
    "star": 5 * 1.15 * 0.5 * math.sin(math.pi / 5),
    "ring": math.pi * (1 - 0.5**2),
    "cross": 2 * (2 * 0.68) - 0.68**2,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area(shape):
    alpha = coverage(shape, 0.5, 0.5, 0.4, side=256)
    assert alpha.sum() == pytest.approx(AREAS[shape] * (0.4 * 256) ** 2, rel=0.005)
    assert alpha.min() == 0
    assert alpha.max() == 1


@pytest.mark.parametrize("shape", ["circle", "square", "ring", "cross"])
def test_a_symmetric_shape_lies_where_it_was_put(shape):
    alpha = coverage(shape, 0.3, 0.6, 0.2)
    pixels = (np.arange(SIDE) + 0.5) / SIDE
    assert alpha.sum(0) @ pixels / alpha.sum() == pytest.approx(0.3, abs=0.003)
    assert alpha.sum(1) @ pixels / alpha.sum() == pytest.approx(0.6, abs=0.003)


def test_a_square_on_the_pixel_grid_is_whole_pixels():
    """Half an edge of 0.86 radii is 8 pixels: rows and columns 8 to 23 are covered."""
    alpha = coverage("square", 0.5, 0.5, 8 / 0.86 / SIDE)
    expected = np.zeros((SIDE, SIDE))
    expected[8:24, 8:24] = 1
    np.testing.assert_allclose(alpha, expected, atol=0.13)
    assert alpha[9:23, 9:23].min() == 1
    assert alpha[expected == 0].max() <= 0.13


def test_a_triangle_and_a_star_point_upwards():
    for shape in ("triangle", "star"):
        rows = coverage(shape, 0.5, 0.5, 0.4, side=256).sum(1).nonzero()[0]
        assert (128 - rows[0]) / (0.4 * 256) == pytest.approx({"triangle": 1.05, "star": 1.15}[shape], abs=0.03)
        assert coverage(shape, 0.5, 0.5, 0.4, side=256)[rows[0] + 2].sum() < 4


def test_the_colours_of_a_picture_by_hand():
    """Halfway from grey 128 to cyan (50, 205, 220) is (89, 166.5, 174); the ring's hole shows the background."""
    picture = render(Scene((Thing("ring", "cyan", "large", 0.5, 0.5, 0.3, ink=0.5),), "beige", shade=-4.0))
    assert picture[0, 0].tolist() == picture[15, 15].tolist() == [228, 208, 166]
    assert picture[15, 15 - 7].tolist() == [89, 166, 174]
    np.testing.assert_allclose(tint("red", np.array([0.0, 1.0])), [[128, 128, 128], [225, 40, 40]])


def test_the_renderer_is_pinned(captions):
    """A changed picture would silently change every result, the judge's task and the weights' training set."""
    scenes = [sample_scene(KEY("pinned", i), caption) for i, caption in enumerate(captions[:60])]
    digest = hashlib.sha256(render_batch(scenes).tobytes()).hexdigest()
    assert digest == "5b84f80e774efb47d3ec7674034962ffdf553df3f85b1fdb445e02824a4284e2"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_thing_is_read_by_its_name_and_place(shape, size):
    for i, colour in enumerate(COLOURS):
        radius = sum(RADII[size]) / 2
        thing = Thing(shape, colour, size, 0.4 + 0.03 * i, 0.6 - 0.04 * i, radius, ink=INK[0] + 0.05 * i)
        reading = read(as_read(render(Scene((thing,), "black"))))
        (seen,) = reading.things
        assert (seen.shape, seen.colour, seen.size) == (shape, colour, size)
        assert seen.x == pytest.approx(thing.x, abs=0.5 / SIDE)
        assert seen.y == pytest.approx(thing.y, abs=2 / SIDE)  # a triangle's centroid lies below its centre
        assert seen.radius == pytest.approx(radius, rel=0.1)
        assert reading.background == "black"


def flat(rgb=(128, 128, 128)) -> np.ndarray:
    picture = np.empty((3, SIDE, SIDE))
    picture[:] = np.array(rgb).reshape(3, 1, 1) / 255
    return picture


def paint(picture: np.ndarray, rows: slice, columns: slice, rgb: tuple[int, int, int]) -> np.ndarray:
    picture[:, rows, columns] = np.array(rgb).reshape(3, 1, 1) / 255
    return picture


RED = COLOURS["red"]


def test_a_block_of_pixels_is_a_square_measured_by_hand():
    """Columns 4 to 9, rows 20 to 25: the middle is (7, 23) pixels; 36 pixels are a square of radius 6 / 1.72 pixels."""
    (seen,) = read(paint(flat(), slice(20, 26), slice(4, 10), RED)).things
    assert (seen.shape, seen.colour, seen.size, seen.area) == ("square", "red", "small", 36)
    assert (seen.x, seen.y) == (7 / SIDE, 23 / SIDE)
    assert seen.radius == pytest.approx(6 / 1.72 / SIDE, rel=0.02)
    assert seen.rgb == pytest.approx(RED)
    assert seen.misfit < 0.1


def test_an_empty_picture_shows_nothing_and_meets_only_the_background():
    reading = read(flat())
    assert reading == Reading("gray", pytest.approx((128, 128, 128)), ())
    grades = grade(parse("a large red circle left of a blue star on a gray background"), reading)
    assert grades.asked == {"number": 0, "shape": 0, "colour": 0, "size": 0, "relation": 0, "background": 1}
    assert grades.score == pytest.approx(1 / 6)


def test_a_speck_is_not_a_thing():
    assert len(read(paint(flat(), slice(10, 11), slice(10, 10 + SPECK - 1), RED)).things) == 0
    assert len(read(paint(flat(), slice(10, 11), slice(10, 10 + SPECK), RED)).things) == 1


def test_things_that_touch_are_one_thing():
    picture = paint(flat(), slice(8, 14), slice(8, 14), RED)
    assert len(read(paint(picture.copy(), slice(14, 20), slice(14, 20), RED)).things) == 1  # by a corner
    assert len(read(paint(picture.copy(), slice(15, 21), slice(15, 21), RED)).things) == 2


def test_what_has_no_name_is_other():
    assert read(flat((255, 160, 190))).background == OTHER  # pink
    (grey,) = read(paint(flat((15, 15, 15)), slice(10, 20), slice(10, 20), (128, 128, 128))).things
    assert (grey.shape, grey.colour) == ("square", OTHER)
    two_colours = paint(flat(), slice(10, 20), slice(10, 20), RED)
    (seen,) = read(paint(two_colours, slice(10, 20), slice(15, 20), COLOURS["blue"])).things
    assert seen.colour == OTHER
    (bar,) = read(paint(flat(), slice(10, 13), slice(4, 28), RED)).things
    assert (bar.shape, bar.colour) == (OTHER, "red")


def test_small_ends_halfway_between_the_largest_small_and_the_smallest_large_radius():
    assert pytest.approx((0.155 + 0.205) / 2) == SMALL_BELOW
    for radius, size in ((0.17, "small"), (0.19, "large")):
        (seen,) = read(as_read(render(Scene((Thing("circle", "red", size, 0.5, 0.5, radius),), "white")))).things
        assert seen.size == size


@pytest.mark.parametrize(("height", "width"), [(64, 64), (31, 32), (32, 33)])
def test_a_picture_of_another_size_is_refused(height, width):
    message = rf"the judge reads pictures of shape \(3, 32, 32\), got \(3, {height}, {width}\)"
    with pytest.raises(ValueError, match=message):
        read(np.zeros((3, height, width)))


def test_noise_is_graded_without_a_crash():
    for i in range(5):
        grades = grade(
            parse("two small red circles on a white background"), read(KEY("noise", i).uniform(3, 32, 32).numpy())
        )
        assert not grades.full
        assert 0 <= grades.score < 0.5


def seen(shape="circle", colour="red", size="small", x=0.5, y=0.5, area=60, rgb=(225.0, 40.0, 40.0)) -> Seen:
    return Seen(shape, colour, size, x, y, radius=0.14, area=area, rgb=rgb, misfit=0.05)


def reading(*things: Seen, background="white") -> Reading:
    return Reading(background, (245.0, 245.0, 245.0), things)


def test_things_may_be_seen_in_any_order():
    caption = parse("a small red circle left of a large blue star")
    circle, star = seen(x=0.2), seen("star", "blue", "large", x=0.8, area=150)
    for things in ((circle, star), (star, circle)):
        grades = grade(caption, reading(*things))
        assert grades.asked == {"number": 1, "shape": 1, "colour": 1, "size": 1, "relation": 1}
        assert grades.full


def test_the_relation_is_that_of_the_things_named_and_not_of_any_two():
    caption = parse("a red circle left of a blue star")
    grades = grade(caption, reading(seen(x=0.8), seen("star", "blue", x=0.2)))
    assert grades.asked == {"number": 1, "shape": 1, "colour": 1, "relation": 0}
    assert grades.score == pytest.approx(3 / 4)
    assert not grades.full


def test_the_colour_must_sit_on_the_shape_it_belongs_to():
    """A blue circle and a red star for a red circle and a blue star: shapes or colours can be assigned, not both."""
    grades = grade(parse("a red circle and a blue star"), reading(seen(colour="blue"), seen("star", "red")))
    assert {grades.shape, grades.colour} == {0, 1}
    assert grades.number == 1


def test_an_extra_thing_makes_the_number_wrong_and_nothing_else():
    things = (seen("square", "green", area=200), seen(x=0.2), seen("star", "blue", x=0.8))
    grades = grade(parse("a red circle left of a blue star"), reading(*things))
    assert grades.asked == {"number": 0, "shape": 1, "colour": 1, "relation": 1}


def test_a_missing_thing_is_wrong_in_all_it_should_have():
    grades = grade(parse("a small red circle left of a small blue star on a white background"), reading(seen()))
    assert grades.asked == {"number": 0, "shape": 0.5, "colour": 0.5, "size": 0.5, "relation": 0, "background": 1}
    assert grades.score == pytest.approx((0 + 0.5 + 0.5 + 0.5 + 0 + 1) / 6)


def test_each_of_equal_things_counts():
    caption = parse("three red circles on a black background")
    grades = grade(caption, reading(seen(), seen(colour="orange"), seen()))
    assert grades.asked == {"number": 1, "shape": 1, "colour": pytest.approx(2 / 3), "background": 0}


def test_a_size_is_graded_only_where_it_is_stated():
    grades = grade(parse("a red circle and a large blue star"), reading(seen(), seen("star", "blue", "small")))
    assert grades.size == 0
    assert grade(parse("a red circle"), reading(seen(size="large"))).asked == {"number": 1, "shape": 1, "colour": 1}


def test_only_the_five_largest_things_can_be_what_was_meant():
    others = [seen("square", "green", area=100 + i) for i in range(5)]
    assert grade(parse("a red circle"), reading(*others[1:], seen(area=10))).shape == 1
    assert grade(parse("a red circle"), reading(*others, seen(area=10))).shape == 0


@pytest.fixture(scope="module")
def renders():
    """300 clean renders of captions of all splits, read by the judge."""
    captions = [sample_caption(KEY("judged", split, i), split) for split in SPLITS for i in range(100)]
    scenes = [sample_scene(KEY("scene", i), caption) for i, caption in enumerate(captions)]
    return list(zip(captions, [read(as_read(picture)) for picture in render_batch(scenes)], strict=True))


def test_clean_renders_are_fully_right(renders):
    right = [grade(caption, reading).full for caption, reading in renders]
    assert len(right) == 300
    assert np.mean(right) >= 0.98


def test_clean_renders_are_rejected_for_a_caption_with_one_wrong_attribute(renders):
    rejected = {attribute: [] for attribute in ATTRIBUTES}
    for i, (caption, reading) in enumerate(renders):
        for attribute in ATTRIBUTES:
            if wrong := one_wrong(caption, attribute, KEY("wrong", i, attribute)):
                rejected[attribute].append(not grade(wrong, reading).full)
    assert min(map(len, rejected.values())) >= 75
    for attribute, verdicts in rejected.items():
        assert np.mean(verdicts) >= 0.98, attribute
    assert np.mean([verdict for verdicts in rejected.values() for verdict in verdicts]) >= 0.98


@functools.cache
def sheet(name: str) -> list[tuple[Caption, Reading, set[str]]]:
    """The pictures of a sheet: caption, reading, and what a person found wrong."""
    labels = json.loads((HAND_CHECKED / f"{name}.json").read_text(encoding="utf-8"))
    pixels = np.asarray(Image.open(HAND_CHECKED / f"{name}.png"))
    assert pixels.shape == (10 * SIDE, 12 * SIDE, 3)
    assert len(labels) == 120
    rows, columns = np.divmod(np.arange(120), 12) * np.array(SIDE)
    pictures = [pixels[y : y + SIDE, x : x + SIDE] for y, x in zip(rows, columns, strict=True)]
    return [
        (parse(label["caption"]), read(as_read(picture)), set(label["wrong"]))
        for label, picture in zip(labels, pictures, strict=True)
    ]


def agreement(name: str) -> tuple[float, dict[str, float]]:
    """How often judge and person agree on fully right or not, and on each attribute that is asked for."""
    full, single = [], {attribute: [] for attribute in ATTRIBUTES}
    for caption, reading, wrong in sheet(name):
        grades = grade(caption, reading)
        full.append(grades.full == (not wrong))
        for attribute, value in grades.asked.items():
            single[attribute].append((value == 1) == (attribute not in wrong))
    assert min(map(len, single.values())) >= 30
    return float(np.mean(full)), {attribute: float(np.mean(values)) for attribute, values in single.items()}


def test_on_held_out_pictures_the_judge_agrees_with_a_person():
    full, single = agreement("held_out")
    assert full >= 0.93
    assert {attribute: share for attribute, share in single.items() if share < 0.9} == {}


def test_on_the_pictures_its_tolerance_was_chosen_on_the_judge_agrees_with_a_person():
    full, _ = agreement("calibration")
    assert full >= 0.9


def test_the_person_was_asked_only_about_what_the_caption_states():
    for name in ("calibration", "held_out"):
        for caption, reading, wrong in sheet(name):
            assert wrong <= set(grade(caption, reading).asked)
        assert 60 <= sum(not wrong for *_, wrong in sheet(name)) <= 100  # both answers occur often


def test_the_judge_is_pinned_to_its_version():
    """Whoever changes a verdict raises JUDGE_VERSION, so that scores by different judges are never compared."""
    verdicts = [
        [reading.background, [thing[:3] for thing in reading.things], grade(caption, reading).asked]
        for name in ("calibration", "held_out")
        for caption, reading, _ in sheet(name)
    ]
    digest = hashlib.sha256(json.dumps(verdicts).encode()).hexdigest()
    assert {judge.JUDGE_VERSION: digest} == {"1": "9a21bc9c57e9985f9f33992ab9ac80aa1049103ce031e202e617efc4b8133948"}


@pytest.fixture(scope="module")
def make():
    """The script that makes the sheets."""
    spec = importlib.util.spec_from_file_location("make_hand_checked", HAND_CHECKED / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_labels_belong_to_the_captions_of_the_recipe(make):
    for name in ("calibration", "held_out"):
        labels = json.loads((HAND_CHECKED / f"{name}.json").read_text(encoding="utf-8"))
        assert [label["caption"] for label in labels] == make.captions(name)


@pytest.mark.slow
def test_the_sheets_can_be_made_again(make, tmp_path):
    make.main([str(tmp_path)])
    for name in ("calibration", "held_out"):
        again, committed = (
            np.asarray(Image.open(folder / f"{name}.png")).astype(int) for folder in (tmp_path, HAND_CHECKED)
        )
        assert np.abs(again - committed).max() <= 2
        assert len(list(tmp_path.glob(f"{name}-page-*.png"))) == 6


def test_contrast_by_hand():
    """From black: (0, 90, 120) is 150 of 300 away; white is 442 away and counts as 1."""
    dark = Reading("black", (0.0, 0.0, 0.0), (seen(rgb=(0.0, 90.0, 120.0)),))
    assert contrast(dark) == pytest.approx(0.5)
    both = dark._replace(things=(*dark.things, seen(rgb=(255.0, 255.0, 255.0))))
    assert contrast(both) == pytest.approx(0.75)
    assert contrast(dark._replace(background_rgb=(0.0, 90.0, 0.0))) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(0.5, 0.5)], 1.0),
        ([(0.5, 0.65)], 0.5),  # half of 0.3 off the centre
        ([(0.59, 0.62)], 0.5),  # 0.09 and 0.12 are 0.15
        ([(0.1, 0.1)], 0.0),
        ([(0.3, 0.5), (0.7, 0.5)], 1.0),  # one row, centred together
        ([(0.5, 0.3), (0.5, 0.7)], 1.0),  # one column
        ([(0.3, 0.44), (0.7, 0.56)], (1 + 0.6) / 2),  # 0.12 out of a row
        ([(0.3, 0.3), (0.7, 0.7)], 0.5),  # centred but on a diagonal
        ([(0.2, 0.35), (0.5, 0.35), (0.8, 0.35)], (0.5 + 1) / 2),
    ],
)
def test_tidiness_by_hand(places, expected):
    assert tidiness(reading(*[seen(x=x, y=y) for x, y in places])) == pytest.approx(expected)


def test_a_larger_thing_weighs_more_in_the_centre():
    """Areas 3 to 1 at x = 0.4 and 0.8 balance at 0.5."""
    balanced = reading(seen(x=0.4, area=150), seen(x=0.8, area=50))
    assert tidiness(balanced) == pytest.approx(1)
    assert tidiness(reading(seen(x=0.4, area=100), seen(x=0.8, area=100))) == pytest.approx((1 - 0.1 / 0.3 + 1) / 2)


def test_style_is_half_contrast_and_half_tidiness_and_nothing_for_an_empty_picture():
    """From white (245, 245, 245): blue 0 is 245 away in one channel."""
    picture = reading(seen(y=0.65, rgb=(245.0, 245.0, 0.0)))
    assert style(picture) == pytest.approx((245 / 300 + 0.5) / 2)
    assert contrast(reading()) == tidiness(reading()) == style(reading()) == 0


def test_utility_is_eight_parts_faithfulness_and_ten_parts_style():
    right, wrong = parse("a small red circle"), parse("a small red star")
    picture = reading(seen(y=0.65, rgb=(245.0, 245.0, 0.0)))
    assert utility(right, picture) == pytest.approx(8 + 10 * style(picture))
    assert utility(wrong, picture) == pytest.approx(8 * 3 / 4 + 10 * style(picture))
    assert utility(right, reading()) == 0


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (5.0, 4.0), (4.0, 5.0), (3.0, 0.5), (1.0, 9.0)])
def test_choices_follow_the_logistic_of_the_utility_difference(first, second):
    chosen = [prefers_first(first, second, KEY("choice", str(first), str(second), i)) for i in range(4000)]
    chance = 1 / (1 + math.exp(-(first - second)))
    assert abs(np.mean(chosen) - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5
    assert prefers_first(first, second, KEY("once")) == prefers_first(first, second, KEY("once"))


def test_plurals_and_articles_are_english():
    assert PLURALS["cross"] == "crosses"
    assert PLURALS["star"] == "stars"
    assert [Described("ring", colour).text().split()[0] for colour in ("orange", "red")] == ["an", "a"]
    assert Described("ring", "orange", "small").text() == "a small orange ring"
    assert set(BACKGROUNDS) == {"white", "gray", "black", "beige"}
