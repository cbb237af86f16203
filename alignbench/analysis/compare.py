"""Comparing result files: paired win rates against a baseline, the pairwise matrix, ranks, costs, breakdowns.

A comparison is a pure function of files. Files with different evaluations are never paired; scorers with different
identities are never compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.comparison import Comparison, Group, Part, Versus
from alignbench.analysis.costs import cost_of
from alignbench.analysis.frontier import standings, targets
from alignbench.analysis.load import (
    Array,
    Loaded,
    Method,
    Run,
    Scores,
    budget_text,
    is_aligned,
    load,
    methods_of,
    natural,
    no_garbage_collection,
    table,
)
from alignbench.analysis.published import beside
from alignbench.analysis.statistics import (
    Differences,
    Ranks,
    bradley_terry,
    holm,
    outcomes,
    paired_differences,
    win_rate,
)
from alignbench.choices import Breakdown
from alignbench.errors import InputError, UnknownName
from alignbench.keys import Key

DEFAULT_BASELINE = "base"
RIVAL = "best_of_n"  # what methods of one budget are compared with, besides the baseline
Indices = NDArray[np.int64]


@no_garbage_collection()
def compare(
    paths: Sequence[Path],
    baseline: str = DEFAULT_BASELINE,
    by: Breakdown | None = None,
    scorers: Sequence[str] = (),
    skip_bad: bool = False,
    published: bool = False,
) -> Comparison:
    """Compare result files; see the module's docstring. Raises InputError for a scorer or baseline nobody has."""
    loaded = load(paths, skip_bad)
    known = {name for runs in loaded.groups.values() for run in runs for name in run.result.scorers}
    for name in scorers:
        if name not in known:
            raise UnknownName("scorer in these files", name, known)
    groups = [_group(runs, baseline, by, scorers, published) for runs in loaded.groups.values()]
    if groups and baseline != DEFAULT_BASELINE and all(group.baseline is None for group in groups):
        labels = [label for group in groups for label in group.methods]
        raise UnknownName("method in these files to use as baseline", baseline, labels)
    return Comparison(groups, loaded.unfinished, loaded.skipped, _protocol_notes(loaded))


@dataclass(frozen=True)
class _Placed:
    """A method and the rows of its runs in the score arrays."""

    method: Method
    rows: range

    @property
    def label(self) -> str:
        return self.method.label


def _group(runs: Sequence[Run], baseline: str, by: Breakdown | None, chosen: Sequence[str], published: bool) -> Group:
    methods = methods_of(runs)
    placed: list[_Placed] = []
    ordered: list[Run] = []
    for method in methods:
        placed.append(_Placed(method, range(len(ordered), len(ordered) + len(method.runs))))
        ordered += method.runs
    reference, no_reference = _find_baseline(placed, baseline)
    present = dict.fromkeys(name for run in ordered for name in run.result.scorers)
    scorers = [name for name in present if not chosen or name in chosen]
    first = [*(reference.method.runs if reference else ()), *ordered]
    holders = {name: next(run for run in first if name in run.result.scorers) for name in scorers}
    scores, prompt_ids = table(ordered, {name: run.result.scorers[name] for name, run in holders.items()})
    notes = _foreign_scorers(holders, ordered)

    pairwise, ranks = {}, {}
    for name, column in scores.items():
        pairwise[name], wins = _pairwise(column, placed, len(prompt_ids))
        ranks[name] = _ranks(wins)
    versus, parts = [], []
    if reference is None:
        notes.append(no_reference)
    else:
        versus = _against(reference, placed, scores, len(prompt_ids))
        notes += _pairing_notes(reference, placed, scores)
        if by == "budget":
            parts = _by_budget(reference, placed, scores)
        elif by is not None:
            labels = {row.id: getattr(row, by) for run in ordered for row in run.result.prompts}
            parts = _breakdown(reference, placed, scores, [labels[prompt] or "(none)" for prompt in prompt_ids])
    few = [m for m in methods if m.first.trains and len(m.runs) < 3]
    notes += [
        f"{m.label}: {len(m.runs)} training seed{'s'[: len(m.runs) > 1]}; its interval is conditional on these runs."
        for m in few
    ]
    means = {name: {p.label: _mean(column.values[list(p.rows)]) for p in placed} for name, column in scores.items()}
    evaluation = ordered[0].result.evaluation
    reported = beside(evaluation, methods, means) if published else None
    notes += reported.notes if reported else []
    return Group(
        evaluation=evaluation,
        methods=[method.label for method in methods],
        samplers={method.label: dict(method.first.sampler) for method in methods},
        baseline=reference.label if reference else None,
        scorers=scorers,
        versus=versus,
        pairwise=pairwise,
        ranks=ranks,
        parts=parts,
        means=means,
        costs=[cost_of(method) for method in methods],
        optimality=standings(methods, scorers),
        targets=targets(methods, scorers),
        published=list(reported.rows) if reported else [],
        notes=notes,
    )


