"""Distances from a known optimum: estimators against closed forms, and every algorithm on a problem it should solve."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import TOY

from alignbench import Key, LoRA, Prompt, Sampling, plugins
from alignbench.analysis.compare import compare
from alignbench.analysis.frontier import panels, pooled, regrets
from alignbench.analysis.frontier_plot import frontier_figure
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.diffusion.registry import find, load
from alignbench.diffusion.rollout import PipelineSampler, denoise, density_of_chain, rollout
from alignbench.errors import InputError, UnknownName, Unsupported
from alignbench.experiment.run import run_cell
from alignbench.interface import Pairs
from alignbench.meter import Meter
from alignbench.processes import ALONE
from alignbench.record import result as results
from alignbench.testbed import estimators, floors
from alignbench.testbed.exact_problem import ExactProblem, problem_of
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.pipeline import MixturePipeline, exact_schedule
from alignbench.testbed.scores import measure
from alignbench.testbed.tilt import Frontier, log_z, moments, tilted
from alignbench.testbed.toys import grid

KEY = Key("test", "optimality")
TOYS = ("grid", "ring", "overlap", "gaussian", "grid64")


@pytest.fixture(autouse=True, scope="module")
def _coarse_floors():
    """Floors have tests of their own; here they would take three quarters of the time. Nothing else depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "FLOOR_REPLICATES", floors.REPLICATES)
        yield


def toy(name: str) -> ExactProblem:
    problem = problem_of(plugins.load("benchmarks", name)().prompts("test")[:1])
    assert problem is not None
    return problem


CASES = [(name, reward) for name in TOYS for reward in plugins.load("benchmarks", name).known]


def measured(problem: ExactProblem, reward: str, points: torch.Tensor, key: Key = KEY, **known):
    return measure(problem, [reward], points, torch.arange(len(points)), key, **known)


def values(found) -> dict[str, float]:
    return {name.rpartition(".")[2]: measure.value for name, measure in found.items()}


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_neighbour_estimate_finds_the_entropy_of_a_gaussian(d):
    entropy = -float(estimators.log_density_by_neighbours(KEY("normal").normal(4000, d)).mean())
    assert entropy == pytest.approx(d / 2 * math.log(2 * math.pi * math.e), abs=0.05)


def test_the_neighbour_estimate_by_hand():
    """Points 0, 1, 3 on a line, k = 1: distances 1, 1, 2; log q = ψ(1) − ψ(3) − log 2 − log ε, ψ(3) − ψ(1) = 3/2."""
    found = estimators.log_density_by_neighbours(torch.tensor([[0.0], [1.0], [3.0]]), k=1)
    assert found.tolist() == pytest.approx([-1.5 - math.log(2), -1.5 - math.log(2), -1.5 - math.log(4)])


@pytest.mark.parametrize(("name", "reward"), CASES)
def test_exact_draws_from_the_optimum_score_zero_within_the_floor(name, reward):
    problem = toy(name)
    optimum = tilted(problem.mixture, problem.rewards[reward], 1 / problem.beta)
    found = measured(problem, reward, optimum.sample(KEY("draws", name, reward), 2000))
    for score in ("regret", "excess_kl", "mode_tv"):
        m = found[f"{reward}.{score}"]
        assert abs(m.value) <= 2.5 * m.floor + 1e-12, (score, m)  # the floor is a 95 % quantile
        assert m.low <= m.value <= m.high
        assert m.floor < 0.05
    mean, kl = Frontier(problem.mixture, problem.rewards[reward]).at(1.0)
    assert found[f"{reward}.reward"].value == pytest.approx(mean, abs=0.15)
    assert found["kl"].value == pytest.approx(kl, abs=0.15)
    assert found[f"{reward}.covariance"].value == pytest.approx(1, abs=0.1)
    assert ("nuisance" in found) is (name == "grid64")
    if name == "grid64":
        assert abs(found["nuisance"].value) < 3 * found["nuisance"].floor


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reward"), [("gaussian", "linear"), ("overlap", "quadratic")])
def test_intervals_hold_the_truth_as_often_as_they_say(name, reward, monkeypatch):
    """80 independent sets of 400: at 95 %, fewer than 71 of them would happen to one score once in 150 times."""
    monkeypatch.setattr(floors, "of_optimum", lambda *_: floors.OfOptimum(0.0, 0.0, (1.0, 1.0)))  # no interval has one
    monkeypatch.setattr(floors, "of_excess", lambda *_: 0.0)
    problem, held = toy(name), {"regret": 0, "excess_kl": 0, "kl": 0}
    optimum = tilted(problem.mixture, problem.rewards[reward], 1.0)
    truth = {"regret": 0.0, "excess_kl": 0.0, "kl": Frontier(problem.mixture, problem.rewards[reward]).at(1.0)[1]}
    for i in range(80):
        found = measured(problem, reward, optimum.sample(KEY("coverage", i), 400), KEY("coverage", i))
        for score, expected in truth.items():
            m = found[score if score == "kl" else f"{reward}.{score}"]
            held[score] += m.low <= expected <= m.high
    assert min(held.values()) >= 71, held


