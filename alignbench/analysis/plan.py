"""What the results in files can show, and what to add first: what `alignbench plan` says, before it is written.

The arithmetic is in `planning`. Files are grouped, pooled and paired as `compare` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignbench.analysis.compare import DEFAULT_BASELINE, Baseline, find_baseline
from alignbench.analysis.comparison import SIGNIFICANT
from alignbench.analysis.load import Scores, load, methods_of, no_garbage_collection, table
from alignbench.analysis.pairing import Meeting, Placed, in_rows, meet
from alignbench.analysis.planning import Components, Plan, Quantity, Size, components, plan_for
from alignbench.errors import InputError, UnknownName
from alignbench.record.result import Evaluation, Scorer

MOST = 10**9  # prompts, images, seeds or tests that may be asked for
QUANTITIES: tuple[Quantity, Quantity] = ("rate", "difference")


@dataclass(frozen=True)
class Wanted:
    """A size and a test to plan for; what is None stays as the results have it."""

    prompts: int | None = None
    images: int | None = None
    seeds: int | None = None
    power: float = 0.8
    family: int | None = None  # tests that are adjusted for each other; None: as many as methods

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--prompts", self.prompts, 2),
            ("--images", self.images, 1),
            ("--seeds", self.seeds, 1),
            ("--family-size", self.family, 1),
        ):
            if value is not None and not least <= value <= MOST:
                raise InputError(f"{option} {value}: expected a whole number from {least} to {MOST}.")
        if not 0 < self.power < 1:
            raise InputError(f"--power {self.power:g}: expected a share between 0 and 1, such as 0.8.")

    @property
    def sized(self) -> bool:
        return (self.prompts, self.images, self.seeds) != (None, None, None)

    def size(self, parts: Components) -> Size:
        """What is planned. Of seeds that are not drawn, and of images that are not told apart, there stay as many."""
        now = parts.size
        seeds, others = (count if count == 1 or self.seeds is None else self.seeds for count in now.levels[1:])
        images = now.images if parts.of_images is None or self.images is None else self.images
        return Size(self.prompts or now.prompts, images, seeds, others)


@dataclass(frozen=True)
class Row:
    """What one method can show against the baseline on one scorer."""

    method: str
    scorer: str
    once: tuple[str, ...]  # which of it and the baseline were trained with one seed, so that nothing is known of others
    family: int
    rate: Plan  # in shares of a win
    difference: Plan  # in the scorer's units

    @property
    def first(self) -> str | None:
        """What to add first: for a claim about a method that was trained once, a second seed."""
        return "a second seed" if self.once else self.rate.first


@dataclass(frozen=True)
class Planned:
    """All methods that were evaluated in the same way."""

    evaluation: Evaluation
    baseline: str
    rows: list[Row]


@dataclass(frozen=True)
class Plans:
    """A plan for each evaluation."""

    wanted: Wanted
    groups: list[Planned]
    notes: list[str]  # on what there is no plan for


@np.errstate(over="ignore", invalid="ignore")  # of scores near the largest number; it is shown as unknown
@no_garbage_collection()
def plans(
    paths: Sequence[Path],
    wanted: Wanted,
    baseline: str = DEFAULT_BASELINE,
    scorers: Sequence[str] = (),
    skip_bad: bool = False,
) -> Plans:
    """A plan for each evaluation that has the baseline and another method. Raises InputError where there is none, and
    for a scorer or baseline nobody has."""
    loaded = load(paths, skip_bad)
    runs = [run for group in loaded.groups.values() for run in group]
    known = {name for run in runs for name in run.result.scorers}
    for name in scorers:
        if name not in known:
            raise UnknownName("scorer in these files", name, known)
    if not runs:
        raise InputError("none of these results is complete; `alignbench ls` shows how far each is.")
    if len(runs) == 1:
        raise InputError(f"{runs[0].path}: one result alone compares nothing; add that of a method to compare it with.")
    groups = [find_baseline(methods_of(group), baseline) for group in loaded.groups.values()]
    if baseline != DEFAULT_BASELINE and all(group.method is None for group in groups):
        labels = [method.label for group in groups for method in group.compared]
        raise UnknownName("method in these files to use as baseline", baseline, labels)
    found, notes, lacking = [], list[str](), list[str]()
    for group in groups:
        try:
            found.append(_planned(group, wanted, scorers))
            notes += [group.note] if group.note else []
        except InputError as error:
            lacking.append(str(error))
    if not found:
        raise InputError(lacking[0])
    return Plans(wanted, found, [*(f"skipped: {item.reason}" for item in loaded.skipped), *notes, *lacking])


def needed(base: Path, other: Path) -> dict[str, float]:
    """By scorer, how far from a half the win rate of one result against the other's has to be for a single test to show
    it with the usual power. Where there is one prompt, images stand for prompts."""
    methods = methods_of([run for group in load([base, other]).groups.values() for run in group])
    found = find_baseline(methods, DEFAULT_BASELINE)
    placed = in_rows(found.compared)
    reference = next((p for p in placed if p.method is found.method), None)
    met = [] if reference is None else _met(placed, reference, ())
    return {name: _plan(meeting, "rate", Wanted(), 1).now for _, name, meeting in met}


def _planned(found: Baseline, wanted: Wanted, scorers: Sequence[str]) -> Planned:
    """The plan of one evaluation. Raises InputError where there is none."""
    placed = in_rows(found.compared)
    evaluation = placed[0].method.first.evaluation
    about = f"evaluation {evaluation.fingerprint}"
    reference = next((p for p in placed if p.method is found.method), None)
    if reference is None:
        raise InputError(f"{about}: {found.note} `alignbench run` makes results; --baseline names another method.")
    if not (met := _met(placed, reference, scorers)):
        raise InputError(f"{about}: no method has a score beside {reference.label}'s; `alignbench run` one.")
    several = [(p, name, meeting) for p, name, meeting in met if not meeting.one_prompt]
    if not several:
        raise InputError(f"{about}: one prompt alone does not tell how prompts differ; evaluate on more of them.")
    families = Counter(name for _, name, _ in several)
    rows = []
    for p, name, meeting in several:
        family = wanted.family or families[name]
        rate, difference = (_plan(meeting, of, wanted, family) for of in QUANTITIES)
        once = tuple(q.label for q in (p, reference) if q.method.first.trains and len(q.method.runs) == 1)
        rows.append(Row(p.label, name, once, family, rate, difference))
    return Planned(evaluation, reference.label, rows)


def _met(placed: Sequence[Placed], reference: Placed, scorers: Sequence[str]) -> list[tuple[Placed, str, Meeting]]:
    """Every other method that has a pair with the baseline, on each scorer."""
    return [
        (p, name, meeting)
        for name, column in _columns(placed, reference, scorers).items()
        for p in placed
        if p is not reference and (meeting := meet(column, p.rows, reference.rows)) is not None
    ]


def _columns(placed: Sequence[Placed], reference: Placed, scorers: Sequence[str]) -> dict[str, Scores]:
    """Of each scorer that is wanted, or of all; the baseline's where another of that name differs."""
    runs = [run for p in placed for run in p.method.runs]
    holders: dict[str, Scorer] = {}
    for run in (*reference.method.runs, *runs):
        for name, scorer in run.result.scorers.items():
            holders.setdefault(name, scorer)
    return table(runs, {name: holders[name] for name in holders if not scorers or name in scorers})[0]


def _plan(met: Meeting, of: Quantity, wanted: Wanted, family: int) -> Plan:
    parts = components(met, of)
    return plan_for(parts, wanted.size(parts), SIGNIFICANT / family, wanted.power)
