"""What a comparison holds: every method against the baseline, the pairwise matrix, ranks, costs, breakdowns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignbench.analysis.costs import CostRow
from alignbench.analysis.frontier import Standing, Target
from alignbench.analysis.load import Array, Unfinished
from alignbench.analysis.published import Beside
from alignbench.analysis.statistics import Ranks, WinRate
from alignbench.record.result import Evaluation

if TYPE_CHECKING:
    import pandas as pd
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Versus:
    """One method against the baseline on one scorer."""

    method: str
    scorer: str
    rate: WinRate
    seeds: list[tuple[int | None, float]]  # each training seed's own win rate
    mean: float
    baseline_mean: float
    difference: float  # mean over prompts, in the scorer's units
    difference_low: float
    difference_high: float
    p: float
    p_adjusted: float
    failed: int  # null scores of the method
    higher_is_better: bool

    @property
    def significant(self) -> bool:
        """Whether the mean differs after correction for all rows shown."""
        return self.p_adjusted < SIGNIFICANT

    @property
    def wins(self) -> bool:
        """Whether the method is significantly better: in the mean, which is what is tested, and in most pairs."""
        better = self.difference > 0 if self.higher_is_better else self.difference < 0
        return self.significant and better and self.rate.rate > 0.5


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
    pairwise: dict[str, Array]  # scorer -> [methods, methods] win rates of row over column
    ranks: dict[str, Ranks | None]
    parts: list[Part]
    means: dict[str, dict[str, float]]  # scorer -> method -> mean score
    costs: list[CostRow]
    optimality: list[Standing]  # where the optimum is known
    targets: dict[str, Target]  # scorer -> its optimum
    published: list[Beside]  # what papers report about these methods, where it was asked for
    notes: list[str]


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
                    "ties": item.rate.ties,
                    "difference": item.difference,
                    "difference_low": item.difference_low,
                    "difference_high": item.difference_high,
                    "p": item.p,
                    "p_adjusted": item.p_adjusted,
                    "significant": item.significant,
                    "seeds": len(item.seeds),
                    "failed": item.failed,
                }
            yield row
