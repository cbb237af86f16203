"""Every number of a comparison, computed a second time by tests/support/recomputed.py, on random result files."""

from __future__ import annotations

import numpy as np
import pytest
import recomputed
import scipy.stats
from places import ROOT

from alignbench.analysis.compare import compare
from alignbench.analysis.load import load, methods_of
from alignbench.keys import Key

FEW, MANY = 60, 130
LOW_IS_GOOD = {"s": {"higher_is_better": False, "tie_epsilon": 0.25}}


def drawn_scores(rng, kind, rows):
    """Scores of one file: steps that often tie, numbers that never do, some with a long tail, zeros but for a few, or
    nothing that varies."""
    return {
        "steps": lambda: rng.integers(0, 3, rows) / 2.0,
        "real": lambda: rng.normal(rng.normal(0, 0.5), 1, rows),
        "large": lambda: 1000 + rng.exponential(1.0, rows) ** 2,
        "few": lambda: np.where(rng.random(rows) < 0.15, rng.normal(1, 1, rows), 0.0),
        "constant": lambda: np.full(rows, 0.1 * int(rng.integers(1, 4))),
    }[kind]()


def drawn_files(make_result, rng):
    """Files of a baseline and up to three methods: {name: paths}, and the baseline's name."""
    prompts = int(rng.choice([1, 2, 3, 5, 8, 12, 20, 40]))
    images = int(rng.integers(1, 5))
    kinds = {name: str(rng.choice(["steps", "real", "real", "large", "few", "constant"])) for name in ("r", "s")}
    nulls, gaps = rng.choice([0, 0, 0.05, 0.3]), rng.choice([0, 0, 0.05, 0.4])
    level = {name: rng.normal(0, 1, (prompts, images)).round(1) for name in kinds}
    methods = {}
    for name in ["base", "best_of_n", "ddpo", "dpok"][: 2 + int(rng.integers(3))]:
        trained = rng.random() < (0.3 if name == "base" else 0.6)
        methods[name] = []
        for seed in range(int(rng.integers(1, 5))) if trained else [None]:
            rows = [(p, k) for p in range(prompts) for k in range(images) if rng.random() >= gaps] or [(0, 0)]
            scores = {
                scorer: [
                    None if rng.random() < nulls else float(x + (kind == "real") * level[scorer][row])
                    for x, row in zip(drawn_scores(rng, kind, len(rows)), rows, strict=True)
                ]
                for scorer, kind in kinds.items()
            }
            methods[name].append(
                make_result(
                    f"{name}-{seed}", scores, name, seed=seed, samples=images, scorers=LOW_IS_GOOD,
                    pairs=[(f"p{p}", k) for p, k in rows],
                )
            )  # fmt: skip
    return methods, "base"


def close(found, expected, relative=1e-9, absolute=1e-11):
    return found == pytest.approx(expected, rel=relative, abs=absolute, nan_ok=True)


def differing(versus, marked):
    """The names of all that the two have differently."""
    row = marked.row
    scale = max(abs(row.mean), abs(row.baseline_mean), 1.0)
    agreed = {
        "rate": close(versus.rate.rate, row.rate.value),
        "rate low": close(versus.rate.low, row.rate.low, absolute=1e-7),
        "rate high": close(versus.rate.high, row.rate.high, absolute=1e-7),
        "ties": close(versus.rate.ties, row.ties),
        "pairs": versus.rate.pairs == row.pairs,
        "units": versus.rate.prompts == row.units,
        "effective": close(versus.rate.effective, row.effective),
        "rate p": close(versus.rate_test.p, row.rate.p, absolute=1e-9),
        "rate adjusted": close(versus.rate_test.adjusted, marked.adjusted[0], absolute=1e-9),
        "rate mark": versus.rate_test.mark == marked.marks[0],
        "mean": close(versus.mean, row.mean, absolute=1e-12 * scale),
        "baseline mean": close(versus.baseline_mean, row.baseline_mean, absolute=1e-12 * scale),
        "difference": close(versus.difference, row.apart.value, absolute=1e-12 * scale),
        "difference low": close(versus.difference_low, row.apart.low, absolute=1e-11 * scale),
        "difference high": close(versus.difference_high, row.apart.high, absolute=1e-11 * scale),
        "difference p": close(versus.difference_test.p, row.apart.p, absolute=1e-9),
        "difference adjusted": close(versus.difference_test.adjusted, marked.adjusted[1], absolute=1e-9),
        "difference mark": versus.difference_test.mark == marked.marks[1],
        "effect": close(versus.effect, row.effect),
        "family": versus.family == marked.family,
        "failed": versus.failed == row.failed,
        "if failed": (versus.if_failed is None) == (row.if_failed is None)
        and (row.if_failed is None or close(versus.if_failed, row.if_failed)),
        "seeds": [s for s, _ in versus.seeds] == [s for s, _ in row.seeds]
        and close([r for _, r in versus.seeds], [r for _, r in row.seeds]),
        "this run": versus.this_run == row.one_seed,
    }
    return [name for name, same in agreed.items() if not same]


