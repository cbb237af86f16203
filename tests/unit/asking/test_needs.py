"""What a cell needs and has not, said at once."""

from __future__ import annotations

import pytest

from alignbench.asking import needs
from alignbench.asking.needs import Needs, needs_of
from alignbench.diffusion import hub, registry
from alignbench.errors import RunError


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setattr(registry, "local", lambda part: None)
    monkeypatch.setattr(hub, "offline", lambda: True)


def test_models_prompts_and_scorers_that_are_missing_are_found(nothing_here):
    found = needs_of(registry.find("sd15"), ["parti", "shapes", "my.txt"], ["pickscore", "shapes_truth", "nobody"])
    assert found == Needs(models=("sd15",), prompts=("parti",), scorers=("pickscore",))
    assert needs_of(registry.find("tiny"), ["shapes"], ["shapes_truth"]).names == ()
    assert needs_of(registry.find("mixture"), ["grid"], ["quadratic"]).names == ()


def test_several_missing_things_are_one_sentence_with_the_commands(nothing_here):
    with pytest.raises(RunError) as caught:
        Needs(("sd15",), ("parti",), ("pickscore", "hpsv2_1")).check()
    message = str(caught.value)
    assert message.startswith(
        "not on this machine: sd15, parti, pickscore, hpsv2_1; and the network cannot be reached."
    )
    for command in ("fetch models sd15", "fetch prompts parti", "fetch scorers pickscore hpsv2_1"):
        assert f"`alignbench {command}`" in message
    assert "or choose others with --scorers" in message


def test_one_missing_thing_is_left_to_what_needs_it(nothing_here):
    Needs(models=("sd15",)).check()
    Needs().check()


def test_with_a_network_nothing_is_refused(nothing_here, monkeypatch):
    monkeypatch.setattr(hub, "offline", lambda: False)
    Needs(("sd15",), ("parti",)).check()


def test_readiness_is_computed_once_when_a_cell_is_resolved(toy_cell, monkeypatch):
    from alignbench.asking import data
    from alignbench.asking.options import RunOptions
    from alignbench.asking.resolve import resolve
    from alignbench.experiment.run import run_cell

    calls = []
    monkeypatch.setattr(data, "needs_of", lambda *given: calls.append(given) or needs.needs_of(*given))
    cell = resolve(RunOptions(**toy_cell("base")))
    assert cell.needs == Needs()
    run_cell(cell, quiet=True)
    assert len(calls) == 1