@pytest.mark.parametrize("other", [0.3, 3.0])
def test_another_tilt_is_on_the_frontier_and_its_regret_is_the_closed_form(other):
    problem = grid()
    r = problem.rewards["quadratic"]
    mean, kl = Frontier(problem.mixture, r).at(other)
    regret = Frontier(problem.mixture, r).optimum(1.0) - (mean - kl)
    found = measured(problem, "quadratic", tilted(problem.mixture, r, other).sample(KEY("other", str(other)), 3000))
    assert found["quadratic.regret"].value == pytest.approx(regret, abs=0.05)
    assert abs(found["quadratic.excess_kl"].value) < 2.5 * found["quadratic.excess_kl"].floor
    assert found["kl"].value == pytest.approx(kl, abs=0.05)


def test_a_shift_beside_the_frontier_costs_its_own_divergence():
    """q = N(m + u, S): KL = ½ uᵀS⁻¹u. Of u, S h (hᵀu / hᵀSh) earns the reward; what is beside it is excess."""
    problem = toy("gaussian")
    m, s, h = problem.mixture.means[0], problem.mixture.covariances[0], problem.rewards["linear"].slope
    u = torch.tensor([1.2, -0.9]).double()
    q = Mixture(torch.ones(1), (m + u)[None], s[None])
    useful = s @ h * (h @ u) / (h @ s @ h)
    spent, needed = (float(v @ s.inverse() @ v) / 2 for v in (u, useful))
    best = s @ h  # the optimum's shift at β = 1
    found = values(measured(problem, "linear", q.sample(KEY("shift"), 4000)))
    assert found["kl"] == pytest.approx(spent, abs=0.08)
    assert found["excess_kl"] == pytest.approx(spent - needed, abs=0.06)
    assert found["regret"] == pytest.approx(float((u - best) @ s.inverse() @ (u - best)) / 2, abs=0.08)


def test_excess_is_the_smallest_divergence_from_any_optimum():
    problem = grid()
    r, x = problem.rewards["quadratic"], problem.mixture.sample(KEY("any"), 1000)
    found = measured(problem, "quadratic", x, known_kl=0.0)["quadratic.excess_kl"].value
    mean = float(r(x).mean())
    all_of_them = [
        0.0 - rate * mean + log_z(problem.mixture, r, rate) for rate in torch.linspace(-0.05, 0.1, 151).tolist()
    ]
    assert found == pytest.approx(min(all_of_them), abs=1e-3)


def test_modes_and_spread_tell_what_went_wrong():
    problem = grid()
    optimum = tilted(problem.mixture, problem.rewards["quadratic"], 1.0)
    one = Mixture(torch.ones(1), optimum.means[4:5], optimum.covariances[4:5])
    collapsed = values(measured(problem, "quadratic", one.sample(KEY("one"), 2000)))
    assert collapsed["mode_tv"] == pytest.approx(1 - float(optimum.weights[4]), abs=1e-3)
    assert collapsed["covariance"] == pytest.approx(1, abs=0.1)
    narrow = Mixture(optimum.weights, optimum.means, 0.25 * optimum.covariances)
    shrunk = values(measured(problem, "quadratic", narrow.sample(KEY("narrow"), 2000)))
    assert shrunk["mode_tv"] < 0.03
    assert shrunk["covariance"] == pytest.approx(0.25, abs=0.02)


def test_the_nuisance_check_sees_norms_that_the_plane_does_not_show():
    problem = toy("grid64")
    assert problem.plane is not None
    x = tilted(problem.mixture, problem.rewards["quadratic"], 1.0).sample(KEY("wide"), 1000)
    inside = x @ problem.plane @ problem.plane.T
    stretched = inside + 1.1 * (x - inside)
    honest, found = (measured(problem, "quadratic", points) for points in (x, stretched))
    # 62 axes of variance 1.21: ½ (1.21 − 1 − log 1.21) nats each
    assert found["nuisance"].value == pytest.approx(62 * (0.21 - math.log(1.21)) / 2, abs=0.1)
    assert found["quadratic.regret"].value == pytest.approx(honest["quadratic.regret"].value, abs=1e-6)