def versus_disagreements(group, methods, family):
    """What the two computations of a table have differently, a line each."""
    found = {(v.method, v.scorer): v for v in group.versus}
    expected = {(m.row.method, m.row.scorer): m for m in recomputed.table(methods, group.baseline, family)}
    if found.keys() != expected.keys():
        return [f"rows: {sorted(found)} and {sorted(expected)}"]
    return [f"{key}: {', '.join(d)}" for key, v in found.items() if (d := differing(v, expected[key]))]


def rank_disagreements(group, methods):
    """What the two have differently in ranks and the pairwise matrix."""
    found = []
    for scorer, ranks in group.ranks.items():
        again = recomputed.strengths({name: methods[name] for name in group.methods}, scorer)
        if again is None or ranks is None:
            continue
        stronger = again.theta[None] > again.theta[:, None] + 1e-9
        half = (ranks.high - ranks.low) / 2 / scipy.stats.t.ppf(0.975, max(1, again.units - 1))
        of_units_alone = all(len(paths) == 1 for paths in methods.values())
        told = np.isfinite(half) & (again.errors > 1e-6) & of_units_alone
        agreed = {
            "pairwise": close(group.pairwise[scorer], again.pooled),
            "strength": close(ranks.strength, again.theta, absolute=1e-9),
            "place": (ranks.place == 1 + stronger.sum(1)).all(),
            "error": close(half[told], again.errors[told], relative=1e-6),
        }
        found += [f"{scorer}: {name}" for name, same in agreed.items() if not same]
    return found


def duel_disagreements(group, methods):
    """What the two have differently of every two methods."""
    files = {name: [recomputed.read(path) for path in paths] for name, paths in methods.items()}
    every = [file for own in files.values() for file in own]
    found = []
    for duel in group.duels:
        again = recomputed.row(duel.method, files[duel.method], files[duel.against], duel.scorer, every)
        agreed = close(tuple(duel.rate)[:3], (again.rate.value, again.rate.low, again.rate.high), absolute=1e-7)
        if not (agreed and close(duel.rate_test.p, again.rate.p, absolute=1e-9)):
            found.append(f"{duel.method} and {duel.against} on {duel.scorer}")
    return found


def disagreements(methods, baseline="base", family="scorer", duels=False):
    (group,) = compare(
        [path for paths in methods.values() for path in paths], baseline, family=family, duels=duels
    ).groups
    return [
        *versus_disagreements(group, methods, family),
        *rank_disagreements(group, methods),
        *duel_disagreements(group, methods),
    ]


def drawn_disagreements(make_result, number):
    methods, baseline = drawn_files(make_result, Key("recomputed", number).generator())
    return disagreements(methods, baseline, ("scorer", "table", "none")[number % 3], duels=number % 4 == 0)


@pytest.mark.parametrize("number", range(FEW))
def test_every_number_is_the_same_when_computed_again(make_result, number):
    assert drawn_disagreements(make_result, number) == []


@pytest.mark.parametrize("differing", [8, 9, 10, 11])
def test_few_prompts_that_differ_are_as_few_in_both(make_result, differing):
    base = make_result("base", [0.0] * 20)
    best = make_result("best", [1.0 + i for i in range(differing)] + [0.0] * (20 - differing), "best_of_n")
    assert disagreements({"base": [base], "best_of_n": [best]}) == []


@pytest.mark.slow
def test_every_number_of_many_tables_is_the_same_when_computed_again(make_result):
    assert {number: found for number in range(FEW, MANY) if (found := drawn_disagreements(make_result, number))} == {}


def committed(folder):
    """{method: paths} of every evaluation among the committed results that has a base."""
    tables = [methods_of(runs) for runs in load([folder]).groups.values()]
    named = [{method.label: [run.path for run in method.runs] for method in methods} for methods in tables]
    return [methods for methods in named if "base" in methods and len(methods) > 1]


@pytest.mark.slow
def test_the_table_of_the_embedded_model_is_the_same_when_computed_again():
    (methods,) = committed(ROOT / "results")
    assert disagreements(methods) == []


@pytest.mark.slow
def test_the_tables_of_the_testbed_are_the_same_when_computed_again():
    tables = committed(ROOT / "results" / "testbed")
    assert len(tables) > 3
    for methods in tables[::3]:
        assert disagreements(methods) == []
