"""What is said of weights that are not read."""

from __future__ import annotations

import re

import pytest

from alignbench.diffusion.conversion import EXPECTED, PARTS, part


@pytest.mark.parametrize(("start", "what"), PARTS)
def test_what_is_no_whole_model_is_named_with_what_to_do(start, what):
    assert part([f"{start}weight"]) == what
    assert re.search(r"; (give|name|as --vae, give) ", what)


def test_tensors_that_are_not_known_are_told_what_is_expected():
    assert part(["x.weight"]) == EXPECTED
