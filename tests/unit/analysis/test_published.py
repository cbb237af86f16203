"""What papers report beside our own numbers, and their protocols as suites."""

from __future__ import annotations

import csv
import io
import json

import pytest
from places import ROOT

from alignbench import plugins
from alignbench.analysis import published
from alignbench.analysis.compare import compare
from alignbench.analysis.tables import render
from alignbench.asking.presets import build_algorithm
from alignbench.asking.suite import read_suite
from alignbench.diffusion import registry as models

SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))
KNOWN = list(published.numbers(published.content()))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_cell_of_a_suite_names_what_there_is(path):
    """Models, algorithms and their fields, prompt sets, rewards; their files need not be here."""
    for spec in read_suite(path):
        model = models.find(spec.model)
        algorithm, _ = build_algorithm(spec.algo, plugins.load("algorithms", spec.algo), model.preset, spec.set)
        assert model.trainable or not algorithm.trains
        if spec.prompts:
            assert spec.split in plugins.load("benchmarks", spec.prompts).splits
        for name in (spec.reward, *(spec.scorers or ())):
            assert name is None or plugins.load("rewards", name)


def test_every_published_number_is_about_something_of_ours_and_says_where_it_was_read():
    assert len(KNOWN) > 30
    for number in KNOWN:
        assert number.source.startswith(("[P] ", "[S] "))
        assert "https://arxiv.org/abs/" in number.source
        assert models.find(number.model).name == number.model
        assert number.algorithm in plugins.own_names("algorithms") or (number.algorithm is None and number.released)
        assert number.released is None or models.named()[number.released].like == number.model
        name, split = number.prompts.split("/")
        known = name if name in plugins.own_names("benchmarks") else f"alignbench.benchmarks.dpok:{name}"
        assert split in plugins.load("benchmarks", known).splits


@pytest.fixture
def result(make_result):
    """A function that writes a result on a real model: the scores of two images, by scorer."""

    def write(
        name,
        scores,
        algorithm="base",
        model="sd15",
        place="pickapic/dev",
        named=None,
        sampler=None,
        seed=None,
        typed=None,
        **more,
    ):
        prompts, split = place.split("/")
        return make_result(
            name,
            scores,
            algorithm,
            seed=seed,
            evaluation={"model": {"name": model, "image_shape": [3, 8, 8]}, "prompts": prompts, "split": split},
            configuration={"model": named or model, "prompts": typed or prompts} | more,
            sampler={"kind": "ddim", "steps": 20, "guidance": 5.0, **(sampler or {})},
        )

    return write


def rows(files):
    (group,) = compare(files, published=True).groups
    return group.published, group.notes


def test_ours_stand_beside_the_papers_where_the_same_scorer_judged(result):
    base = result("base", {"pickscore": [20.0, 21.0], "aesthetic_v2": [5.0, 5.2]})
    released = result("dpo", {"pickscore": [21.0, 22.0]}, named="sd15_dpo", sampler={"denoiser": "mhdang/x@1"})
    found, notes = rows([base, released])
    shown = {(row.method.split()[0], "denoiser" in row.method, row.judge): row for row in found}
    assert len(shown) == len(found) == 8  # four judges of the base model, four of the released one
    assert (shown["base", False, "pickscore"].published, shown["base", False, "pickscore"].ours) == (20.53, 20.5)
    assert (shown["base", True, "pickscore"].published, shown["base", True, "pickscore"].ours) == (20.98, 21.5)
    assert shown["base", False, "aesthetic_v2"].ours == pytest.approx(5.1)
    assert shown["base", True, "aesthetic_v2"].ours is None  # not scored
    assert shown["base", False, "imagereward"].ours is None
    assert shown["base", False, "pickscore"].their_sampling == "steps=20 guidance=5"
    assert shown["base", False, "pickscore"].our_sampling == "steps=20 guidance=5"
    assert all(row.source.startswith("[S] Liang et al. 2024") for row in found)
    assert not any("published" in note for note in notes)