def test_points_in_one_place_have_no_finite_divergence():
    found = measured(grid(), "quadratic", torch.zeros(60, 2))
    for name in ("kl", "quadratic.regret"):
        assert found[name].value is None
        assert "points coincide" in found[name].about
    assert found["quadratic.excess_kl"].value is None
    assert found["quadratic.reward"].value == 0


@pytest.mark.parametrize("n", [1, 49])
def test_too_few_points_tell_rewards_but_no_divergences(n):
    found = measured(grid(), "quadratic", grid().mixture.sample(KEY("few"), n))
    assert found["quadratic.reward"].value is not None
    for name in ("kl", "quadratic.regret", "quadratic.excess_kl"):
        assert found[name].value is None
        assert "fewer than 50" in found[name].about
    assert found["quadratic.covariance"].value is None or n > 30


def test_images_of_one_prompt_are_one_unit():
    """The same points as twenty prompts of fifty equal images have an interval that is seven times as wide."""
    problem, x = grid(), grid().mixture.sample(KEY("unit"), 1000)
    spread = x[:20].repeat_interleave(50, 0) + 1e-3 * KEY("jitter").normal(1000, 2)
    prompts = torch.arange(20).repeat_interleave(50)
    alone = measure(problem, ["quadratic"], spread, torch.arange(1000), KEY)["quadratic.reward"]
    together = measure(problem, ["quadratic"], spread, prompts, KEY)["quadratic.reward"]
    assert together.value == pytest.approx(alone.value)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(50**0.5, rel=0.25)


def pipeline(mixture: Mixture) -> MixturePipeline:
    return MixturePipeline(mixture, exact_schedule(), Meter())


def some(n: int) -> tuple[list[Prompt], list[Key]]:
    return [Prompt(f"p{i}", f"point {i}") for i in range(n)], [KEY("sample", i) for i in range(n)]


def test_a_deterministic_chain_knows_its_density():
    """On one Gaussian every DDIM step is affine: x_0 = A x_T + b, so q = N(b, AAᵀ), read off from the points."""
    prompts, keys = some(40)
    model, sampling = pipeline(toy("gaussian").mixture), Sampling(10, 1.0, 0.0)
    start, end = model.initial_noise(keys).double(), PipelineSampler(model, sampling)(prompts, keys).images.double()
    solution = torch.linalg.lstsq(torch.cat([start, torch.ones(40, 1)], 1), end).solution
    a, b = solution[:2].T, solution[2]
    expected = torch.distributions.MultivariateNormal(b, a @ a.T).log_prob(end)
    found = density_of_chain(model, prompts, keys, sampling)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="a chain with noise has no change of variables; use eta = 0"):
        density_of_chain(model, prompts, keys, Sampling(10, 1.0, 1.0))


@pytest.mark.parametrize("name", ["overlap", pytest.param("grid64", marks=pytest.mark.slow)])
def test_the_exact_kernel_reproduces_the_reference_in_any_number_of_steps(name):
    problem, (prompts, keys) = toy(name), some(2000)
    model = pipeline(problem.mixture)
    for steps in (1, 4):
        points = PipelineSampler(model, Sampling(steps, 1.0, kernel="exact"))(prompts, keys).images
        found = measured(problem, "quadratic", points)
        assert abs(found["kl"].value) < 0.04
        assert found["quadratic.reward"].value == pytest.approx(
            moments(problem.mixture, problem.rewards["quadratic"])[0], abs=0.6
        )
        assert "nuisance" not in found or found["nuisance"].value < 2 * found["nuisance"].floor


@pytest.mark.slow
def test_ddim_and_the_exact_kernel_differ_by_discretisation_alone():
    problem, (prompts, keys) = toy("gaussian"), some(1000)
    model = pipeline(problem.mixture)

    def error(steps: int) -> float:
        return values(
            measured(problem, "linear", PipelineSampler(model, Sampling(steps, 1.0, 1.0))(prompts, keys).images)
        )["kl"]

    assert error(5) > 0.3 > 0.1 > error(20) > error(100) - 0.02


def test_the_exact_kernel_counts_and_refuses_what_it_cannot_do():
    prompts, keys = some(3)
    model, exact = pipeline(grid().mixture), Sampling(4, 1.0, kernel="exact")
    sampler = PipelineSampler(model, exact)
    sampler(prompts, keys)
    assert model.meter.total.denoiser_forward == 12
    assert sampler.describe() == {"kind": "exact", "steps": 4}
    assert sampler.divergence() == 0.0
    policy = PipelineSampler(model.adapt(LoRA(), KEY), exact)
    assert policy.divergence() is None
    with pytest.raises(Unsupported, match="the exact reverse kernel is the reference's"):
        policy(prompts, keys)
    with pytest.raises(Unsupported, match="needs Gaussian steps, and those of kernel 'exact' are not"):
        rollout(model, model.condition(prompts), keys, exact)


