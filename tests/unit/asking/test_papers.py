"""What was published of an algorithm, and how a cell is compared with it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
from places import ROOT

from alignbench import Published, Sampling, plugins
from alignbench.asking.papers import SAMPLED, beside
from alignbench.diffusion import registry

OWN = plugins.own_names("algorithms")
WITH_PAPERS = [name for name in OWN if hasattr(plugins.load("algorithms", name), "paper")]
# The defaults that are not the first published configuration's. The header of each says so, in these words.
HOUSE = {
    ("diffusion_dpo", "tuning"): "LoRA by default",
    ("diffusion_kto", "tuning"): "LoRA by default",
    ("mapo", "tuning"): "LoRA by default",
    ("sft", "tuning"): "LoRA by default",
    ("svdd", "choose"): "The default is (1), algorithm 1's rule",
    ("refl", "prior_weight"): "the script leaves (2) out (prior_weight=0)",
    ("dpok", "kl"): 'theirs lacks its factor per step and is kl="eps_mse"',
}
EVALUATED = Sampling(steps=50, guidance=5.0, eta=0.0)


def kind(name: str):
    return plugins.load("algorithms", name)


def compared(name: str, model: str | None = None, reward: str | None = None, sampling=EVALUATED, **changes):
    return beside(replace(kind(name)(), **changes), sampling, registry.find(model) if model else None, reward)


def header(name: str) -> str:
    return " ".join((ast.get_docstring(ast.parse((ROOT / "algorithms" / f"{name}.py").read_text())) or "").split())


def test_only_what_has_no_authors_code_of_its_own_keeps_nothing():
    assert set(OWN) - set(WITH_PAPERS) == {"base", "best_of_n", "classifier_guidance", "universal_guidance"}


@pytest.mark.parametrize("name", WITH_PAPERS)
def test_defaults_are_one_published_configuration_but_for_what_the_header_names(name):
    algorithm, first = kind(name)(), kind(name).paper[0]
    different = {field for field, value in first.fields.items() if getattr(algorithm, field) != value}
    assert different == {field for algo, field in HOUSE if algo == name}
    for field in different:
        assert HOUSE[name, field] in header(name)


@pytest.mark.parametrize("name", WITH_PAPERS)
def test_what_is_published_speaks_of_things_that_are_there_and_says_where_it_stands(name):
    algorithm, published = kind(name)(), kind(name).paper
    assert len({one.name for one in published}) == len(published)
    for one in published:
        assert re.search(r"\S+ of \S+/\S+|arXiv:\d{4}\.\d{5}|^\S+/\S+$", one.source)
        assert all(hasattr(algorithm, field) for field in one.fields)
        assert not set(one.fields) & set(SAMPLED)
        assert set(one.sampling) <= set(SAMPLED)
        assert one.model is None or registry.find(one.model).name == one.model
        assert one.reward is None or plugins.known("rewards", one.reward)
        known = {field.name for field in fields(algorithm)}
        replace(algorithm, **{field: value for field, value in one.fields.items() if field in known})  # is accepted


NEAREST = [
    ("ddpo", {}, {}, "compressibility"),
    ("ddpo", {"reward": "jpeg_incompressibility"}, {}, "incompressibility"),
    ("ddpo", {"reward": "aesthetic_v2"}, {}, "aesthetic"),
    ("ddpo", {}, {"rounds": 200, "updates_per_round": 2, "buffer": 32}, "aesthetic"),
    ("ddpo", {"reward": "pickscore"}, {"tuning": "full", "learning_rate": 1e-5}, "compressibility"),
    ("diffusion_dpo", {"model": "sd15"}, {}, "sd15.sh"),
    ("diffusion_dpo", {"model": "sdxl"}, {}, "sdxl.sh"),
    ("diffusion_dpo", {"model": "tiny"}, {}, "sd15.sh"),
    ("dpok", {}, {"rounds": 20_000, "reward_weight": 1000.0, "kl_weight": 0.1}, "several prompts"),
    ("doodl", {}, {"learning_rate": 0.025, "clip": 1e-2, "perturbation": 1e-3}, "fine-grained classes"),
    ("draft", {}, {"learning_rate": 1e-3, "weight_decay": 1e-4, "rank": 4}, "AlignProp"),
]


@pytest.mark.parametrize(("name", "where", "changes", "nearest"), NEAREST)
def test_the_nearest_is_for_the_model_then_for_the_reward_then_shares_the_most(name, where, changes, nearest):
    assert compared(name, **where, **changes).nearest.name == nearest


DIFFERENT = [
    ("ddpo", {"reward": "jpeg_compressibility"}, {}, {}),
    ("ddpo", {"reward": "jpeg_compressibility"}, {"updates_per_round": 2}, {"updates_per_round": (2, 4)}),
    ("ddpo", {"reward": "aesthetic_v2"}, {"rounds": 200}, {"updates_per_round": (4, 2), "buffer": (16, 32)}),
    ("diffusion_dpo", {"model": "sd15"}, {}, {"tuning": ("lora", "full")}),
    ("diffusion_dpo", {"model": "sd15"}, {"tuning": "full"}, {}),
    ("diffusion_dpo", {}, {"tuning": "full", "rounds": 20, "updates_per_round": 100}, {}),  # 2000 updates in all
    ("diffusion_dpo", {}, {"tuning": "full", "rounds": 20}, {"updates": (200, 2000)}),
    ("refl", {"sampling": Sampling(20, 7.5)}, {}, {"prior_weight": (1.0, 0.0)}),  # its own steps, guidance and η
    ("d3po", {}, {"steps": 20}, {}),
    ("d3po", {}, {}, {"sampling.steps": (50, 20)}),
    ("demon", {"sampling": Sampling(64, 2.0)}, {}, {}),
    ("demon", {}, {}, {"sampling.guidance": (5.0, 2.0)}),
    ("ddpo", {"sampling": Sampling(50, 7.5)}, {}, {"sampling.guidance": (7.5, 5.0)}),
    (
        "steering",
        {"sampling": Sampling(50, 7.5)},
        {"beta": 0.3},
        {"beta": (0.3, 0.1), "sampling.steps": (50, 100)},
    ),
    (
        "svdd",
        {"sampling": Sampling(50, 7.5)},
        {},
        {"choose": ("softmax", "argmax")},
    ),
]


@pytest.mark.parametrize(("name", "where", "changes", "found"), DIFFERENT)
def test_what_differs_is_told_of_fields_and_of_sampling(name, where, changes, found):
    differences = compared(name, **where, **changes).differences
    assert {field: (entry["value"], entry["paper"]) for field, entry in differences.items()} == found


def test_a_note_tells_what_the_others_say_too():
    found = compared("ddpo", reward="jpeg_compressibility", rounds=12, eta=0.5)
    assert found.note("rounds") == "   (paper: 100; aesthetic: 200)"
    assert found.note("eta") == "   (paper: 1.0)"
    assert found.note("clip") == ""
    assert found.note("batch") == ""  # memory is nobody's


@dataclass(frozen=True, kw_only=True)
class Own:
    trains: ClassVar[bool] = False
    paper: ClassVar[tuple[Published, ...]] = (
        Published("small", "somewhere", {"n": 2}, {"guidance": 3.0}),
        Published("large", "elsewhere", {"n": 8}),
    )
    n: int = 2

    def align(self, problem): ...

    def unsupported(self, problem):
        return None


def test_anybodys_algorithm_may_keep_what_was_published_and_need_not():
    assert beside(Own(), Sampling(5, 3.0), None, None).differences == {}
    assert beside(Own(n=8), Sampling(5, 1.0), None, None).nearest.name == "large"
    assert beside(Own(n=4), Sampling(5, 1.0), None, None).differences == {
        "n": {"value": 4, "paper": 2},
        "sampling.guidance": {"value": 1.0, "paper": 3.0},
    }
    assert beside(kind("base")(), EVALUATED, None, None) is None


NAMED = {  # departures that a reader of the authors' code would look for
    "ddpo": ["the evaluation's (theirs: 5)"],
    "d3po": ["theirs takes Adam's", "(theirs: 20 and 5)"],
    "demon": ["k − 1", "(theirs: 2)"],
    "awm": ["once for each GPU's batch", "SA-solver"],
    "diffusion_dpo": ["one update ahead", "v-prediction"],
    "diffusion_nft": ["cuts to whole numbers", "starts θ and old from the average", "not their average"],
    "flow_grpo": ["drop them on each GPU", "device-specific seeds", "older code of theirs detaches one"],
    "sft": ["one update ahead"],
    "doodl": ["not clamped", "980 … 0"],
    "dpok": ["mean of the token states"],
    "draft": ["N(42, 5)"],
    "reward_weighted_regression": ["encode again and sample the posterior", "Adam keeps its state"],
    "steering": ["with every potential", "starts at reward 0", "multinomial", "20, 40, 60 and 80"],
    "svdd": ["take the best"],
}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_headers_name_what_departs_from_the_authors_code(name):
    departures = header(name).partition("Departures")[2].partition("Optimum")[0]
    assert [words for words in NAMED[name] if words not in departures] == []
