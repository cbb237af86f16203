"""What the benchmark of gradient noise computes, on numbers worked by hand."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from places import TESTS

SCRIPT = TESTS / "timings" / "gradient_noise.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gradient_noise", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_signal_is_the_mean_dot_product_of_different_parts_and_its_error_leaves_one_out_at_a_time(script):
    """Without part 0, 1 or 2 the means are 3, 2 and 1: a variance of 2/3, times n - 1."""
    dots = torch.tensor([[50.0, 1.0, 2.0], [1.0, 60.0, 3.0], [2.0, 3.0, 70.0]])
    assert script.between(dots) == pytest.approx((2.0, (4 / 3) ** 0.5))


def test_the_others_are_those_of_the_same_run_but_for_oneself(script):
    assert script.mean_of_others(torch.tensor([1.0, 3.0, 8.0, 2.0]), 2).tolist() == [3, 1, 2, 8]
    assert script.mean_of_others(torch.tensor([1.0, 3.0, 8.0]), 3).tolist() == [5.5, 4.5, 2]


def test_the_cosine_is_of_different_parts_and_none_where_a_gradient_was_not_seen(script):
    """Parts of equal noise would agree by it alone: the second coordinate changes its sign from part to part."""
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0])
    one = torch.stack([torch.full((4,), 4.0), noise, torch.zeros(4)], 1)[:, None]
    other = torch.stack([torch.zeros(4), noise, torch.full((4,), 4.0)], 1)[:, None]
    unseen = torch.stack([torch.zeros(4), 9 * noise, torch.zeros(4)], 1)[:, None]
    found = [script.Found(signals, torch.ones(1, 2)) for signals in (one, other, unseen)]
    assert script.cosines(found[0], found[0]) == [pytest.approx(1)]
    assert abs(script.cosines(found[0], found[1])[0]) < 0.03
    assert script.cosines(found[0], found[2]) == [None]


def test_what_is_needed_has_two_digits_and_is_left_out_where_no_signal_was_seen(script):
    row = {"signal": 2.0, "signal_error": 0.9, "noise": [24690.0, 7.0]}
    assert [script.needed(row, 0), script.needed(row, 1)] == ["12,000", "4"]
    assert script.needed(row | {"signal_error": 1.0}, 0) == "-"