def test_a_model_is_of_the_problem_its_prompts_carry_and_refuses_others():
    prompts = {name: plugins.load("benchmarks", name)().prompts("train") for name in ("ring", "grid64")}
    model = load(find("mixture"), Meter(), prompts=prompts["grid64"])
    assert model.latent_shape == (64,)
    assert model.info()["problem"] == "grid64"
    assert len(model.info()["problem_sha256"]) == 64
    model.condition(prompts["grid64"][:2])
    with pytest.raises(InputError, match="of problem 'ring', but the model is of problem 'grid64'; use one for both"):
        model.condition(prompts["ring"][:2])


def cell(tmp_path: Path, algo: str, prompts: str = "grid", **options) -> results.Result:
    spec = RunOptions(algo=algo, model="mixture", prompts=prompts, output=tmp_path, **options)
    outcome = run_cell(resolve(spec), quiet=True)
    return results.read(outcome.path)


def found_in(result: results.Result, name: str) -> results.Metric:
    return result.metrics[f"{result.configuration.reward}.{name}"]


# What each algorithm has to reach in seconds: (options, largest regret at β = 1, largest excess KL), chosen on dev at
# about twice what it scored. An algorithm that is not here fails the test.
EXACT = {"kernel": "exact", "steps": 3}
FEW = {"limit": 400}  # points, where the method is slow and not noisy
SHORT = {
    "base": ({**EXACT, **FEW}, None, 0.06),
    "best_of_n": ({**EXACT, **FEW, "set": {"n": 8}}, 0.4, 0.3),
    "diffusion_dpo": ({"steps": 20, "set": {"rounds": 10, "pairs_per_update": 256, "batch": 256}}, 0.2, 0.15),
    "sft": ({"steps": 20, "set": {"rounds": 10, "pairs_per_update": 256, "batch": 256}}, 1.0, 0.25),
    "ddpo": ({"steps": 20, "set": {"rounds": 20, "samples_per_round": 512, "batch": 512}}, 0.11, 0.1),
    "draft": ({"steps": 20}, 0.2, 0.18),
    "diffusion_kto": ({"steps": 20}, 0.7, 0.25),
    "mapo": ({"steps": 20}, 0.25, 0.12),
    "rollover": ({**FEW, "steps": 10, "set": {"candidates": 3}}, 1.2, 1.0),
    "refl": ({"steps": 20, "set": {"steps": 20, "samples_per_update": 128, "batch": 128}}, 0.25, 0.15),
    "dpok": ({"steps": 20, "set": {"rounds": 15}}, 0.3, 0.16),
    "flow_grpo": ({"steps": 20, "set": {"rounds": 15}}, 0.3, 0.16),
    "diffusion_nft": ({"steps": 20}, 0.3, 0.16),
    "awm": ({"steps": 20}, 0.3, 0.16),
    "d3po": ({"steps": 20, "set": {"samples_per_round": 256}}, 0.27, 0.18),
    "reward_weighted_regression": ({"set": {"samples_per_round": 1024, "updates_per_round": 4}}, 0.24, 0.15),
    "classifier_guidance": ({**FEW, "steps": 50}, 0.08, 0.08),
    "universal_guidance": ({**FEW, "steps": 20}, 0.16, 0.15),
    "svdd": ({**FEW, "steps": 20, "set": {"candidates": 8}}, 0.33, 0.12),
    "steering": ({"steps": 20, "set": {"n": 16, "interval": 4}}, 0.38, 0.15),
    "demon": ({**FEW, "set": {"candidates": 4, "steps": 15, "value_steps": 3}}, 0.36, 0.11),
    "doodl": ({**FEW, "set": {"steps": 10, "updates": 4}}, 0.94, 0.09),
    "noise_search": ({**FEW, "steps": 10, "set": {"iterations": 2}}, 0.96, 0.26),
}


# Their cells on the testbed are committed and checked with every run; here they train anew, for ten seconds each.
SLOW = (
    "awm", "d3po", "ddpo", "diffusion_dpo", "diffusion_kto", "diffusion_nft", "dpok", "draft", "flow_grpo", "mapo",
    "classifier_guidance", "refl", "reward_weighted_regression", "sft", "steering", "svdd", "universal_guidance",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in plugins.own_names("algorithms")]
)
def test_an_algorithm_comes_close_to_the_optimum_of_the_easy_problem(name, tmp_path):
    assert name in SHORT, f"state what {name} reaches on the gaussian problem"
    options, regret, excess = SHORT[name]
    result = cell(tmp_path, name, "gaussian", **options)
    if regret is None:
        assert abs(result.metrics["kl_by_neighbours"].value) < excess
        assert abs(found_in(result, "reward").value - 0.5) < 0.15
    else:
        assert found_in(result, "excess_kl").value < excess
        assert found_in(result, "regret").value < regret
        assert 0.9 < found_in(result, "reward").value < 3.2  # 0.5 before, 2.25 at the optimum
    if "path_kl" in result.metrics:
        assert result.metrics["path_kl"].low > result.metrics["kl"].value  # a bound, here by far


