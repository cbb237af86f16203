"""What a comparison holds: every method against the baseline, the pairwise matrix, ranks, costs, breakdowns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignbench.analysis.control import Controlled
from alignbench.analysis.costs import CostRow
from alignbench.analysis.equivalence import Equivalence
from alignbench.analysis.formats import Mark
from alignbench.analysis.frontier import Standing, Target
from alignbench.analysis.load import Array, Unfinished
from alignbench.analysis.published import Beside
from alignbench.analysis.ranks import Ranks
from alignbench.analysis.statistics import WinRate
from alignbench.choices import Family
from alignbench.record.result import Evaluation

if TYPE_CHECKING:
    import pandas as pd

    from alignbench.analysis.picture_shifts import Hacked, Shift
    from alignbench.analysis.votes import VoteColumn

SIGNIFICANT = 0.05

Random = Literal["prompts", "prompts and seeds", "images", "images and seeds"]


class Test(NamedTuple):
    """A p value, and what it is worth beside the others of its family."""

    p: float
    adjusted: float
    mark: (
        Mark | None
    )  # where it is below 0.05 after adjustment, and stays so if every failed score had gone the other way


@dataclass(frozen=True)
class Versus:
    """One method against the baseline on one scorer. Means and the difference are over the pairs that both have."""

    method: str
    scorer: str
    rate: WinRate
    rate_test: Test
    seeds: list[tuple[int | None, float]]  # each training seed's own win rate
    mean: float
    baseline_mean: float
    difference: float  # mean over prompts, in the scorer's units
    difference_low: float  # NaN where the interval is not to be told
    difference_high: float
    difference_test: Test
    effect: float  # mean over standard deviation of the prompts' differences, above 0 where the method is better
    random: Random  # what interval and p take for drawn at random
    this_run: bool  # trained with one seed, so that they are about that run alone and there is no mark
    family: int  # rows that the p values are adjusted for
    failed: int  # null scores of the method, and of the baseline where the method has one
    if_failed: tuple[float, float] | None  # the win rate if all failed pairs were lost, and if all were won
    whole: bool  # all pairs of the baseline are compared
    higher_is_better: bool
    margin: float | None = None
    equivalence: Equivalence | None = None
    controlled: Controlled | None = None

    @property
    def wins(self) -> bool:
        """Whether it is marked as better in the win rate."""
        return self.rate_test.mark == "better"

    @property
    def loses(self) -> bool:
        """Whether it is marked as worse in the win rate."""
        return self.rate_test.mark == "worse"

    @property
    def control_disagrees(self) -> bool:
        """Whether the win rate lies outside its interval at equal covariate, or has a mark that that would not have."""
        c = self.controlled
        if c is None or c.about:
            return False
        kept = {"better": c.low > 0.5, "worse": c.high < 0.5, None: True}[self.rate_test.mark]
        return not (kept and c.low <= c.raw <= c.high)


@dataclass(frozen=True)
class Duel:
    """Two methods against each other on one scorer."""

    method: str
    against: str
    scorer: str
    rate: WinRate
    rate_test: Test
    random: Random
    this_run: bool
    family: int


@dataclass(frozen=True)
class Part:
    """A method's win rate on one category or challenge, or that of a method with a budget; exploratory."""

    method: str
    scorer: str
    part: str
    against: str
    rate: WinRate


@dataclass(frozen=True)
class Group:
    """All methods evaluated in the same way."""

    evaluation: Evaluation
    methods: list[str]
    samplers: dict[str, dict[str, object]]
    baseline: str | None
    scorers: list[str]
    versus: list[Versus]
    family: Family
    pairwise: dict[str, Array]  # scorer -> [methods, methods] win rates of row over column
    duels: list[Duel]  # every two methods, where it was asked for
    ranks: dict[str, Ranks | None]
    parts: list[Part]
    means: dict[str, dict[str, float]]  # scorer -> method -> mean score
    costs: list[CostRow]
    optimality: list[Standing]  # where the optimum is known
    targets: dict[str, Target]  # scorer -> its optimum
    published: list[Beside]  # what papers report about these methods, where it was asked for
    notes: list[str]
    votes: list[VoteColumn] = field(default_factory=list)  # of people, where a log of them was given
    pictures: list[Shift] = field(default_factory=list)  # what pictures are like, where results keep that
    hacked: list[Hacked] = field(default_factory=list)  # methods that look as if they exploited their reward


