"""Comparing result files: paired win rates against a baseline, the pairwise matrix, ranks, costs, breakdowns.

A comparison is a pure function of files. Files with different evaluations are never paired; scorers with different
identities are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignbench.analysis import picture_shifts
from alignbench.analysis.comparison import Comparison, Group, Part, Versus
from alignbench.analysis.contests import Asked, against, duels, shares
from alignbench.analysis.costs import cost_of
from alignbench.analysis.equivalence import margins_of
from alignbench.analysis.frontier import standings, targets
from alignbench.analysis.load import (
    Array,
    Loaded,
    Method,
    Run,
    Scores,
    budget_text,
    draws_as,
    is_aligned,
    load,
    methods_of,
    natural,
    no_garbage_collection,
    table,
)
from alignbench.analysis.pairing import Placed, in_rows, meet
from alignbench.analysis.picture_shifts import Hacked, Shift
from alignbench.analysis.published import beside
from alignbench.analysis.ranks import ranks
from alignbench.analysis.vote_entries import read_logs
from alignbench.analysis.votes import vote_columns
from alignbench.choices import Breakdown, Family
from alignbench.errors import InputError, UnknownName
from alignbench.plugins import label
from alignbench.record.votes import Log

DEFAULT_BASELINE = "base"
RIVAL = "best_of_n"  # what methods of one budget are compared with, besides the baseline
FEW_METHODS = 40  # up to which every two are compared where nobody says; the time grows with their square
FEW_PROMPTS = 6  # below which no p value can fall under 0.05
SHORT = 100  # letters up to which the two values of an entry are shown where evaluations differ in it


def compare(
    paths: Sequence[Path],
    baseline: str = DEFAULT_BASELINE,
    by: Breakdown | None = None,
    scorers: Sequence[str] = (),
    skip_bad: bool = False,
    published: bool = False,
    family: Family = "scorer",
    duels: bool | None = False,
    margin: Sequence[str] = (),
    control: str | None = None,
    votes: Sequence[Path] = (),
) -> Comparison:
    """Compare result files; see the module's docstring. `family` says which p values are adjusted for each other,
    `duels` adds every two methods with interval and p (None: of few methods), `margin` holds SCORER=AMOUNT, `control`
    names the scorer at whose equal value win rates are shown as well, `votes` are logs of `alignbench vote`. Raises
    InputError for a scorer or baseline nobody has, and for votes on other pictures."""
    loaded = load(paths, skip_bad)
    return compare_loaded(loaded, baseline, by, scorers, published, family, duels, margin, control, votes)


@np.errstate(over="ignore", invalid="ignore")  # of scores near the largest number; it is shown as unknown
@no_garbage_collection()
def compare_loaded(
    loaded: Loaded,
    baseline: str = DEFAULT_BASELINE,
    by: Breakdown | None = None,
    scorers: Sequence[str] = (),
    published: bool = False,
    family: Family = "scorer",
    duels: bool | None = False,
    margin: Sequence[str] = (),
    control: str | None = None,
    votes: Sequence[Path] = (),
) -> Comparison:
    """The same of results that are read already."""
    known = {name for runs in loaded.groups.values() for run in runs for name in run.result.scorers}
    for name in (*scorers, *([control] if control else [])):
        if name not in known:
            raise UnknownName("scorer in these files", name, known)
    asked = Asked(baseline, by, tuple(scorers), published, family, duels, margins_of(margin, sorted(known)), control)
    logs = read_logs(votes)
    for path, log in logs:
        if log.header.evaluation not in loaded.groups:
            raise InputError(f"{path}: its votes are on evaluation {log.header.evaluation}, which no file here is of.")
    groups = [
        _group(runs, asked, [(path, log) for path, log in logs if log.header.evaluation == evaluation])
        for evaluation, runs in loaded.groups.items()
    ]
    if groups and baseline != DEFAULT_BASELINE and all(group.baseline is None for group in groups):
        labels = [label for group in groups for label in group.methods]
        raise UnknownName("method in these files to use as baseline", baseline, labels)
    return Comparison(groups, loaded.unfinished, loaded.skipped, _protocol_notes(loaded))


def _group(runs: Sequence[Run], asked: Asked, logs: Sequence[tuple[Path, Log]]) -> Group:
    baseline, methods, about_baseline = find_baseline(methods_of(runs), asked.baseline)
    placed = in_rows(methods)
    ordered = [run for method in methods for run in method.runs]
    reference = next((p for p in placed if p.method is baseline), None)
    present = dict.fromkeys(name for run in ordered for name in run.result.scorers)
    scorers = [name for name in present if not asked.scorers or name in asked.scorers]
    first = [*(reference.method.runs if reference else ()), *ordered]
    wanted = dict.fromkeys([*scorers, *([asked.control] if asked.control in present else [])])
    holders = {name: next(run for run in first if name in run.result.scorers) for name in wanted}
    every, prompt_ids = table(ordered, {name: run.result.scorers[name] for name, run in holders.items()})
    scores = {name: every[name] for name in scorers}
    notes = _foreign_scorers(holders, ordered)

    won = {name: shares(column, placed) for name, column in scores.items()}
    versus: list[Versus] = []
    parts: list[Part] = []
    notes += [about_baseline] if about_baseline else []
    if reference is not None:
        versus = against(reference, placed, scores, asked, every.get(asked.control or ""))
        notes += _pairing_notes(reference, placed, scores)
        if asked.by == "budget":
            parts = _by_budget(reference, placed, scores)
        elif asked.by is not None:
            labels = {row.id: getattr(row, asked.by) for run in ordered for row in run.result.prompts}
            parts = _breakdown(reference, placed, scores, [labels[prompt] or "(none)" for prompt in prompt_ids])
    if 1 < len(prompt_ids) < FEW_PROMPTS:
        notes.append(f"{len(prompt_ids)} prompts: no p can fall below {0.5 ** (len(prompt_ids) - 1):g}; take more.")
    pictures, hacked = _pictures(reference, placed, ordered, versus, asked)
    votes, about_votes = vote_columns(logs, ordered, placed, reference, asked.family) if logs else ([], [])
    notes += about_votes
    means = {name: {p.label: _mean(column.values[list(p.rows)]) for p in placed} for name, column in scores.items()}
    evaluation = ordered[0].result.evaluation
    reported = beside(evaluation, methods, means) if asked.published else None
    notes += reported.notes if reported else []
    every_two = len(placed) <= FEW_METHODS if asked.duels is None else asked.duels
    if asked.duels is None and not every_two:
        notes.append(f"{len(placed)} methods: every two of them, with interval and p, are compared with --duels.")
    return Group(
        evaluation=evaluation,
        methods=[method.label for method in methods],
        samplers={method.label: dict(method.first.sampler) for method in methods},
        baseline=reference.label if reference else None,
        scorers=scorers,
        versus=versus,
        family=asked.family,
        pairwise={name: found.rates for name, found in won.items()},
        duels=duels(placed, scores, asked.family) if every_two else [],
        ranks={name: ranks(found) for name, found in won.items()},
        parts=parts,
        means=means,
        costs=[cost_of(method) for method in methods],
        optimality=standings(methods, scorers),
        targets=targets(methods, scorers),
        published=list(reported.rows) if reported else [],
        notes=notes,
        votes=votes,
        pictures=pictures,
        hacked=hacked,
    )


def _pictures(
    reference: Placed | None, placed: Sequence[Placed], runs: Sequence[Run], versus: Sequence[Versus], asked: Asked
) -> tuple[list[Shift], list[Hacked]]:
    """What pictures are like beside the reference's, and who looks hacked, whichever scorers are shown."""
    found = picture_shifts.columns(runs) if reference is not None else {}
    if reference is None or not found:
        return [], []
    rewards = {p.label: label(name) if (name := p.method.first.configuration.reward) else None for p in placed}
    holders = {
        name: next((run for run in [*reference.method.runs, *runs] if name in run.result.scorers), None)
        for name in rewards.values()
        if name
    }
    hidden = {name: run.result.scorers[name] for name, run in holders.items() if run and name not in asked.scorers}
    if asked.scorers and hidden:
        versus = [*versus, *against(reference, placed, table(runs, hidden)[0], replace(asked, control=None), None)]
    left = picture_shifts.shifts(reference, placed, found)
    return left, picture_shifts.hacked(left, versus, rewards)