@pytest.mark.slow
def test_ddpos_gradient_is_that_of_the_expected_reward():
    """Sign and scale: −∇ of the mean reward over the number of actions, as differentiating through the chain gives it.

    Two estimators of one gradient, for the last bias of the residual network: from log densities and rewards alone
    (REINFORCE, sums over elements), and by automatic differentiation of the reward of every sampled point.
    """
    problem, n = toy("gaussian"), 12_000
    model, sampling = pipeline(problem.mixture), Sampling(6, 1.0, 1.0)
    policy = model.adapt(LoRA(), KEY("policy"))
    bias, condition = policy.network[-1].bias, policy.condition([Prompt("p", "point")] * n)
    keys = [KEY("path", i) for i in range(n)]
    path = rollout(policy, condition, keys, sampling, "sum")
    reward = problem.rewards["linear"]
    with torch.no_grad():
        rewards = reward(path.final).float()
    ddpo = plugins.load("algorithms", "ddpo")
    algorithm = ddpo(estimator="reinforce", updates_per_round=1, reduction="sum", batch=n)
    losses = algorithm.losses(ALONE, policy, path, rewards - rewards.mean(), range(n), KEY("actions"), [])
    found = sum(torch.autograd.grad(loss, bias)[0] for loss in losses)

    latents = policy.initial_noise(keys)
    *_, last = denoise(policy, latents, policy.timesteps(6), condition, sampling, keys)
    (through,) = torch.autograd.grad(reward(last).mean(), bias)
    expected = -through.float() / len(path.actions)
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.05 * float(expected.norm()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "n"),
    [("grid", 2), *(pytest.param(name, 8, marks=pytest.mark.slow) for name in ("gaussian", "grid", "overlap"))],
)
def test_best_of_n_lands_on_its_exact_divergence(problem, n, tmp_path):
    """The neighbours' estimate, which knows nothing of n, agrees with log n − (n − 1)/n."""
    result = cell(tmp_path, "best_of_n", problem, kernel="exact", steps=2, set={"n": n}, images_per_prompt=2)
    exact = math.log(n) - (n - 1) / n
    assert result.metrics["kl"].value == pytest.approx(exact)
    assert result.metrics["kl"].kind == "exact"
    estimate = result.metrics["kl_by_neighbours"]
    assert estimate.value == pytest.approx(exact, abs=0.06)
    r = toy(problem).rewards[result.configuration.reward]
    earned = r(toy(problem).mixture.sample(KEY("quantiles"), 200_000)).sort().values
    edges = (torch.arange(len(earned) + 1).double() / len(earned)) ** n
    m = found_in(result, "reward")
    assert abs(m.value - float((edges.diff() * earned).sum())) < 1.6 * (m.high - m.low)


def test_a_ddim_cell_has_no_exact_divergence_and_a_trained_one_a_bound(tmp_path):
    base = cell(tmp_path, "base", "gaussian", steps=5, limit=200)
    assert base.metrics["kl"].kind == "estimate"
    assert not {"path_kl", "kl_by_neighbours"} & set(base.metrics)
    small = {"rounds": 3, "samples_per_round": 64, "batch": 64}
    trained = cell(tmp_path, "ddpo", "gaussian", steps=5, limit=200, set=small)
    assert trained.metrics["path_kl"].kind == "upper bound"
    assert trained.metrics["path_kl"].value > 0
    chain = cell(tmp_path, "base", "gaussian", steps=20, limit=200, eta=0.0)
    assert "change of variables" in chain.metrics["kl"].about


@pytest.mark.slow
def test_the_change_of_variables_agrees_with_the_neighbours_where_nothing_is_affine(tmp_path):
    """DDIM in ten steps on overlapping modes: the divergence it leaves is seen by both."""
    metrics = cell(tmp_path, "base", "overlap", steps=10, eta=0.0, images_per_prompt=2).metrics
    exact, estimate = metrics["kl"], metrics["kl_by_neighbours"]
    assert exact.value > 0.02
    assert exact.high - exact.low < estimate.high - estimate.low
    assert estimate.low - 0.01 < exact.value < estimate.high + 0.01


def test_one_image_of_a_trained_policy_has_a_bound_without_interval(tmp_path):
    small = {"rounds": 1, "samples_per_round": 32, "batch": 32}
    bound = cell(tmp_path, "ddpo", "gaussian", steps=5, limit=1, set=small).metrics["path_kl"]
    assert bound.value is not None
    assert (bound.low, bound.high) == (None, None)


