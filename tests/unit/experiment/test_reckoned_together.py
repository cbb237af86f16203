"""Large counts whose cost grows evenly with each, and otherwise with both."""

from __future__ import annotations

import dataclasses

import pytest

from alignbench.errors import InputError
from alignbench.experiment.reckoned import reckoned
from alignbench.meter import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    n: int = 2
    m: int = 2


def test_a_cost_that_grows_unevenly_with_two_counts_together_is_refused():
    def count(asked, seconds):
        return Cost(denoiser_forward=asked.n * asked.m + (asked.n - 4) ** 2 * (asked.m - 4) ** 2), Cost()

    with pytest.raises(InputError, match="n=20000: expected at most 10000 for a dry run, which cannot reckon beyond"):
        reckoned(count, Counts(n=20_000, m=400))
    assert reckoned(count, Counts(n=20_000, m=4))[0] == Cost(denoiser_forward=80_000)