@dataclass(frozen=True, repr=False)
class Comparison:
    """Everything `alignbench compare` shows; printed, it is that command's tables."""

    groups: list[Group]
    unfinished: list[Unfinished]
    skipped: list[Unfinished]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        methods = sum(len(group.methods) for group in self.groups)
        return f"<comparison of {methods} methods on {len(self.groups)} evaluations; print it, or see to_frame()>"

    def __str__(self) -> str:
        from alignbench.analysis.tables import render

        return render(self, "table")

    def to_frame(self) -> pd.DataFrame:
        """A row per evaluation, scorer and method: mean, win rate against the baseline with its interval, difference,
        p values; what there is none of is NaN."""
        import pandas as pd

        return pd.DataFrame([row for group in self.groups for row in _frame_rows(group)])

    def _repr_html_(self) -> str:
        from html import escape

        frame = self.to_frame()
        parts = []
        for group in self.groups:
            e = group.evaluation
            own = frame[frame["evaluation"] == e.fingerprint].drop(columns=["evaluation", "baseline"])
            about = f"{e.model['name']} on {e.prompts}/{e.split}, against {group.baseline or 'nothing'}"
            parts.append(f"<p>{escape(about)}</p>{own.to_html(index=False, float_format='{:.4g}'.format, na_rep='')}")
            parts += [f"<p>{escape(note)}</p>" for note in group.notes]
        return "".join(parts) or "<p>no complete results to compare</p>"


def _frame_rows(group: Group) -> Iterator[dict[str, Any]]:
    versus = {(item.scorer, item.method): item for item in group.versus}
    suspects = {(item.reward, item.method) for item in group.hacked}
    for scorer in group.scorers:
        for method in group.methods:
            row = {
                "evaluation": group.evaluation.fingerprint,
                "scorer": scorer,
                "method": method,
                "baseline": group.baseline,
                "mean": group.means[scorer][method],
            }
            if (item := versus.get((scorer, method))) is not None:
                row |= {
                    "win_rate": item.rate.rate,
                    "win_rate_low": item.rate.low,
                    "win_rate_high": item.rate.high,
                    "win_rate_p": item.rate_test.p,
                    "win_rate_p_adjusted": item.rate_test.adjusted,
                    "win_rate_mark": item.rate_test.mark,
                    "ties": item.rate.ties,
                    "difference": item.difference,
                    "difference_low": item.difference_low,
                    "difference_high": item.difference_high,
                    "difference_p": item.difference_test.p,
                    "difference_p_adjusted": item.difference_test.adjusted,
                    "difference_mark": item.difference_test.mark,
                    "effect": item.effect,
                    "baseline_mean": item.baseline_mean,
                    "random": item.random,
                    "this_run": item.this_run,
                    "family": item.family,
                    "prompts": item.rate.prompts,
                    "seeds": len(item.seeds),
                    "failed": item.failed,
                    **({"looks_hacked": (scorer, method) in suspects} if group.pictures else {}),
                }
            yield row
    for column in group.votes:
        yield from _vote_rows(group, column)


def _vote_rows(group: Group, column: VoteColumn) -> Iterator[dict[str, Any]]:
    for item in column.versus:
        yield {
            "evaluation": group.evaluation.fingerprint,
            "scorer": column.name,
            "method": item.method,
            "baseline": item.against,
            "win_rate": item.rate.rate,
            "win_rate_low": item.shown.low,
            "win_rate_high": item.shown.high,
            "win_rate_p": item.test.p,
            "win_rate_p_adjusted": item.test.adjusted,
            "win_rate_mark": item.test.mark,
            "ties": item.rate.ties,
            "random": "prompts and raters" if item.people else "prompts",
            "this_run": item.this_run,
            "family": item.family,
            "prompts": item.rate.prompts,
            "votes": item.votes,
            "raters": item.raters,
        }
