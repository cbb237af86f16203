"""Reward curves from result files, and audits of scorers, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignbench.analysis.agreement import Agreement, Sensitivity, matrix
from alignbench.analysis.comparison import Comparison
from alignbench.analysis.labels import written_out
from alignbench.analysis.load import Array, Method, load, methods_of
from alignbench.analysis.statistics import WinRate
from alignbench.choices import CurveAxis
from alignbench.errors import InputError, UnknownName
from alignbench.record.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS = {
    "rounds": "training rounds",
    "denoiser": "denoiser evaluations, forward and backward",
    "seconds": "seconds of training",
}
STYLES = ("-", "--", ":", "-.")  # one after the other as the ten colours run out


@dataclass(frozen=True)
class Curve:
    """A scorer on held-out prompts while a method trains: mean and range over training seeds."""

    method: str
    scorer: str
    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


def curves(paths: Sequence[Path], against: CurveAxis = "rounds") -> list[Curve]:
    """The held-out curves of all trained methods in these files, by method and scorer.

    Where the files hold several evaluations, a method's name says which.
    """
    found = []
    loaded = load(paths)
    for fingerprint, runs in loaded.groups.items():
        for method in methods_of(runs):
            name = method.label if len(loaded.groups) == 1 else f"{method.label}, evaluation {fingerprint}"
            found += curves_of(method, name, against)
    return found


def curves_of(method: Method, name: str, against: CurveAxis = "rounds") -> list[Curve]:
    """The held-out curves of one method, under this name; none where it was not looked at while it trained."""
    points = [_points(run.result, against) for run in method.runs]
    shared = min((len(p) for p in points), default=0)
    found = []
    for scorer in method.first.scorers if shared > 1 else ():
        if not all(scorer in p["held_out"] for ps in points for p in ps[:shared]):
            continue
        values = np.array([[p["held_out"][scorer] for p in ps[:shared]] for ps in points], dtype=float)
        x = np.array([[p["x"] for p in ps[:shared]] for ps in points]).mean(0)
        found.append(Curve(name, scorer, x, values.mean(0), values.min(0), values.max(0), len(points)))
    return found


def _points(result: Result, against: CurveAxis) -> list[dict[str, Any]]:
    probed = [line for line in result.curve if "held_out" in line]

    def place(line: dict[str, Any]) -> float:
        if against == "rounds":
            return float(line["round"])
        if against == "seconds":
            return float(line["seconds"])
        return float(line["denoiser_forward"] + line["denoiser_backward"])

    return [{"x": place(line), "held_out": line["held_out"]} for line in probed]


def reward_curves(paths: Sequence[Path], against: CurveAxis = "rounds", scorers: Sequence[str] = ()) -> Figure:
    """One panel per scorer, one line per method, a band over its training seeds.

    A method has the same colour in every panel. Raises InputError without curves and for a scorer that has none.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = curves(paths, against)
    if not found:
        raise InputError("none of these files holds a training curve with held-out scores.")
    known = list(dict.fromkeys(curve.scorer for curve in found))
    for name in scorers:
        if name not in known:
            raise UnknownName("scorer in these curves", name, known)
    names = [name for name in known if not scorers or name in scorers]
    drawn = [curve for curve in found if curve.scorer in names]
    methods = list(dict.fromkeys(curve.method for curve in drawn))
    lines = {}
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(axes, names, strict=True):
        for curve in (c for c in drawn if c.scorer == name):
            number = methods.index(curve.method)
            colour, style = f"C{number % 10}", STYLES[number // 10 % len(STYLES)]
            seeds = f" ({curve.seeds} seeds and their range)" if curve.seeds > 1 else " (one run)"
            (lines[written_out(curve.method) + seeds],) = panel.plot(
                curve.x, curve.mean, color=colour, linestyle=style, marker="o", markersize=3
            )
            panel.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        panel.set_title(written_out(name))
        panel.set_xlabel(AXIS[against])
        if against == "rounds":
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("mean on held-out prompts")
        panel.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), fontsize="small", loc="outside lower center", ncols=min(3, len(lines)))
    return figure


