"""A check of shapes that is made once for each kind of call misses nothing that a check of every call finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import checked_shapes
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

WRONG = jaxtyping.TypeCheckError
# `jaxtyped` as the import hook finds it.
checked = jaxtyping.jaxtyped(typechecker=beartype)


@checked
def matched(x: Float[Tensor, "b d"], y: Float[Tensor, " b"], how: Literal["sum", "mean"] = "sum") -> Tensor:
    return x


@checked
def cut(x: Float[Tensor, " n"], by: float) -> Float[Tensor, " n"]:
    return x[x > by]


@checked
def joined(parts: list[Float[Tensor, " n"]], names: tuple[str, ...] = ()) -> Tensor:
    return parts[0]


@checked
@dataclass(frozen=True)
class Both:
    x: Float[Tensor, "b d"]
    y: Float[Tensor, " b"]


class Held:
    def __init__(self, value: Tensor) -> None:
        self.value = value

    @property
    @checked
    def plane(self) -> Float[Tensor, "h w"]:
        return self.value


def test_arguments_are_checked_after_others_of_the_same_function_have_passed():
    for _ in range(2):
        matched(torch.zeros(3, 2), torch.zeros(3))
        for wrong in (torch.zeros(2), torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), np.zeros(3), None):
            with pytest.raises(WRONG):
                matched(torch.zeros(3, 2), wrong)


def test_a_word_that_is_not_among_those_allowed_is_found_after_one_that_is():
    matched(torch.zeros(3, 2), torch.zeros(3), "mean")
    with pytest.raises(WRONG):
        matched(torch.zeros(3, 2), torch.zeros(3), "most")


def test_a_result_of_another_shape_is_found_though_the_arguments_have_passed_before():
    assert len(cut(torch.tensor([1.0, 2.0]), 0.0)) == 2
    for _ in range(2):
        with pytest.raises(WRONG):
            cut(torch.tensor([1.0, -2.0]), 0.0)
    assert len(cut(torch.tensor([1.0, 2.0]), 0.5)) == 2


def test_what_stands_in_a_list_is_checked():
    joined([torch.zeros(2), torch.zeros(2)])
    with pytest.raises(WRONG):
        joined([torch.zeros(2, 1)])
    with pytest.raises(WRONG):
        joined([torch.zeros(2)], (1,))


def test_a_property_is_checked():
    assert Held(torch.zeros(2, 2)).plane.shape == (2, 2)
    with pytest.raises(WRONG):
        _ = Held(torch.zeros(2)).plane


def test_what_a_dataclass_is_made_of_is_checked():
    for _ in range(2):
        assert Both(torch.zeros(3, 2), y=torch.zeros(3)) != 0
        with pytest.raises(WRONG):
            Both(torch.zeros(3, 2), y=torch.zeros(2))


def test_a_call_of_a_known_kind_is_not_checked_again(monkeypatch):
    made = []
    decorate = checked_shapes._every(typechecker=beartype)

    def double(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return 2 * x

    once = checked_shapes.once(double, lambda function: made.append(function) or decorate(function))
    assert [float(once(torch.ones(1) * i)) for i in range(4)] == [0, 2, 4, 6]
    assert made == [double]


def test_functions_without_shapes_are_left_alone():
    def plain(x: int) -> int:
        return x

    assert checked(plain) is plain
