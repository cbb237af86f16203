"""Methods on the exact reward-KL frontier, as a picture: one panel a problem, around its β."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignbench.analysis.frontier import Panel, Pooled, Standing
from alignbench.analysis.labels import Box, place, written_out
from alignbench.analysis.load import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

KINDS = {"the model": ("#222222", "s"), "trains": ("#1f5fa8", "o"), "at test time": ("#c2570c", "D")}
WIDE = 2.6  # a panel ends at this many times the optimum's divergence
SIZE = (5.6, 4.2)  # of a panel, in inches
FONT = 8.5
TICKS_APART = 0.07  # of the vertical axis
LETTERS = 80  # of the small print that a panel is wide
UNBROKEN = str.maketrans(" ", "\N{NO-BREAK SPACE}")


def drawn(found: Sequence[Panel]) -> list[Panel]:
    """What the figure shows of these panels: `base`, and the methods that optimised the panel's own reward.

    Of several evaluations of a problem, which differ in their noise, the one with most methods. Panels whose reward
    nobody optimised are left out where there are others.
    """
    best: dict[tuple[str, str], Panel] = {}
    for panel in found:
        own = [s for s in panel.standings if "kl" in s.metrics and (_is_base(s) or s.method in panel.aimed)]
        name = (panel.problem, panel.scorer)
        if name not in best or len(own) > len(best[name].standings):
            best[name] = replace(panel, standings=own)
    aimed = [panel for panel in best.values() if not all(map(_is_base, panel.standings))]
    return aimed or list(best.values())


def frontier_figure(found: Sequence[Panel]) -> Figure:
    """One panel per problem and reward: the best reward at every divergence, and where methods stand.

    Of an algorithm's settings the one with the smallest regret has a name; the others are small and pale. The vertical
    axis is stretched about the optimum, which is where methods crowd.
    """
    from matplotlib.figure import Figure

    panels = [_Drawing(panel) for panel in drawn(found)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(SIZE[0] * columns, SIZE[1] * rows), dpi=150, layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        panel.draw(axis)
    figure.draw_without_rendering()  # fixes where the axes are, and with that where names have room
    for axis, panel in zip(axes, panels, strict=False):
        panel.name(axis, 72 / figure.dpi)
    return figure


@dataclass(frozen=True)
class _Drawing:
    """One panel."""

    panel: Panel

    @property
    def inner(self) -> list[Standing]:
        """The methods that are not too far from the model to be drawn."""
        return [s for s in self.panel.standings if _kl(s) <= self.widest]

    @property
    def named(self) -> list[Standing]:
        """Of each algorithm the setting with the smallest regret, where that is drawn."""

        def gained(standing: Standing) -> float:
            return _reward(standing) - self.panel.target.beta * _kl(standing)

        algorithms = dict.fromkeys(s.algorithm for s in self.panel.standings)
        nearest = [max((s for s in self.panel.standings if s.algorithm == a), key=gained) for a in algorithms]
        return [s for s in nearest if s in self.inner]

    @property
    def widest(self) -> float:
        return WIDE * max(self.panel.target.kl, 0.1)

    def draw(self, axis: Axes) -> None:
        target, named = self.panel.target, self.named
        _, best, spent = np.array(target.points).T
        rewards = [target.reward, best[spent <= self.widest].max(), *map(_reward, self.inner)]
        scale = _Scale(target.reward, float(np.median([abs(_reward(s) - target.reward) for s in named] or [1.0])) or 1)
        axis.set_yscale("function", functions=(scale.forward, scale.back))
        axis.plot(spent, best, color="black", linewidth=1.2, label="the best there is")
        axis.plot(
            target.kl, target.reward, "*", color="black", markersize=11, linestyle="",
            label=f"the best at β = {target.beta:g}",
        )  # fmt: skip
        for standing in self.inner:
            _mark(axis, standing, standing in named)
        for kind in (kind for kind in KINDS if kind in map(_kind, named)):
            colour, marker = KINDS[kind]
            axis.plot([], [], color=colour, marker=marker, markersize=5, linestyle="", label=kind)
        low, high = scale.around(min(rewards), max(rewards))
        axis.set_ylim(low, high)
        axis.set_yticks(*scale.ticks(low, high))
        axis.minorticks_off()
        axis.set_xlim(-0.05 * self.widest, self.widest)
        axis.set_title(written_out(f"{self.panel.problem}, reward {self.panel.scorer}"), fontsize="medium")
        axis.set_xlabel("KL from the model (nats)")
        axis.set_ylabel("mean reward")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=FONT - 1, loc="lower right", framealpha=0.9)

    def name(self, axis: Axes, unit: float) -> None:
        """Names beside the points, and what lies outside; `unit` points make a pixel."""
        named, taken = self.named, [_box(axis.get_legend(), unit)]
        if beyond := [s for s in self.panel.standings if s not in self.inner]:
            places = (f"{self.short(s)} at {_kl(s):.{0 if _kl(s) > 99 else 1}f}".translate(UNBROKEN) for s in beyond)
            where: dict[str, Any] = {"xycoords": "axes fraction", "va": "top", "fontsize": 7}
            taken.append(_box(_write(axis, f"further out: {', '.join(places)}", (4, -3), (0, 1), **where), unit))
        if not named:
            return

        def placed(points: Sequence[tuple[float, float]]) -> Array:
            return np.array(axis.transData.transform(np.array(points)) * unit, dtype=float)

        dots = placed([(_kl(s), _reward(s)) for s in self.inner])
        lines = [placed([(kl, reward) for _, reward, kl in self.panel.target.points]), *map(placed, _bars(self.inner))]
        sizes = [_size(axis, self.short(s), unit) for s in named]
        spots = placed([(_kl(s), _reward(s)) for s in named])
        frame = _box(axis, unit).wider(-2)
        found = place(spots, sizes, frame, np.vstack([dots, *map(_along, lines)]), taken)
        for standing, spot, box in zip(named, spots, found, strict=True):
            colour, _ = KINDS[_kind(standing)]
            away = np.hypot(*(np.clip(spot, box[:2], box[2:]) - spot))
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 0, "shrinkB": 3}
            offset = (box.left - float(spot[0]), box.bottom - float(spot[1]))
            style: dict[str, Any] = {"color": colour, "va": "bottom", "arrowprops": leader if away > 7 else None}
            _write(axis, self.short(standing), offset, (_kl(standing), _reward(standing)), **style)

    def short(self, standing: Standing) -> str:
        """An algorithm, and what first sets this setting of it apart where there are several."""
        several = sum(s.algorithm == standing.algorithm for s in self.panel.standings) > 1
        words = standing.method.split()[1:] if several and not _is_base(standing) else []
        own = next((word for word in words if not word.startswith(("kind=", "reward="))), "")
        return f"{standing.algorithm} {own}".strip()


@dataclass(frozen=True)
class _Scale:
    """A vertical axis that is stretched about a centre: linear within a unit of it, logarithmic beyond."""

    centre: float
    unit: float

    def forward(self, y: Any) -> Any:
        return np.arcsinh((np.asarray(y) - self.centre) / self.unit)

    def back(self, z: Any) -> Any:
        return self.centre + self.unit * np.sinh(z)

    def around(self, low: float, high: float) -> tuple[float, float]:
        """Limits with some room beyond these two."""
        below, above = self.forward(low), self.forward(high)
        room = 0.07 * (above - below) + 1e-9
        return float(self.back(below - room)), float(self.back(above + room))

    def ticks(self, low: float, high: float) -> tuple[list[float], list[str]]:
        """Round numbers from the centre outwards, the roundest first, as far as they have room."""
        apart = TICKS_APART * (self.forward(high) - self.forward(low))
        chosen: list[float] = []
        for digits in ((1, 2, 5), (3,), (1.5, 2.5, 4)):
            sizes = [digit * 10.0**power for power in range(-3, 6) for digit in digits]
            numbers = [y for y in (0.0, *sizes, *(-size for size in sizes)) if low <= y <= high]
            for y in sorted(numbers, key=lambda y: abs(self.forward(y))):
                if all(abs(self.forward(y) - self.forward(other)) >= apart for other in chosen):
                    chosen.append(y)
        return sorted(chosen), [f"{y:g}" for y in sorted(chosen)]


def _is_base(standing: Standing) -> bool:
    return standing.algorithm == "base"


def _kind(standing: Standing) -> str:
    if _is_base(standing):
        return "the model"
    return "trains" if standing.alignment_nfe > 0 else "at test time"


def _kl(standing: Standing) -> float:
    return standing.metrics["kl"].value


def _reward(standing: Standing) -> float:
    return standing.metrics["reward"].value


def _mark(axis: Axes, standing: Standing, named: bool) -> None:
    """A method with its intervals."""
    colour, marker = KINDS[_kind(standing)]
    axis.errorbar(
        _kl(standing), _reward(standing), xerr=_arms(standing.metrics["kl"]), yerr=_arms(standing.metrics["reward"]),
        color=colour, marker=marker, markersize=5 if named else 3, alpha=1 if named else 0.35, elinewidth=0.7,
        linestyle="", zorder=3 if named else 2,
    )  # fmt: skip


def _write(axis: Axes, text: str, offset: tuple[float, float], at: tuple[float, float], **how: Any) -> Annotation:
    """A text at an offset in points, for which nothing makes room."""
    usual: dict[str, Any] = {"color": "#444444", "textcoords": "offset points", "fontsize": FONT}
    lines = textwrap.fill(written_out(text), LETTERS).replace("\N{NO-BREAK SPACE}", " ")
    written = axis.annotate(lines, at, offset, **(usual | how))
    written.set_in_layout(False)
    return written


def _size(axis: Axes, text: str, unit: float) -> tuple[float, float]:
    """Width and height of a text in points."""
    trial = _write(axis, text, (0, 0), (0.5, 0.5), xycoords="axes fraction")
    box = _box(trial, unit)
    trial.remove()
    return box.right - box.left, box.top - box.bottom


def _box(artist: Any, unit: float) -> Box:
    extent = artist.get_window_extent()
    return Box(*(float(edge * unit) for edge in (extent.x0, extent.y0, extent.x1, extent.y1)))


def _along(corners: Array) -> Array:
    """Points all along a line, so close that no label slips between them."""
    parts = [
        start + (end - start) * np.linspace(0, 1, 2 + int(min(np.hypot(*(end - start)), 2000) // 4))[:, None]
        for start, end in itertools.pairwise(corners)
    ]
    return np.vstack([corners, *parts])


def _bars(standings: Sequence[Standing]) -> list[list[tuple[float, float]]]:
    """Both ends of every interval that is drawn."""
    ends: list[list[tuple[float, float]]] = []
    for standing in standings:
        kl, reward = standing.metrics["kl"], standing.metrics["reward"]
        if kl.low is not None and kl.high is not None:
            ends.append([(kl.low, reward.value), (kl.high, reward.value)])
        if reward.low is not None and reward.high is not None:
            ends.append([(kl.value, reward.low), (kl.value, reward.high)])
    return ends


def _arms(metric: Pooled) -> list[list[float]] | None:
    """The interval as matplotlib wants it."""
    if metric.low is None or metric.high is None:
        return None
    return [[max(0.0, metric.value - metric.low)], [max(0.0, metric.high - metric.value)]]
