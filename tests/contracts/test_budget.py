"""Budgets per image: counted cost equals the closed form, methods spend what they may, and files say what was spent."""

from __future__ import annotations

import dataclasses
import json

import pytest
import random_models
from closed_form import Bowl
from colours import Brightness

from alignbench import Key, Prompt, Sampling, plugins
from alignbench.analysis.compare import compare
from alignbench.analysis.tables import render
from alignbench.asking.options import RunOptions
from alignbench.asking.presets import build_algorithm
from alignbench.asking.resolve import resolve
from alignbench.diffusion import registry as models
from alignbench.diffusion.affordable import spent
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.errors import InputError, Unsupported
from alignbench.experiment.run import run_cell
from alignbench.meter import Cost, Meter
from alignbench.testbed import toys
from alignbench.testbed.pipeline import MixturePipeline

SETTINGS = {
    "best_of_n": [{"n": 3}],
    "classifier_guidance": [{}, {"jacobian": "frozen", "window_start": 0.4}, {"steps": 7}],
    "universal_guidance": [{}, {"forward": 0.0}, {"smoothing": 0.1, "smoothing_samples": 2, "recurrence": 3}],
    "doodl": [{"updates": 2, "steps": 3}, {"updates": 2, "steps": 3, "chain": "recompute"}],
    "demon": [{"candidates": 2, "steps": 6, "value_steps": 4}, {"candidates": 1, "steps": 5, "ode_after": 1.0}],
    "steering": [{"n": 3, "interval": 2}, {"n": 2, "interval": 1, "steps": 5}],
    "svdd": [{"candidates": 3}],
    "noise_search": [{"iterations": 2, "neighbours": 2}],
    "rollover": [{"candidates": 2, "starts": 3}, {"candidates": 3, "starts": 1, "steps": 4, "kernel": "flow_sde"}],
}
FREE = {  # the field that a budget fills
    "best_of_n": "n",
    "classifier_guidance": "steps",
    "universal_guidance": "recurrence",
    "doodl": "updates",
    "demon": "candidates",
    "steering": "n",
    "svdd": "candidates",
    "noise_search": "iterations",
    "rollover": "candidates",
}
CASES = [(name, fields) for name, several in SETTINGS.items() for fields in several]
PICTURES = [Prompt("a", "a red circle"), Prompt("b", "a blue star")]


def built(name, fields):
    return build_algorithm(name, plugins.load("algorithms", name), "other", fields)[0]


def counted(problem, algorithm, prompts):
    before = problem.meter.total
    algorithm.align(problem)(prompts, [Key("budget", p.id) for p in prompts])
    cost = problem.meter.total - before
    return {name: value / len(prompts) for name, value in cost.as_dict().items()}


