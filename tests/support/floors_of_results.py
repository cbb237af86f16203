"""Floors in committed results of the testbed, written anew: `python tests/support/floors_of_results.py`.

A floor says what exact draws from the optimum score. It follows from the problem, the number of points, the way log q
is known and the mean reward, all of which a result keeps; so where the way of finding floors is mended, the files are,
and no method runs again. Floors and the range of exact draws' covariances change, and the digest. Nothing else does.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))

from places import ROOT
from published_values import sealed

from alignbench import plugins
from alignbench.files import write_text
from alignbench.keys import Key
from alignbench.testbed import floors
from alignbench.testbed.exact_problem import ExactProblem, problem_of
from alignbench.testbed.scores import about_covariance

KEY = Key("optimality")  # as in alignbench/experiment/optimality.py

Metrics = dict[str, dict[str, Any]]


@functools.cache
def problem_named(prompts: str) -> ExactProblem:
    found = problem_of(plugins.load("benchmarks", prompts)().prompts("test")[:1])
    assert found is not None
    return found


@functools.cache
def of_optimum(prompts: str, reward: str, n: int, source: floors.Source) -> floors.OfOptimum:
    """The same for all methods."""
    return floors.of_optimum(problem_named(prompts).flat, reward, n, source, KEY(reward))


@functools.cache
def of_nuisance(n: int, axes: int) -> float:
    return floors.of_nuisance(floors.nuisance_of_draws(n, axes, KEY("nuisance"), floors.FLOOR_REPLICATES))


def with_floors(metrics: Metrics, prompts: str, n: int) -> Metrics:
    """The metrics of a cell of n points, with the floors of today. Metrics without a number have none."""
    (source,) = [name for name in get_args(floors.Source) if f"log q by {name}" in metrics["kl"]["about"]]
    problem = problem_named(prompts)
    found: Metrics = {}
    for reward in problem.rewards:
        if f"{reward}.reward" not in metrics:
            continue
        optimum, earned = of_optimum(prompts, reward, n, source), metrics[f"{reward}.reward"]["value"]
        excess = floors.of_excess(problem.flat, reward, earned, n, source, KEY(reward))
        for name, floor in (("regret", optimum.regret), ("excess_kl", excess), ("mode_tv", optimum.mode_tv)):
            found[f"{reward}.{name}"] = {"floor": floor}
        found[f"{reward}.covariance"] = {"about": about_covariance(*optimum.covariance)}
    if "nuisance" in metrics:
        found["nuisance"] = {"floor": of_nuisance(n, problem.mixture.dimension - problem.flat.mixture.dimension)}
    return {
        name: metric | (found.get(name, {}) if metric["value"] is not None else {}) for name, metric in metrics.items()
    }


def rewritten(text: str) -> str:
    """A result file with the floors of today and the digest that goes with them; all other lines as they are."""
    content = json.loads(text)
    metrics = with_floors(content["metrics"], content["evaluation"]["prompts"], len(content["rows"]))
    if metrics == content["metrics"]:
        return text
    line = f' "metrics": {json.dumps(metrics, ensure_ascii=False, allow_nan=False)},\n'
    text, lines = re.subn(r'^ "metrics": .*\n', lambda _: line, text, flags=re.M)
    assert lines == 1
    return sealed(text, content | {"metrics": metrics})


if __name__ == "__main__":
    for path in sorted((ROOT / "results" / "testbed").glob("*.json")):
        old = path.read_text(encoding="utf-8")
        if (new := rewritten(old)) != old:
            write_text(path, new)
            print(path.relative_to(ROOT))
