"""Contracts that every plug-in keeps, and how plug-ins are found."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import types
from importlib import metadata
from typing import get_type_hints

import pytest
import torch
from places import ROOT, TESTS, TOY

from alignbench import Algorithm, Key, Prompt, Prompts, PromptSet, Sampler, Sampling, plugins
from alignbench.asking.presets import build_algorithm
from alignbench.errors import InputError, UnknownName, Unsupported
from alignbench.experiment.metered import MeteredReward
from alignbench.experiment.problem import CellProblem
from alignbench.interface import TestTimeAlgorithm as ForBudget
from alignbench.progress import Progress
from alignbench.testbed.exact_pairs import MixturePairs
from alignbench.testbed.tilt import Quadratic

ALGORITHMS = plugins.own_names("algorithms")
SMALL = {"rounds": 6, "samples_per_round": 64, "samples_per_update": 64, "updates_per_round": 2, "batch": 32}
SMALL |= {"learning_rate": 3e-3, "clip": 0.1, "moves_per_update": 256}
OWN = {
    "refl": {"steps": 20, "prior_weight": 0.5},  # its own are forty
    "doodl": {"updates": 8, "steps": 8, "learning_rate": 0.1, "clip": 0.5, "chain": "recompute"},
    "demon": {"candidates": 4, "steps": 12, "value_steps": 2},
    "steering": {"interval": 2},
    "svdd": {"candidates": 4},
}
SMALL_PAIRS = {"updates_per_round": 8, "pairs_per_update": 256, "batch": 256}
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(64)]
FIRST = Quadratic.linear(torch.tensor([1.0, 0.0]))  # the toy reward, in the closed form that labels pairs
KEYS = [Key("contract", prompt.id) for prompt in PROMPTS]


def small(name: str) -> Algorithm:
    """An algorithm with the fields of SMALL that it has."""
    kind = plugins.load("algorithms", name)
    known = {field.name for field in dataclasses.fields(kind)}
    fields = SMALL | (SMALL_PAIRS if "pairs_per_update" in known else {}) | OWN.get(name, {})
    return build_algorithm(name, kind, "mixture", {k: v for k, v in fields.items() if k in known})[0]


@pytest.fixture
def problem(mixture, tmp_path):
    def build(name="run", prompts=PROMPTS):
        return CellProblem(
            pipeline=mixture,
            reward=MeteredReward("toy", plugins.load("rewards", f"{TOY}:FirstCoordinate")(), mixture.meter),
            prompts=Prompts([Prompt(f"t{i}", f"training point {i}") for i in range(20)]) if prompts else Prompts(()),
            sampling=Sampling(steps=8, guidance=1.0, eta=1.0),
            key=Key("align", 0),
            meter=mixture.meter,
            folder=tmp_path / name,
            progress=Progress(quiet=True),
            pairs=MixturePairs(mixture.mixture, FIRST, mixture, PROMPTS, Key("pairs"), 2000) if prompts else None,
        )

    (tmp_path / "run").mkdir()
    (tmp_path / "again").mkdir()
    return build


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_a_frozen_dataclass_that_survives_json(name):
    algorithm = small(name)
    assert isinstance(algorithm, Algorithm)
    assert type(algorithm).__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(algorithm))
    values = json.loads(json.dumps(dataclasses.asdict(algorithm), allow_nan=False))
    assert build_algorithm(name, type(algorithm), "mixture", values)[0] == algorithm


# Values that results were made with and papers compared by, as they were when the shared fields got their bases.
DEFAULTS = json.loads((TESTS / "support" / "defaults.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ALGORITHMS)
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


def test_a_field_that_may_be_none_is_set_to_none_by_the_word():
    demon = plugins.load("algorithms", "demon")
    fields = {"temperature": "none", "steps": "none", "stochasticity": "0.2"}
    built = build_algorithm("demon", demon, "other", fields)[0]
    assert (built.temperature, built.steps, built.stochasticity) == (None, None, 0.2)
    with pytest.raises(InputError, match="candidates='none': Input should be a valid integer"):
        build_algorithm("demon", demon, "other", {"candidates": "none"})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_gives_a_sampler_whose_images_depend_on_the_key_alone(name, problem):
    sampler = small(name).align(problem())
    assert isinstance(sampler, Sampler)
    json.dumps(dict(sampler.describe()), allow_nan=False)
    images = sampler(PROMPTS, KEYS).images
    assert images.shape == (64, 2)
    assert torch.isfinite(images).all()
    assert torch.equal(sampler(PROMPTS, KEYS).images, images)
    torch.testing.assert_close(sampler(PROMPTS[5:12], KEYS[5:12]).images, images[5:12], atol=1e-5, rtol=0)
    assert not torch.allclose(sampler(PROMPTS, [key("other") for key in KEYS]).images, images)


LONGER = ("diffusion_dpo", "dpok", "refl", "reward_weighted_regression", "sft")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONGER)) for n in ALGORITHMS])
def test_aligning_twice_with_one_key_gives_the_same_images(name, problem):
    algorithm = small(name)
    one, two = (algorithm.align(problem(folder))(PROMPTS, KEYS).images for folder in ("run", "again"))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"base"}))
def test_an_algorithm_improves_its_reward(name, problem, mixture):
    base = plugins.load("algorithms", "base")().align(problem())
    better = small(name).align(problem())
    gain = better(PROMPTS, KEYS).images[:, 0] - base(PROMPTS, KEYS).images[:, 0]
    assert gain.mean() > 0.5
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_changes_the_cost_of_alignment_and_test_time_methods_that_of_images(name, problem, mixture):
    algorithm = small(name)
    sampler = algorithm.align(problem())
    aligned = mixture.meter.total.denoiser_forward
    assert (aligned > 0) is algorithm.trains
    sampler(PROMPTS, KEYS)
    assert mixture.meter.total.denoiser_forward - aligned >= 64 * 8


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_keeps_the_reference_as_it_was(name, problem, mixture):
    condition, latents = mixture.condition(PROMPTS), Key("latents").normal(64, 2)
    before = mixture.predict(latents, 500, condition).eps
    small(name).align(problem())
    assert torch.equal(mixture.predict(latents, 500, condition).eps, before)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_an_algorithm_cannot_do_is_a_sentence_and_not_a_crash(name, problem):
    algorithm = small(name)
    assert algorithm.unsupported(problem()) is None
    reason = algorithm.unsupported(problem(prompts=()))
    assert (reason is not None) is algorithm.trains
    assert reason is None or reason.endswith(".")


TEST_TIME = [n for n in ALGORITHMS if n != "base" and not plugins.load("algorithms", n).trains]


@pytest.mark.parametrize("name", TEST_TIME)
@pytest.mark.parametrize("nfe", [8, 33, 400])
def test_a_test_time_method_spends_at_most_its_budget_or_says_what_it_takes(name, problem, mixture, nfe):
    algorithm = small(name)
    assert isinstance(algorithm, ForBudget)
    try:
        chosen = algorithm.for_budget({"nfe": float(nfe)}, problem())
    except Unsupported as error:
        least = float(re.search(r"an image costs at least nfe=([\d.]+)", str(error)).group(1))
        assert nfe < min(least, 400)
        return
    assert chosen == algorithm.for_budget({"nfe": float(nfe)}, problem())
    sampler = chosen.align(problem())
    before = mixture.meter.total
    sampler(PROMPTS[:4], KEYS[:4])
    assert (mixture.meter.total - before).denoiser_forward <= 4 * nfe


@pytest.mark.parametrize("name", plugins.own_names("benchmarks"))
def test_a_prompt_set_has_named_splits_of_unique_prompts(name, captions, real_data):
    (captions / "PartiPrompts.tsv").symlink_to(real_data / "PartiPrompts.tsv")
    prompt_set = plugins.load("benchmarks", name)()
    assert isinstance(prompt_set, PromptSet)
    assert set(prompt_set.splits) <= {"train", "dev", "test"}
    for split in prompt_set.splits:
        prompts = prompt_set.prompts(split)
        assert prompts == prompt_set.prompts(split)
        assert len({prompt.id for prompt in prompts}) == len(prompts) > 0
        assert all(prompt.text.strip() for prompt in prompts)


GROUPS: tuple[plugins.Group, ...] = ("algorithms", "rewards", "benchmarks")


@pytest.mark.parametrize("group", GROUPS)
def test_every_plugin_file_has_a_headline_and_one_export(group):
    for name in plugins.own_names(group):
        text = (ROOT / group / f"{name}.py").read_text(encoding="utf-8")
        assert plugins.summary(group, name), name
        assert (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].endswith((".", ":", "else is compared with."))
        assert plugins.load(group, name).__module__ == f"alignbench.{group}.{name}"


@pytest.mark.parametrize("group", GROUPS)
def test_listing_imports_no_plugin(group, monkeypatch):
    loaded = [name for name in sys.modules if name.startswith(f"alignbench.{group}.")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    assert [plugins.summary(group, name) for name in plugins.names(group)]
    assert not [name for name in sys.modules if name.startswith(f"alignbench.{group}.")]


def test_an_unknown_name_lists_near_and_known_ones():
    with pytest.raises(
        UnknownName, match=r"no algorithm named 'best_of'. Did you mean best_of_n\? Known: base, best_of"
    ):
        plugins.load("algorithms", "best_of")


def test_a_file_and_a_module_work_as_plugins(monkeypatch):
    from_file = plugins.load("rewards", f"{TOY}:FirstCoordinate")
    assert from_file().info().id == "first-coordinate-1"
    module = types.ModuleType("somebodys_rewards")
    module.Theirs = from_file
    monkeypatch.setitem(sys.modules, "somebodys_rewards", module)
    assert plugins.load("rewards", "somebodys_rewards:Theirs") is from_file


def test_another_packages_entry_point_is_found_and_listed(monkeypatch):
    point = metadata.EntryPoint("theirs", "collections:OrderedDict", "alignbench.rewards")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == point.group else [])
    assert "theirs" in plugins.names("rewards")
    assert plugins.load("rewards", "theirs").__name__ == "OrderedDict"


def test_a_plugin_with_two_exports_is_refused(monkeypatch):
    module = types.ModuleType("alignbench.rewards.shapes_truth")
    module.__all__ = ["A", "B"]
    monkeypatch.setitem(sys.modules, "alignbench.rewards.shapes_truth", module)
    with pytest.raises(InputError, match="must export exactly one name in __all__"):
        plugins.load("rewards", "shapes_truth")


def test_a_reward_without_gradient_says_so():
    with pytest.raises(Unsupported, match="no gradient"):
        plugins.load("rewards", "shapes_truth")().with_grad(torch.zeros(1, 3, 32, 32), PROMPTS[:1])
