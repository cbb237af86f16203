"""An audit of scorers as text, as values and as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from alignbench.analysis.agreement import Agreement
from alignbench.analysis.formats import Table, percent, plain, remarks
from alignbench.analysis.plots import audit_figure
from alignbench.analysis.statistics import WinRate
from alignbench.judging.accuracy import INTERVALS, about_pairs, few_prompts
from alignbench.judging.alterations import CHANGES
from alignbench.judging.audit import Report, ScorerAudit
from alignbench.printed import WHOLE, Screen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


def as_values(report: Report) -> dict[str, Any]:
    """The report as JSON holds it; NaN and infinity, which JSON has not, are null."""
    options = report.options
    asked = ("scorer_dtype", "allow_unverified", "pair_ties", "pair_models", "limit", "seed")
    return {
        "schema": SCHEMA,
        "pairs": {name: value for name, value in report.pairs.items() if name != "summary"},
        "options": {name: getattr(options, name) for name in asked},
        "changes": CHANGES,
        "scorers": {
            name: {
                "identity": found.accuracy.identity,
                "pairs": found.accuracy.pairs,
                "failed": found.accuracy.failed,
                "reason": found.accuracy.reason,
                "accuracy": (rate := found.accuracy.rates["half"]) and rate._asdict(),
                "sensitivity": {
                    change: None
                    if s is None
                    else {
                        "images": s.images,
                        "shift": s.shift if math.isfinite(s.shift) else None,
                        "flipped": s.flipped and s.flipped._asdict(),
                    }
                    for change, s in found.sensitivity.items()
                },
                "not_scored": dict(found.reasons),
            }
            for name, found in report.scorers.items()
        },
        "agreement": [
            {"judges": list(judges), **{k: None if math.isnan(v) else v for k, v in agreed._asdict().items()}}
            for judges, agreed in report.agreement.items()
        ],
        "environment": report.environment,
    }


def text(report: Report, screen: Screen = WHOLE) -> str:
    """The report for people."""
    pairs = report.pairs
    rows = []
    for name, found in report.scorers.items():
        rate = found.accuracy.rates["half"]
        shown = ["–", ""] if rate is None else [percent(rate.rate), _share(rate)]
        rows.append([name, str(found.accuracy.pairs), *shown])
    title = f"accuracy on the labels of {pairs['path']}: {pairs['used']} pairs, {pairs['prompts']} prompts"
    parts = [plain(Table(title, ["scorer", "pairs", "accuracy %", "95 % interval"], rows), screen)]
    rows = [
        [f"{a} – {b}", str(t.pairs), *(["–", ""] if math.isnan(t.tau) else [f"{t.tau:.3f}", _range(t)])]
        for (a, b), t in report.agreement.items()
    ]
    parts.append(
        plain(Table("agreement: Kendall's τ_b over these pairs", ["", "pairs", "τ", "95 % interval"], rows), screen)
    )
    rows = [[f"{name}: {c}", *_cells(found, c)] for name, found in report.scorers.items() for c in CHANGES]
    header = ["", "images", "change / spread", "flips %", "95 % interval"]
    parts.append(plain(Table("sensitivity: mean change of a score, and decisions that turn", header, rows), screen))
    notes = about_pairs(pairs)
    for name, found in report.scorers.items():
        notes += [
            f"{name} did not score {'any' if c and not found.sensitivity[c] else 'some'} of {c or 'the pairs'}: {why}"
            for c, why in found.reasons.items()
        ]
        if found.accuracy.failed:
            notes.append(f"{name} fails on {found.accuracy.failed} pairs, first: {found.accuracy.reason}")
    notes += [f"{change}: {what}" for change, what in CHANGES.items()]
    notes.append(
        f"accuracy and flips: ties count half; {INTERVALS}, of τ by a bootstrap{few_prompts(pairs['prompts'])}"
    )
    return "\n".join(parts) + remarks(notes, screen)


def _share(rate: WinRate) -> str:
    return f"{percent(rate.low)} to {percent(rate.high)}"


def _range(agreed: Agreement) -> str:
    return f"{agreed.low:.3f} to {agreed.high:.3f}"


def _cells(found: ScorerAudit, change: str) -> list[str]:
    s = found.sensitivity[change]
    if s is None:
        return ["0", "–", "–", ""]
    shown = ["–", ""] if s.flipped is None else [percent(s.flipped.rate), _share(s.flipped)]
    return [str(s.images), f"{s.shift:.3f}", *shown]


def figure(report: Report) -> Figure:
    """Accuracy, agreement and sensitivity side by side."""
    return audit_figure(
        {name: found.accuracy.rates["half"] for name, found in report.scorers.items()},
        report.agreement,
        {name: found.sensitivity for name, found in report.scorers.items()},
    )