def win_rates(comparison: Comparison, scorers: Sequence[str] = ()) -> Figure:
    """One panel per scorer: every method's win rate against the baseline with its interval, blue or red where it is
    marked as better or worse in the table.

    Raises InputError where no evaluation has a baseline, or several have, and for a scorer that nobody has.
    """
    from matplotlib.figure import Figure

    groups = [group for group in comparison.groups if group.versus]
    if len(groups) != 1:
        raise InputError(f"win rates are drawn of one evaluation with a baseline; there are {len(groups)}.")
    (group,) = groups
    for name in scorers:
        if name not in group.scorers:
            raise UnknownName("scorer in this comparison", name, group.scorers)
    names = [name for name in group.scorers if not scorers or name in scorers]
    methods = [method for method in group.methods if method != group.baseline]
    place = {method: -i for i, method in enumerate(methods)}
    figure = Figure(figsize=(2 + 3.2 * len(names), 1.2 + 0.24 * len(methods)), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        axis.axvline(50, color="grey", linewidth=0.8)
        for item in (v for v in group.versus if v.scorer == name):
            rate = item.rate
            arms = [[100 * (rate.rate - rate.low)], [100 * (rate.high - rate.rate)]]
            colour = {"better": "C0", "worse": "C3", None: "grey"}[item.rate_test.mark]
            axis.errorbar(100 * rate.rate, place[item.method], xerr=arms, fmt="o", color=colour, markersize=4)
        axis.set_title(written_out(name))
        axis.set_xlabel(f"wins against {written_out(str(group.baseline))} (% of pairs)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks([place[method] for method in methods], [written_out(method) for method in methods])
    return figure


def audit_figure(
    accuracy: Mapping[str, WinRate | None],
    agreement: Mapping[tuple[str, str], Agreement],
    sensitivity: Mapping[str, Mapping[str, Sensitivity | None]],
) -> Figure:
    """Three panels: accuracy of each scorer with its interval, τ_b of every two judges, and the share of decisions that
    turn under each change. A scorer has the same colour in the first and the last."""
    from matplotlib.figure import Figure

    scorers = list(accuracy)
    figure = Figure(figsize=(13, 1.6 + 0.5 * max(4, len(scorers))), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for place, name in enumerate(scorers):
        if (rate := accuracy[name]) is not None:
            arms = [[100 * (rate.rate - rate.low)], [100 * (rate.high - rate.rate)]]
            first.errorbar(100 * rate.rate, place, xerr=arms, fmt="o", color=f"C{place % 10}", capsize=3)
    first.axvline(50, color="black", linewidth=0.8, linestyle=":")
    first.set_yticks(range(len(scorers)), [written_out(name) for name in scorers])
    first.set_ylim(len(scorers) - 0.5, -0.5)
    first.set_xlabel("agreement with the labels (%)")
    first.grid(alpha=0.3)
    judges = list(dict.fromkeys(name for pair in agreement for name in pair))
    values = matrix(judges, agreement)
    second.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not np.isnan(value):
                colour = "white" if abs(value) > 0.6 else "black"
                second.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    second.set_xticks(range(len(judges)), [written_out(name) for name in judges], rotation=45, ha="right")
    second.set_yticks(range(len(judges)), [written_out(name) for name in judges])
    second.set_title("Kendall's τ within prompts", fontsize="medium")
    changes = list(dict.fromkeys(change for found in sensitivity.values() for change in found))
    width = 0.8 / max(1, len(scorers))
    for place, name in enumerate(scorers):
        for k, change in enumerate(changes):
            found = sensitivity[name][change]
            if found is not None and found.flipped is not None:
                flips, y = found.flipped, k + (place + 0.5) * width - 0.4
                third.barh(y, 100 * flips.rate, width, color=f"C{place % 10}", alpha=0.8)
                third.plot([100 * flips.low, 100 * flips.high], [y, y], color="black", linewidth=1)
    third.set_yticks(range(len(changes)), changes)
    third.set_ylim(len(changes) - 0.5, -0.5)
    third.set_xlabel("decisions that turn (%)")
    third.grid(alpha=0.3)
    return figure
