"""The contracts of every algorithm of ours, on one alignment each."""

from __future__ import annotations

import dataclasses
import json
from typing import get_type_hints

import pytest
import torch
from places import TESTS

from alignbench import plugins
from alignbench.contracts import algorithms
from alignbench.contracts.contract import findings
from alignbench.contracts.toys import points

SMALL = {"rounds": 6, "samples_per_round": 64, "samples_per_update": 64, "updates_per_round": 2, "batch": 32}
SMALL |= {"learning_rate": 3e-3, "clip": 0.1, "moves_per_update": 256}
SMALL_PAIRS = {"updates_per_round": 8, "pairs_per_update": 256, "batch": 256}
FEW = {"samples_per_round": 12, "samples_per_update": 12, "pairs_per_update": 12, "moves_per_update": 64, "passes": 2}
FEW |= {"rounds": 3, "updates_per_round": 2}
OWN = {
    "refl": {"steps": 20, "prior_weight": 0.5},  # its own are forty
    "doodl": {"updates": 8, "steps": 8, "learning_rate": 0.1, "clip": 0.5, "chain": "recompute"},
    "demon": {"candidates": 4, "steps": 12, "value_steps": 2},
    "steering": {"interval": 2},
    "svdd": {"candidates": 4},
    "rollover": {"candidates": 3, "starts": 2},
}
AGAIN = ("aligning twice gives the same images", "stopped after a round and continued, it ends as in one go")
UNREAD = "where it says that it reads no reward, it reads none"
MEMORY = "`batch` is memory"  # one image at a time
# What takes longest with one image in a forward pass, and what does in all.
ONE_BY_ONE = ("refl", "dpok", "d3po", "draft", "flow_grpo", "diffusion_nft", "awm")
LONGER = (*ONE_BY_ONE, "diffusion_dpo", "diffusion_kto", "mapo", "reward_weighted_regression", "sft")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A function that gives an algorithm on the toy, aligned once for all of its contracts."""
    made: dict[tuple[str, bool, bool], algorithms.Subject] = {}

    def of(name: str, few: bool = False, flow: bool = False) -> algorithms.Subject:
        if (name, few, flow) not in made:
            kind = plugins.load("algorithms", name)
            known = {field.name for field in dataclasses.fields(kind)}
            fields = SMALL | (SMALL_PAIRS if "pairs_per_update" in known else {}) | OWN.get(name, {})
            fields |= FEW if few else {}
            fields = {field: value for field, value in fields.items() if field in known}
            folder = tmp_path_factory.mktemp(name)
            toy, preset = points(flow=flow), "mixture_flow" if flow else "mixture"
            made[name, few, flow] = algorithms.subject(name, kind, toy, fields, folder, preset)
        return made[name, few, flow]

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


def on_few(name: str, contract: str) -> bool:
    """Whether a short training shows it as well as one that gets anywhere."""
    again = contract in AGAIN or contract == UNREAD
    return contract.startswith(MEMORY) or (again and plugins.load("algorithms", name).trains)


UNASKED = ("base aligns nothing", "it has no for_budget", "it trains nothing", "it asks for a reward")


@pytest.mark.parametrize(("name", "contract"), CASES)
def test_an_algorithm_keeps_its_contracts(name, contract, subjects):
    (finding,) = findings([contract], subjects(name, on_few(name, contract.says)))
    assert finding.state == "holds" or finding.detail in UNASKED


FLOW_CASES = [
    pytest.param(
        name, contract, id=f"{name}-{contract.says}",
        marks=[pytest.mark.slow] if plugins.load("algorithms", name).trains else [],
    )
    for name in plugins.own_names("algorithms")
    for contract in algorithms.CONTRACTS
    if not contract.says.startswith(MEMORY)
]  # fmt: skip


@pytest.mark.parametrize(("name", "contract"), FLOW_CASES)
def test_an_algorithm_keeps_its_contracts_on_a_flow_model(name, contract, subjects):
    (finding,) = findings([contract], subjects(name, on_few(name, contract.says), flow=True))
    assert finding.state == "holds" or finding.detail in UNASKED


@pytest.mark.parametrize(
    "name", [name for name in plugins.own_names("algorithms") if not plugins.load("algorithms", name).trains]
)
def test_a_test_time_method_asks_a_flow_model_at_the_levels_of_its_grid_and_nowhere_else(name, subjects, monkeypatch):
    """A level that was cut to a whole timestep would be another one."""
    subject = subjects(name, flow=True)
    pipeline, on_grid, asked = subject.toy.pipeline, set(), []
    steps_of, predict = pipeline.timesteps, pipeline.predict

    def timesteps(n):
        found = steps_of(n)
        on_grid.update(found.t.tolist())
        return found

    def predicted(latents, t, *rest):
        asked.extend(torch.as_tensor(t, dtype=torch.float64).flatten().tolist())
        return predict(latents, t, *rest)

    monkeypatch.setattr(pipeline, "timesteps", timesteps)
    monkeypatch.setattr(pipeline, "predict", predicted)
    subject.draw(subject.algorithm.align(subject.problem("grid")), rows=slice(2))
    assert set(asked) <= on_grid
    assert any(level != int(level) for level in asked)


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
