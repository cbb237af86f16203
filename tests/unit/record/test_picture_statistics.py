"""Statistics of pictures, worked out by hand on pictures of a few pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignbench.keys import Key
from alignbench.record.picture_statistics import (
    colour_entropy,
    darkness,
    diversity,
    edge_density,
    of_picture,
    saturation,
)


def flat(*colour: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def checkerboard(size: int = 8) -> np.ndarray:
    squares = np.indices((size, size)).sum(0) % 2 * 255
    return np.repeat(squares[..., None], 3, 2).astype(np.uint8)


def half_black(height: int = 4, width: int = 6) -> np.ndarray:
    """White on the left, black on the right."""
    picture = flat(255, 255, 255, height=height, width=width)
    picture[:, width // 2 :] = 0
    return picture


def test_a_flat_grey_has_no_edges_no_colours_and_no_saturation():
    assert of_picture(flat(128, 128, 128)) == {
        "edge_density": 0.0,
        "colour_entropy": 0.0,
        "saturation": 0.0,
        "darkness": round(1 - 128 / 255, 6),
    }


def test_a_checkerboard_of_single_pixels_is_all_edges_and_two_colours():
    assert edge_density(checkerboard()) == 1.0
    assert colour_entropy(checkerboard()) == 1.0
    assert darkness(checkerboard()) == pytest.approx(0.5)
    assert saturation(checkerboard()) == 0.0


def test_pure_red_is_saturated_and_as_dark_as_its_luma_says():
    red = flat(255, 0, 0)
    assert saturation(red) == 1.0
    assert darkness(red) == pytest.approx(1 - 0.299)
    assert edge_density(red) == colour_entropy(red) == 0.0


def test_half_black_is_half_dark_with_one_edge():
    """4 x 6 pixels have 4 x 5 neighbours beside and 3 x 6 below each other; 4 of these 38 cross the edge."""
    picture = half_black()
    assert darkness(picture) == pytest.approx(0.5)
    assert edge_density(picture) == pytest.approx(4 / 38)
    assert colour_entropy(picture) == 1.0


@pytest.mark.parametrize(("colour", "expected"), [((255, 255, 255), 0.0), ((0, 0, 0), 1.0)])
def test_white_is_not_dark_and_black_is(colour, expected):
    assert darkness(flat(*colour)) == expected
    assert saturation(flat(*colour)) == 0.0


def test_saturation_is_that_of_hsv():
    """(200 − 50) / 200 = 0.75."""
    assert saturation(flat(50, 200, 100)) == pytest.approx(0.75)


def test_pixels_weigh_by_their_value_so_that_noise_in_the_dark_counts_little():
    """Half (200, 200, 200), half (2, 0, 0): 2 / (200 + 2). The plain mean would be a half."""
    picture = flat(200, 200, 200)
    picture[:, 3:] = (2, 0, 0)
    assert saturation(picture) == pytest.approx(2 / 202)


@pytest.mark.parametrize(("step", "is_edge"), [(25, False), (26, True)])
def test_neighbours_differ_by_an_edge_above_a_tenth_in_any_channel(step, is_edge):
    """A tenth of 255 is 25.5. Of two pixels there is one pair."""
    for channel in range(3):
        picture = np.zeros((1, 2, 3), np.uint8)
        picture[0, 1, channel] = step
        assert edge_density(picture) == float(is_edge)


def test_an_edge_between_colours_of_one_luma_counts():
    """0.299 · 200 = 59.8 and 0.587 · 102 = 59.9."""
    picture = flat(200, 0, 0)
    picture[:, 3:] = (0, 102, 0)
    assert edge_density(picture) == pytest.approx(4 / 38)


def test_all_512_colours_alike_have_nine_bits():
    levels = np.arange(0, 256, 32)
    picture = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(32, 16, 3).astype(np.uint8)
    assert colour_entropy(picture) == pytest.approx(9.0)


def test_colours_of_one_level_are_one():
    """0 and 31 share a level, 31 and 32 do not. A quarter and three quarters have 0.811 bits."""
    picture = np.zeros((1, 4, 3), np.uint8)
    picture[0, 1:, 0] = 31
    assert colour_entropy(picture) == 0.0
    picture[0, 0, 0] = 32
    assert colour_entropy(picture) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_a_picture_of_one_pixel_has_all_statistics():
    assert of_picture(flat(0, 0, 0, height=1, width=1)) == {
        "edge_density": 0.0,
        "colour_entropy": 0.0,
        "saturation": 0.0,
        "darkness": 1.0,
    }


def test_mirroring_changes_no_statistic():
    picture = Key("mirror").generator().integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert of_picture(picture) == of_picture(picture[:, ::-1]) == of_picture(picture[::-1])


def test_noise_has_more_edges_and_colours_than_what_it_lies_on():
    plain = flat(120, 130, 140, height=32, width=32)
    noisy = (plain + Key("noise").generator().normal(0, 30, plain.shape)).clip(0, 255).astype(np.uint8)
    assert edge_density(noisy) > 0.3 > edge_density(plain)
    assert colour_entropy(noisy) > 3 > colour_entropy(plain)


def test_equal_samples_have_no_diversity_and_black_and_white_all_of_it():
    black, white = np.zeros((3, 2, 2), np.float32), np.ones((3, 2, 2), np.float32)
    assert diversity([white, white, white]) == 0.0
    assert diversity([black, white]) == 1.0
    assert diversity([black, white, white]) == pytest.approx(2 / 3)  # of three pairs two differ, by 1


def test_diversity_is_the_mean_of_root_mean_squares():
    """√((3² + 4²) / 2) = 3.536."""
    assert diversity([np.array([0.0, 0.0]), np.array([3.0, 4.0])]) == pytest.approx(math.sqrt(12.5))


def test_independent_latents_are_root_two_apart():
    latents = list(Key("latents").generator().normal(size=(6, 4, 32, 32)))
    assert diversity(latents) == pytest.approx(math.sqrt(2), rel=0.01)


def test_one_sample_has_no_diversity():
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        diversity([np.zeros(3)])
