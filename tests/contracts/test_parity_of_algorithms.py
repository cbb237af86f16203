"""Our algorithms against what their official code made of the same small numbers (tests/support/official)."""

from __future__ import annotations

import ast
from dataclasses import replace
from unittest import mock

import pytest
import torch
from official import flow_formulas, training
from official.compare import OURS, UNDONE, difference, entries
from official.models import GOLDEN, schedule
from places import ROOT

from alignbench import plugins
from alignbench.algorithms import awm, d3po, demon, diffusion_nft, doodl, flow_grpo

ENTRIES = {entry.name: entry for entry in entries()}
OF_FLOW = ("flow_grpo", "diffusion_nft", "awm")
EQUAL = sorted(name for name, entry in ENTRIES.items() if not entry.departs)
# Where we depart on purpose, and the words of the algorithm's header that say so.
DEPARTURES = {
    "ddpo/prompt_statistics/integers": "keep fractions for integer rewards",
    "dpok/loss/0.0001": "clamp ρ without PPO's max",
    "d3po/loss/tie": "equal rewards give no gradient",
    "diffusion_dpo/warmup": "warms up one update ahead",
    "diffusion_dpo/research_script/v_prediction": "that of ε for v-prediction models too",
    "flow_grpo/loss/without_advantage": "Images without advantage stay, and keep their KL",
    "demon/mixture/tanh/adaptive": "the released code divides by k − 1",
    "steering/max/negative": "Its max starts at reward 0",
    "steering/sum/cut": "cut at 1e10",
    "steering/max/final": "keeps the last max or sum in the final weight",
    "steering/sum/final": "keeps the last max or sum in the final weight",
    "steering/adaptive": "Weights are carried where nothing is resampled; the authors' code drops them",
}


@pytest.mark.parametrize("name", EQUAL)
def test_our_code_makes_of_the_same_numbers_what_the_official_code_made(name):
    assert ENTRIES[name].difference() <= ENTRIES[name].tolerance


@pytest.mark.parametrize("name", sorted(DEPARTURES))
def test_a_departure_is_seen_and_is_all_that_differs(name):
    entry = ENTRIES[name]
    assert entry.difference() > 100 * entry.tolerance
    assert entry.difference(UNDONE[name]) <= entry.tolerance


@pytest.mark.parametrize("name", sorted(DEPARTURES))
def test_a_departure_is_named_in_the_header_of_its_algorithm(name):
    path = ROOT / "algorithms" / f"{ENTRIES[name].algorithm}.py"
    header = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    assert DEPARTURES[name] in header.partition("Departures")[2]


def test_every_entry_is_compared_and_every_comparison_has_an_entry():
    assert {name for name, entry in ENTRIES.items() if entry.departs} == set(DEPARTURES) == set(UNDONE)
    used = {entry.ours for entry in ENTRIES.values()}
    assert used == set(OURS.values())
    assert len(ENTRIES) == len(GOLDEN["entries"])


def test_all_algorithms_with_official_code_are_compared():
    without = {"base", "best_of_n", "noise_search"}  # of these there is none
    assert {entry.algorithm for entry in ENTRIES.values()} == set(plugins.own_names("algorithms")) - without


def test_the_numbers_of_the_flow_methods_are_those_that_their_formulas_make():
    made = {entry["name"]: entry for entry in flow_formulas.entries()}
    kept = {name: entry.content for name, entry in ENTRIES.items() if entry.algorithm in OF_FLOW}
    assert list(made) == list(kept)
    for name, entry in made.items():
        assert {field: value for field, value in entry.items() if field != "outputs"} == {
            field: value for field, value in kept[name].items() if field != "outputs"
        }
        assert difference(entry["outputs"], kept[name]["outputs"]) < 1e-10


def test_the_schedule_is_the_one_of_the_golden_numbers():
    levels = schedule({}).alpha_bar
    for t, level in GOLDEN["schedule"]["alpha_bar"].items():
        assert float(levels[int(t)]) == pytest.approx(level, rel=1e-11)


D3PO, DPO, MIXTURE, ASCENT = "d3po/loss/0.1", "diffusion_dpo/loss/200", "demon/mixture/tanh", "doodl/updates/10"
GROUP, NFT, MATCHED = "flow_grpo/loss/sde", "diffusion_nft/loss/0.1", "awm/loss/ghuber"
MISTAKES = {  # each was made somewhere; the golden numbers tell it from the truth
    "a sum for a mean": (D3PO, d3po, "preference_loss", lambda kept: lambda *given: 2 * kept(*given)),
    "losers for winners": (D3PO, d3po, "preference_loss", lambda kept: lambda w, other, *rest: kept(other, w, *rest)),
    "another clip": (D3PO, d3po, "preference_loss", lambda kept: lambda *given: kept(*given[:3], 0.01)),
    "half of z": (DPO, training.diffusion_dpo, "dpo_loss", lambda kept: lambda *given: kept(*given[:3], given[3] / 2)),
    "a norm too short": (MIXTURE, demon, "mixed", lambda kept: lambda *given, **shell: 0.999 * kept(*given, **shell)),
    "a KL with its step's length": (GROUP, flow_grpo, "official_scales", lambda kept: lambda *given: (1.0, 1.0)),
    "a bound of another advantage": (NFT, diffusion_nft, "optimality", lambda kept: lambda a, clip: kept(a, 6.0)),
    "no root": (MATCHED, awm, "weighted", lambda kept: lambda m, s, by, p: kept(m, s, by, 1.0)),
    "a rate too high": (ASCENT, doodl, "step_of", lambda kept: lambda g, rate, clip: kept(g, 1.01 * rate, clip)),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_would_show(mistake):
    name, module, function, wrong = MISTAKES[mistake]
    with mock.patch.object(module, function, wrong(getattr(module, function))):
        assert ENTRIES[name].difference() > 100 * ENTRIES[name].tolerance


def test_an_output_of_another_shape_is_no_agreement():
    entry = ENTRIES["ddpo/clipped_loss/0.1"]
    with pytest.raises(AssertionError, match="of shape"):
        entry.difference(lambda inputs: {"loss": torch.zeros(2), "gradient": torch.zeros(8)})
    changed = replace(entry, content={**entry.content, "inputs": {**entry.content["inputs"], "clip": 0.2}})
    assert changed.difference() > 1e-3
