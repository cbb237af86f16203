"""Families of models: found by being there, and asked instead of being known by name."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import pytest

from alignbench.asking.options import RunOptions
from alignbench.diffusion import registry
from alignbench.diffusion.registry import Family, families, family_of, find, named
from alignbench.errors import InputError


def test_every_family_has_all_that_is_asked_of_one_and_its_models_name_it():
    assert set(families()) == {"stable_diffusion", "sd3", "flux", "flux2", "shapes", "mixture"}
    for name, family in families().items():
        assert isinstance(family, Family)
        assert family.name == name
        assert all(model.family == name for model in family.models)
        assert all(find(model.name) is model for model in family.models)


def test_the_worlds_stand_first_and_need_nothing():
    worlds = ["tiny", "tiny_flow", "mixture", "mixture_flow"]
    assert list(named())[:4] == worlds
    for name in worlds:
        assert list(family_of(find(name)).needs(find(name))) == []
        assert registry.missing(find(name)) == []
        with pytest.raises(InputError, match="needs no download"):
            family_of(find(name)).fetch(find(name))


def test_a_model_of_several_repositories_needs_all_of_them():
    family = families()["stable_diffusion"]
    parts = {
        name: [p.repository.name for p in family.needs(find(name))] for name in ("sd15", "sd15_dpo", "sdxl_refiner")
    }
    assert parts["sd15"] == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert parts["sd15_dpo"] == [*parts["sd15"], "mhdang/dpo-sd1.5-text2image-v1"]
    assert parts["sdxl_refiner"][1] == "stabilityai/stable-diffusion-xl-refiner-1.0"


def test_another_packages_family_is_found_by_its_entry_point(monkeypatch):
    theirs = replace(
        families()["stable_diffusion"], name="theirs", models=(registry.Model("theirs", "x", family="theirs"),)
    )
    point = SimpleNamespace(name="theirs", load=lambda: theirs)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "alignbench.families" else [])
    families.cache_clear()
    named.cache_clear()
    try:
        assert find("theirs").family == "theirs"
        assert family_of(find("theirs")) is theirs
    finally:
        monkeypatch.undo()
        families.cache_clear()
        named.cache_clear()


WORLD = {"algo": "base", "model": "mixture"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "x"}, "--vae: model 'mixture' makes points, not pictures"),
        ({"vae_slicing": True}, "--vae-slicing: model 'mixture' makes points"),
        ({"resolution": 512}, "--resolution: model 'mixture' makes points"),
        ({"task": "sdedit"}, "--task sdedit: model 'mixture' makes points"),
        ({"compile": "default"}, "--compile: model 'mixture' is no network"),
        ({"channels_last": True}, "--channels-last: model 'mixture' is no network"),
        ({"attention": "math"}, "--attention: model 'mixture' is no network"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: model 'mixture' computes in float64"),
        ({"device": "cuda"}, "--device cuda: model 'mixture' runs on the CPU"),
        ({"guidance": 3}, "--guidance 3: model 'mixture' has no prompts to be guided by"),
    ],
)
def test_the_mixture_refuses_what_it_would_have_to_ignore(changes, message):
    family, model = families()["mixture"], find("mixture")
    with pytest.raises(InputError, match=message):
        family.refuse(model, RunOptions(**WORLD | changes), "base", trains=False)
    family.refuse(model, RunOptions(**WORLD, guidance=1, kernel="exact"), "base", trains=False)


def test_the_exact_kernel_is_the_mixtures_and_no_trained_policys():
    options = RunOptions(algo="x", kernel="exact")
    with pytest.raises(InputError, match="the reverse kernel of model 'tiny' is not known; only mixture's is"):
        families()["shapes"].refuse(find("tiny"), options, "base", trains=False)
    with pytest.raises(InputError, match="a policy that 'ddpo' trains has no exact kernel"):
        families()["mixture"].refuse(find("mixture"), options, "ddpo", trains=True)
