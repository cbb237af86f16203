"""The contracts of every algorithm of ours, on one alignment each."""

from __future__ import annotations

import dataclasses
import json
from typing import get_type_hints

import pytest
from places import TESTS

from alignbench import plugins
from alignbench.contracts import algorithms
from alignbench.contracts.contract import findings
from alignbench.contracts.toys import points

SMALL = {"rounds": 6, "samples_per_round": 64, "samples_per_update": 64, "updates_per_round": 2, "batch": 32}
SMALL |= {"learning_rate": 3e-3, "clip": 0.1, "moves_per_update": 256}
SMALL_PAIRS = {"updates_per_round": 8, "pairs_per_update": 256, "batch": 256}
FEW = {"samples_per_round": 12, "samples_per_update": 12, "pairs_per_update": 12, "moves_per_update": 64, "passes": 2}
OWN = {
    "refl": {"steps": 20, "prior_weight": 0.5},  # its own are forty
    "doodl": {"updates": 8, "steps": 8, "learning_rate": 0.1, "clip": 0.5, "chain": "recompute"},
    "demon": {"candidates": 4, "steps": 12, "value_steps": 2},
    "steering": {"interval": 2},
    "svdd": {"candidates": 4},
}
AGAIN = ("aligning twice gives the same images", "stopped after a round and continued, it ends as in one go")
MEMORY = "`batch` is memory"  # one image at a time: on few images
# What takes longest with one image in a forward pass, and what does in all.
ONE_BY_ONE = ("refl", "dpok", "d3po", "draft", "flow_grpo", "diffusion_nft", "awm")
LONGER = (*ONE_BY_ONE, "diffusion_dpo", "reward_weighted_regression", "sft")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A function that gives an algorithm on the toy, aligned once for all of its contracts."""
    made: dict[tuple[str, bool], algorithms.Subject] = {}

    def of(name: str, few: bool = False) -> algorithms.Subject:
        if (name, few) not in made:
            kind = plugins.load("algorithms", name)
            known = {field.name for field in dataclasses.fields(kind)}
            fields = SMALL | (SMALL_PAIRS if "pairs_per_update" in known else {}) | OWN.get(name, {})
            fields |= FEW if few else {}
            fields = {field: value for field, value in fields.items() if field in known}
            folder = tmp_path_factory.mktemp(name)
            made[name, few] = algorithms.subject(name, kind, points(), fields, folder, "mixture")
        return made[name, few]

    return of


def marks(name: str, contract: str) -> list[pytest.MarkDecorator]:
    """What aligns the slowest once more is slow."""
    long = name in LONGER if contract in AGAIN else contract.startswith(MEMORY) and name in ONE_BY_ONE
    return [pytest.mark.slow] if long else []


CASES = [
    pytest.param(name, contract, id=f"{name}-{contract.says}", marks=marks(name, contract.says))
    for name in plugins.own_names("algorithms")
    for contract in algorithms.CONTRACTS
]
UNASKED = ("base aligns nothing", "it has no for_budget", "it trains nothing", "it asks for a reward")


@pytest.mark.parametrize(("name", "contract"), CASES)
def test_an_algorithm_keeps_its_contracts(name, contract, subjects):
    (finding,) = findings([contract], subjects(name, contract.says.startswith(MEMORY)))
    assert finding.state == "holds" or finding.detail in UNASKED


# Values that results were made with. They change only on purpose, and presets then name the old ones.
DEFAULTS = json.loads((TESTS / "support" / "defaults.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", plugins.own_names("algorithms"))
def test_an_algorithms_fields_have_the_names_types_and_values_that_are_published(name):
    kind, types = plugins.load("algorithms", name), get_type_hints(plugins.load("algorithms", name))
    found = {
        field.name: {"default": field.default, "type": str(types[field.name])} for field in dataclasses.fields(kind)
    }
    assert found == DEFAULTS[name]["fields"]
    assert dataclasses.asdict(kind()) == {field: value["default"] for field, value in found.items()}
    assert (kind.trains, getattr(kind, "learns_from_pairs", False)) == (
        DEFAULTS[name]["trains"],
        DEFAULTS[name]["learns_from_pairs"],
    )
