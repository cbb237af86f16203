"""`batch` is memory on pictures as well: the contract that `alignbench check` asks on points."""

from __future__ import annotations

import dataclasses

import pytest
from on_tiny import pictures_with_pairs

from alignbench import plugins
from alignbench.contracts import algorithms
from alignbench.contracts.contract import findings
from alignbench.contracts.toys import Toy

TRAINING = [name for name in plugins.own_names("algorithms") if plugins.load("algorithms", name).trains]
FEW = {"rounds": 1, "updates_per_round": 2, "samples_per_round": 10, "samples_per_update": 10, "pairs_per_update": 10}
FEW |= {"moves_per_update": 10, "value_updates": 2, "passes": 1, "steps": 2, "margin": "none", "window": 1}
FEW |= {
    "action_fraction": 0.5,
    "skip_first": 0,
    "skip_last": 0,
    "tuning": "lora",
    "first": 0,
    "skipped": 0,
    "levels": 2,
}
# An image depends on its batch by 1e-5; Adam makes that a share of the rate, of DPOK a tenth on some processors. Parts
# that are weighed wrongly move thousands of weights by four times the rate.
FEW |= {"learning_rate": 5e-5}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return pictures_with_pairs(steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_batches_of_three_with_one_left_over_and_all_at_once_train_the_same_weights(name, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "BATCHES", (3, 10_000))  # of ten
    kind = plugins.load("algorithms", name)
    known = {field.name for field in dataclasses.fields(kind)}
    fields = {field: value for field, value in FEW.items() if field in known}
    (contract,) = [c for c in algorithms.CONTRACTS if c.says.startswith("`batch` is memory")]
    (finding,) = findings([contract], algorithms.subject(name, kind, toy, fields, tmp_path, "tiny"))
    assert finding.state == "holds", finding.detail
