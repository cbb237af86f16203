"""What large counts cost is reckoned from small ones: exactly, at once, or refused in a line."""

from __future__ import annotations

import dataclasses
import math

import pytest

from alignbench import plugins
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.errors import AlignbenchError, InputError
from alignbench.experiment import reckoned as module
from alignbench.experiment.estimate import estimate
from alignbench.experiment.reckoned import TooLong, reckoned
from alignbench.meter import Cost

LESS = {  # of what is done once, so that what is counted one by one is counted soon
    "rounds": 2, "samples_per_round": 8, "samples_per_update": 4, "samples_per_prompt": 2, "updates_per_round": 2,
    "pairs_per_update": 4, "moves_per_update": 8, "passes": 1, "batch": 16, "steps": 4, "iterations": 2, "levels": 2,
    "candidates": 2, "n": 2, "updates": 2, "value_updates": 2, "value_batch": 8, "skip_first": 0, "interval": 1,
}  # fmt: skip
FINISHES = 60  # a count that can be counted one by one as well


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    n: int = 2
    m: int = 2
    steps: int = 20


def product(asked: Counts, seconds: float) -> tuple[Cost, Cost]:
    """Even in each count, from 32 on where n is watched."""
    return Cost(denoiser_forward=5 + asked.n * asked.m * 3 + min(asked.n, 32)), Cost(reward_forward=7 * asked.m)


def impatient(asked: Counts, seconds: float) -> tuple[Cost, Cost]:
    if seconds < math.inf:
        raise TooLong
    return product(asked, seconds)


@pytest.mark.parametrize(
    ("count", "asked"),
    [
        (product, Counts(n=10**12)),
        (product, Counts(n=10**12 + 1, m=10**9)),
        (product, Counts(n=10**6, m=7)),
        (impatient, Counts(n=4000, m=301)),
        (impatient, Counts(n=12, m=3)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_reckoned_is_what_would_be_counted(count, asked):
    assert reckoned(count, asked) == product(asked, math.inf)


def test_a_cost_that_grows_unevenly_with_two_counts_together_is_refused():
    def count(asked, seconds):
        return Cost(denoiser_forward=asked.n * asked.m + (asked.n - 4) ** 2 * (asked.m - 4) ** 2), Cost()

    with pytest.raises(InputError, match="n=20000: expected at most 10000 for a dry run, which cannot reckon beyond"):
        reckoned(count, Counts(n=20_000, m=400))
    assert reckoned(count, Counts(n=20_000, m=4))[0] == Cost(denoiser_forward=80_000)


def test_a_cost_that_grows_otherwise_is_counted_where_that_ends_and_else_refused():
    def squared(asked, seconds):
        return Cost(denoiser_forward=asked.n**2), Cost()

    assert reckoned(squared, Counts(n=9999))[0].denoiser_forward == 9999**2
    with pytest.raises(InputError, match=r"^n=10001: expected at most 10000 for a dry run, which cannot reckon beyond"):
        reckoned(squared, Counts(n=10_001))


def counts_of(name):
    kind = plugins.load("algorithms", name)
    return [f.name for f in dataclasses.fields(kind) if f.type in ("int", "int | None") and f.name != "steps"]


QUICK = ("best_of_n", "d3po", "doodl", "sft")
NAMES = [name for name in plugins.own_names("algorithms") if counts_of(name)]
REFUSED = {  # as a run would: they do not fit the other counts
    "awm": {"updates_per_round", "first"},
    "d3po": {"updates_per_round"},
    "ddpo": {"updates_per_round", "skip_last"},
    "diffusion_nft": {"updates_per_round", "skipped"},
    "dpok": {"skip_first", "skip_last"},
    "draft": {"resamples"},
    "flow_grpo": {"updates_per_round", "skip_last", "window"},
    "reward_weighted_regression": {"updates_per_round"},
    "steering": {"interval"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_count_of_an_algorithm_is_reckoned_as_it_would_be_counted(name, toy_cell, monkeypatch):
    """Or refused, as `updates_per_round` is where a round has fewer images."""
    for limit in ("SMALL", "MOST"):
        monkeypatch.setattr(module, limit, FINISHES - 1)
    known = {f.name for f in dataclasses.fields(plugins.load("algorithms", name))}
    less = {field: value for field, value in LESS.items() if field in known}
    found, lowered, refused = {}, set(), {}
    monkeypatch.setattr(module, "_lowered", noting(module._lowered, lowered))
    for field in counts_of(name):
        asked = toy_cell(name, set={**less, field: FINISHES}, steps=4)
        try:
            cell = resolve(RunOptions.parse(asked, "test"))
            cost = estimate(cell)
        except AlignbenchError as error:
            refused[field] = str(error)
        else:
            found[field] = (cost.alignment, cost.evaluation), counted(cell)
    assert all(reckoned == one_by_one for reckoned, one_by_one in found.values()), found
    assert set(refused) == REFUSED.get(name, set()), refused
    assert lowered == set(found)


def noting(lower, names):
    """`lower`, which notes the counts that it has lowered."""

    def noted(count, algorithm, large):
        if (cost := lower(count, algorithm, large)) is not None:
            names.update(large)
        return cost

    return noted


def counted(cell):
    """What the estimate of a cell is without lowering a count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", math.inf)
        found = estimate(cell)
    return found.alignment, found.evaluation


def test_a_dry_run_of_a_size_that_no_run_finishes_says_what_it_would_cost(toy_cell, capsys):
    known = toy_cell("best_of_n")
    data = ["--model", "mixture", "--prompts", known["prompts"], "--reward", known["reward"]]
    typed = ["run", "--algo", "best_of_n", *data, "--steps", "8", "--set", "n=1000000000000", "--dry-run"]
    assert run_command_line(typed) == 0
    assert "evaluation   9.6e+04G denoiser evaluations forward" in capsys.readouterr().out  # 12 images of 8 steps


@pytest.mark.parametrize(
    ("algo", "fields", "said"),
    [
        ("ddpo", {"skip_last": 10**12}, "skip_last=1000000000000 leaves none of a path's 8 actions to train"),
        ("refl", {"steps": 10**12}, r"the number of steps must lie in \[1, 1000\], got 1000000000000"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(algo, fields, said, toy_cell):
    cell = resolve(RunOptions.parse(toy_cell(algo, set=fields), "test"))
    with pytest.raises(AlignbenchError, match=said):
        estimate(cell)