def test_a_cell_without_a_reward_of_the_problem_still_has_its_divergence(tmp_path):
    toy_reward = f"{TOY}:FirstCoordinate"
    result = cell(tmp_path, "best_of_n", kernel="exact", steps=2, reward=toy_reward, scorers=(toy_reward,))
    assert result.metrics["kl"].kind == "estimate"  # the reward might have ties: n is no proof of a divergence
    assert result.metrics["kl"].value == pytest.approx(math.log(4) - 3 / 4, abs=0.1)
    assert result.frontiers == {}


def test_measuring_is_not_part_of_the_cost(tmp_path):
    result = cell(tmp_path, "base", "gaussian", steps=5, limit=100, eta=0.0)
    assert result.cost is not None
    assert result.cost.per_image["denoiser_forward"] == 5
    assert result.cost.per_image["denoiser_backward"] == 0


def test_the_schedule_is_part_of_the_evaluation():
    one = pipeline(grid().mixture)
    other = MixturePipeline(grid().mixture, replace(one.schedule, chained=False), Meter())
    assert one.info() != other.info()
    assert one.info() == pipeline(grid().mixture).info()


def test_a_cell_run_again_has_the_same_metrics(tmp_path):
    one, two = (cell(tmp_path / folder, "base", "ring", steps=3, limit=100) for folder in ("a", "b"))
    assert one.metrics == two.metrics
    assert one.frontiers == two.frontiers
    assert list(one.frontiers) == ["quadratic", "quadratic_proxy"]


def test_a_reward_that_is_not_named_is_the_problems_own(tmp_path):
    assert cell(tmp_path, "base", "gaussian", steps=2, limit=20).configuration.reward == "linear"
    assert cell(tmp_path, "base", "ring", steps=2, limit=20).configuration.reward == "quadratic"
    with pytest.raises(
        InputError, match=r"scorer 'linear' cannot score these prompts: problem 'ring' has no such reward"
    ):
        cell(tmp_path, "base", "ring", reward="linear")


def test_a_trained_policy_on_the_exact_kernel_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="--kernel exact: a policy that 'ddpo' trains has no exact kernel; leave it out"
    ):
        cell(tmp_path, "ddpo", "gaussian", kernel="exact", limit=20)


def test_a_tuning_that_the_residual_network_cannot_stand_for_is_a_row_that_says_so(tmp_path):
    result = cell(tmp_path, "ddpo", "gaussian", limit=20, set={"tuning": "bias"})
    assert result.status == "unsupported"
    assert result.reason == "the exact denoiser has no weights to tune; its residual network stands for a LoRA."


def test_the_rank_is_the_width_of_the_residual_network():
    model = pipeline(grid().mixture)
    assert [model.adapt(LoRA(rank), KEY).network[0].out_features for rank in (1, 4)] == [16, 64]


def test_a_cell_has_preference_pairs_labelled_by_the_reward_it_optimises(tmp_path):
    """A method that learns from pairs finds them on the problem, as it would a file's."""
    found = {}
    for reward in ("quadratic", "quadratic_proxy"):
        spec = RunOptions(algo="diffusion_dpo", model="mixture", prompts="overlap", reward=reward, output=tmp_path)
        resolved = resolve(spec)
        model = load(resolved.model, Meter(), prompts=resolved.evaluated)
        pairs = resolved.family.pairs(model, reward, resolved.training, Key("align", 0)("pairs"), 10_000)
        assert isinstance(pairs, Pairs)
        assert len(pairs) == 10_000
        batch = pairs.batch(range(500))
        r = toy("overlap").rewards[reward]
        found[reward] = float((r(batch.winner) > r(batch.loser)).double().mean())
    assert all(0.75 < share < 0.97 for share in found.values())  # the better point usually wins, not always


def test_prompts_without_a_problem_have_no_metrics(toy_cell):
    result = run_cell(resolve(RunOptions(**toy_cell("base"))), quiet=True).result
    assert result.metrics == {}
    assert result.frontiers == {}


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cuda"}, {"guidance": 2.0}])
def test_the_mixture_refuses_what_it_would_ignore(options, tmp_path):
    with pytest.raises(InputError, match=r"^--\w+ \S+: model 'mixture' .*; leave it out\.$"):
        cell(tmp_path, "base", **options)