class Baseline(NamedTuple):
    """What the others are compared with, if there is such a method."""

    method: Method | None
    compared: Sequence[Method]  # it and all others, without those that draw the same pictures
    note: str  # why there is none, or what to know of it


def find_baseline(methods: Sequence[Method], name: str) -> Baseline:
    """The method with this label, or the only one of this algorithm on the plain model. Of several unaligned models
    that are sampled alike, and so draw the same pictures, it is the one with most scores. The others would only be
    tests more that p values are adjusted for.

    Raises InputError where a name that the user typed means several; of the default, a folder may hold several.
    """
    exact = [m for m in methods if m.label == name]
    named = exact or [m for m in methods if m.first.configuration.algorithm == name and not is_aligned(m.first)]
    if len(named) == 1:
        return Baseline(named[0], methods, "")
    if not named:
        return Baseline(None, methods, f"no complete result of {name!r} with this evaluation: no win rates against it.")
    if name == DEFAULT_BASELINE and all(draws_as(m.first, named[0].first) for m in named):
        most = max(named, key=lambda m: sum(len(row.scores) for row in m.first.rows))
        others = [m.label for m in named if m is not most]
        note = f"baseline: {len(named)} of {name!r} draw the same pictures; {most.label!r} has most scores, "
        note += f"{', '.join(map(repr, others))} {'is' if len(others) == 1 else 'are'} left out."
        return Baseline(most, [m for m in methods if m.label not in others], note)
    choices = f"{name!r} is ambiguous: {', '.join(repr(m.label) for m in named)}; name one of them"
    if name != DEFAULT_BASELINE:
        raise InputError(f"baseline {choices}.")
    return Baseline(None, methods, f"baseline {choices} with --baseline to get win rates against it.")


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