def _find_baseline(placed: Sequence[_Placed], name: str) -> tuple[_Placed | None, str]:
    """The method with this label, or the only one of this algorithm on the plain model; or None and why there is none.

    Raises InputError where a name that the user typed means several; of the default, a folder may hold several.
    """
    exact = [p for p in placed if p.label == name]
    named = exact or [
        p for p in placed if p.method.first.configuration.algorithm == name and not is_aligned(p.method.first)
    ]
    if len(named) == 1:
        return named[0], ""
    if not named:
        return None, f"no complete result of {name!r} with this evaluation: no win rates against it."
    choices = f"{name!r} is ambiguous: {', '.join(repr(p.label) for p in named)}; name one of them"
    if name != DEFAULT_BASELINE:
        raise InputError(f"baseline {choices}.")
    return None, f"baseline {choices} with --baseline to get win rates against it."


def _foreign_scorers(holders: dict[str, Run], runs: Sequence[Run]) -> list[str]:
    """A note on each run whose scorer is not the same as the holder's of that name."""
    notes = []
    for name, holder in holders.items():
        expected = holder.result.scorers[name]
        for run in runs:
            found = run.result.scorers.get(name)
            if found is not None and found != expected:
                differing = [f for f in type(found).model_fields if getattr(found, f) != getattr(expected, f)]
                unknown = "source" in differing and None in (found.source, expected.source)
                why = " (only one of them says what code it is; older results did not)" if unknown else ""
                notes.append(
                    f"{name}: {run.path} is left out: its scorer differs from {holder.path} in "
                    f"{', '.join(differing)}{why}."
                )
    return notes


def _decided(column: Scores, mine: Iterable[int], theirs: Iterable[int]) -> tuple[Array, Indices]:
    """Outcomes of runs against runs, each with each, where both have a score; with the prompt number of each."""
    theirs = list(theirs)
    results, prompts = [], []
    for i in mine:
        for j in theirs:
            both = ~np.isnan(column.values[i]) & ~np.isnan(column.values[j])
            a, b = column.values[i, both], column.values[j, both]
            results.append(outcomes(column.sign * a, column.sign * b, column.epsilon))
            prompts.append(column.prompts[both])
    return np.concatenate(results), np.concatenate(prompts)


def _difference_by_prompt(column: Scores, mine: range, theirs: range, prompts: int) -> Array:
    """Mean difference of each prompt over its images and the runs, in the scorer's units; NaN where none pair."""
    total, count = np.zeros(prompts), np.zeros(prompts)
    for i in mine:
        for j in theirs:
            difference = column.values[i] - column.values[j]
            both = ~np.isnan(difference)
            total += np.bincount(column.prompts[both], weights=difference[both], minlength=prompts)
            count += np.bincount(column.prompts[both], minlength=prompts)
    with np.errstate(invalid="ignore"):
        return total / count


def _against(reference: _Placed, placed: Sequence[_Placed], scores: dict[str, Scores], prompts: int) -> list[Versus]:
    """Every other method against the reference on every scorer; p values are adjusted over all of them."""
    contests = [
        (p, name, column, *_decided(column, p.rows, reference.rows))
        for p in placed
        if p is not reference
        for name, column in scores.items()
    ]
    contests = [contest for contest in contests if len(contest[3])]
    if not contests:
        return []
    differences = [_difference_by_prompt(column, p.rows, reference.rows, prompts) for p, _, column, _, _ in contests]
    tests = _tested(differences)
    adjusted = holm(np.array([test.p[0] for test in tests]))
    found = []
    for (p, name, column, decided, where), test, p_adjusted in zip(contests, tests, adjusted, strict=True):
        own = [(seed, _decided(column, [i], reference.rows)[0]) for i, seed in zip(p.rows, p.method.seeds, strict=True)]
        found.append(
            Versus(
                method=p.label,
                scorer=name,
                rate=win_rate(decided, where),
                seeds=[(seed, float(result.mean())) for seed, result in own if len(result)],
                mean=_mean(column.values[list(p.rows)]),
                baseline_mean=_mean(column.values[list(reference.rows)]),
                difference=float(test.mean[0]),
                difference_low=float(test.low[0]),
                difference_high=float(test.high[0]),
                p=float(test.p[0]),
                p_adjusted=float(p_adjusted),
                failed=int(column.failed[list(p.rows)].sum()),
                higher_is_better=column.sign > 0,
            )
        )
    return found


def _tested(columns: Sequence[Array]) -> list[Differences]:
    """Intervals and p values of each column of per-prompt differences; columns with the same prompts go together."""
    found: dict[int, Differences] = {}
    together: dict[bytes, list[int]] = {}
    for i, column in enumerate(columns):
        together.setdefault(np.isnan(column).tobytes(), []).append(i)
    for members in together.values():
        present = ~np.isnan(columns[members[0]])
        tested = paired_differences(np.stack([columns[i][present] for i in members], 1), Key("compare"))
        for k, i in enumerate(members):
            found[i] = Differences(*(values[k : k + 1] for values in tested))
    return [found[i] for i in range(len(columns))]