def test_every_test_time_method_is_here():
    own = [n for n in plugins.own_names("algorithms") if not plugins.load("algorithms", n).trains]
    assert {*own} == {*SETTINGS, "base"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network that decodes and takes guidance; what it draws does not matter for what is counted."""
    folder = random_models.small_sd(tmp_path_factory.mktemp("small"))
    return models.load(models.find(str(folder)), Meter())


@pytest.mark.parametrize(
    ("name", "fields", "guidance"),
    [(*case, 2.0) for case in CASES] + [(name, several[0], 1.0) for name, several in SETTINGS.items()],
    ids=str,
)
def test_the_counted_cost_is_the_closed_form(name, fields, guidance, make_problem, small):
    problem = make_problem(Brightness(), pipeline=small, sampling=Sampling(5, guidance, 1.0))
    algorithm = built(name, fields)
    assert counted(problem, algorithm, PICTURES) == algorithm.cost(problem).as_dict()


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_method_spends_as_much_of_its_budget_as_its_free_parameter_allows(name, make_problem):
    problem = make_problem(Bowl(), sampling=Sampling(8, 1.0, 1.0))
    algorithm, prompts = built(name, SETTINGS[name][0]), [Prompt("a", "a"), Prompt("b", "b")]
    for budget in ({"nfe": 160.0}, {"reward_evals": 40.0}, {"nfe": 250.0, "reward_evals": 30.0}):
        if name == "universal_guidance":  # whose least is more than others' most
            budget = {kind: 3 * limit for kind, limit in budget.items()}
        if name == "classifier_guidance":  # one reward evaluation a step, whatever its free parameter
            budget.pop("reward_evals", None)
            if not budget:
                continue
        chosen = algorithm.for_budget(budget, problem)
        spent_ = counted(problem, chosen, prompts)
        used = {kind: spent(Cost(**{k: int(v) for k, v in spent_.items()}), kind, budget) for kind in budget}
        assert all(used[kind] <= limit for kind, limit in budget.items()), (chosen, used)
        more = getattr(chosen, FREE[name]) + 1
        while name == "classifier_guidance" and problem.pipeline.train_timesteps % more:  # only such steps end at 0
            more += 1
        cost = dataclasses.replace(chosen, **{FREE[name]: more}).cost(problem)
        assert any(spent(cost, kind, budget) > limit for kind, limit in budget.items()), (chosen, used)


@pytest.mark.parametrize("grid", ["linspace", "scheduler"])
def test_guidance_on_a_flow_model_may_have_any_number_of_steps_as_all_begin_in_noise(make_problem, grid):
    """Two evaluations a step, one of them backward: 23 steps for 47, and 20 of a diffusion model's 1,000."""
    flow = MixturePipeline(toys.grid().mixture, FlowSchedule(shift=3.0, sigmas=grid), Meter())
    problems = [make_problem(Bowl(), pipeline, Sampling(8, 1.0, 1.0)) for pipeline in (flow, None)]
    chosen = [built("classifier_guidance", {}).for_budget({"nfe": 47.0}, problem) for problem in problems]
    assert [algorithm.steps for algorithm in chosen] == [23, 20]


def test_edict_on_a_flow_model_is_refused_in_a_line_that_names_the_other_chain(make_problem):
    flow = MixturePipeline(toys.grid().mixture, FlowSchedule(), Meter())
    problem = make_problem(Bowl(), flow, Sampling(8, 1.0, 1.0))
    said = built("doodl", {}).unsupported(problem)
    assert said is not None
    assert said.startswith("doodl with chain='edict' divides by the signal that is left at the first step")
    assert said.endswith("(a flow model, or zero terminal SNR); pass --set chain=recompute, plain DDIM.")
    assert built("doodl", {"chain": "recompute"}).unsupported(problem) is None


def test_a_budget_below_the_least_is_refused_with_what_it_takes(make_problem):
    problem = make_problem(Bowl(), sampling=Sampling(8, 1.0, 1.0))
    with pytest.raises(Unsupported, match=r"an image costs at least nfe=8 \(n=1\), and the budget is nfe=7"):
        built("best_of_n", {}).for_budget({"nfe": 7.0}, problem)


def test_seconds_weigh_each_evaluation_by_what_it_takes():
    rates = {"seconds": 1.0, "seconds_per_denoiser": 0.5, "seconds_per_decode": 2.0, "seconds_per_reward": 0.1}
    cost = Cost(denoiser_forward=3, denoiser_backward=1, decode_forward=2, reward_forward=4, reward_backward=6)
    assert spent(cost, "seconds", rates) == pytest.approx(4 * 0.5 + 2 * 2.0 + 10 * 0.1)


def test_a_run_with_a_budget_keeps_it_in_its_file_and_seconds_are_measured_once(toy_cell, tmp_path, monkeypatch):
    outcome = run_cell(resolve(RunOptions.parse(toy_cell("best_of_n", budget={"nfe": 33}), "test")), quiet=True)
    assert outcome.result.budget == outcome.result.configuration.budget == {"nfe": 33}
    assert outcome.result.sampler["n"] == 4
    assert outcome.result.cost.per_image["denoiser_forward"] == 32
    cell = resolve(RunOptions.parse(toy_cell("best_of_n", budget={"seconds": 0.02}), "test"))
    first = run_cell(cell, quiet=True).result
    assert first.budget["seconds_per_denoiser"] > 0
    (kept,) = cell.path.parent.glob(".seconds-*")
    assert {**json.loads(kept.read_text()), "seconds": 0.02} == first.budget
    assert cell.path != outcome.path
    other = run_cell(
        resolve(RunOptions.parse(toy_cell("noise_search", budget={"seconds": 0.02}), "test")), quiet=True
    ).result
    assert other.budget == first.budget  # what a second comes to is the same for all methods
    assert len(compare([cell.path.parent]).groups) == 1  # what is kept beside results is none


@pytest.mark.parametrize(
    ("algo", "budget", "message"),
    [
        ("ddpo", {"nfe": 100}, "--budget: 'ddpo' trains"),
        ("base", {"nfe": 100}, "--budget: 'base' has nothing to choose"),
        ("best_of_n", {"nfe": 0}, r"budget nfe=0: expected more than 0\."),
        ("best_of_n", {"hours": 1}, "expected 'nfe', 'reward_evals' or 'seconds'"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(algo, budget, message, toy_cell):
    with pytest.raises(InputError, match=message):
        resolve(RunOptions.parse(toy_cell(algo, budget=budget), "test"))


def test_methods_are_compared_by_budget_against_base_and_best_of_n(make_result):
    scores = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    base = make_result("base", scores)
    files = [base]
    for name, algorithm, budget, gain in (
        ("b1", "best_of_n", 80.0, 1), ("s1", "steering", 80.0, 2), ("s2", "steering", 160.0, -1),
    ):  # fmt: skip
        asked = {"budget": {"nfe": budget}}
        files.append(make_result(name, [x + gain for x in scores], algorithm, {"n": 2}, configuration=asked))
    comparison = compare(files, by="budget")
    parts = {(p.part, p.method, p.against): p.rate.rate for p in comparison.groups[0].parts}
    assert parts == {
        ("nfe=80", "best_of_n", "base"): 1.0,
        ("nfe=80", "steering nfe=80", "base"): 1.0,
        ("nfe=80", "steering nfe=80", "best_of_n"): 1.0,
        ("nfe=160", "steering nfe=160", "base"): 0.0,
    }
    text = render(comparison, "table")
    assert "against" in text
    assert text.index("nfe=80  ") < text.index("nfe=160  ")