def _pairing_notes(reference: Placed, placed: Sequence[Placed], scores: dict[str, Scores]) -> list[str]:
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
                notes.append(
                    f"{name}: {failed} scores of {p.label} failed (null) and are left out; a mark stays only where it "
                    "would if all of them had gone the other way."
                )
    return notes


def _breakdown(
    reference: Placed, placed: Sequence[Placed], scores: dict[str, Scores], part_of: Sequence[str]
) -> list[Part]:
    """Win rates by category or challenge."""
    found = []
    named = np.array(part_of)
    for p in placed:
        for name, column in scores.items() if p is not reference else ():
            met = meet(column, p.rows, reference.rows)
            for part in sorted(set(part_of)):
                within = met.where(named[column.prompts] == part) if met is not None else None
                if within is not None:
                    found.append(Part(p.label, name, part, reference.label, within.rate()))
    return found


def _is_rival(other: Placed, placed: Placed) -> bool:
    """Whether it is best-of-n on the same reward."""
    theirs, own = other.method.first.configuration, placed.method.first.configuration
    return theirs.algorithm == RIVAL and theirs.reward == own.reward


def _by_budget(reference: Placed, placed: Sequence[Placed], scores: dict[str, Scores]) -> list[Part]:
    """Win rates of methods with a budget, those of one budget together: against the baseline, and against best-of-n at
    the same budget, which is what they have to beat."""
    together: dict[str, list[Placed]] = {}
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
                    if (met := meet(column, p.rows, other.rows)) is not None:
                        found.append(Part(p.label, name, text, other.label, met.rate()))
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
            names = [name for name in type(first).model_fields if getattr(first, name) != getattr(second, name)]
            if len(names) == 1:
                differing = _differing(names[0], getattr(first, names[0]), getattr(second, names[0]))
                notes.append(
                    f"evaluations {first.fingerprint} and {second.fingerprint} are not paired: "
                    f"they differ in {', '.join(differing)}."
                )
    return notes


def _differing(name: str, one: Any, other: Any) -> list[str]:
    """What two descriptions differ in, entry by entry; an entry that is long, such as a digest, is named alone."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        said = [f"{name} {key} ({one.get(key)} and {other.get(key)})" for key in keys]
        return [f"{name} {key}" if len(text) > SHORT else text for key, text in zip(keys, said, strict=True)]
    return [f"{name} ({one} and {other})"]