def _pairwise(column: Scores, placed: Sequence[_Placed], prompts: int) -> tuple[Array, NDArray[np.float32]]:
    """Win rates of row over column, and win counts [prompts, methods, methods] (ties count half)."""
    count = len(placed)
    wins = np.zeros((prompts, count, count), dtype=np.float32)
    owner = np.array([k for k, p in enumerate(placed) for _ in p.rows])
    for k, p in enumerate(placed):
        for i in p.rows:
            mine = column.sign * column.values[i]
            results = outcomes(mine, column.sign * column.values, column.epsilon)  # [runs, pairs]
            results[np.isnan(mine - column.values)] = 0  # a pair that is missing counts for neither
            for j in np.flatnonzero(owner != k):
                wins[:, k, owner[j]] += np.bincount(column.prompts, weights=results[j], minlength=prompts)
    total = wins.sum(0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return total / (total + total.T), wins


def _ranks(wins: NDArray[np.float32]) -> Ranks | None:
    """Bradley-Terry strengths of the methods that met any other; NaN for one without scores, None without the first."""
    met = (wins.sum(0) + wins.sum(0).T).sum(0) > 0
    ranks = bradley_terry(wins[:, met][:, :, met]) if met[0] and met.sum() > 1 else None
    if ranks is None:
        return None
    found = Ranks(*(np.full(len(met), np.nan) for _ in ranks))
    for whole, part in zip(found, ranks, strict=True):
        whole[met] = part
    return found


def _pairing_notes(reference: _Placed, placed: Sequence[_Placed], scores: dict[str, Scores]) -> list[str]:
    """What was left out because the other side has no such row, and scores that failed."""
    notes = []
    for name, column in scores.items():
        theirs = ~np.isnan(column.values[list(reference.rows)]).all(0)
        for p in placed:
            own = ~np.isnan(column.values[list(p.rows)]).all(0)
            both = int((own & theirs).sum())
            unscored = [method.label for method, some in ((p, own), (reference, theirs)) if not some.any()]
            if p is not reference and len(unscored) == 1:
                notes.append(f"{name}: {unscored[0]} was not scored by it and is not compared on it.")
            elif p is not reference and both < max(int(own.sum()), int(theirs.sum())):
                notes.append(
                    f"{name}: {p.label} and {reference.label} share {both} images "
                    f"(of {int(own.sum())} and {int(theirs.sum())}); only those are compared."
                )
            if failed := int(column.failed[list(p.rows)].sum()):
                notes.append(f"{name}: {failed} scores of {p.label} failed (null) and are left out.")
    return notes


def _breakdown(
    reference: _Placed, placed: Sequence[_Placed], scores: dict[str, Scores], part_of: Sequence[str]
) -> list[Part]:
    """Win rates by category or challenge."""
    found = []
    named = np.array(part_of)
    for p in placed:
        for name, column in scores.items() if p is not reference else ():
            decided, where = _decided(column, p.rows, reference.rows)
            for part in sorted(set(part_of)):
                inside = named[where] == part
                if inside.any():
                    rate = win_rate(decided[inside], where[inside])
                    found.append(Part(p.label, name, part, reference.label, rate))
    return found


def _is_rival(other: _Placed, placed: _Placed) -> bool:
    """Whether it is best-of-n on the same reward."""
    theirs, own = other.method.first.configuration, placed.method.first.configuration
    return theirs.algorithm == RIVAL and theirs.reward == own.reward


def _by_budget(reference: _Placed, placed: Sequence[_Placed], scores: dict[str, Scores]) -> list[Part]:
    """Win rates of methods with a budget, those of one budget together: against the baseline, and against best-of-n at
    the same budget, which is what they have to beat."""
    together: dict[str, list[_Placed]] = {}
    for p in placed:
        if budget := p.method.first.configuration.budget:
            together.setdefault(budget_text(budget), []).append(p)
    found = []
    for text, members in sorted(together.items(), key=lambda item: natural(item[0])):
        for name, column in scores.items():
            for p in members:
                rivals = [rival for rival in members if rival is not reference and _is_rival(rival, p)]
                for other in [reference, *rivals]:
                    if p is other:
                        continue
                    decided, where = _decided(column, p.rows, other.rows)
                    if len(decided):
                        found.append(Part(p.label, name, text, other.label, win_rate(decided, where)))
    return found


def _mean(values: Array) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _protocol_notes(loaded: Loaded) -> list[str]:
    """Where evaluations that are almost the same differ."""
    evaluations = [runs[0].result.evaluation for runs in loaded.groups.values()]
    notes = []
    for i, first in enumerate(evaluations):
        for second in evaluations[i + 1 :]:
            differing = [
                f"{name} ({getattr(first, name)} and {getattr(second, name)})"
                for name in type(first).model_fields
                if getattr(first, name) != getattr(second, name)
            ]
            if len(differing) == 1:
                notes.append(
                    f"evaluations {first.fingerprint} and {second.fingerprint} are not paired: "
                    f"they differ in {differing[0]}."
                )
    return notes