def test_training_on_one_problem_and_evaluating_on_another_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"several exact problems \(grid, ring\); use those of one"):
        cell(tmp_path, "ddpo", "grid", train_prompts="ring", limit=20, set={"rounds": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two base cells, two best-of-n cells of one problem, and a trained one of another with two seeds."""
    path = tmp_path_factory.mktemp("results")
    torch.set_num_threads(1)
    cell(path, "base", kernel="exact", steps=2, limit=300)
    for n in (2, 8):
        cell(path, "best_of_n", kernel="exact", steps=2, limit=300, set={"n": n})
    for seed in (1, 2):
        cell(path, "ddpo", "gaussian", steps=5, limit=100, seed=seed, set={"rounds": 1, "samples_per_round": 32})
    return path


def test_compare_shows_regret_excess_and_compute(folder, capsys):
    assert run_command_line(["compare", str(folder)]) == 0
    printed = capsys.readouterr().out
    title = "quadratic: distance from the optimum (nats)"
    assert title in printed
    lines = printed[printed.index(title) :].split("\n")
    assert "regret" in lines[1]
    assert "excess KL" in lines[1]
    assert "NFE/image" in lines[1]
    assert lines[3].split()[:5] == ["optimum", "at", "β", "=", "1"]
    (row,) = [line for line in lines[:8] if line.startswith("best_of_n n=8")]
    assert f"{math.log(8) - 7 / 8:.3f}" in row
    (base,) = [line for line in lines[:8] if line.startswith("base")]
    assert "≈" in base  # on the frontier, at no divergence
    assert "path KL" in printed
    assert "Optimum: p* ∝ p_ref exp(r/β)" in printed


def test_the_comparison_pools_seeds_of_metrics(folder):
    comparison = compare([folder])
    (group,) = [g for g in comparison.groups if g.evaluation.prompts == "gaussian"]
    (standing,) = [s for s in group.optimality if s.scorer == "linear"]
    runs = [results.read(path) for path in sorted(folder.glob("*ddpo*seed*.json"))]
    expected = [run.metrics["linear.regret"].value for run in runs]
    assert standing.metrics["regret"].seeds == expected
    assert standing.metrics["regret"].value == pytest.approx(sum(expected) / 2)
    assert standing.metrics["regret"].covers == "training seeds"
    assert standing.metrics["regret"].low < min(expected)  # two seeds: one degree of freedom
    assert (
        standing.alignment_nfe
        == runs[0].cost.alignment["denoiser_forward"] + runs[0].cost.alignment["denoiser_backward"]
    )


def test_a_metric_that_one_seed_lacks_is_not_pooled(folder):
    one, two = (results.read(path) for path in sorted(folder.glob("*ddpo*seed*.json")))
    lacking = two.model_copy(
        update={"metrics": {**two.metrics, "kl": two.metrics["kl"].model_copy(update={"value": None})}}
    )
    assert pooled([one, two], "kl") is not None
    assert pooled([one, lacking], "kl") is None


def test_a_run_says_how_far_from_the_optimum_it_is(folder, capsys):
    path = next(folder.glob("*-base-*.json"))
    assert run_command_line(["show", str(path)]) == 0
    printed = capsys.readouterr().out
    metric = results.read(path).metrics["quadratic.regret"]
    assert (
        f"optimum     quadratic: regret {metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f}), excess KL"
        in printed
    )
    assert "KL 0.000 exactly (nats)" in printed
    assert run_command_line(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["quadratic.regret"]["value"] == metric.value


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "json"])
def test_every_format_holds_the_distances(folder, form, capsys):
    assert run_command_line(["compare", str(folder), "--format", form]) == 0
    printed = capsys.readouterr().out
    if form == "json":
        groups = json.loads(printed)["groups"]
        assert {s["method"] for g in groups for s in g["optimality"]} >= {"base", "ddpo"}
        assert all(g["targets"] for g in groups)
    else:
        assert "distance from the optimum" in printed


def test_frontier_data_as_csv(folder, capsys):
    assert run_command_line(["frontier", str(folder), "--format", "csv", "--scorer", "quadratic"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert {row["scorer"] for row in rows} == {"quadratic"}
    curve = [(float(r["kl"]), float(r["reward"])) for r in rows if r["kind"] == "frontier"]
    assert curve == sorted(curve)
    assert curve[0][0] == pytest.approx(0, abs=1e-12)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(curve)]
    assert slopes == sorted(slopes, reverse=True)  # concave
    (optimum,) = [r for r in rows if r["kind"] == "frontier" and r["beta"] and abs(float(r["beta"]) - 1) < 1e-9]
    assert float(optimum["reward"]) == pytest.approx(-0.290720, abs=1e-6)
    methods = {r["method"]: r for r in rows if r["kind"] == "method" and float(r["beta"]) == 0.3}
    assert set(methods) == {"base", "best_of_n n=2", "best_of_n n=8"}
    assert methods["best_of_n n=2"]["kl_kind"] == "exact"
    assert float(methods["best_of_n n=8"]["image_nfe"]) == 16
    best = methods["best_of_n n=2"]
    objective = float(best["reward"]) - 0.3 * float(best["kl"])
    problem = grid()
    missed = Frontier(problem.mixture, problem.rewards["quadratic"]).optimum(0.3) - objective
    assert float(best["regret"]) == pytest.approx(missed, abs=1e-9)


def test_the_frontier_figure_has_a_panel_per_problem_whose_reward_was_optimised(folder, tmp_path, capsys):
    found = panels([folder])
    assert [(p.problem, p.scorer) for p in found] == [
        ("gaussian", "linear"), ("gaussian", "linear_proxy"), ("grid", "quadratic"), ("grid", "quadratic_proxy"),
    ]  # fmt: skip
    axes = {axis.get_title(): axis for axis in frontier_figure(found).axes}
    assert list(axes) == ["gaussian, reward linear", "grid, reward quadratic"]
    axis = axes["grid, reward quadratic"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "the best there is", "the best at β = 1", "the model", "at test time",
    ]  # fmt: skip
    assert {text.get_text() for text in axis.texts} == {"base", "best_of_n n=8"}
    assert run_command_line(["frontier", str(folder), "--output", str(tmp_path / "f.svg")]) == 0
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    printed = capsys.readouterr().out
    assert "not drawn: 2 more evaluations or rewards" in printed
    assert "written to" in printed


def test_frontier_refuses_what_it_cannot_draw(folder, tmp_path, make_result, capsys):
    assert run_command_line(["frontier", str(folder), "--output", str(tmp_path / "f.gif")]) == 2
    assert "expected a .png, .pdf or .svg file" in capsys.readouterr().err
    assert run_command_line(["frontier", str(folder), "--format", "csv", "--output", str(tmp_path / "f.png")]) == 2
    assert "f.png: --format csv is text; name a .csv file." in capsys.readouterr().err
    with pytest.raises(
        InputError, match="none of these files is of a problem with a known optimum; run --model mixture"
    ):
        panels([make_result("other", [1.0, 2.0])])
    with pytest.raises(UnknownName, match="no scorer with a frontier in these files named 'linea'"):
        panels([folder], ["linea"])


def test_a_dry_run_on_the_wide_problem_counts_its_cost(tmp_path, capsys):
    arguments = ["run", "--algo", "best_of_n", "--model", "mixture", "--prompts", "grid64", "--kernel", "exact"]
    assert run_command_line([*arguments, "--steps", "5", "--dry-run", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "20k denoiser evaluations forward" in printed
    assert "kernel=exact" in printed


def test_an_infinite_divergence_is_named_and_not_drawn(make_result, tmp_path, capsys):
    """A method that collapsed to a point: its reward is shown, the rest is a dash with the reason below."""
    collapsed = {"value": None, "kind": "estimate", "about": "points coincide"}
    sound = {"value": 0.5, "low": 0.4, "high": 0.6, "kind": "estimate", "about": "as measured"}
    names = ("kl", "r.regret", "r.excess_kl")
    path = make_result(
        "collapsed", [1.0, 2.0],
        metrics={"r.reward": sound, **dict.fromkeys(names, collapsed), "r.mode_tv": sound, "r.covariance": sound},
        frontiers={"r": {"beta": 1.0, "points": [(0.0, 0.0, 0.0), (1.0, 1.0, 0.5)]}},
    )  # fmt: skip
    assert run_command_line(["compare", str(path)]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("base ") and "0.500" in line]
    assert row.count("–") >= 3
    assert "base: r kl: points coincide." in printed
    assert run_command_line(["frontier", str(path), "--output", str(tmp_path / "f.png")]) == 0
    assert "not drawn on shapes: base (points coincide)" in capsys.readouterr().out


@pytest.mark.parametrize("beta", [0.7, 200.0])
def test_the_optimum_is_shown_at_the_problems_own_beta(beta, tmp_path, monkeypatch):
    """Whatever it is: the stored frontier has the point, and regrets are given there too."""
    own = ExactProblem("grid", grid().mixture, grid().rewards, beta)
    monkeypatch.setattr(sys.modules[plugins.load("benchmarks", "grid").__module__], "grid", lambda: own)
    cell(tmp_path, "base", kernel="exact", steps=1, limit=100)
    (panel, _) = panels([tmp_path])
    reward, kl = Frontier(own.mixture, own.rewards["quadratic"]).at(1 / beta)
    assert (panel.target.beta, panel.target.reward, panel.target.kl) == pytest.approx((beta, reward, kl))
    (standing,) = panel.standings
    assert regrets(panel.target, standing.metrics)[beta] == standing.metrics["regret"].value