def test_a_method_that_is_none_of_ours_stands_beside_its_released_weights_alone(result):
    base = result("base", {"pickscore": [20.0, 21.0]})
    released = result("spo", {"pickscore": [21.0, 22.0]}, named="sd15_spo", sampler={"denoiser": "SPO/x@1"})
    found, _ = rows([base, released])
    assert [(row.published, row.ours) for row in found if row.judge == "pickscore"] == [(20.53, 20.5), (21.43, 21.5)]


def test_a_number_at_a_size_of_its_own_stands_beside_results_of_that_size(result):
    place = {"model": "sd35_medium", "place": "geneval/test"}
    other, _ = rows([result("own", {"pickscore": [20.0, 21.0]}, **place)])
    asked, _ = rows([result("small", {"pickscore": [20.0, 21.0]}, resolution="512x512", **place)])
    assert other == []
    assert [(row.published, row.ours, row.their_sampling) for row in asked] == [
        (0.24, None, "guidance=1 resolution=512x512")
    ]


def test_a_score_whose_version_is_not_said_is_set_beside_none_of_ours(result):
    found, _ = rows([result("base", {"hpsv2_0": [0.23, 0.24], "hpsv2_1": [0.23, 0.24]})])
    (row,) = [row for row in found if "HPSv2" in row.judge]
    assert (row.published, row.ours) == (23.79, None)


def test_what_people_preferred_never_stands_in_a_scorers_column(result):
    base = result("base", {"pickscore": [20.0, 21.0]}, place="parti/test")
    trained = result("dpo", {"pickscore": [21.0, 22.0]}, "diffusion_dpo", place="parti/test", seed=0)
    found, notes = rows([base, trained])
    assert [(row.method, row.judge, row.published, row.ours) for row in found] == [
        ("diffusion_dpo", "human", 59.8, None),
        ("diffusion_dpo", "human", 63.3, None),
    ]
    assert "published: what people preferred has no counterpart here; the win rates above are scorers'." in notes
    assert any("bars only; curve only" in note for note in notes)
    text = render(compare([base, trained], published=True), "table")
    assert "100.0" in text  # pickscore's win rate, in its own table


@pytest.mark.parametrize(
    "changes",
    [
        {"place": "pickapic/test"},
        {"place": "shapes/test"},
        {"model": "sd21"},
        {"algorithm": "dpok", "seed": 0},
        {"sampler": {"adapter": "mine@1"}},
        {"sampler": {"adapter": "mine@1", "denoiser": "mhdang/x@1"}, "named": "sd15_dpo"},
        {"named": "/models/sd15"},
        {"typed": "pickapic.txt"},
        {"limit": 5},
        {"resolution": "256x256"},
    ],
    ids=["split", "prompts", "model", "algorithm", "adapter", "on the released", "folder", "file", "part", "size"],
)
def test_what_is_not_the_same_is_not_set_beside_it(result, changes):
    algorithm = changes.pop("algorithm", "base")
    found, notes = rows([result("one", {"pickscore": [20.0, 21.0]}, algorithm, **changes)])
    assert found == []
    assert any(note.startswith("published: no number about these methods of ") for note in notes)


def test_methods_of_which_papers_show_curves_alone_say_so(result):
    _, notes = rows([result("one", {"aesthetic_v2": [5.0, 5.1]}, "ddpo", place="ddpo_animals/test", seed=0)])
    assert any("Black et al. 2023" in note and note.endswith("curve only.") for note in notes)


def test_without_the_option_nothing_published_is_shown(result):
    base = result("base", {"pickscore": [20.0, 21.0]})
    assert "Published" not in render(compare([base]), "table")
    assert compare([base]).groups[0].published == []


def test_every_format_has_the_published_numbers(result):
    comparison = compare([result("base", {"pickscore": [20.0, 21.0]})], published=True)
    for form in ("table", "markdown", "latex"):
        assert "20.53" in render(comparison, form)
    assert json.loads(render(comparison, "json"))["groups"][0]["published"][0]["published"] == 20.53
    lines = list(csv.reader(io.StringIO(render(comparison, "csv"))))
    assert any("20.53" in line and "pickscore" in line for line in lines)
